"""Stick figures with joint angles: what somebody does, and what they look like."""

import math
from typing import NamedTuple

from hf_diorama.draws import Draws
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, ellipse, stroke
from hf_diorama.worlds.scenes.shapes import Point


class Pose(NamedTuple):
    """Joint angles in degrees: 0 hangs straight down, 90 points forward (to the right), 180 up.

    `torso` is the direction from hip to neck (180 is upright), `*_arm` and `*_leg` are upper limbs, `*_hand` and
    `*_foot` lower limbs; near limbs are painted in front of the torso, far ones behind. `lift` is how far the feet are
    above the ground, in body heights.
    """

    torso: float
    near_arm: float
    near_hand: float
    far_arm: float
    far_hand: float
    near_leg: float
    near_foot: float
    far_leg: float
    far_foot: float
    lift: float


ACTIONS: dict[str, Pose] = {
    "running": Pose(165, -55, 35, 60, 145, 60, -25, -35, -95, 0.04),
    "jumping": Pose(180, 150, 165, -150, -165, 28, -40, -28, -80, 0.22),
    "sitting": Pose(180, 25, 80, 20, 75, 88, 0, 84, 4, 0.0),
    "throwing": Pose(188, -120, -175, 80, 100, 22, 8, -25, -35, 0.0),
    "waving": Pose(180, 130, 190, -12, -8, 6, 4, -6, -8, 0.0),
    "lifting": Pose(180, 168, 180, -168, -180, 16, -6, -16, 6, 0.0),
    "kicking": Pose(195, -60, -40, 55, 75, 92, 80, -6, -10, 0.0),
    "bowing": Pose(105, 12, 8, 6, 2, 3, 2, -3, -4, 0.0),
}
"""Prototype poses of the eight actions, facing right."""


class Looks(NamedTuple):
    """Colours and build of a figure."""

    skin: RGB
    shirt: RGB
    trousers: RGB
    thickness: float
    mirrored: bool


def draw_pose(draws: Draws, action: str, jitter: float = 9.0) -> Pose:
    """Returns a pose of the action, each joint within `jitter` degrees of its prototype."""
    prototype = ACTIONS[action]
    angles = [angle + draws.uniform(-jitter, jitter) for angle in prototype[:-1]]
    return Pose._make([*angles, prototype.lift])


def draw_looks(draws: Draws) -> Looks:
    """Returns random looks."""
    skins: list[RGB] = [(243, 211, 186), (224, 172, 124), (176, 120, 78), (120, 78, 50)]

    def color() -> RGB:
        return draws.integer(20, 236), draws.integer(20, 236), draws.integer(20, 236)

    return Looks(draws.choice(skins), color(), color(), draws.uniform(0.10, 0.15), draws.chance(0.5))


TORSO, ARM, HAND, LEG, FOOT, HEAD = 0.56, 0.30, 0.30, 0.40, 0.40, 0.16


def _along(start: Point, degrees: float, length: float) -> Point:
    return start[0] + length * math.sin(math.radians(degrees)), start[1] + length * math.cos(math.radians(degrees))


def build_figure(pose: Pose, looks: Looks) -> list[Layer]:
    """Returns the layers of a figure about 1.9 units high and centred on the unit circle, for [`Picture.paint`].

    Example:

    ```python
    >>> from hf_diorama.draws import Draws
    >>> from hf_diorama.worlds.scenes.figures import build_figure, draw_looks, draw_pose
    >>> draws = Draws("a figure")
    >>> len(build_figure(draw_pose(draws, "waving"), draw_looks(draws)))
    6

    ```
    """
    hip = (0.0, 0.0)
    neck = _along(hip, pose.torso, TORSO)
    head = _along(neck, pose.torso, HEAD * 1.1)
    limbs: dict[str, list[Point]] = {}
    for side in ("near", "far"):
        elbow = _along(neck, getattr(pose, f"{side}_arm"), ARM)
        knee = _along(hip, getattr(pose, f"{side}_leg"), LEG)
        limbs[f"{side}_arm"] = [neck, elbow, _along(elbow, getattr(pose, f"{side}_hand"), HAND)]
        limbs[f"{side}_leg"] = [hip, knee, _along(knee, getattr(pose, f"{side}_foot"), FOOT)]
    width = looks.thickness
    far_shirt, far_trousers = _darken(looks.shirt), _darken(looks.trousers)
    layers: list[Layer] = [
        (far_shirt, stroke(limbs["far_arm"], width * 0.8)),
        (far_trousers, stroke(limbs["far_leg"], width)),
        (looks.trousers, stroke(limbs["near_leg"], width)),
        (looks.shirt, stroke([hip, neck], width * 1.7)),
        (looks.skin, [ellipse(head[0], head[1], HEAD, HEAD)]),
        (looks.shirt, stroke(limbs["near_arm"], width * 0.8)),
    ]
    points = [point for _, polygons in layers for polygon in polygons for point in polygon]
    (left, right), (top, bottom) = ((min(p[i] for p in points), max(p[i] for p in points)) for i in (0, 1))
    # Centred on its extent, so that where the hips are says nothing.
    cx, cy, flip = (left + right) / 2, (top + bottom) / 2, -1 if looks.mirrored else 1
    return [(color, [[(flip * (x - cx), y - cy) for x, y in p] for p in polygons]) for color, polygons in layers]


def _darken(color: RGB) -> RGB:
    red, green, blue = (channel * 7 // 10 for channel in color)
    return red, green, blue
