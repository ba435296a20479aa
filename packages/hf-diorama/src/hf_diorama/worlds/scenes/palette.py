"""The eleven basic colour names, the shades drawn for each, and their CIELAB coordinates."""

from hf_diorama.draws import Draws

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "red": (200, 30, 35),
    "green": (40, 150, 60),
    "blue": (35, 80, 200),
    "yellow": (240, 215, 40),
    "orange": (240, 130, 20),
    "brown": (115, 70, 35),
    "pink": (245, 150, 190),
    "purple": (125, 45, 160),
}
"""The basic colour terms of Berlin and Kay (1969) and the sRGB value around which their shades are drawn."""

JITTER = 8


def draw_shade(draws: Draws, name: str) -> RGB:
    """Returns an sRGB value of the named colour, each channel within `JITTER` of its prototype."""
    red, green, blue = (channel + draws.integer(-JITTER, JITTER + 1) for channel in COLORS[name])
    return red, green, blue


def draw_background_color(draws: Draws, avoid: list[RGB], tries: int = 4) -> RGB:
    """Returns the one of a few random colours whose distance to the nearest colour to avoid is largest."""
    candidates = [tuple(draws.integer(30, 226) for _ in range(3)) for _ in range(tries)]
    red, green, blue = max(candidates, key=lambda rgb: min(distance(rgb, other) for other in avoid))
    return red, green, blue


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Returns the sum of absolute channel differences: integers, so that comparing it is exact on any machine."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def shade_of(rgb: RGB) -> RGB:
    """Returns the ink of a texture on this colour: a darker shade of a light colour, a lighter shade of a dark one."""
    if sum(rgb) > 3 * 110:
        red, green, blue = (channel * 6 // 10 for channel in rgb)
    else:
        red, green, blue = (channel + (255 - channel) * 35 // 100 for channel in rgb)
    return red, green, blue


def srgb_to_lab(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Returns CIELAB (D65, 2 degrees; L in [0, 100]) of an 8-bit sRGB colour, rounded to two decimals.

    Example:

    ```python
    >>> from hf_diorama.worlds.scenes.palette import srgb_to_lab
    >>> srgb_to_lab((255, 0, 0))
    (53.24, 80.09, 67.2)

    ```
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in rgb)]
    x, y, z = (
        sum(weight * channel for weight, channel in zip(row, linear, strict=True)) / white
        for row, white in (
            ((0.4124564, 0.3575761, 0.1804375), 0.95047),
            ((0.2126729, 0.7151522, 0.0721750), 1.0),
            ((0.0193339, 0.1191920, 0.9503041), 1.08883),
        )
    )
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return round(116 * fy - 16, 2), round(500 * (fx - fy), 2), round(200 * (fy - fz), 2)
