"""From what a model writes to one of the possible classes."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Resolved(NamedTuple):
    """The class that an answer names, or None; `repaired` where it was not named plainly."""

    value: str | None
    repaired: bool = False


def normalize(text: object) -> str:
    """Returns a text as classes are compared: compatible characters, lower case, no quotes, articles or end marks.

    Spaces, hyphens and underscores are all one space.

    Example:

    ```python
    >>> from hf_ava_bench.resolvers import normalize
    >>> normalize(' "The Laysan_Albatross". ')
    'laysan albatross'

    ```
    """
    return _normalize(str(text)[:2_000])


@lru_cache(maxsize=65_536)
def _normalize(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = re.sub(r"[\s_-]+", " ", plain).strip(" \"'`.,;:!")
    return re.sub(r"^(?:(?:a|an|the) )+(?=\S)", "", plain)


_INDEX = re.compile(r"^\(?(?:([0-9]{1,4})[).:]?|([a-z])[).:])(?:\s+|$)|^\(?([a-z])\)?$")


def split_index(text: str) -> tuple[int | None, str]:
    """Returns the number of the option that a text begins with, from 1, and the rest.

    `"90. bulldozing"` is option 90, `"(b) dog"` and `"B"` option 2. A letter needs a bracket, a full stop or a colon,
    or to stand alone, so that articles are none.

    Example:

    ```python
    >>> from hf_ava_bench.resolvers import split_index
    >>> split_index("90. bulldozing"), split_index("B"), split_index("a dog")
    ((90, 'bulldozing'), (2, ''), (None, 'a dog'))

    ```
    """
    plain = text.strip().lower()
    match = _INDEX.match(plain)
    if match is None:
        return None, text.strip()
    letter = match[2] or match[3]
    return (ord(letter) - 96 if letter else int(match[1])), text.strip()[match.end() :].strip()


def resolve_option(text: object, options: Sequence[str], *, prefer: str = "text") -> Resolved:
    """Returns the option that an answer means.

    In order: the option itself; a leading number or letter, whose text, if there is any, has to agree (`prefer` says
    which counts if not); the only option that the answer contains as a whole phrase, longer options first.

    Args:
        text (`str` or None): the answer.
        options (sequence of `str`): what may be answered; a leading number of its own is not part of an option.
        prefer (`str`, defaults to `"text"`): `"text"` or `"index"`.

    Example:

    ```python
    >>> from hf_ava_bench.resolvers import resolve_option
    >>> resolve_option("2. a dog", ["cat", "dog"]).value, resolve_option("It is a cat.", ["cat", "dog"]).value
    ('dog', 'cat')
    >>> resolve_option("cat or dog", ["cat", "dog"]).value is None, resolve_option("1. dog", ["cat", "dog"])
    (True, Resolved(value='dog', repaired=True))

    ```
    """
    if text is None:
        return Resolved(None)
    names = {_bare(option): option for option in options}
    plain = normalize(text)
    if plain in names:
        return Resolved(names[plain])
    index, rest = split_index(str(text)[:2_000])
    by_index = _find_by_index(index, options)
    if by_index is not None and not rest:
        return Resolved(by_index)
    by_text = names.get(normalize(rest)) or _find_phrase(normalize(rest), names)
    if by_text is None or by_index is None:
        return Resolved(by_text or by_index, repaired=True)
    return Resolved(by_index if prefer == "index" else by_text, repaired=by_index != by_text)


@lru_cache(maxsize=65_536)
def _bare(option: str) -> str:
    """Returns an option without a number of its own, as it is compared."""
    index, rest = split_index(option)
    return normalize(rest if index is not None and rest else option)


def _find_by_index(index: int | None, options: Sequence[str]) -> str | None:
    if index is None:
        return None
    own = {number: option for option in options if (number := split_index(option)[0]) is not None}
    if own:
        return own.get(index)
    return options[index - 1] if 1 <= index <= len(options) else None


def _find_phrase(plain: str, names: dict[str, str]) -> str | None:
    """Returns the only option found in the text; a longer one hides those inside it."""
    found = []
    for name in sorted(names, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
        plain, count = re.subn(pattern, "\0", plain) if name else (plain, 0)
        if count:
            found.append(names[name])
    return found[0] if len(found) == 1 else None


_AXES: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("left", "leftward", "leftwards", "leftmost"), (0, "left")),
    **dict.fromkeys(("right", "rightward", "rightwards", "rightmost"), (0, "right")),
    **dict.fromkeys(("above", "over", "top", "upper", "up", "upward", "upwards", "atop"), (1, "above")),
    **dict.fromkeys(
        ("below", "under", "underneath", "beneath", "bottom", "lower", "down", "downward", "downwards"), (1, "below")
    ),
    **dict.fromkeys(("front", "forward", "forwards", "ahead", "toward", "towards"), (2, "front")),
    **dict.fromkeys(("behind", "back", "backward", "backwards", "rear", "away"), (2, "behind")),
}
Direction = tuple[str, str, str]


def resolve_direction(text: object) -> Direction | None:
    """Returns what a text says about left and right, above and below, in front and behind, `"none"` where nothing.

    The order of words does not matter and synonyms are understood: "left below", "below left" and "lower-left" are the
    same. A text that names no direction, or two against each other, gives None. Used for relations in space and for
    the ways a thing faces.

    Example:

    ```python
    >>> from hf_ava_bench.resolvers import resolve_direction
    >>> resolve_direction("on top, to the left"), resolve_direction("left or right")
    (('left', 'above', 'none'), None)

    ```
    """
    if text is None:
        return None
    axes: list[str] = ["none", "none", "none"]
    for word in re.findall(r"[a-z]+", normalize(text)):
        axis, value = _AXES.get(word, (None, ""))
        if axis is None:
            continue
        if axes[axis] not in ("none", value):
            return None
        axes[axis] = value
    return (axes[0], axes[1], axes[2]) if axes != ["none"] * 3 else None


def is_plain_direction(text: str) -> bool:
    """Returns whether a text is words of directions and nothing else."""
    return all(word in _AXES for word in normalize(text).split())


_MENTION = r"(?:the |a |an )?([\w' -]{1,60}?)\s*(?:\((?:in (?:the )?)?%s\b|in (?:the|a) %s\b|,? (?:marked )?%s box)"


def resolve_closer(text: object, question: str, options: Sequence[str] = ()) -> Resolved:
    """Returns which of the two things of a depth question an answer means.

    An answer may be the thing's name, the colour of its box ("red", "blue"), or "A" or "B". The names come from the
    options, first the red one, or from the question.

    Example:

    ```python
    >>> from hf_ava_bench.resolvers import resolve_closer
    >>> question = "Which is closer, the car (red box) or the tree (blue box)?"
    >>> [resolve_closer(text, question).value for text in ("The tree.", "red", "B")]
    ['tree', 'car', 'tree']

    ```
    """
    names = list(options) or find_mentions(question)
    if text is None or len(names) != 2:
        return Resolved(None)
    named = resolve_option(text, names)
    if named.value is not None:
        return named
    colors = {color for color in ("red", "blue") if re.search(rf"\b{color}\b", normalize(text))}
    if len(colors) != 1:
        return Resolved(None)
    return Resolved(names[0 if colors == {"red"} else 1], repaired=True)


def find_mentions(question: str) -> list[str]:
    """Returns the names of the things in the red and in the blue box of a question, or an empty list."""
    plain = normalize(question)
    names = []
    for color in ("red", "blue"):
        match = re.search(_MENTION % ((color,) * 3), plain)
        if match is None:
            return []
        name = re.split(r"\bor\b|\bcloser\b|,|:", match[1])[-1]
        names.append(normalize(name))
    return names if all(names) else []
