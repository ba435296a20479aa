"""What the evaluators released in 2026 compute, faults included. For explaining differences, and for nothing else.

Each function restates the behaviour of one released script for one pair of strings: it returns the value that enters
the mean, or None where the script leaves the item out. `docs/papers/ava-bench.md` lists the faults.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from hf_ava_bench.functional import anls, box_iou, ciede2000, srgb_to_lab

_PUNCTUATION = [
    *(";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\"),
    *("_", "-", ">", "<", "@", "`", ",", "?", "!"),
]
_SMALL = "zero one two three four five six seven eight nine ten".split()
_DIGIT_OF = {"none": "0", **{word: str(value) for value, word in enumerate(_SMALL)}}


def _strip_punctuation(text: str) -> str:
    """Each mark becomes nothing if one of its kind touches a space, or if digits surround a comma; else a space.

    Full stops go unless a digit follows, the first 32 of them: a flag was passed where a count belongs.
    """
    has_comma = re.search(r"\d,\d", text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches or has_comma else " ")
    return re.sub(r"\.(?!\d)", "", result, count=32)


def _prepare(text: str) -> str:
    """Marks out, small numbers to digits, articles out."""
    plain = _strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_DIGIT_OF.get(word, word) for word in plain.lower().split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _count(prediction: str, reference: str) -> float | None:
    """Whole numbers only; anything else is left out. A reference of 0 divides by zero."""
    try:
        p, g = int(_prepare(prediction)), int(_prepare(reference))
    except ValueError:
        return None
    return abs(p - g) / g


def _middle(text: str) -> float | None:
    """The mean of the last two runs of digits, or the only one."""
    digits = [int(run) for run in re.findall(r"\d+", text)]
    if not digits:
        return None
    return float(digits[0]) if len(digits) == 1 else (digits[-2] + digits[-1]) / 2


def _depth(prediction: str, reference: str) -> float | None:
    p, g = _middle(_prepare(prediction)), _middle(_prepare(reference))
    return None if p is None or g is None else abs(p - g) / g


def _floats(text: str, count: int) -> list[float] | None:
    found = re.findall(r"-?\d+(?:\.\d+)?", text)
    return [float(value) for value in found[:count]] if len(found) >= count else None


def _box(prediction: str, reference: str) -> float | None:
    """Four numbers from anywhere, hyphens read as minus signs, in whatever unit."""
    p, g = _floats(prediction, 4), _floats(reference, 4)
    return None if p is None or g is None else float(box_iou([p], [g])[1][0])


def _color(prediction: str, reference: str) -> float | None:
    """Three numbers from anywhere, clipped."""
    p, g = _floats(prediction.strip(), 3), _floats(reference.strip(), 3)
    if p is None or g is None:
        return None
    rgb = [[min(max(value, 0.0), 255.0) for value in values] for values in (p, g)]
    return float(ciede2000(srgb_to_lab(rgb[0]), srgb_to_lab(rgb[1])))


def _text(prediction: str, reference: str) -> float:
    """White space is made plain by the package `anls` that the script calls."""
    p, g = (" ".join(value.lower().split()) for value in (prediction, reference))
    return anls(p, [g])


def _tokens(text: str) -> list[str]:
    return re.split(r"[. ]+", text.strip())


def _fine_grained(prediction: str, reference: str) -> float:
    """One shared token is enough, the empty one after a final full stop too; case counts."""
    answer = _tokens(prediction.replace("\n", " ").replace("\t", " "))
    return float(any(token in answer for token in _tokens(reference)))


def _spatial(prediction: str, reference: str) -> float:
    """The first token is enough; else every window of the answer has to equal the rest of the reference.

    An answer too short to have a window is right.
    """
    p = [token.lower() for token in _tokens(prediction.replace("\n", " ").replace("\t", " "))]
    g = [token.lower() for token in _tokens(reference)]
    if p[0] == g[0]:
        return 1.0
    rest = g[1:]
    if not rest:
        return 0.0
    windows = [p[i : i + len(rest)] for i in range(len(p) - len(rest) + 1)]
    return float(all(window == rest for window in windows))


def _action(prediction: str, reference: str) -> float:
    """The leading numbers if both have one, else the whole text without marks and articles."""
    p, g = _prepare_action(prediction), _prepare_action(reference)
    numbers = [re.match(r"\d+", text) for text in (p, g)]
    if numbers[0] and numbers[1]:
        return float(numbers[0][0] == numbers[1][0])
    return float(p == g)


def _prepare_action(text: str) -> str:
    plain = text.replace("\n", " ").replace("\t", " ").strip().lower()
    plain = re.sub(r"(\d),(\d)", r"\1\2", plain)
    plain = re.sub(r"\.(?!\d)", "", plain)
    for mark in _PUNCTUATION:
        plain = plain.replace(mark, " ")
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


def _closer(prediction: str, reference: str) -> float:
    """Equal after cleaning. The table of English contractions is left out: no thing is named by one."""
    return float(_prepare(prediction) == _prepare(reference))


RELEASED: Mapping[str, Callable[[str, str], float | None]] = {
    "abs_depth": _depth,
    "action": _action,
    "color": _color,
    "counting": _count,
    "fine_grained": _fine_grained,
    "localization": _box,
    "ocr": _text,
    "rel_depth": _closer,
    "spatial": _spatial,
}
"""Ability -> what its released evaluator gives for one prediction and one reference."""


def score_as_released(
    ability: str, predictions: Sequence[str | None], references: Sequence[Sequence[str]]
) -> list[float | None]:
    """Returns the value of each item, None where the released script leaves it out; a missing answer is left out.

    Raises:
        ZeroDivisionError: for a true count or depth of 0, as the released scripts do.
        ValueError: where the released script stops, see `_judge_disagreeing`.
    """
    evaluate = RELEASED[ability]
    values: list[float | None] = []
    earlier: list[float | None] = []
    for p, texts in zip(predictions, references, strict=True):
        if p is None:
            values.append(None)
            continue
        agree = not _disagree(ability, texts)
        earlier.append(evaluate(p, texts[0]) if agree else _judge_disagreeing(ability, p, texts[0], earlier))
        values.append(earlier[-1])
    return values


def _disagree(ability: str, references: Sequence[str]) -> bool:
    plain = {text.replace("\n", " ").replace("\t", " ").strip() for text in references}
    return len({text.lower() for text in plain} if ability == "ocr" else plain) > 1


def _judge_disagreeing(ability: str, prediction: str, reference: str, earlier: Sequence[float | None]) -> float | None:
    """Returns the value of an item whose references differ, which the scripts do not expect.

    Texts and depths get the value of the item before, and the script stops where there is none. Counts are compared
    as they are, without cleaning. A relative depth is wrong. Other scripts look at the first reference.
    """
    last = earlier[-1] if earlier else None
    if (ability in ("ocr", "abs_depth") and last is None) or (ability == "counting" and not earlier):
        raise ValueError(
            f"The released evaluator of {ability!r} stops at an item whose references differ, here {reference!r} and "
            "others, if it read nothing before."
        )
    if ability in ("ocr", "abs_depth"):
        return last
    if ability == "counting":
        try:
            p, g = int(prediction.strip()), int(reference.strip())
        except ValueError:
            return None
        return abs(p - g) / g
    return 0.0 if ability == "rel_depth" else RELEASED[ability](prediction, reference)
