"""The rules that mine mini-CompBench: one or more for each of the eight kinds of comparison.

They read the annotations of hf-diorama's scenes, or those that `photos.py` gives to edited photos: `objects`,
`levels`, `states`, `group_id`, `time_step`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compbench.groups import hash_unit
from hf_compbench.mining.rules import Comparison, PairRule
from hf_compbench.sources import NONE, SIDES, SIDES_OR_SAME

Row = Mapping[str, Any]
CHANGE_QUESTION = "What is the most obvious difference between the two images?"


@dataclass(frozen=True)
class MiniRule:
    """A rule, the pool it mines, and its share of the pairs of its kind."""

    topic: str
    rule: PairRule
    weight: float = 1.0
    pool_options: Mapping[str, Any] = field(default_factory=dict)


def read_level(row: Row, name: str) -> float | None:
    """Returns the level of that name, or None."""
    return next((level["value"] for level in row["levels"] if level["name"] == name), None)


def read_category(row: Row) -> str:
    """Returns the category of the first object."""
    return str(row["objects"][0]["category"])


def more_of(
    question: Callable[[Row], str],
    value: Callable[[Row], float],
    *,
    ratio: float = 1.0,
    margin: float = 0.0,
    subtype: str,
) -> Callable[[Row, Row], Comparison | None]:
    """Returns a comparison of two values: more wins; the larger is `ratio` times the smaller and `margin` above it."""

    def compare(a: Row, b: Row) -> Comparison | None:
        first, second = value(a), value(b)
        low, high = sorted((first, second))
        if high - low < margin or high < ratio * low or high == low:
            return None
        answer = SIDES[0] if first > second else SIDES[1]
        return Comparison(question=question(a), options=SIDES, answer_text=answer, subtype=subtype, margin=high - low)

    return compare


def _leveled(relativity: str, name: str, question: str, source: str = "mini_scenes", **limits: float) -> PairRule:
    """A rule that compares one level among rows of the same category."""

    def value(row: Row) -> float:
        found = read_level(row, name)
        assert found is not None  # the block holds rows with this level only
        return found

    return PairRule(
        source=source,
        relativity=relativity,
        block=lambda row: read_category(row) if read_level(row, name) is not None else None,
        compare=more_of(lambda row: question.format(read_category(row)), value, subtype=name, **limits),
    )


def _named_things(row: Row) -> list[str]:
    return [f"{thing['color_name']} {thing['category']}" for thing in row["objects"]]


def compare_things(a: Row, b: Row) -> Comparison | None:
    """Asks for the one thing that is in one scene only, or None; other things of both scenes are the distractors."""
    first, second = _named_things(a), _named_things(b)
    different = sorted(set(first) ^ set(second))
    if len(different) > 1:
        return None
    shared = sorted(set(first) & set(second), key=lambda name: hash_unit("distractor", a["group_id"], name))
    named = [*different, *shared][:4]
    options = (NONE, *sorted(named, key=lambda name: hash_unit("option", a["group_id"], name)))
    answer = different[0] if different else NONE
    return Comparison(question=CHANGE_QUESTION, options=options, answer_text=answer, subtype="difference")


def compare_presence(a: Row, b: Row) -> Comparison | None:
    """Asks which image shows a thing that only one of them does."""
    first, second = set(_named_things(a)), set(_named_things(b))
    only = sorted(first ^ second)
    if not only:
        return None
    wanted = min(only, key=lambda name: hash_unit("wanted", *sorted((*first, *second)), name))
    answer = SIDES[0] if wanted in first else SIDES[1]
    question = f"Which image shows the {wanted}?"
    return Comparison(question=question, options=SIDES, answer_text=answer, subtype="presence")


def compare_feelings(a: Row, b: Row) -> Comparison | None:
    """Asks which of two faces with the same emotion shows it more."""
    emotion = a["faces"][0]["emotion"]
    question = "Which person smiles more?" if emotion == "happy" else f"Which person looks more {emotion}?"
    compare = more_of(
        lambda row: question, lambda row: read_level(row, "intensity") or 0.0, margin=0.2, subtype=emotion
    )
    return compare(a, b)


def compare_frames(a: Row, b: Row) -> Comparison | None:
    """Asks which frame comes first; two steps apart at least."""
    gap = b["time_step"] - a["time_step"]
    if abs(gap) < 2:
        return None
    category = read_category(a)
    question = f"These are two frames of the same {category}. Which frame happens first?"
    answer = SIDES[0] if gap > 0 else SIDES[1]
    return Comparison(question=question, options=SIDES, answer_text=answer, subtype=category, margin=abs(gap))


def compare_counts(a: Row, b: Row) -> Comparison | None:
    """Asks which image has more of the things, or whether the number is the same; at least a fifth more."""
    first, second = len(a["objects"]), len(b["objects"])
    low, high = sorted((first, second))
    if low != high and high < 1.2 * low:
        return None
    answer = "Same" if low == high else SIDES[0] if first > second else SIDES[1]
    category = read_category(a)
    plural = f"{category}es" if category.endswith("s") else f"{category}s"
    return Comparison(
        question=f"Which image has more {plural}?",
        options=SIDES_OR_SAME,
        answer_text=answer,
        subtype="count",
        margin=high - low,
    )


def compare_quality(a: Row, b: Row) -> Comparison | None:
    """Asks which of two views of one picture is better, or whether they are the same."""
    first, second = read_level(a, "severity") or 0.0, read_level(b, "severity") or 0.0
    answer = "Same" if first == second else SIDES[0] if first < second else SIDES[1]
    return Comparison(
        question="Which image has the better quality?",
        options=SIDES_OR_SAME,
        answer_text=answer,
        subtype=a["states"][0],
        margin=abs(first - second),
    )


def _grouped(
    relativity: str, compare: Callable[[Row, Row], Comparison | None], source: str = "mini_scenes", **options: Any
) -> PairRule:
    """A rule that pairs rows of the same `group_id`."""
    block = options.pop("block", lambda row: str(row["group_id"]))
    return PairRule(source=source, relativity=relativity, block=block, compare=compare, **options)


_SAME = {"Same": 1 / 3}
_STATES = {
    "glass": ("fullness", "Which glass is fuller?"),
    "candle": ("burntness", "Which candle is burnt down further?"),
    "fruit": ("bruise", "Which fruit is more bruised?"),
    "door": ("openness", "Which door is open wider?"),
}


def compare_states(a: Row, b: Row) -> Comparison | None:
    """Asks which of two things of the same category is further in its state; by 0.15 of the range at least."""
    name, question = _STATES[read_category(a)]
    compare = more_of(lambda row: question, lambda row: row["levels"][0]["value"], margin=0.15, subtype=name)
    return compare(a, b)


SCENE_RULES: dict[str, list[MiniRule]] = {
    "attribute": [
        MiniRule("attribute", _leveled("attribute", "size", "Which {} is larger?", ratio=1.15), 2.0),
        MiniRule("attribute", _leveled("attribute", "lightness", "Which {} is brighter?", margin=12.0)),
        MiniRule("attribute", _leveled("attribute", "stripes", "Which {} has narrower stripes?", ratio=1.3)),
    ],
    "existence": [
        MiniRule("existence", _grouped("existence", compare_things, shares={NONE: 0.2})),
        MiniRule(
            "objects",
            _grouped("existence", compare_presence, block=lambda row: "all"),
            pool_options={"num_objects": (1, 2)},
        ),
    ],
    "state": [MiniRule("state", _grouped("state", compare_states, block=read_category))],
    "emotion": [
        MiniRule(
            "expression", _grouped("emotion", compare_feelings, block=lambda row: str(row["faces"][0]["emotion"]))
        )
    ],
    "temporality": [
        MiniRule(
            "temporal",
            _grouped(
                "temporality",
                compare_frames,
                block=lambda row: str(row["group_id"]) if "irreversible" in row["states"] else None,
            ),
        )
    ],
    "spatiality": [
        MiniRule(
            "spatial_pair",
            PairRule(
                source="mini_scenes",
                relativity="spatiality",
                block=read_category,
                compare=more_of(
                    lambda row: f"Which {read_category(row)} is closer to the camera?",
                    lambda row: 1 / row["objects"][0]["distance"],
                    ratio=1.25,
                    subtype="distance",
                ),
            ),
        )
    ],
    "quantity": [
        MiniRule(
            "quantity",
            PairRule(
                source="mini_scenes", relativity="quantity", block=read_category, compare=compare_counts, shares=_SAME
            ),
        )
    ],
    "quality": [MiniRule("quality", _grouped("quality", compare_quality, shares=_SAME))],
}
"""Kind of comparison -> rules on scenes."""

PHOTO_RULES: dict[str, list[MiniRule]] = {
    "attribute": [
        MiniRule(
            "attribute",
            _grouped(
                "attribute",
                more_of(
                    lambda row: f"Which photo is {row['states'][0]}?",
                    lambda row: read_level(row, "strength") or 0.0,
                    ratio=1.15,
                    subtype="edit",
                ),
                "mini_photos",
            ),
        )
    ],
    "existence": [
        MiniRule("existence", _grouped("existence", compare_things, "mini_photos", shares={NONE: 0.2})),
    ],
    "quantity": [
        MiniRule(
            "quantity",
            PairRule(
                source="mini_photos",
                relativity="quantity",
                block=lambda row: "all",
                compare=compare_counts,
                shares=_SAME,
            ),
        )
    ],
    "quality": [MiniRule("quality", _grouped("quality", compare_quality, "mini_photos", shares=_SAME))],
}
"""Kind of comparison -> rules on edited photos."""
