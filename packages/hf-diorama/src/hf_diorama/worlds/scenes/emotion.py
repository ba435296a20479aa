"""Topic `emotion`: which expression the marked face shows."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.faces import EMOTIONS, build_face, draw_expression, draw_identity
from hf_diorama.worlds.scenes.glyphs import draw_color, mark, place_discs
from hf_diorama.worlds.scenes.picture import Picture
from hf_diorama.worlds.scenes.surfaces import draw_background


def render_emotion(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; the first of one or two faces is marked, their emotions differ."""
    draws = key.draws("emotion")
    emotions = draws.sample(tuple(EMOTIONS), draws.integer(1, 3))
    radii = [draws.uniform(0.3, 0.42)] if len(emotions) == 1 else [draws.uniform(0.2, 0.24) for _ in emotions]
    discs = place_discs(draws, radii, gap=0.05)
    decoy = draw_color(draws)
    scene_type, background = draw_background(image_size, key.draws("emotion background"), [decoy], photos, photo_ratio)
    picture = Picture(background)
    faces: list[dict[str, Any]] = []
    for label, (emotion, (x, y, radius)) in enumerate(zip(emotions, discs, strict=True), start=1):
        expression = draw_expression(draws, emotion)
        layers = build_face(draw_identity(draws), expression)
        picture.paint(
            layers, (x * image_size, y * image_size), radius * image_size, draws.uniform(-12, 12), label=label
        )
        faces.append(
            {"emotion": emotion, "smile": expression.smile, "brow": expression.brow, "bbox": picture.bbox(label)}
        )
    if boxes:
        mark(picture, faces[0]["bbox"])
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "faces": faces,
    }
