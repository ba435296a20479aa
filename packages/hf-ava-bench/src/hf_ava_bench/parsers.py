"""From what a model writes to a number, a box or a colour. Nothing here raises, whatever the text is."""

import math
import re
import unicodedata
from typing import NamedTuple

from PIL import ImageColor

LONGEST = 10_000
"""Characters of an answer that are read; the rest of a longer one is left out."""


class Parsed(NamedTuple):
    """What was read from an answer.

    `value` is None where nothing could be read. `repaired` says that the form was not the expected one, `out_of_range`
    that the value had to be moved into its range.
    """

    value: tuple[float, ...] | None
    repaired: bool = False
    out_of_range: bool = False


NOTHING = Parsed(None)

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?|\.[0-9]+"
# A sign counts only where no digit, letter or closing bracket comes right before it: "5-7" is a range.
_SIGNED = re.compile(rf"(?<![\w.)\]])(-)?\s?({_NUMBER})(?![0-9])|({_NUMBER})")
# A number begins where no digit comes before it, so that long runs of digits are walked through once.
_RANGE = re.compile(
    rf"between\s({_NUMBER})\s?[a-z]{{0,6}}\s(?:and|to)\s({_NUMBER})"
    rf"|(?<![0-9.,])({_NUMBER})\s?[a-z]{{0,6}}\s?(?:-|\bto\b)\s?({_NUMBER})"
)
_LEAD = re.compile(r"(?:\b(?:is|are|about)\b|[=:])")
_UNITS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 0.001),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 0.01),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), 1000.0),
    **dict.fromkeys(("ft", "foot", "feet"), 0.3048),
    **dict.fromkeys(("inch", "inches"), 0.0254),
    **dict.fromkeys(("yard", "yards"), 0.9144),
    **dict.fromkeys(("mile", "miles"), 1609.344),
}
_UNIT = re.compile(r"\s?([a-z]+)\b")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {
    "a dozen": 12,
    "dozen": 12,
    "two dozen": 24,
    "a hundred": 100,
    "one hundred": 100,
    "hundred": 100,
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    **{
        f"{ten}{join}{one}": 10 * tens + ones
        for tens, ten in enumerate(_TENS, start=2)
        for ones, one in enumerate(_ONES[1:10], start=1)
        for join in (" ", "-")
    },
}
_WORD = re.compile(r"\b(?:" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")\b")
_NONE = re.compile(r"\b(?:none|nothing|no(?! (?:idea|clue|answer|way|information)\b))\b")


def _clean(text: object) -> str:
    """Returns the text in lower case, with full-width digits, odd dashes and runs of spaces made plain."""
    plain = unicodedata.normalize("NFKC", str(text)[:LONGEST]).lower()
    plain = re.sub("[\u2010-\u2015\u2212]", "-", plain)  # hyphens, dashes and the minus sign
    return " ".join(plain.split())


def _to_float(text: str) -> float:
    return float(text.replace(",", ""))


def parse_number(text: object, *, meters: bool = False) -> Parsed:
    """Returns the number that an answer gives, as a tuple of one.

    Thousands separators, exponents, number words up to a hundred ("a dozen", "none") are understood; with `meters`
    lengths in mm, cm, km, inches, feet, yards and miles are converted. A range ("5-7", "5 to 7", "between 5 and 7")
    gives its midpoint, of several numbers the one after "is", "are", "about", "=" or ":" counts, else the first; both
    are repairs. A negative number is out of range and gives 0.

    Args:
        text (`str` or None): the answer.
        meters (`bool`, defaults to `False`): whether to read units of length.

    Example:

    ```python
    >>> from hf_ava_bench.parsers import parse_number
    >>> parse_number("1,200").value, parse_number("there are twenty-one").value, parse_number("5-7")
    ((1200.0,), (21.0,), Parsed(value=(6.0,), repaired=True, out_of_range=False))
    >>> parse_number("about 250 cm", meters=True).value, parse_number("many").value
    ((2.5,), None)

    ```
    """
    if text is None:
        return NOTHING
    plain = _clean(text)
    with_digits = _WORD.sub(lambda match: str(_WORDS[match[0]]), plain)
    found = list(_SIGNED.finditer(with_digits))
    if not found:
        return Parsed((0.0,), repaired=plain not in ("none", "no")) if _NONE.search(plain) else NOTHING
    span = _RANGE.search(with_digits)
    if span is not None:
        low, high = (part for part in span.groups() if part is not None)
        value, repaired, end = (_to_float(low) + _to_float(high)) / 2, True, span.end()
    else:
        lead = _LEAD.search(with_digits)
        after = [match for match in found if lead is not None and match.start() >= lead.start()]
        match = (after or found)[0]
        value = _to_float(match[2] or match[3]) * (-1 if match[1] else 1)
        repaired, end = len(found) > 1, match.end()
    if meters:
        unit = _UNIT.match(with_digits[end:])
        value *= _UNITS.get(unit[1], 1.0) if unit else 1.0
    if not math.isfinite(value):
        return NOTHING
    return Parsed((max(value, 0.0),), repaired, out_of_range=value < 0)


_FLOAT = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?"
_PLAIN = re.compile(rf"(?<![\w.)\]])-?{_FLOAT}|{_FLOAT}")
_BRACKETS = re.compile(r"[\[(<{]([^\[\](){}<>]*)[\])>}]")
_TOKEN = re.compile(r"<loc([0-9]{1,4})>")
_NAMED = re.compile(rf"\b([xy])_?(?:(1|min)|2|max)[\"']?\s?[=:]\s?(-?{_FLOAT})")
_BOX_TAG = re.compile(r"<box>(.*?)</box>")


def parse_box(text: object) -> Parsed:
    """Returns the four numbers of a box as they are written, `x1, y1, x2, y2`; [`convert_boxes`] knows their unit.

    Understood are four numbers in the first bracket pair that has them, four sides by name in any order (`x1=...`,
    `"ymax": ...`), `{"bbox_2d": [...]}`, `<box>(a,b),(c,d)</box>`, four `<loc0000>` tokens (y first, of 1024, given as
    shares of one), and else the first four numbers of the text, which is a repair.

    Example:

    ```python
    >>> from hf_ava_bench.parsers import parse_box
    >>> parse_box("[0.1, 0.2, 0.3, 0.4]").value, parse_box("<loc0256><loc0512><loc0768><loc1023>").value
    ((0.1, 0.2, 0.3, 0.4), (0.5, 0.25, 0.9990234375, 0.75))
    >>> parse_box("from 1, 2 to 3, 4").repaired, parse_box("1, 2, 3").value
    (True, None)

    ```
    """
    if text is None:
        return NOTHING
    plain = _clean(text)
    tokens = [int(value) / 1024 for value in _TOKEN.findall(plain)[:4]]
    if len(tokens) == 4:
        top, left, bottom, right = tokens
        return Parsed((left, top, right, bottom))
    named = {(axis, bool(low)): value for axis, low, value in _NAMED.findall(plain)}
    if len(named) == 4:
        return _finite([float(named[axis, low]) for low in (True, False) for axis in "xy"], repaired=False)
    tag = _BOX_TAG.search(plain)
    for part in [tag[1]] if tag else _BRACKETS.findall(plain):
        numbers = _PLAIN.findall(part)
        if len(numbers) >= 4:
            return _finite([float(value) for value in numbers[:4]], repaired=len(numbers) > 4)
    numbers = _PLAIN.findall(plain)
    return _finite([float(value) for value in numbers[:4]], repaired=True) if len(numbers) >= 4 else NOTHING


def _finite(values: list[float], repaired: bool, out_of_range: bool = False) -> Parsed:
    return Parsed(tuple(values), repaired, out_of_range) if all(map(math.isfinite, values)) else NOTHING


_HEX = re.compile(r"#([0-9a-f]{6}|[0-9a-f]{3})\b")
_TWO_WORDS = re.compile("^(light|dark|medium|pale|deep|hot)(?=.)")
_CSS = [_TWO_WORDS.sub(r"\1 ?", name) for name in sorted(ImageColor.colormap, key=len, reverse=True)]
_COLOR_NAMES = re.compile(rf"\b(?:{'|'.join(_CSS)})\b")
# Boxes are drawn into the images, and answers speak of them: they are not the colour asked about.
_DRAWN = re.compile(r"\b(?:red|blue)(?: bounding)? (?:box|rectangle|frame)\b")


def parse_rgb(text: object) -> Parsed:
    """Returns red, green and blue in [0, 255].

    Understood are three numbers, `rgb(...)`, `#rrggbb`, and the names of CSS (the first one, boxes aside).
    Numbers all within [0, 1], one of them with a fraction, are shares of one (a repair). Other values are clipped (out
    of range).

    Example:

    ```python
    >>> from hf_ava_bench.parsers import parse_rgb
    >>> parse_rgb("[35, 56, 77]").value, parse_rgb("#ff8000").value, parse_rgb("dark red").value
    ((35.0, 56.0, 77.0), (255.0, 128.0, 0.0), (139.0, 0.0, 0.0))
    >>> parse_rgb("(0.5, 1, 0)"), parse_rgb("300, 0, 0").out_of_range
    (Parsed(value=(127.5, 255.0, 0.0), repaired=True, out_of_range=False), True)

    ```
    """
    if text is None:
        return NOTHING
    plain = _clean(text)
    code = _HEX.search(plain)
    if code is not None:
        digits = code[1] if len(code[1]) == 6 else "".join(2 * digit for digit in code[1])
        return Parsed(tuple(float(int(digits[i : i + 2], 16)) for i in (0, 2, 4)))
    bracketed = [_PLAIN.findall(part) for part in _BRACKETS.findall(plain)]
    numbers = next((part for part in bracketed if len(part) >= 3), _PLAIN.findall(plain))
    if len(numbers) >= 3:
        values = [float(value) for value in numbers[:3]]
        if max(values) <= 1 and min(values) >= 0 and any("." in value for value in numbers[:3]):
            return _finite([255 * value for value in values], repaired=True)
        clipped = [min(max(value, 0.0), 255.0) for value in values]
        return _finite(clipped, repaired=len(numbers) > 3, out_of_range=clipped != values)
    name = _COLOR_NAMES.search(_DRAWN.sub("", plain))
    if name is None:
        return NOTHING
    red, green, blue = ImageColor.getrgb(name[0].replace(" ", ""))[:3]
    return Parsed((float(red), float(green), float(blue)), repaired=plain != name[0])
