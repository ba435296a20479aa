"""A pinhole camera over a checkered floor, and things of known height standing on it."""

from typing import NamedTuple

import numpy as np

from hf_diorama.draws import Draws
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, Picture, ellipse, rectangle
from hf_diorama.worlds.scenes.shapes import Point
from hf_diorama.worlds.scenes.surfaces import Pixels


class Camera(NamedTuple):
    """A level pinhole camera: lengths on the picture are in image heights, lengths in the world in metres.

    A point at height `h` over the floor, `x` to the right and `z` in front is seen at column `0.5 + focal * x / z` and
    row `horizon + focal * (height - h) / z`. The camera is the same in all rows, so that metres can be read off.
    """

    focal: float = 0.8
    height: float = 1.2
    horizon: float = 0.40

    def project(self, x: float, z: float, h: float = 0.0) -> Point:
        """Returns column and row of a point, in image heights from the left top corner."""
        return 0.5 + self.focal * x / z, self.horizon + self.focal * (self.height - h) / z


CAMERA = Camera()
NEAREST, FARTHEST = 2.0, 60.0
"""Range of distances in metres; the nearest is the first that stands on visible floor."""

HEIGHTS = {"person": 1.7, "car": 1.5, "cone": 0.7, "door": 2.0, "barrel": 0.9, "tree": 2.6}
"""Height in metres of each kind of thing, the same in all rows."""


def draw_floor(size: int, draws: Draws, camera: Camera = CAMERA) -> Pixels:
    """Returns a picture of sky and a floor of square tiles of one metre under random colours and a random shift."""
    sky, light = ([draws.integer(130, 246) for _ in range(3)] for _ in range(2))
    dark = [channel * 7 // 10 for channel in light]
    shift_x, shift_z = draws.unit(), draws.unit()
    rows = (np.arange(size) + 0.5) / size - camera.horizon
    columns = (np.arange(size) + 0.5) / size - 0.5
    below = rows > 0
    z = camera.focal * camera.height / np.where(below, rows, 1.0)  # (size,)
    x = columns[None, :] * z[:, None] / camera.focal
    tiles = (np.floor(x + shift_x) + np.floor(z + shift_z)[:, None]).astype(np.int64) % 2
    far = (z > 25.0)[:, None]  # tiles smaller than a pixel: their mean
    mean = [(a + b) // 2 for a, b in zip(light, dark, strict=True)]
    ground = np.where(tiles[..., None] == 0, light, dark)
    ground = np.where(far[..., None], mean, ground)
    return np.where(below[:, None, None], ground, sky).astype(np.uint8)


def build_thing(kind: str, color: RGB) -> list[Layer]:
    """Returns the layers of a thing one unit high that stands on the origin, for [`Picture.paint`].

    Example:

    ```python
    >>> from hf_diorama.worlds.scenes.floor import build_thing
    >>> layers = build_thing("cone", (240, 130, 20))
    >>> min(y for _, polygons in layers for polygon in polygons for _, y in polygon)
    -1.0

    ```
    """
    red, green, blue = (channel * 6 // 10 for channel in color)
    dark: RGB = (red, green, blue)
    pale: RGB = (235, 235, 235)
    if kind == "person":
        body = [(-0.15, -0.78), (0.15, -0.78), (0.12, -0.42), (-0.12, -0.42)]
        legs = [rectangle(-0.11, -0.42, -0.02, 0.0), rectangle(0.02, -0.42, 0.11, 0.0)]
        return [(dark, legs), (color, [body]), ((224, 172, 124), [ellipse(0, -0.89, 0.09, 0.11)])]
    if kind == "car":
        cabin = [(-0.55, -1.0), (0.55, -1.0), (0.75, -0.55), (-0.75, -0.55)]
        wheels = [rectangle(-0.72, -0.2, -0.45, 0.0), rectangle(0.45, -0.2, 0.72, 0.0)]
        window = [(-0.45, -0.93), (0.45, -0.93), (0.6, -0.6), (-0.6, -0.6)]
        return [
            ((30, 30, 30), wheels),
            (color, [cabin, rectangle(-0.8, -0.58, 0.8, -0.12)]),
            ((170, 205, 230), [window]),
        ]
    if kind == "cone":
        stripe = [(-0.19, -0.5), (0.19, -0.5), (0.25, -0.33), (-0.25, -0.33)]
        body = [(-0.06, -1.0), (0.06, -1.0), (0.33, -0.1), (-0.33, -0.1)]
        return [(dark, [rectangle(-0.45, -0.1, 0.45, 0.0)]), (color, [body]), (pale, [stripe])]
    if kind == "door":
        return [(dark, [rectangle(-0.25, -1.0, 0.25, 0.0)]), (color, [rectangle(-0.2, -0.96, 0.2, 0.0)])]
    if kind == "barrel":
        hoops = [rectangle(-0.34, y, 0.34, y + 0.07) for y in (-0.8, -0.3)]
        return [(color, [ellipse(0, -0.5, 0.36, 0.5)]), (dark, hoops)]
    if kind == "tree":
        crown = ellipse(0, -0.68, 0.28, 0.32)
        return [((105, 70, 40), [rectangle(-0.05, -0.45, 0.05, 0.0)]), (color, [crown])]
    raise ValueError(f"Unknown kind {kind!r} of thing; choose from {list(HEIGHTS)}.")


def place_thing(
    picture: Picture,
    kind: str,
    color: RGB,
    position: tuple[float, float, float],
    label: int,
    camera: Camera = CAMERA,
) -> None:
    """Paints a thing whose foot is at `position`: metres to the right, in front, and over the floor."""
    x, z, raised = position
    column, row = camera.project(x, z, raised)
    height = camera.focal * HEIGHTS[kind] / z * picture.size
    picture.paint(build_thing(kind, color), (column * picture.size, row * picture.size), height, label=label)
