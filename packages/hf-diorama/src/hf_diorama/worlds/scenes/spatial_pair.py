"""Topic `spatial_pair`: one thing on the floor at a known distance, as tall on the picture near as far."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.floor import CAMERA, HEIGHTS, build_thing, draw_floor
from hf_diorama.worlds.scenes.palette import COLORS, draw_shade
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry

DISTANCE = (2.2, 22.0)
"""Range in metres, uniform in the logarithm."""
TALLNESS = (0.08, 0.34)
"""Range of the height on the picture, in images, whatever the distance."""


def render_spatial_pair(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; only where the thing stands on the floor tells its `distance`.

    Things come in all heights (`levels` holds `height` in metres), drawn so that apparent size and distance are
    independent. `position` is in metres: to the right of the camera, over the floor, in front. The floor is the scene,
    so `photos` are left out.
    """
    del photos, photo_ratio
    draws = key.draws("spatial_pair")
    kind = draws.choice(tuple(HEIGHTS))
    color = draw_shade(draws, draws.choice(tuple(COLORS)))
    distance = DISTANCE[0] * (DISTANCE[1] / DISTANCE[0]) ** draws.unit()
    tallness = draws.uniform(*TALLNESS)
    reach = max(x for _, polygons in build_thing(kind, color) for polygon in polygons for x, _ in polygon) * tallness
    column = draws.uniform(reach + 0.01, 0.99 - reach)
    x = (column - 0.5) * distance / CAMERA.focal
    picture = Picture(draw_floor(image_size, draws))
    _, row = CAMERA.project(x, distance)
    picture.paint(build_thing(kind, color), (column * image_size, row * image_size), tallness * image_size, label=1)
    entry = annotate(picture, 1, kind, distance=distance, position=[x, 0.0, distance], **color_entry(color))
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": "floor",
        "objects": [entry],
        "levels": [{"name": "height", "value": tallness * distance / CAMERA.focal}],
    }
