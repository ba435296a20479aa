"""Topic `fine_grained`: 24 kinds of insects that differ in spots, wings and antennae only."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import draw_color, place_discs
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, Picture, annotate, color_entry, ellipse, rectangle, stroke
from hf_diorama.worlds.scenes.surfaces import draw_background

ANTENNAE = {"Nudella": "none", "Linearia": "straight", "Clavina": "clubbed", "Plumaria": "feathered"}
SPOTS = {"bi": 2, "quadri": 4, "sex": 6}
WINGS = {"minor": 0.45, "major": 0.8}
"""Length of the wings in units of the bounding circle's radius."""
INSECTS = tuple(f"{genus} {number}{size}" for genus in ANTENNAE for number in SPOTS for size in WINGS)
"""Names of the 24 kinds: antennae make the genus, number of spots and length of wings the epithet."""


def _traits(name: str) -> tuple[str, int, float]:
    genus, epithet = name.split()
    number = next(prefix for prefix in SPOTS if epithet.startswith(prefix))
    return ANTENNAE[genus], SPOTS[number], WINGS[epithet.removeprefix(number)]


def _draw_antennae(kind: str, color: RGB) -> list[Layer]:
    if kind == "none":
        return []
    lines = []
    for side in (-1, 1):
        tip = (side * 0.42, -0.96)
        lines += stroke([(side * 0.06, -0.6), tip], 0.05)
        if kind == "clubbed":
            lines.append(ellipse(tip[0], tip[1] + 0.03, 0.13, 0.11))
        elif kind == "feathered":
            for share in (0.35, 0.6, 0.85):
                x, y = side * (0.06 + 0.36 * share), -0.6 - 0.36 * share
                lines += stroke([(x - 0.15, y + 0.02), (x + 0.15, y - 0.02)], 0.045)
    return [(color, lines)]


def build_insect(name: str, body: RGB, wing: RGB, spot: RGB) -> list[Layer]:
    """Returns the layers of an insect inside the unit circle, head up, for [`Picture.paint`].

    Example:

    ```python
    >>> from hf_diorama.worlds.scenes.fine_grained import INSECTS, build_insect
    >>> len(INSECTS), len(build_insect("Clavina bimajor", (60, 40, 20), (200, 200, 90), (0, 0, 0)))
    (24, 5)

    ```
    """
    antennae, spots, length = _traits(name)
    wings = []
    for side in (-1, 1):
        wings += [
            [(0.0, -0.35), (side * length, -0.5), (side * length * 0.95, -0.05), (0.0, 0.1)],
            [(0.0, 0.0), (side * length * 0.85, 0.12), (side * length * 0.6, 0.5), (0.0, 0.3)],
        ]
    marks = [ellipse(side * 0.12, -0.2 + 0.3 * row, 0.075, 0.075, 12) for row in range(spots // 2) for side in (-1, 1)]
    legs = [rectangle(-0.42, y, 0.42, y + 0.035) for y in (0.55, 0.72)]
    trunk = [ellipse(0, 0.15, 0.26, 0.72), ellipse(0, -0.55, 0.19, 0.17)]
    return [(body, legs), (wing, wings), *_draw_antennae(antennae, body), (body, trunk), (spot, marks)]


def render_fine_grained(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `subcategory` of the only object is one of [`INSECTS`]."""
    draws = key.draws("fine_grained")
    name = draws.choice(INSECTS)
    (disc,) = place_discs(draws, [draws.uniform(0.32, 0.46)], gap=0.01)
    body = draw_color(draws)
    wing, spot = draw_color(draws, [body]), draw_color(draws, [body], apart=200)
    scene_type, background = draw_background(
        image_size, key.draws("fine_grained background"), [body, wing], photos, photo_ratio
    )
    picture = Picture(background)
    x, y, radius = (value * image_size for value in disc)
    picture.paint(build_insect(name, body, wing, spot), (x, y), radius, draws.uniform(-30, 30), label=1)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [annotate(picture, 1, "insect", subcategory=name, **color_entry(body))],
    }
