"""Topic `ocr`: what the marked text says; another text is not marked."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageFilter

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import draw_color, mark
from hf_diorama.worlds.scenes.lettering import draw_word, text_coverage
from hf_diorama.worlds.scenes.palette import RGB, draw_background_color
from hf_diorama.worlds.scenes.picture import Picture
from hf_diorama.worlds.scenes.surfaces import draw_background

LENGTHS = (2, 10)
"""Fewest and most characters."""


def render_ocr(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; `texts[0]` is marked (red box). Both texts stand on plates of their own colour."""
    draws = key.draws("ocr")
    words = [draw_word(draws, draws.integer(LENGTHS[0], LENGTHS[1] + 1)) for _ in range(2)]
    words = words[: 1 + draws.chance(0.7)]
    scene_type, background = draw_background(
        image_size, key.draws("ocr background"), [draw_color(draws)], photos, photo_ratio
    )
    picture = Picture(background)
    first_on_top = draws.chance(0.5)
    for label, word in enumerate(words, start=1):
        upper = (label == 1) == first_on_top
        _write(picture, draws, word, (0.04, 0.47) if upper else (0.53, 0.96), label)
    blur = draws.uniform(0, image_size / 200) if draws.chance(0.5) else 0.0
    if blur:
        picture.image = picture.image.filter(ImageFilter.GaussianBlur(blur))
    texts: list[dict[str, Any]] = [
        {"string": word, "bbox": picture.bbox(label)} for label, word in enumerate(words, start=1)
    ]
    if boxes:
        mark(picture, texts[0]["bbox"])
    absent = dict.fromkeys(("noise_sigma", "jpeg_quality", "exposure"))
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "texts": texts,
        "quality": [{**absent, "blur_sigma": blur}],
    }


def _write(picture: Picture, draws: Draws, word: str, band: tuple[float, float], label: int) -> None:
    """Writes a word on a plate inside a horizontal band of the picture."""
    size, margin = picture.size, max(3, picture.size // 24)
    room = round((band[1] - band[0]) * size) - 2 * margin
    degrees = draws.uniform(-10, 10)
    height = round(draws.uniform(0.14, 0.26) * size)
    coverage = text_coverage(word, height, degrees, max_width=size - 4 * margin)
    while coverage.height > room and height > 5:
        height -= 1
        coverage = text_coverage(word, height, degrees, max_width=size - 4 * margin)
    # On a small picture a long word may be wider than its room; it then begins further left.
    left = 2 * margin + int(draws.uniform(0, size - 4 * margin - coverage.width + 1))
    top = round(band[0] * size) + margin + draws.integer(0, max(room - coverage.height, 0) + 1)
    ink: RGB = draw_color(draws)
    plate = draw_background_color(draws, [ink], tries=12)
    plate_size = coverage.width + 2 * margin, coverage.height + 2 * margin
    picture.paste(plate, Image.new("L", plate_size, 255), (left - margin, top - margin))
    picture.paste(ink, coverage, (left, top), label)
