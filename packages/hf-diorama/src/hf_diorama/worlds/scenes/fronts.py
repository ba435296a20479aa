"""Flat things that have a front, so that which way they face can be asked."""

from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, ellipse, rectangle

DIRECTIONS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")
"""Names of the azimuths 0, 45, ... degrees: 0 faces up, and angles grow clockwise."""

FRONTS = ("arrow", "wedge", "fish", "car", "flag", "bottle")


def build_front(kind: str, color: RGB, accent: RGB) -> list[Layer]:
    """Returns the layers of a thing inside the unit circle that faces up, for [`Picture.paint`].

    Turn it by its azimuth: `paint(layers, center, radius, degrees=azimuth)`.

    Example:

    ```python
    >>> from hf_diorama.worlds.scenes.fronts import FRONTS, build_front
    >>> all(build_front(kind, (200, 30, 35), (20, 20, 20)) for kind in FRONTS)
    True

    ```
    """
    if kind == "arrow":
        head = [(0.0, -0.98), (0.62, -0.25), (-0.62, -0.25)]
        return [(color, [head, rectangle(-0.22, -0.3, 0.22, 0.95)])]
    if kind == "wedge":
        return [(color, [[(0.0, -0.98), (0.6, 0.78), (0.0, 0.42), (-0.6, 0.78)]])]
    if kind == "fish":
        tail = [(0.0, 0.4), (0.5, 0.92), (-0.5, 0.92)]
        return [(color, [ellipse(0, -0.25, 0.48, 0.72), tail]), (accent, [ellipse(-0.2, -0.55, 0.09, 0.09)])]
    if kind == "car":
        lamps = [ellipse(x, -0.84, 0.12, 0.08) for x in (-0.3, 0.3)]
        screen = [(-0.3, -0.42), (0.3, -0.42), (0.38, -0.12), (-0.38, -0.12)]
        return [(color, [rectangle(-0.48, -0.85, 0.48, 0.85)]), (accent, [*lamps, screen])]
    if kind == "flag":
        return [(accent, [rectangle(-0.06, -0.9, 0.06, 0.95)]), (color, [[(0.06, -0.9), (0.85, -0.5), (0.06, -0.1)]])]
    if kind == "bottle":
        neck, cap = rectangle(-0.16, -0.7, 0.16, -0.2), rectangle(-0.2, -0.96, 0.2, -0.7)
        return [(color, [rectangle(-0.42, -0.25, 0.42, 0.9), neck]), (accent, [cap])]
    raise ValueError(f"Unknown kind {kind!r} of thing with a front; choose from {list(FRONTS)}.")
