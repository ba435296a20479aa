"""Parity mode against a second statement of the released behaviour, written from its description (spec 4.6)."""

import random
import re
import string

import pytest

from hf_ava_bench import compute_score
from hf_ava_bench.parity import RELEASED

# The listed faults, one by one.


def one(ability, prediction, reference):
    return RELEASED[ability](prediction, reference)


@pytest.mark.parametrize(
    ("text", "middle"),
    [("18.4 meters", 11.0), ("4.25 meters", 14.5), ("2 apples and 13 pears", 7.5), ("-3", 3.0)],
)
def test_depth_averages_the_last_two_runs_of_digits(text, middle):
    assert one("abs_depth", text, "10 meters") == pytest.approx(abs(middle - 10) / 10)


def test_counting_takes_whole_numbers_only_and_divides_by_zero():
    assert one("counting", "four", "4") == 0
    assert one("counting", "about 5", "4") is None
    with pytest.raises(ZeroDivisionError):
        one("counting", "3", "0")


def test_fine_grained_takes_any_shared_token():
    assert one("fine_grained", "12. Laysan Albatross", "45. Sooty Albatross") == 1
    assert one("fine_grained", "Boeing 737.", "Airbus A320.") == 1
    assert one("fine_grained", "Hygrocybe Miniata", "hygrocybe miniata") == 0


def test_spatial_takes_the_first_token_or_a_short_answer():
    assert one("spatial", "Left Below", "Left Above") == 1
    assert one("spatial", "7", "3. left below") == 1
    assert one("spatial", "it is left below", "3. left below") == 0  # every window has to match


def test_boxes_in_pixels_are_taken_as_they_are():
    assert one("localization", "0.1-0.4 0.5-0.9", "[0, 0, 1, 1]") is not None
    assert one("localization", "[64, 64, 192, 192]", "[0.25, 0.25, 0.75, 0.75]") < -0.3
    assert one("localization", "1 2 3", "[0, 0, 1, 1]") is None


def test_unreadable_answers_vanish_from_the_mean():
    released = compute_score("counting", ["5", "many", None], ["4", "7", "3"], parity="ava-2026")
    assert (released.value, released.coverage, released.n) == (0.25, pytest.approx(1 / 3), 3)
    assert released.parity == "ava-2026"
    assert compute_score("counting", ["5", "many", None], ["4", "7", "3"]).value > released.value


def test_white_space_of_texts_is_made_plain_by_the_package_that_is_called():
    assert one("ocr", "two   words", "Two\twords") == 1


def test_references_that_differ_are_judged_by_accident():
    def released(ability, predictions, references):
        return compute_score(ability, predictions, references, parity="ava-2026").values

    assert released("ocr", ["abcd", "zzz", "zzz"], ["abcx", ["zzz", "yyy"], ["Zzz", "zzz"]]) == (0.75, 0.75, 1)
    assert released("abs_depth", ["5 m", "9 m"], ["4 m", ["9 m", "8 m"]]) == (0.25, 0.25)
    assert released("rel_depth", ["car"], [["car", "tree"]]) == (0,)
    assert released("counting", ["4", "6"], ["4", ["5", "6"]]) == (0, 0.2)
    for ability in ("ocr", "abs_depth", "counting"):
        with pytest.raises(ValueError, match="stops at an item whose references differ"):
            released(ability, ["1"], [["1", "2"]])


@pytest.mark.parametrize("ability", ["emotion", "orientation", "recognition", "scene", "texture"])
def test_abilities_without_a_released_evaluator_are_refused(ability):
    with pytest.raises(ValueError, match=f"No evaluator of '{ability}' was released"):
        compute_score(ability, ["a"], ["a"], parity="ava-2026")


# The second statement: character by character and loop by loop, sharing nothing with the module.


def clean_again(text):
    text = " ".join(part for part in re.split("[\n\t]", text)) if re.search("[\n\t]", text) else text
    text = text.strip()
    marks = ';/[]"{}()=+\\_-><@`,?!'
    thousands = any(
        text[i].isdecimal() and text[i + 1] == "," and text[i + 2].isdecimal() for i in range(len(text) - 2)
    )
    gone = {mark for mark in marks if thousands or mark + " " in text or " " + mark in text}
    text = "".join("" if c in gone else " " if c in marks else c for c in text)
    kept, removed = [], 0
    for i, c in enumerate(text):
        followed = i + 1 < len(text) and text[i + 1].isdecimal()
        if c == "." and not followed and removed < 32:
            removed += 1
        else:
            kept.append(c)
    names = dict(
        zip("zero one two three four five six seven eight nine ten none".split(), [*range(11), 0], strict=True)
    )
    words = [str(names.get(word, word)) for word in "".join(kept).lower().split()]
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def runs_again(text):
    runs, current = [], ""
    for c in text + " ":
        if c.isdecimal():
            current += c
        elif current:
            runs.append(int(current))
            current = ""
    return runs


def middle_again(text):
    runs = runs_again(clean_again(text))
    return None if not runs else runs[0] if len(runs) == 1 else sum(runs[-2:]) / 2


def whole_again(text):
    try:
        return int(clean_again(text))
    except ValueError:
        return None


def tokens_again(text, lower=False):
    found, current, text = [], "", (text.strip().lower() if lower else text.strip())
    separated = False
    for c in text:
        if c in ". ":
            if not separated:
                found.append(current)
                current = ""
            separated = True
        else:
            current += c
            separated = False
    return [*found, current]


def spatial_again(p, g):
    p, g = tokens_again(p, lower=True), tokens_again(g, lower=True)
    if p[0] == g[0]:
        return 1.0
    n = len(g) - 1
    if n == 0:
        return 0.0
    return float(not any(p[i : i + n] != g[1:] for i in range(max(len(p) - n + 1, 0))))


def fuzz(n, seed):
    rng = random.Random(seed)
    words = "the a an left right above below one two ten none dog meters albatross is x".split()
    words += "12. 3 4.25 1,200 0.1-0.4 -7 (b)".split()
    alphabet = string.ascii_letters + string.digits + string.punctuation + "    .,--"
    for _ in range(n):
        if rng.random() < 0.6:
            yield rng.choice(["", " ", "-"]).join(
                rng.choice([" ", "  ", ", ", ""]) + rng.choice(words) for _ in range(rng.randint(0, 7))
            )
        else:
            yield "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 25)))


def test_ten_thousand_strings_give_the_same_twice():
    references = {
        "abs_depth": "18 meters", "counting": "4", "fine_grained": "12. Laysan Albatross.", "rel_depth": "the dog",
        "spatial": "3. left below",
    }  # fmt: skip
    again = {
        "abs_depth": lambda p, g: None if middle_again(p) is None else abs(middle_again(p) - 18) / 18,
        "counting": lambda p, g: None if whole_again(p) is None else abs(whole_again(p) - 4) / 4,
        "fine_grained": lambda p, g: float(bool(set(tokens_again(p)) & set(tokens_again(g)))),
        "rel_depth": lambda p, g: float(clean_again(p) == clean_again(g)),
        "spatial": spatial_again,
    }
    outcomes = {ability: set() for ability in again}
    for text in fuzz(10_000, 0):
        for ability, restated in again.items():
            value = RELEASED[ability](text, references[ability])
            assert value == restated(text, references[ability]), (ability, text)
            outcomes[ability].add(value)
    # The strings reach both outcomes and, where there is one, the way out.
    assert all(len(values) >= 2 for values in outcomes.values())
    assert None in outcomes["abs_depth"]
    assert None in outcomes["counting"]


def numbers_again(text, count):
    found, i = [], 0
    while i < len(text):
        j = i + (text[i] == "-")
        k = j
        while k < len(text) and text[k].isdecimal():
            k += 1
        if k == j:
            i += 1
            continue
        if k + 1 < len(text) and text[k] == "." and text[k + 1].isdecimal():
            k += 1
            while k < len(text) and text[k].isdecimal():
                k += 1
        found.append(float(text[i:k]))
        i = k
    return found[:count] if len(found) >= count else None


def giou_again(a, b):
    (ax0, ax1), (ay0, ay1) = sorted(a[::2]), sorted(a[1::2])
    (bx0, bx1), (by0, by1) = sorted(b[::2]), sorted(b[1::2])
    inter = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    iou = inter / union if union > 0 else 0
    return iou if hull <= 0 else iou - (hull - union) / hull


def test_ten_thousand_boxes_give_the_same_twice():
    rng = random.Random(1)
    kinds = set()
    for _ in range(10_000):
        parts = [
            rng.choice(["", "-", "x"]) + str(rng.choice([rng.randint(0, 300), round(rng.random(), 2)]))
            for _ in range(rng.randint(0, 6))
        ]
        text = rng.choice(["[", "", "box "]) + rng.choice([", ", " ", "-"]).join(parts)
        numbers = numbers_again(text, 4)
        value = RELEASED["localization"](text, "[0.1, 0.2, 0.6, 0.7]")
        kinds.add(numbers is None)
        if numbers is None:
            assert value is None
        else:
            assert value == pytest.approx(giou_again(numbers, [0.1, 0.2, 0.6, 0.7]), abs=1e-9)
    assert kinds == {True, False}
