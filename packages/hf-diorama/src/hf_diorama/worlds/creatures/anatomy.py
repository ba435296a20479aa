"""How a creature is painted: six body plans over the same parts."""

from dataclasses import dataclass
from functools import lru_cache

from hf_diorama.worlds.creatures.canvas import Canvas, Color, Frame, Point, Shape, ellipse, polygon, spline
from hf_diorama.worlds.creatures.taxonomy import TRAIT_COLORS, TRAITS, Species

PARTS = (
    "body",
    "head",
    "wing",
    "tail",
    "eye",
    "legs",
    "wing_patch",
    "tail_spots",
    "crest",
    "beak",
    "eye_ring",
)
"""Part names in the order of their labels: `part_masks` holds the position in this tuple plus one, 0 elsewhere."""

_BODY, _HEAD, _WING, _TAIL, _EYE, _LEGS, _PATCH, _SPOTS, _CREST, _BEAK, _RING = range(1, len(PARTS) + 1)
_INK: Color = (34, 28, 38)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A body plan, looking right, in units in which the creature fits a circle of radius one around the origin.

    Args:
        body (`tuple[Point, ...]`): control points of the trunk, clockwise.
        head (`tuple[float, float, float]`): centre and radius.
        neck (`tuple[Point, ...]`): control points of what joins head and trunk; empty if they touch.
        wing (`tuple[float, float, float, float]`): shoulder, angle in degrees and length.
        tail (`tuple[float, float, float, float]`): root, angle in degrees and length.
        legs (`tuple[tuple[float, float, float, float], ...]`): hip and foot of each.
        leg_width (`float`): thickness of a leg.
        feet (`bool`): whether legs end in feet; fins do not.
        crest (`float`): angle of the crest on the head in degrees, 0 upright.
    """

    body: tuple[Point, ...]
    head: tuple[float, float, float]
    neck: tuple[Point, ...] = ()
    wing: tuple[float, float, float, float]
    tail: tuple[float, float, float, float]
    legs: tuple[tuple[float, float, float, float], ...]
    leg_width: float = 0.1
    feet: bool = True
    crest: float = -20.0


PLANS = {
    "songbird": Plan(
        body=((0.38, -0.1), (0.36, 0.3), (0.02, 0.52), (-0.36, 0.38), (-0.56, 0.06), (-0.2, -0.22), (0.12, -0.42)),
        head=(0.27, -0.34, 0.34),
        wing=(0.08, 0.0, 158, 0.62),
        tail=(-0.46, 0.12, 172, 0.5),
        legs=((0.06, 0.44, 0.12, 0.84), (-0.14, 0.44, -0.14, 0.84)),
    ),
    "wader": Plan(
        body=((0.2, -0.02), (0.14, 0.24), (-0.2, 0.34), (-0.46, 0.22), (-0.56, 0.0), (-0.24, -0.16), (0.02, -0.2)),
        head=(0.26, -0.54, 0.25),
        neck=((0.4, -0.46), (0.27, -0.3), (0.22, 0.08), (-0.1, 0.06), (0.06, -0.22), (0.12, -0.52)),
        wing=(0.06, 0.02, 166, 0.54),
        tail=(-0.46, 0.08, 168, 0.42),
        legs=((0.0, 0.26, 0.06, 0.94), (-0.2, 0.28, -0.18, 0.94)),
        leg_width=0.085,
        crest=-38,
    ),
    "drake": Plan(
        body=((0.5, 0.06), (0.46, 0.36), (0.0, 0.46), (-0.44, 0.4), (-0.58, 0.22), (-0.4, 0.1), (0.0, 0.12)),
        head=(0.42, -0.06, 0.29),
        wing=(0.06, 0.2, 236, 0.7),
        tail=(-0.46, 0.28, 192, 0.5),
        legs=((0.32, 0.34, 0.4, 0.72), (0.14, 0.36, 0.14, 0.72), (-0.22, 0.36, -0.2, 0.72),
              (-0.42, 0.32, -0.46, 0.72)),
        leg_width=0.12,
        crest=-10,
    ),
    "turtle": Plan(
        body=((0.36, 0.2), (0.3, 0.38), (-0.14, 0.44), (-0.54, 0.36), (-0.62, 0.18), (-0.46, -0.22), (-0.14, -0.4),
              (0.18, -0.26)),
        head=(0.44, -0.04, 0.29),
        wing=(0.14, 0.14, 134, 0.62),
        tail=(-0.5, 0.2, 184, 0.42),
        legs=((0.2, 0.34, 0.3, 0.68), (-0.4, 0.34, -0.44, 0.68)),
        leg_width=0.15,
        crest=-12,
    ),
    "fish": Plan(
        body=((0.5, -0.06), (0.42, 0.28), (0.06, 0.46), (-0.32, 0.28), (-0.56, 0.04), (-0.34, -0.26), (0.04, -0.46),
              (0.38, -0.34)),
        head=(0.3, -0.06, 0.34),
        wing=(0.02, 0.08, 150, 0.46),
        tail=(-0.46, 0.02, 180, 0.52),
        legs=((0.14, 0.34, 0.02, 0.74), (-0.16, 0.3, -0.3, 0.66)),
        leg_width=0.15,
        feet=False,
        crest=-34,
    ),
    "merling": Plan(
        body=((0.2, -0.26), (0.3, 0.04), (0.24, 0.34), (0.02, 0.56), (-0.22, 0.5), (-0.22, 0.16), (-0.2, -0.22),
              (0.0, -0.46)),
        head=(0.16, -0.48, 0.31),
        wing=(-0.06, 0.0, 206, 0.56),
        tail=(-0.1, 0.46, 118, 0.5),
        legs=((0.2, 0.2, 0.48, 0.42), (0.14, 0.4, 0.4, 0.66)),
        leg_width=0.14,
        feet=False,
        crest=-24,
    ),
}  # fmt: skip

_WING_POINTS = ((0.0, -0.2), (0.34, -0.3), (0.74, -0.2), (1.0, 0.06), (0.7, 0.22), (0.3, 0.26), (-0.06, 0.12))
_TAIL_POINTS = {
    "fan": ((-0.06, -0.13), (0.5, -0.3), (0.92, -0.44), (1.02, 0.0), (0.92, 0.44), (0.5, 0.3), (-0.06, 0.13)),
    "fork": ((-0.06, -0.14), (0.5, -0.28), (1.06, -0.52), (0.72, 0.0), (1.06, 0.52), (0.5, 0.28), (-0.06, 0.14)),
    "paddle": ((-0.06, -0.12), (0.3, -0.16), (0.7, -0.36), (1.04, 0.0), (0.7, 0.36), (0.3, 0.16), (-0.06, 0.12)),
}
_SPOT_POINTS = ((0.68, -0.25), (0.78, 0.0), (0.68, 0.25))
_BEAK_POINTS = {
    "cone": ((-0.1, -0.5), (1.0, 0.0), (-0.1, 0.5)),
    "hook": ((-0.1, -0.5), (0.5, -0.58), (0.98, -0.1), (0.92, 1.1), (0.6, 0.5), (0.3, 0.24), (-0.1, 0.36)),
    "spoon": (
        (-0.1, -0.16),
        (0.4, -0.13),
        (0.66, -0.62),
        (1.1, -0.3),
        (1.1, 0.3),
        (0.66, 0.62),
        (0.4, 0.13),
        (-0.1, 0.16),
    ),
}
_CREST_POINTS = {
    "plume": ((-0.5, 0.1), (-0.72, -0.62), (-1.1, -1.1), (-0.4, -1.0), (0.1, -0.5), (0.2, 0.1)),
    "fan": ((-0.3, 0.2), (-1.0, -0.3), (-0.62, -0.86), (0.0, -1.0), (0.6, -0.82), (0.9, -0.24), (0.3, 0.2)),
    "horn": ((-0.2, 0.12), (0.3, -1.25), (0.34, 0.12)),
}


@dataclass(frozen=True, kw_only=True)
class Individual:
    """What makes one creature differ from others of its species.

    Args:
        female (`bool`): duller coat and smaller crest.
        juvenile (`bool`): larger head and paler pattern.
        beak_length (`float`): in units of the body plan.
    """

    female: bool
    juvenile: bool
    beak_length: float


def mix(first: Color, second: Color, ratio: float) -> Color:
    """Returns the colour that lies at `ratio` on the way from the first to the second."""
    r, g, b = (round(a + (c - a) * ratio) for a, c in zip(first, second, strict=True))
    return r, g, b


class _Painter:
    """Paints one creature into a frame, part by part, from back to front.

    Args:
        canvas (`Canvas`): what is painted on.
        frame (`Frame`): where the creature stands.
        species (`Species`): the looks of its kind.
        individual (`Individual`): its own looks.
    """

    def __init__(self, canvas: Canvas, frame: Frame, species: Species, individual: Individual):
        self.canvas, self.frame, self.species, self.individual = canvas, frame, species, individual
        self.plan = PLANS[species.plan]
        self.look = dict(zip(TRAITS, species.traits, strict=True))
        self.height, head_ratio, self.leg_ratio, self.tail_ratio = species.proportions
        coat = species.color
        if individual.female:
            gray = sum(coat) // 3
            coat = mix(coat, (gray, gray, gray), 0.3)
        if individual.juvenile:
            coat = mix(coat, (255, 255, 255), 0.15)
            head_ratio *= 1.12
        self.coat = coat
        self.dark, self.light = mix(coat, (20, 16, 30), 0.42), mix(coat, (255, 250, 236), 0.55)
        self.line = frame.scale * 0.028  # width of outlines in sub-samples
        head_x, head_y, radius = self.plan.head
        self.head_radius = radius * head_ratio
        self.head = frame.at(head_x, head_y, self.head_radius)

    def draw(self, shape: Shape, where: Frame, color: Color, label: int) -> None:
        """Paints a shape with an outline."""
        self.canvas.polygon(where.trace(shape, self.line), _INK, label)
        self.canvas.polygon(where.trace(shape), color, label)

    def tail(self) -> None:
        x, y, angle, length = self.plan.tail
        tail = self.frame.at(x, y, length * self.tail_ratio, angle)
        self.draw(spline(_TAIL_POINTS[self.species.tail]), tail, mix(self.coat, self.dark, 0.6), _TAIL)
        spot_color = TRAIT_COLORS[self.look["tail_spots"]]
        for x, y in _SPOT_POINTS:
            self.canvas.polygon(tail.at(x, y).trace(ellipse(0.16, 0.135, 14)), spot_color, _SPOTS)

    def legs(self) -> None:
        plan, color = self.plan, TRAIT_COLORS[self.look["legs"]]
        for hip_x, hip_y, foot_x, foot_y in plan.legs:
            foot_y = hip_y + (foot_y - hip_y) * (self.leg_ratio if plan.feet else 1.0)
            self.draw(_leg(hip_x, hip_y, foot_x, foot_y, plan.leg_width, plan.feet), self.frame, color, _LEGS)

    def trunk_crest_and_head(self) -> None:
        """Paints these together, as one outline is around trunk and head, and the crest stands between them."""
        canvas, frame, skull = self.canvas, self.frame, ellipse(1.0, 0.96)
        body_shape, neck_shape = spline(self.plan.body, 1.0, self.height), spline(self.plan.neck)
        canvas.polygon(frame.trace(body_shape, self.line), _INK, _BODY)
        canvas.polygon(self.head.trace(skull, self.line), _INK, _HEAD)
        trunk = [frame.trace(body_shape)]
        if self.plan.neck:
            canvas.polygon(frame.trace(neck_shape, self.line), _INK, _BODY)
            trunk.append(frame.trace(neck_shape))
        for points in trunk:
            canvas.polygon(points, self.coat, _BODY)
        canvas.clip(trunk)
        pale = 0.45 if self.individual.juvenile else 0.0
        _paint_pattern(canvas, frame, self.species.pattern, self.coat, self.dark, self.light, pale)
        canvas.unclip()
        if self.look["crest"] != "none":
            size = 0.88 if self.individual.female else 1.04
            where = self.head.at(0.02, -0.72, size, self.plan.crest)
            self.draw(spline(_CREST_POINTS[self.look["crest"]], steps=4), where, self.species.accents[1], _CREST)
        canvas.polygon(self.head.trace(skull), mix(self.coat, (255, 255, 255), 0.12), _HEAD)

    def wing(self) -> None:
        x, y, angle, length = self.plan.wing
        wing = self.frame.at(x, y, length, angle)
        self.draw(spline(_WING_POINTS), wing, mix(self.coat, self.dark, 0.45), _WING)
        patch = wing.at(0.42, -0.02).trace(ellipse(0.3, 0.17, 18))
        self.canvas.polygon(patch, TRAIT_COLORS[self.look["wing_patch"]], _PATCH)

    def beak(self) -> None:
        long, wide = self.individual.beak_length / self.head_radius, 0.8
        maker = polygon if self.look["beak"] == "cone" else spline
        shape = maker(_BEAK_POINTS[self.look["beak"]], long, wide)
        self.draw(shape, self.head.at(0.82, 0.18), self.species.accents[0], _BEAK)

    def eye(self) -> None:
        eye = self.head.at(0.3, -0.2)
        self.draw(ellipse(0.5, 0.5), eye, TRAIT_COLORS[self.look["eye_ring"]], _RING)
        self.canvas.polygon(eye.trace(ellipse(0.27, 0.27, 20)), (16, 12, 20), _EYE)
        self.canvas.polygon(eye.at(0.1, -0.1).trace(ellipse(0.09, 0.09, 10)), (255, 255, 255), _EYE)


def paint_creature(canvas: Canvas, frame: Frame, species: Species, individual: Individual) -> None:
    """Paints a creature with all its parts into a frame."""
    painter = _Painter(canvas, frame, species, individual)
    painter.tail()
    painter.legs()
    painter.trunk_crest_and_head()
    painter.wing()
    painter.beak()
    painter.eye()


@lru_cache(maxsize=1024)
def _leg(hip_x: float, hip_y: float, foot_x: float, foot_y: float, width: float, foot: bool) -> Shape:
    """Returns a straight leg with a foot that points forward, or a fin."""
    half = width / 2
    if not foot:
        return polygon(
            ((hip_x + width, hip_y), (foot_x + half, foot_y), (foot_x - half, foot_y), (hip_x - width, hip_y))
        )
    toe, sole = foot_x + width * 1.5, foot_y + half * 0.7
    return polygon(
        (
            (hip_x + half, hip_y),
            (foot_x + half, foot_y - half),
            (toe, foot_y - half * 0.3),
            (toe, sole),
            (foot_x - half, sole),
            (hip_x - half, hip_y),
        )
    )


def _paint_pattern(
    canvas: Canvas, frame: Frame, pattern: str, coat: Color, dark: Color, light: Color, pale: float
) -> None:
    """Paints the coat pattern over the whole frame; the caller clips it to the trunk."""
    dark, light = mix(dark, coat, pale), mix(light, coat, pale * 0.5)

    def blot(x: float, y: float, rx: float, ry: float, color: Color, angle: float = 0.0) -> None:
        canvas.polygon(frame.at(x, y, 1.0, angle).trace(ellipse(rx, ry, 16)), color, _BODY)

    if pattern == "belly":
        blot(0.0, 0.46, 0.6, 0.3, light)
    elif pattern == "saddle":
        blot(-0.1, -0.24, 0.7, 0.32, dark)
        blot(0.0, 0.5, 0.5, 0.2, light)
    elif pattern == "stripes":
        for i in range(-4, 5):
            blot(i * 0.17, 0.05, 0.035, 0.8, dark, 12)
    elif pattern == "bands":
        for x in (-0.34, 0.06):
            blot(x, 0.05, 0.1, 0.9, light, 8)
    elif pattern == "spots":
        for i in range(-3, 4):
            for j in range(-3, 4):
                blot(i * 0.2 + 0.1 * (j % 2), j * 0.17, 0.055, 0.055, light)
    else:
        for i in range(-3, 4):
            points = ((0.0, 0.0), (-0.14, 0.6), (-0.06, 0.6), (0.1, 0.0), (-0.06, -0.6), (-0.14, -0.6))
            canvas.polygon(frame.at(i * 0.24, 0.05).trace(polygon(points)), dark, _BODY)
