"""From images of any kind to maps, batch by batch."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers.image_utils import load_image
from transformers.utils.logging import tqdm

from finer_cam.cam import FinerCAM
from finer_cam.output import FinerCAMOutput
from finer_cam.zero_shot import ZeroShotFinerCAM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The map of one image.

    Args:
        index (`int`): which of the images given to [`explain`], from 0.
        image (`PIL.Image.Image`): the image.
        output ([`FinerCAMOutput`]): of this image alone.
        target_name (`str`): name of the explained class, or the text.
        reference_names (`tuple[str, ...]`): of the classes it is compared with.

    Example:

    ```python
    >>> from finer_cam import Explanation
    >>> sorted(Explanation.__dataclass_fields__)
    ['image', 'index', 'output', 'reference_names', 'target_name']

    ```
    """

    index: int
    image: Image.Image
    output: FinerCAMOutput
    target_name: str
    reference_names: tuple[str, ...]

    def overlay(self, colormap: str = "inferno", alpha: float = 0.5) -> Image.Image:
        """Returns the image under its map, see [`FinerCAMOutput.overlay`]."""
        return self.output.overlay([self.image], colormap, alpha)[0]


def explain(
    model: nn.Module,
    processor: Any,
    images: Any,
    *,
    target: Any = None,
    against: Any = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | None = None,
    image_column: str = "image",
    on_error: Literal["raise", "skip"] = "raise",
    **options: Any,
) -> Iterator[Explanation]:
    """Yields a map for each image, reading and computing one batch at a time.

    Args:
        model (`torch.nn.Module`): an image classifier; or an image-text model such as CLIP, where classes are texts.
        processor: its (image) processor.
        images:
            A `PIL.Image.Image`, a path or URL, or any iterable of these; or rows with a column of images, such as a
            `datasets.Dataset`. An iterator is read as maps are asked for.
        target (*optional*):
            Class to explain, id or name, or a text for image-text models; or a list with one for each image. The
            predicted class if not given.
        against (*optional*): what to compare it with: `references` of [`FinerCAM`], or texts.
        batch_size (`int`, defaults to 16): images in one forward.
        device (*optional*): where to compute; the model is moved there and stays. Its own device if not given.
        dtype (`torch.dtype`, *optional*): runs the model under autocast to it; its weights stay as they are.
        progress (`bool`, *optional*): whether to show a bar; in a terminal if not given.
        image_column (`str`, defaults to `"image"`): column of images, where rows are given.
        on_error (`"raise"` or `"skip"`, defaults to `"raise"`): what to do with an image that cannot be read; each
            skipped one is logged with its index.
        **options: those of [`FinerCAM`], such as `method` and `gamma`.

    Returns:
        `Iterator[Explanation]`, in the order of the images

    Raises:
        ValueError: if an option is none of the choices, or an image cannot be read.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
    >>> from finer_cam import explain
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...                    image_size=32, patch_size=8, num_labels=4, id2label=dict(enumerate("abcd")))
    >>> model = ViTForImageClassification(config)
    >>> processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    >>> photo = Image.new("RGB", (60, 40), "teal")
    >>> for found in explain(model, processor, [photo], target="b", against=["a", "c"]):
    ...     print(found.target_name, found.reference_names, found.overlay().size)
    b ('a', 'c') (60, 40)

    ```
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number from 1, got {batch_size!r}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}.")
    is_single = isinstance(images, (str, Path, Image.Image))
    source = [images] if is_single else images
    if not isinstance(source, Iterable):
        raise ValueError(f"`images` must be images, paths or rows, got {type(images).__name__}.")
    count = len(source) if isinstance(source, Sized) else None
    has_own = isinstance(target, (list, tuple, torch.Tensor)) and not is_single
    if has_own and count is not None and len(target) != count:
        raise ValueError(f"`target` must be one class, or one for each of the {count} images, got {len(target)}.")
    if device is not None:
        model.to(device)
    explainer = _Explainer(model, processor, against, dtype, options)
    read = _read(source, image_column, on_error)
    rows = ((index, image, target[index] if has_own else target) for index, image in read)
    disable = None if progress is None else not progress
    return _stream(explainer, rows, batch_size, tqdm(total=count, desc="maps", unit="image", disable=disable))


def _stream(explainer: "_Explainer", rows: Iterator[Any], batch_size: int, bar: Any) -> Iterator[Explanation]:
    with bar:
        while batch := list(islice(rows, batch_size)):
            yield from explainer(batch)
            bar.update(len(batch))


def _read(source: Iterable[Any], column: str, on_error: str) -> Iterator[tuple[int, Image.Image]]:
    """Yields images with their indices."""
    for index, item in enumerate(source):
        try:
            value = item
            if isinstance(item, dict):
                if column not in item:
                    raise ValueError(f"expected a column {column!r}, got {sorted(item)}")
                value = item[column]
            yield index, load_image(str(value) if isinstance(value, Path) else value).convert("RGB")
        except (OSError, ValueError, TypeError) as error:
            if on_error == "raise":
                raise ValueError(
                    f"image {index} cannot be read: {error}; mend it, or skip such images with `on_error='skip'`."
                ) from error
            logger.warning("Skipped image %d: %s", index, error)


class _Explainer:
    """One batch of images to their explanations, for a classifier or an image-text model."""

    def __init__(
        self, model: nn.Module, processor: Any, against: Any, dtype: torch.dtype | None, options: dict[str, Any]
    ):
        self.model, self.processor, self.against, self.dtype = model, processor, against, dtype
        self.texts = hasattr(model, "get_text_features")
        if self.texts:
            self.cam: Any = ZeroShotFinerCAM(model, processor, **options)
        else:
            references = {} if against is None else {"references": against}
            self.cam = FinerCAM(model, processor=processor, **references, **options)

    def __call__(self, batch: list[Any]) -> Iterator[Explanation]:
        images, targets = [image for _, image, _ in batch], [target for _, _, target in batch]
        device = next(self.model.parameters()).device
        casting = torch.autocast(device.type, self.dtype) if self.dtype is not None else contextlib.nullcontext()
        with casting:
            outputs = self._texts(images, targets) if self.texts else self._classes(images, targets, device)
        for (index, image, target), output in zip(batch, outputs, strict=True):
            names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
            shown, others = int(output.target[0]), [int(i) for i in output.references[0] if i >= 0]
            if self.texts:
                against = [self.against] if isinstance(self.against, str) else list(self.against or [])
                name, other_names = str(target), tuple(text for text in against if text != target)
            else:
                name, other_names = str(names.get(shown, shown)), tuple(str(names.get(i, i)) for i in others)
            yield Explanation(index=index, image=image, output=output, target_name=name, reference_names=other_names)

    def _classes(self, images: list[Any], targets: list[Any], device: torch.device) -> list[FinerCAMOutput]:
        inputs = self.processor(images=images, return_tensors="pt").to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(next(self.model.parameters()).dtype)
        output = self.cam(**inputs, target=None if targets[0] is None else targets)
        return [output.select(row) for row in range(len(images))]

    def _texts(self, images: list[Any], targets: list[Any]) -> list[FinerCAMOutput]:
        if any(not isinstance(target, str) for target in targets):
            raise ValueError(
                f"`target` must be texts, one or one for each image, for CLIP-like models, got {targets!r}."
            )
        if len(set(targets)) == 1:
            output = self.cam(images, target=targets[0], against=self.against)
            return [output.select(row) for row in range(len(images))]
        return [
            self.cam([image], target=target, against=self.against)
            for image, target in zip(images, targets, strict=True)
        ]
