"""From images of any kind to maps, batch by batch."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.image_utils import load_image
from transformers.utils.logging import tqdm

from finer_cam import layers
from finer_cam.cam import FinerCAM
from finer_cam.output import FinerCAMOutput
from finer_cam.zero_shot import ZeroShotFinerCAM

logger = logging.getLogger(__name__)
UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)  # SyntaxError: broken PNG


@dataclass(frozen=True, kw_only=True, eq=False)
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
        against (*optional*):
            What to compare it with: `references` of [`FinerCAM`], or a text or several. Lists in a list are those of
            each image.
        batch_size (`int`, defaults to 16): images in one forward.
        device (*optional*): where to compute; the model is moved there and stays. Its own device if not given.
        dtype (`torch.dtype`, *optional*): runs the model under autocast to it; its weights stay as they are.
        progress (`bool`, *optional*): whether to show a bar; in a terminal if not given.
        image_column (`str`, defaults to `"image"`): column of images, where rows are given.
        on_error (`"raise"` or `"skip"`, defaults to `"raise"`):
            What to do with an image that cannot be read; each skipped one is logged with its index. An iterator that
            fails by itself cannot go on, so it is always an error: for a `datasets.IterableDataset` cast the column
            to `datasets.Image(decode=False)`.
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
    source = [images] if isinstance(images, (str, Path, Image.Image)) else images
    _check(source, batch_size, on_error)
    count = len(source) if isinstance(source, Sized) else None
    target = target.tolist() if isinstance(target, Tensor) else target
    get_target = _for_each_image("target", target, count, is_single=not isinstance(target, (list, tuple)))
    get_against = _for_each_image("against", against, count, is_single=not _is_nested(against))
    if device is not None:
        model.to(device)
    kind = _TextExplainer if layers.has_texts(layers.unwrap(model)) else _ClassExplainer
    explainer = kind(model, processor, options)
    tasks = (
        _Task(index, image, get_target(index), get_against(index))
        for index, image in _read(source, image_column, on_error)
    )
    disable = None if progress is None else not progress
    bar = tqdm(total=count, desc="maps", unit="image", disable=disable)
    return _stream(explainer, tasks, batch_size, dtype, bar)


@dataclass(frozen=True)
class _Task:
    """An image, what to explain of it, and what to compare that with."""

    index: int
    image: Image.Image
    target: Any
    against: Any


def _check(source: Any, batch_size: int, on_error: str) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number from 1, got {batch_size!r}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}.")
    if not isinstance(source, Iterable):
        raise ValueError(f"`images` must be images, paths or rows, got {type(source).__name__}.")


def _is_nested(against: Any) -> bool:
    """Whether this has a list for each image."""
    if isinstance(against, Tensor):
        return against.ndim == 2 and not against.is_floating_point()
    return isinstance(against, (list, tuple)) and any(isinstance(one, (list, tuple, Tensor)) for one in against)


def _for_each_image(name: str, value: Any, count: int | None, *, is_single: bool) -> Callable[[int], Any]:
    """Returns what gives the target, or the classes against it, of the image of an index."""
    if is_single:
        return lambda index: value
    values = value.tolist() if isinstance(value, Tensor) else list(value)
    if count is not None and len(values) != count:
        raise ValueError(
            f"`{name}` must be the same for all, or one for each of the {count} images, got {len(values)}."
        )
    if name == "target" and any(not isinstance(one, (int, str)) for one in values):
        raise ValueError(f"`target` must be one class for each image, got {values!r}; call `FinerCAM` for several.")

    def get(index: int) -> Any:
        if index >= len(values):
            raise ValueError(f"`{name}` must have one entry for each image, got {len(values)} and more images.")
        value = values[index].tolist() if isinstance(values[index], Tensor) else values[index]
        return [value] if name == "against" and isinstance(value, (int, str)) else value

    return get


def _stream(
    explainer: "_ClassExplainer | _TextExplainer",
    tasks: Iterator[_Task],
    batch_size: int,
    dtype: torch.dtype | None,
    bar: Any,
) -> Iterator[Explanation]:
    with bar:
        while batch := list(islice(tasks, batch_size)):
            device, _ = layers.find_placement(explainer.model)
            casting = torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
            with casting:
                found = explainer(batch)
            yield from found
            bar.update(len(batch))


def _read(source: Iterable[Any], column: str, on_error: str) -> Iterator[tuple[int, Image.Image]]:
    """Yields images with their indices; what has a length is asked for one row after the other."""
    rows: Any = source if isinstance(source, Sized) and hasattr(source, "__getitem__") else None
    index, items = 0, iter(source if rows is None else range(len(rows)))
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise ValueError(f"image {index} cannot be read: {error}; an iterator that fails cannot go on.") from error
        try:
            image = _open(item if rows is None else rows[item], column)
        except UNREADABLE as error:
            if on_error == "raise":
                raise ValueError(
                    f"image {index} cannot be read: {error}; mend it, or skip such images with `on_error='skip'`."
                ) from error
            logger.warning("Skipped image %d: %s", index, error)
        else:
            yield index, image
        index += 1


def _open(item: Any, column: str) -> Image.Image:
    """Returns the image of a picture, a path, a URL or a row."""
    if isinstance(item, dict):
        if column not in item:
            raise ValueError(f"expected a column {column!r}, got {sorted(item)}")
        item = item[column]
    if isinstance(item, dict) and {"bytes", "path"} <= item.keys():  # datasets.Image(decode=False)
        item = Image.open(io.BytesIO(item["bytes"])) if item["bytes"] is not None else item["path"]
    image: Image.Image = load_image(str(item) if isinstance(item, Path) else item).convert("RGB")
    return image


class _ClassExplainer:
    """Maps of a batch by a classifier."""

    def __init__(self, model: nn.Module, processor: Any, options: dict[str, Any]):
        self.model, self.processor = layers.unwrap(model), processor
        self.cam = FinerCAM(model, processor=processor, **options)
        self.names = layers.find_class_names(self.model)

    def __call__(self, batch: Sequence[_Task]) -> list[Explanation]:
        device, dtype = layers.find_placement(self.model)
        inputs = self.processor(images=[task.image for task in batch], return_tensors="pt").to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        targets, references = [task.target for task in batch], [task.against for task in batch]
        is_shared = all(one is references[0] for one in references)  # also a matrix or a function
        output = self.cam(
            **inputs,
            target=None if targets[0] is None else targets,
            references=references[0] if is_shared else references,
        )
        return [self._conclude(task, output.select(row)) for row, task in enumerate(batch)]

    def _conclude(self, task: _Task, output: FinerCAMOutput) -> Explanation:
        ids = [int(output.target), *(i for i in output.references[0].tolist() if i >= 0)]
        target, *others = (self.names.get(i, str(i)) for i in ids)
        return Explanation(
            index=task.index, image=task.image, output=output, target_name=target, reference_names=tuple(others)
        )


class _TextExplainer:
    """Maps of a batch by an image-text model."""

    def __init__(self, model: nn.Module, processor: Any, options: dict[str, Any]):
        self.model = layers.unwrap(model)
        self.cam = ZeroShotFinerCAM(model, processor, **options)

    def __call__(self, batch: Sequence[_Task]) -> list[Explanation]:
        groups: dict[Any, list[_Task]] = {}
        for task in batch:
            if not isinstance(task.target, str):
                raise ValueError(f"`target` must be a text for models such as CLIP, got {task.target!r}.")
            against = task.against if isinstance(task.against, (str, type(None))) else tuple(task.against)
            groups.setdefault((task.target, against), []).append(task)
        found = [one for (target, against), tasks in groups.items() for one in self._explain(target, against, tasks)]
        return sorted(found, key=lambda one: one.index)

    def _explain(self, target: str, against: Any, tasks: list[_Task]) -> list[Explanation]:
        output = self.cam([task.image for task in tasks], target=target, against=against)
        others = (against,) if isinstance(against, str) else against or ()
        names = tuple(text for text in others if text != target)
        return [
            Explanation(
                index=task.index,
                image=task.image,
                output=output.select(row),
                target_name=target,
                reference_names=names,
            )
            for row, task in enumerate(tasks)
        ]
