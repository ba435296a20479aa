"""Backgrounds: four habitats in soft colours, so that the creature stands out."""

from hf_diorama.draws import Draws
from hf_diorama.worlds.creatures.anatomy import mix
from hf_diorama.worlds.creatures.canvas import Canvas, Color, Frame, Point, ellipse, polygon, spline

_SKIES: dict[str, tuple[Color, Color]] = {
    "meadow": ((168, 208, 236), (236, 240, 224)),
    "forest": ((150, 184, 150), (206, 222, 190)),
    "wetland": ((188, 212, 222), (232, 226, 210)),
    "desert": ((246, 216, 178), (252, 238, 214)),
}
_GROUNDS: dict[str, tuple[Color, Color]] = {
    "meadow": ((158, 196, 120), (134, 178, 102)),
    "forest": ((122, 142, 94), (104, 124, 84)),
    "wetland": ((136, 182, 190), (112, 162, 178)),
    "desert": ((232, 200, 146), (216, 178, 124)),
}
_PETALS: tuple[Color, ...] = ((250, 244, 236), (244, 206, 116), (232, 152, 160), (176, 164, 220))


def paint_habitat(canvas: Canvas, habitat: str, draws: Draws) -> None:
    """Paints the background of a habitat over the whole canvas, with label 0."""
    tint: Color = (draws.integer(150, 256), draws.integer(150, 256), draws.integer(150, 256))
    horizon = draws.uniform(0.55, 0.78)
    top, bottom = (mix(color, tint, 0.22) for color in _SKIES[habitat])
    steps = 16
    for i in range(steps):
        canvas.rectangle(0, horizon * i / steps, 1, 1 if i == steps - 1 else horizon * (i + 1) / steps,
                         mix(top, bottom, i / (steps - 1)))  # fmt: skip
    far, near = (mix(color, tint, 0.12) for color in _GROUNDS[habitat])
    frame = Frame(0, 0, canvas.width)
    if habitat == "forest":
        for _ in range(draws.integer(4, 8)):
            _trunk(canvas, frame, draws, horizon, mix((112, 96, 82), bottom, draws.uniform(0.35, 0.7)))
    elif habitat != "wetland":
        color = mix(far, bottom, 0.5)
        for _ in range(draws.integer(1, 4)):
            where = frame.at(draws.uniform(-0.1, 1.1), horizon + 0.04)
            canvas.polygon(where.trace(ellipse(draws.uniform(0.2, 0.5), draws.uniform(0.08, 0.24))), color, 0)
    canvas.rectangle(0, horizon, 1, 1, far)
    slope, middle = draws.uniform(-0.06, 0.06), (horizon + 1) / 2
    ground: tuple[Point, ...] = ((0, middle - slope), (1, middle + slope), (1, 1.1), (0, 1.1))
    canvas.polygon(frame.trace(polygon(ground)), near, 0)
    for _ in range(draws.integer(8, 15)):
        x, y = draws.uniform(0, 1), draws.uniform(horizon + 0.03, 1.0)
        _DETAILS[habitat](canvas, frame.at(x, y, 0.4 + 0.9 * (y - horizon) / (1 - horizon)), draws, near)


def _trunk(canvas: Canvas, frame: Frame, draws: Draws, horizon: float, color: Color) -> None:
    x, half, lean = draws.uniform(0, 1), draws.uniform(0.015, 0.05), draws.uniform(-0.05, 0.05)
    points = ((x - half + lean, -0.1), (x + half + lean, -0.1), (x + half, horizon + 0.05), (x - half, horizon + 0.05))
    canvas.polygon(frame.trace(polygon(points)), color, 0)


def _flower(canvas: Canvas, frame: Frame, draws: Draws, ground: Color) -> None:
    stem = ((-0.005, 0.0), (-0.005, -0.07), (0.005, -0.07), (0.005, 0.0))
    canvas.polygon(frame.trace(polygon(stem)), mix(ground, (60, 110, 60), 0.5), 0)
    canvas.polygon(frame.at(0, -0.07).trace(ellipse(0.02, 0.018, 8)), mix(draws.choice(_PETALS), ground, 0.25), 0)


def _fern(canvas: Canvas, frame: Frame, draws: Draws, ground: Color) -> None:
    color = mix(ground, (70, 112, 74), draws.uniform(0.2, 0.6))
    for angle in (-38, 0, 38):
        canvas.polygon(frame.at(0, 0, 1.0, angle + draws.uniform(-10, 10)).trace(_BLADE), color, 0)


def _ripple(canvas: Canvas, frame: Frame, draws: Draws, ground: Color) -> None:
    if draws.chance(0.3):
        for _ in range(3):
            where = frame.at(draws.uniform(-0.03, 0.03), 0.02, 1.6, draws.uniform(-8, 8))
            canvas.polygon(where.trace(_BLADE), mix((116, 142, 96), ground, 0.3), 0)
    else:
        canvas.polygon(
            frame.trace(ellipse(draws.uniform(0.05, 0.11), 0.008, 12)), mix(ground, (255, 255, 255), 0.4), 0
        )


def _stone(canvas: Canvas, frame: Frame, draws: Draws, ground: Color) -> None:
    if draws.chance(0.25):
        color = mix((116, 156, 112), ground, 0.25)
        for x, y, rx, ry in ((0.0, -0.07, 0.02, 0.09), (0.035, -0.07, 0.013, 0.035), (-0.035, -0.05, 0.013, 0.03)):
            canvas.polygon(frame.at(x, y).trace(ellipse(rx, ry, 12)), color, 0)
    else:
        color = mix(ground, (132, 112, 100), draws.uniform(0.2, 0.5))
        canvas.polygon(frame.trace(ellipse(draws.uniform(0.015, 0.045), 0.014, 10)), color, 0)


_BLADE = spline(((0.0, 0.0), (-0.016, -0.06), (0.0, -0.15), (0.016, -0.06)), steps=3)
_DETAILS = {"meadow": _flower, "forest": _fern, "wetland": _ripple, "desert": _stone}


def paint_leaves(canvas: Canvas, draws: Draws) -> None:
    """Paints two or three leaves in front of the creature, from one edge of the picture, with label 0."""
    side = draws.integer(0, 4)
    for _ in range(draws.integer(2, 4)):
        along, depth = draws.uniform(0.1, 0.9), draws.uniform(-0.06, 0.0)
        x, y = ((along, depth), (1 - depth, along), (along, 1 - depth), (depth, along))[side]
        where = Frame(x * canvas.width, y * canvas.width, canvas.width, 90 * side + 90 + draws.uniform(-35, 35))
        length = draws.uniform(0.24, 0.38)
        green = mix((74, 122, 66), (130, 150, 70), draws.unit())
        canvas.polygon(where.trace(spline(_LEAF, length, length, steps=4), 0.008 * canvas.width), (48, 78, 50), 0)
        canvas.polygon(where.trace(spline(_LEAF, length, length, steps=4)), green, 0)
        canvas.polygon(where.trace(polygon(_VEIN, length, length)), mix(green, (240, 250, 220), 0.35), 0)


_LEAF = ((0.0, -0.03), (0.35, -0.24), (0.75, -0.18), (1.0, 0.0), (0.75, 0.18), (0.35, 0.24), (0.0, 0.03))
_VEIN = ((0.0, -0.012), (0.85, 0.0), (0.0, 0.012))
