"""Schematic faces: an expression from a few muscles, and an identity that tells nothing about it."""

from typing import NamedTuple

from hf_diorama.draws import Draws
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, Polygon, ellipse, rectangle, stroke
from hf_diorama.worlds.scenes.shapes import Point


class Expression(NamedTuple):
    """What the face does.

    `smile` is the curvature of the mouth in [-1, 1] (corners up is positive), `mouth_open` in [0, 1], `brow` the slope
    of the brows in [-1, 1] (inner ends up is positive, as in sadness), `brow_height` in [0, 1], `eye_open` in [0, 1],
    and `sneer` in [0, 1] how far one half of the upper lip is pulled up.
    """

    smile: float
    mouth_open: float
    brow: float
    brow_height: float
    eye_open: float
    sneer: float


EMOTIONS: dict[str, Expression] = {
    "happy": Expression(0.85, 0.25, 0.0, 0.3, 0.55, 0.0),
    "sad": Expression(-0.75, 0.0, 0.85, 0.3, 0.4, 0.0),
    "angry": Expression(-0.45, 0.0, -0.9, 0.0, 0.55, 0.0),
    "surprised": Expression(0.0, 0.9, 0.0, 0.95, 1.0, 0.0),
    "neutral": Expression(0.0, 0.0, 0.0, 0.25, 0.55, 0.0),
    "disgusted": Expression(-0.35, 0.15, -0.35, 0.1, 0.15, 0.95),
    "afraid": Expression(-0.6, 0.45, 0.85, 0.8, 1.0, 0.0),
}
"""Prototypes of the seven expressions. They are drawings by a rule, not measurements of people."""


class Identity(NamedTuple):
    """Whose face it is: colours and proportions in units of the face's half height."""

    skin: RGB
    hair: RGB
    iris: RGB
    width: float
    eye_distance: float
    eye_size: float
    hair_height: float
    glasses: bool


def draw_identity(draws: Draws) -> Identity:
    """Returns a random identity."""
    skins: list[RGB] = [
        (243, 211, 186),
        (224, 172, 124),
        (176, 120, 78),
        (120, 78, 50),
        (250, 220, 90),
        (130, 190, 220),
    ]
    hairs: list[RGB] = [(35, 28, 25), (110, 66, 35), (215, 175, 95), (150, 60, 35), (165, 165, 170), (80, 50, 130)]
    irises: list[RGB] = [(60, 40, 25), (50, 90, 150), (50, 110, 60)]
    return Identity(
        draws.choice(skins),
        draws.choice(hairs),
        draws.choice(irises),
        draws.uniform(0.72, 0.92),
        draws.uniform(0.28, 0.36),
        draws.uniform(0.13, 0.17),
        draws.uniform(0.35, 0.75),
        draws.chance(0.25),
    )


def draw_expression(draws: Draws, emotion: str, jitter: float = 0.12) -> Expression:
    """Returns the expression of an emotion, each muscle within `jitter` of its prototype and in its range."""
    lows = Expression(-1, 0, -1, 0, 0.05, 0)
    moved = [value + draws.uniform(-jitter, jitter) for value in EMOTIONS[emotion]]
    return Expression(*(min(max(value, low), 1.0) for value, low in zip(moved, lows, strict=True)))


def _mouth(expression: Expression) -> tuple[list[Point], list[Point]]:
    """Returns the upper and the lower lip line from left to right."""
    steps = [i / 8 - 1 for i in range(17)]  # -1 to 1 across the mouth
    y, gape = 0.48, 0.30 * expression.mouth_open
    half = 0.36 - 0.10 * expression.mouth_open
    line = [(half * t, y + 0.24 * expression.smile * (0.5 - t * t)) for t in steps]
    bow = [max(0.0, 1 - t * t) for t in steps]
    sneer = [0.17 * expression.sneer * max(0.0, 1 - (t - 0.5) ** 2 / 0.3) for t in steps]
    upper = [(x, v - gape / 2 * b - s) for (x, v), b, s in zip(line, bow, sneer, strict=True)]
    lower = [(x, v + gape / 2 * b) for (x, v), b in zip(line, bow, strict=True)]
    return upper, lower


def _eye(identity: Identity, expression: Expression, side: int) -> list[Layer]:
    x, y, size = side * identity.eye_distance, -0.12, identity.eye_size
    opening = size * (0.15 + 0.95 * expression.eye_open)
    # The inner end of the brow is the one towards the middle of the face.
    height = y - size - 0.10 - 0.20 * expression.brow_height
    tilt = 0.15 * expression.brow
    brow = [(x - side * 0.17, height - tilt), (x + side * 0.17, height + tilt)]
    iris = min(opening, size * 0.55)
    dark: RGB = (30, 24, 22)
    return [
        (dark, [ellipse(x, y, size * 1.18, opening * 1.18)]),
        ((250, 250, 250), [ellipse(x, y, size, opening)]),
        (identity.iris, [ellipse(x, y, size * 0.55, iris)]),
        (dark, [ellipse(x, y, size * 0.28, min(opening, size * 0.28))]),
        (dark, stroke(brow, 0.075)),
    ]


def build_face(identity: Identity, expression: Expression) -> list[Layer]:
    """Returns the layers of a face inside the unit circle, for [`Picture.paint`].

    Example:

    ```python
    >>> from hf_diorama.draws import Draws
    >>> from hf_diorama.worlds.scenes.faces import build_face, draw_expression, draw_identity
    >>> draws = Draws("a face")
    >>> layers = build_face(draw_identity(draws), draw_expression(draws, "happy"))
    >>> max(x * x + y * y for _, polygons in layers for polygon in polygons for x, y in polygon) <= 1.05
    True

    ```
    """
    head = ellipse(0, 0, identity.width, 0.98, 32)
    top = 0.98 * (1 - identity.hair_height)
    hair: Polygon = [(x, min(y, -top + 0.22 * (1 - (x / identity.width) ** 2))) for x, y in head]
    upper, lower = _mouth(expression)
    lip: RGB = (120, 40, 45)
    layers: list[Layer] = [(identity.skin, [head]), (identity.hair, [hair])]
    layers += _eye(identity, expression, -1) + _eye(identity, expression, 1)
    layers.append((tuple(channel * 3 // 4 for channel in identity.skin), stroke([(0.0, 0.0), (0.05, 0.2)], 0.05)))  # type: ignore[arg-type]
    layers.append(((70, 20, 25), [[*upper, *lower[::-1]]]))
    layers.append((lip, stroke(upper, 0.06) + stroke(lower, 0.06)))
    if identity.glasses:
        rims = [
            polygon
            for side in (-1, 1)
            for polygon in stroke([*_rim(side * identity.eye_distance), _rim(side * identity.eye_distance)[0]], 0.035)
        ]
        layers.append(((60, 60, 70), [*rims, rectangle(-0.08, -0.15, 0.08, -0.11)]))
    return layers


def _rim(x: float) -> Polygon:
    return ellipse(x, -0.12, 0.24, 0.24, 16)
