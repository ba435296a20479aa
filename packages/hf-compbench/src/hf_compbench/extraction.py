"""From a model's free text to one of the options: a ladder of rules, each hit labelled with its step.

Whole words always, never substrings ("right" is in "brighter"). What is ambiguous stays unparsed: a wrong guess would
count as the model's answer. The words that mean a side, and phrases in which they mean something else, stand in
`_wording.py`.
"""

import difflib
import functools
import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_compbench import _wording as wording
from hf_compbench.functional import UNPARSED

STEPS = ("json", "stated", "exact", "letter", "mention", "negation", "fuzzy", "unparsed")
"""The steps of the ladder, in order."""

FUZZY_RATIO = 0.9
FUZZY_LENGTH = 6  # shorter options are one letter from other words: "right" and "bright" have ratio 0.91


@dataclass(frozen=True)
class Extraction:
    """The index of the option that a reply names (-1 if none), and the step of the ladder that found it.

    Args:
        index: place of the option in the list that was given, from 0; -1 if the reply names none.
        step: name of the rule that decided.

    Example:

    ```python
    >>> from hf_compbench import extract_answer
    >>> extract_answer("(B)", ["Left", "Right"])
    Extraction(index=1, step='letter')

    ```
    """

    index: int
    step: str


@dataclass(frozen=True)
class _Mention:
    index: int
    role: str  # "plain", "negated" or "reference" (what something is compared with)


class _Options:
    """What a list of options compiles to, once."""

    def __init__(self, options: tuple[str, ...]):
        self.count = len(options)
        self.phrases: dict[str, int] = {}
        for index, option in enumerate(options):
            self.phrases.setdefault(normalise_text(option), index)  # of equal options the first counts
        self.distinct = set(self.phrases.values())
        self.fuzzy = {phrase: index for phrase, index in self.phrases.items() if len(phrase) >= FUZZY_LENGTH}
        for option, synonyms in wording.synonyms_for(options).items():
            for synonym in synonyms:
                self.phrases.setdefault(synonym, options.index(option))
        self.has_sides = "left" in self.phrases and "right" in self.phrases
        mentioned = sorted((phrase for phrase in self.phrases if not phrase.isdigit()), key=len, reverse=True)
        alternatives = "|".join(map(re.escape, filter(None, mentioned)))
        self.pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if alternatives else None

    def find_exact(self, text: str) -> int:
        return self.phrases.get(normalise_text(text), UNPARSED)

    def find_letter(self, text: str) -> int | None:
        """The option of a letter that stands first, -1 if what it labels is another option, None without a letter.

        What follows a letter is its label ("B. Right") or a reason, which may well speak of the other image ("B,
        because the left one is dark").
        """
        match = wording.LETTER.match(text)
        if match is None:
            return None
        letter, rest = (match["inside"] or match["bare"]).upper(), match["rest"] or ""
        index = ord(letter) - ord("A")
        if index >= self.count or (rest and letter == "I"):
            return None
        label = wording.LABEL_END.split(rest.strip(), maxsplit=1)[0]
        named = {self.find_exact(label), self.find_exact(wording.NOUNS.sub(" ", label))} - {UNPARSED}
        other_letter = re.fullmatch(r"\W*(?:(?:and|or)\W+)?\(?([a-z])\)?\W*", label, re.IGNORECASE)
        if other_letter and other_letter[1].upper() != letter and ord(other_letter[1].upper()) - ord("A") < self.count:
            return UNPARSED  # "A, B"
        return index if named <= {index} else UNPARSED

    def find_mentions(self, text: str) -> list[_Mention]:
        text = wording.flatten(text)
        if self.has_sides:
            text = wording.IDIOMS.sub(" ", text)
        if self.pattern is None:
            return []
        matches = self.pattern.finditer(text)
        return [
            _Mention(self.phrases[match[0]], wording.find_role(text, match.start(), match.end())) for match in matches
        ]


@functools.lru_cache(maxsize=65_536)
def _compile(options: tuple[str, ...]) -> _Options:
    return _Options(options)


def normalise_text(text: str) -> str:
    """Returns the text in lower case without punctuation, article in front, and double blanks."""
    plain = wording.ARTICLE.sub("", text.casefold().lstrip(" \n\t*_`\"'(["))  # the A of "A. Right" is no article
    return wording.PUNCTUATION.sub(" ", plain).strip()


def extract_answer(reply: str, options: Sequence[str], question: str = "") -> Extraction:
    """Returns the option that a reply names, and how it was found.

    The steps, the first that hits wins:

    1. `json`: a field `answer`, `choice`, ... of a JSON object.
    2. `stated`: "the answer is X", "Answer: X", a boxed or bold X; the last one said.
    3. `exact`: the reply, its first or its last line is an option, but for case and punctuation.
    4. `letter`: "B", "(b)", "B. Right".
    5. `mention`: one single option is mentioned, as whole words.
    6. `negation`: one is left after those that are denied ("not the left") or compared with ("than the left").
    7. `fuzzy`: the reply is nearly one of the options (ratio of `difflib` at least 0.9).

    Where `Left` and `Right` are options, first, image 1, image A, ... mean Left, and so for Right.

    Args:
        reply: the raw text. Reasoning in `<think>` tags is skipped; without its end there is no answer.
        options: texts of the options.
        question: the question; if given, "is darker than" does not answer which is brighter.

    Returns:
        [`Extraction`], with index -1 and step `unparsed` where no option or several are named.

    Example:

    ```python
    >>> from hf_compbench import extract_answer
    >>> extract_answer("Not the left one but the right.", ["Left", "Right"])
    Extraction(index=1, step='negation')
    >>> extract_answer("It is brighter.", ["Left", "Right"])
    Extraction(index=-1, step='unparsed')

    ```
    """
    compiled = _compile(tuple(options))
    text = wording.strip_reasoning(reply)
    if text is None:
        return Extraction(UNPARSED, "unparsed")
    index = compiled.find_exact(text)
    if index >= 0:
        return Extraction(index, "exact")
    for step, found in _climb(text, compiled, question):
        if found >= 0:
            return Extraction(found, step)
    return Extraction(UNPARSED, "unparsed")


def _climb(text: str, options: _Options, question: str) -> Iterator[tuple[str, int]]:
    if "{" in text:
        yield "json", _from_json(text, options)
    yield "stated", _from_statement(text, options)
    yield "exact", _from_lines(text, options)
    letter = options.find_letter(text.strip())
    if letter is not None:
        yield "letter", letter
    elif not wording.REFUSAL.search(text):
        step, index = _from_mentions(text, options, question)
        yield step, index
        yield "fuzzy", _from_likeness(text, options)


def _from_json(text: str, options: _Options) -> int:
    for match in wording.JSON_OBJECT.finditer(text):
        try:
            fields = json.loads(match[0])
        except ValueError:
            continue
        for name, value in fields.items():
            if name.casefold().replace(" ", "_") in wording.JSON_FIELDS and isinstance(value, (str, int)):
                return _resolve(str(value), options)
    return UNPARSED


def _resolve(phrase: str, options: _Options) -> int:
    """Returns the option that a short phrase names: exactly, by letter, or as its only mention."""
    index = options.find_exact(phrase)
    if index >= 0:
        return index
    letter = options.find_letter(phrase.strip())
    return _settle(options.find_mentions(phrase), options)[1] if letter is None else letter


def _from_statement(text: str, options: _Options) -> int:
    """The last statement that names an option; several bold options have to agree."""
    for match in reversed(list(wording.STATEMENT.finditer(text))):
        phrase = next(group for group in match.groups() if group is not None)
        index = _resolve(phrase, options)
        if index >= 0:
            return index
    bold = {_resolve(match["bold"], options) for match in wording.BOLD.finditer(text)} - {UNPARSED}
    return bold.pop() if len(bold) == 1 else UNPARSED


def _from_lines(text: str, options: _Options) -> int:
    """The option that stands alone in the first line, the last line, or the first sentence."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return UNPARSED
    parts = (lines[0], lines[-1], lines[0].partition(". ")[0])
    found = {options.find_exact(part) for part in parts} - {UNPARSED}
    last = options.find_exact(lines[-1].rstrip(". ").rpartition(". ")[2])
    found |= {last} - {UNPARSED} if found else set()
    return found.pop() if len(found) == 1 else UNPARSED


def _settle(mentions: list[_Mention], options: _Options) -> tuple[str, int]:
    """Returns the step and the option that is left of the mentions."""
    plain = {mention.index for mention in mentions if mention.role == "plain"}
    negated = {mention.index for mention in mentions if mention.role == "negated"}
    others = negated | {mention.index for mention in mentions if mention.role == "reference"}
    if len(plain) == 1 and not plain & others:
        return ("negation" if others else "mention"), next(iter(plain))
    left = options.distinct - negated
    if not plain and others == negated and len(negated) == 1 and len(left) == 1:
        return "negation", next(iter(left))
    return "mention", UNPARSED


def _from_mentions(text: str, options: _Options, question: str) -> tuple[str, int]:
    if options.has_sides and wording.NO_SIDE.search(text):
        return "mention", UNPARSED
    mentions = options.find_mentions(text)
    said = wording.find_comparatives(text)
    compared = any(mention.role == "reference" for mention in mentions)
    if said and question:
        if not said & wording.find_comparatives(question):
            return "mention", UNPARSED  # "is darker" is no answer to "which is brighter"
    elif said and compared:
        return "mention", UNPARSED  # "is darker than the left": which way was asked is not known
    return _settle(mentions, options)


def _from_likeness(text: str, options: _Options) -> int:
    phrase = normalise_text(text)
    if not FUZZY_LENGTH <= len(phrase) <= 80:
        return UNPARSED
    matcher = difflib.SequenceMatcher(b=phrase, autojunk=False)
    ratios: dict[int, float] = {}
    for option, index in options.fuzzy.items():
        matcher.set_seq1(option)
        if matcher.quick_ratio() >= FUZZY_RATIO:
            ratios[index] = matcher.ratio()
    best = max(ratios.values(), default=0.0)
    winners = [index for index, ratio in ratios.items() if ratio == best]
    return winners[0] if best >= FUZZY_RATIO and len(winners) == 1 else UNPARSED


def extract_as_paper(reply: str, options: Sequence[str]) -> Extraction:
    """Returns what the authors' evaluation scripts read in a reply, their defects included.

    Where sides are options it looks for the substrings "Right" and "Second" first and for "Left" and "First" after
    ("Left, not Right" is read as Right), case counts; other options have to be equal but for case, and blanks and
    punctuation around them.

    Example:

    ```python
    >>> from hf_compbench.extraction import extract_as_paper
    >>> extract_as_paper("Left, not Right", ["Left", "Right"]).index
    1

    ```
    """
    index = UNPARSED
    if "Left" in options and "Right" in options:
        for words, option in (("Right Second", "Right"), ("Left First", "Left"), ("Same", "Same"), ("None", "None")):
            if option in options and any(word in reply for word in words.split()):
                index = list(options).index(option)
                break
    else:
        plain, wanted = [_strip_as_paper(option) for option in options], _strip_as_paper(reply)
        index = plain.index(wanted) if wanted in plain else UNPARSED
    return Extraction(index, "paper" if index >= 0 else "unparsed")


def _strip_as_paper(text: str) -> str:
    return text.strip(" ").lower().strip(string.punctuation)
