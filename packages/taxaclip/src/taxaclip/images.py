"""Images from paths and pictures, in batches: a bad one is named and does not stop the others."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import CLIPModel, CLIPProcessor

ImageInput = str | Path | Image.Image
Names = list[tuple[str, str | None]]


def read_image(image: ImageInput) -> Image.Image:
    """Returns the image upright and in RGB.

    Args:
        image (path or `PIL.Image.Image`): the image.

    Raises:
        OSError: if it cannot be read.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    with Image.open(image) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def read_batches(images: Iterable[ImageInput], batch_size: int) -> Iterator[tuple[Names, list[Image.Image]]]:
    """Yields (name, error or None) of so many images in their order, and the pictures of those that can be read.

    Args:
        images (iterable of paths or `PIL.Image.Image`): the images.
        batch_size (`int`): images at a time.

    Raises:
        ValueError: for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    names: Names = []
    pictures: list[Image.Image] = []
    for image in images:
        name = str(getattr(image, "filename", "")) if isinstance(image, Image.Image) else str(image)
        try:
            pictures.append(read_image(image))
            names.append((name, None))
        except OSError as error:
            names.append((name, f"cannot be read as an image: {error}"))
        if len(names) == batch_size:
            yield names, pictures
            names, pictures = [], []
    if names:
        yield names, pictures


def embed_images(model: CLIPModel, processor: CLIPProcessor, images: list[Image.Image]) -> torch.Tensor:
    """Returns the normalised image embeddings, (num_images, dim), float32, on the CPU.

    Args:
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        images (list of `PIL.Image.Image`): RGB images.
    """
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
