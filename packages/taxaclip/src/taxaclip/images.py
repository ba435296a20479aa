"""Images from paths, folders, pictures and rows of data sets, in batches: a bad one is named and stops no other."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

DECODERS = 4  # threads

ImageInput = str | Path | Image.Image | bytes | Mapping[str, Any]
Names = list[tuple[str, str | None]]


def find_images(path: Path) -> Iterator[Path]:
    """Yields the images in a folder and its folders, sorted by path; anything else as it is.

    Args:
        path (`Path`): an image or a folder.
    """
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    else:
        yield path


def read_image(image: ImageInput) -> Image.Image:
    """Returns the image upright and in RGB; 16 bits a pixel become 8.

    Args:
        image (path, `PIL.Image.Image`, `bytes`, or mapping): the image, its file's bytes, what `datasets`
            stores, `{"bytes": ..., "path": ...}`, or a row of a data set with such a thing in its column `image`.

    Raises:
        OSError: if it cannot be read, is too large to be trusted, or has pixels without a known range.
        TypeError: if it is something else.
    """
    if isinstance(image, Mapping):
        inner = image.get("image", image.get("bytes")) or image.get("path")
        if inner is None:
            raise TypeError(f"Expected an image in the column 'image', 'bytes' or 'path', got {sorted(image)}.")
        return read_image(inner)
    if not isinstance(image, (str, Path, bytes, Image.Image)):
        raise TypeError(f"Expected a path, bytes, or a PIL image, got {type(image).__name__}.")
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(ImageOps.exif_transpose(image))
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:  # what PIL raises beside OSError
        raise OSError(str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; PIL would cut 16 bits off at 255."""
    if image.mode[0] not in "IF":
        return image.convert("RGB")
    low, high = cast("tuple[float, float]", image.getextrema())
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise OSError(f"its pixels, from {low} to {high}, have no known range; store 8 or 16 bits a pixel")
    values = np.asarray(image)
    return Image.fromarray((values if image.mode == "I" and high <= 0xFF else values >> 8).astype(np.uint8)).convert(
        "RGB"
    )


def check_several(images: Iterable[ImageInput]) -> None:
    """Raises for one image, path or row where several are expected: a string would be read letter by letter.

    Args:
        images (iterable): the images, as of `read_batches`.

    Raises:
        TypeError: for a single one.
    """
    if isinstance(images, (str, Path, bytes, Image.Image, Mapping)):
        raise TypeError(f"Expected a list of images or folders, got one {type(images).__name__}; write [image].")


def name_image(image: ImageInput) -> str:
    """Returns the path of an image, `""` for one that has none.

    Args:
        image: as of `read_image`.
    """
    if isinstance(image, Mapping):
        return str(image.get("file_name") or image.get("path") or name_image(image.get("image", b"")))
    if isinstance(image, (str, Path)):
        return str(image)
    return str(getattr(image, "filename", ""))


def read_batches(images: Iterable[ImageInput], batch_size: int) -> Iterator[tuple[Names, list[Image.Image]]]:
    """Yields (name, error or None) of so many images in their order, and the pictures of those that can be read.

    Files are decoded in threads, a batch ahead of the one that is yielded.

    Args:
        images (iterable): the images, as of `read_image`, and folders of images, which stand for what is in them.
        batch_size (`int`): images at a time.

    Raises:
        ValueError: for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    pool = ThreadPoolExecutor(DECODERS, "taxaclip-decode")
    pending: deque[tuple[str, Callable[[], Image.Image]]] = deque()
    try:
        for image in _unfold(images):
            # Pictures are read where they are needed: one may come twice, and PIL reads none in two threads at once.
            is_file = isinstance(image, (str, Path, bytes))
            read = pool.submit(read_image, image).result if is_file else partial(read_image, image)
            pending.append((name_image(image), read))
            if len(pending) == 2 * batch_size:
                yield _collect(pending, batch_size)
        while pending:
            yield _collect(pending, batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(pending: deque[tuple[str, Callable[[], Image.Image]]], count: int) -> tuple[Names, list[Image.Image]]:
    names: Names = []
    pictures: list[Image.Image] = []
    while pending and len(names) < count:
        name, read = pending.popleft()
        try:
            pictures.append(read())
            names.append((name, None))
        except OSError as error:
            names.append((name, f"cannot be read as an image: {error}"))
    return names, pictures


def _unfold(images: Iterable[ImageInput]) -> Iterator[ImageInput]:
    for image in images:
        if isinstance(image, (str, Path)) and Path(image).is_dir():
            yield from find_images(Path(image))
        else:
            yield image


def embed_images(model: CLIPModel, processor: CLIPProcessor, images: list[Image.Image]) -> torch.Tensor:
    """Returns the normalised embeddings of a batch of images.

    Args:
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        images (list of `PIL.Image.Image`): RGB images, as many as fit in memory; none give no rows.

    Returns:
        `torch.Tensor` of shape `(num_images, dim)`, float32, on the CPU.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    >>> from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    >>> from taxaclip import embed_images
    >>> tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=2)).eval()
    >>> embed_images(model, CLIPProcessor(CLIPImageProcessorPil(), CLIPTokenizer()), [Image.new("RGB", (9, 9))]).shape
    torch.Size([1, 2])

    ```
    """
    if not images:
        return torch.zeros(0, model.visual_projection.out_features)
    return embed_pixels(model, processor.image_processor(images, return_tensors="pt")["pixel_values"])


@torch.no_grad()
def embed_pixels(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the normalised image embeddings, (num_images, dim), float32, on the CPU.

    Args:
        model (`CLIPModel`): any CLIP.
        pixels (`torch.Tensor` of shape `(num_images, 3, height, width)`): what the image processor made of the images.
    """
    pooled = model.vision_model(pixels.to(model.device, model.dtype)).pooler_output
    return torch.nn.functional.normalize(model.visual_projection(pooled).float(), dim=-1).cpu()
