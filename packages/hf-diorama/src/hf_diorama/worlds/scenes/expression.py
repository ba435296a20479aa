"""Topic `expression`: one face and how strongly it shows its emotion."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.faces import EMOTIONS, Expression, build_face, draw_identity
from hf_diorama.worlds.scenes.picture import Picture
from hf_diorama.worlds.scenes.surfaces import draw_background

GRADED = ("happy", "sad", "angry", "surprised")
"""Emotions whose strength is drawn."""
INTENSITY = (0.1, 1.0)


def render_expression(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `levels` holds `intensity`, linear in each muscle: 0 is the neutral face, 1 a whole emotion."""
    draws = key.draws("expression")
    emotion, intensity = draws.choice(GRADED), draws.uniform(*INTENSITY)
    neutral, whole = EMOTIONS["neutral"], EMOTIONS[emotion]
    expression = Expression(*(a + intensity * (b - a) for a, b in zip(neutral, whole, strict=True)))
    radius = draws.uniform(0.3, 0.44)
    x, y = (draws.uniform(radius, 1 - radius) * image_size for _ in range(2))
    scene_type, background = draw_background(
        image_size, key.draws("expression background"), [(128, 128, 128)], photos, photo_ratio
    )
    picture = Picture(background)
    layers = build_face(draw_identity(draws), expression)
    picture.paint(layers, (x, y), radius * image_size, draws.uniform(-10, 10), label=1)
    face = {"emotion": emotion, "smile": expression.smile, "brow": expression.brow, "bbox": picture.bbox(1)}
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "faces": [face],
        "levels": [{"name": "intensity", "value": intensity}],
    }
