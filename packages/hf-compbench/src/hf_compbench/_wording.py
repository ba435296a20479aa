"""The English that answers are written in: synonyms, idioms, denials, statements."""

import re
from collections.abc import Sequence

ARTICLE = re.compile(r"^(?:the|a|an)\s+(?=\S)")
PUNCTUATION = re.compile(r"[^\w]+")
_SPACES = re.compile(r"\s+")

# Nouns that may carry the number of an image.
_NOUN = "image|picture|photo|frame|photograph|img|figure"
_SIDES = {
    "Left": ("first", "1st", "leftmost", "left hand", "1", "one", "a", "#1"),
    "Right": ("second", "2nd", "rightmost", "right hand", "2", "two", "b", "#2"),
}
# Synonyms that are only safe as a whole answer or behind a noun ("image a"), not as a mention in a sentence.
_BARE_ONLY = {"1", "2", "one", "two", "a", "b", "#1", "#2"}
_OTHER = {
    "Same": ("equal", "equally", "identical", "tie", "tied", "the same"),
    "None": ("no difference", "no obvious difference", "no differences", "nothing"),
}


def synonyms_for(options: Sequence[str]) -> dict[str, list[str]]:
    """Returns the normalised phrases that stand for an option, for those options that have some."""
    found: dict[str, list[str]] = {}
    for option in options:
        if option in _SIDES and all(side in options for side in _SIDES):
            nouns = _NOUN.split("|")
            words = [word for word in _SIDES[option] if word not in _BARE_ONLY]
            numbers = [f"{noun} {word.strip('#')}" for noun in nouns for word in _SIDES[option]]
            plain = [word for word in _SIDES[option] if word in {"1", "2"}]
            found[option] = [*words, *dict.fromkeys(numbers), *plain]
        elif option in _OTHER:
            found[option] = list(_OTHER[option])
    return found


_BODY = "foot|footed|arm|leg|wing|eye|ear|back|turn|corner|shoulder|cheek|flank|winger|knee|lane|post"
_HAPPENS = (
    "happens|happened|happening|comes|came|coming|occurs|occurred|appears|appeared|goes|went|taken|takes place|took "
    "place|is|was|are|shown|recorded|captured|place"
)
IDIOMS = re.compile(
    r"(?<!\w)(?:"
    rf"(?:left|right) (?:{_BODY})(?!\w)"
    r"|(?:left|right) hand(?! (?:side|image|picture|photo|one|frame))(?!\w)"
    r"|(?:from )?(?:left to right|right to left)|left and right|left or right|right or left"
    r"|(?:has|have|had|is|are|was|were|been|what's) left(?= (?:the|to|in|over|behind|alone|out|his|her|their|with)\b)"
    r"|(?:left|right) of (?:the|a|an|it|him|her|them)(?! two\b)"
    r"|left (?:behind|over|alone|out|side of (?:the|each|both) \w+)|right side of (?:the|each|both) \w+"
    r"|(?:you're|you are|that's|that is|all|alright|quite|not quite) right"
    r"|right (?:now|away|here|there|before|after|below|above|next|behind|in front|at|answer|choice|angle|direction)"
    r"|right, (?:so|let|ok|well|i)\b|(?:ok|okay|yes|well),? right"
    r"|first (?:of all|glance|thing|step|look|time|let|i|we)|at first|(?:first|second)ly|(?:first|second),(?= \w)"
    rf"|(?:{_HAPPENS}) (?:first|second)|a second|second thought|per second|split second|every second"
    r")(?!\w)"
)

LETTER = re.compile(
    r"^[\s*_`\"']*(?:(?:option|choice)\s+)?(?:[(\[](?P<inside>[A-Za-z])[)\]]|(?P<bare>[A-Za-z])[)\]]?)[*_`\"']*"
    r"(?:(?:[.):,;]|\s+[-\u2013\u2014]\s|(?(inside)\s|(?!)))(?P<rest>.*)|\s*)$",
    re.DOTALL | re.IGNORECASE,
)
# A letter's label ends where a sentence or a reason begins.
LABEL_END = re.compile(r"[.;:!?\n]|,|\s[-\u2013\u2014]\s|\b(?:because|since|as|for)\b", re.IGNORECASE)
NOUNS = re.compile(r"\b(?:the|image|picture|photo|frame|one|option|is|correct)\b", re.IGNORECASE)
JSON_OBJECT = re.compile(r"\{[^{}]*\}")
JSON_FIELDS = {"answer", "final_answer", "choice", "option", "prediction", "label", "selection", "response", "result"}
STATEMENT = re.compile(
    r"(?:\b(?:answer|choice|selection|conclusion|verdict)\b\**\s*(?:is|was|would be|should be|must be|:|=)\**\s*[:=]?"
    r"|\b(?:i|i'd|i would|we)\s+(?:would\s+)?(?:choose|pick|select|go with|say|vote for|opt for)\b:?)"
    r"\s*([^.\n;!?]+)"
    r"|\\boxed\{(?:\\text\{)?([^{}]*)\}"
    r"|<answer>\s*([^<]*)</answer>",
    re.IGNORECASE,
)
# Bold words are an answer, unless they are the heading of what follows.
BOLD = re.compile(r"\*\*(?P<bold>[^*:\n]{1,60})\*\*(?!\s*:)")
REFUSAL = re.compile(
    r"\b(?:sorry|cannot|can't|can not|could not|couldn't|unable|not able|impossible|not possible|as an ai"
    r"|hard to (?:tell|say)|difficult to (?:tell|say|determine|judge)|not sure|unsure|unclear|insufficient"
    r"|don't know|do not know|don't see|depends|not enough|no way to|would need)\b",
    re.IGNORECASE,
)
NO_SIDE = re.compile(r"\b(?:neither|either|both (?:of|images? (?:are|look|show)|are|look|have|show))\b", re.IGNORECASE)

_WORDS = r"(?:(?!but\b)[\w'-]+\s+){0,3}"
_DENIED_BEFORE = re.compile(rf"(?:\bnot|n't|\bnever|\bnor|\bisnt)\s+{_WORDS}$")
_DENIED_AFTER = re.compile(r"^\s+(?:[\w'-]+\s+){0,2}?(?:(?:is|was|does|do|are|has)(?:\s+not|n't)|isn't|cannot)\b")
_COMPARED = re.compile(
    r"(?:\bthan|\bcompared (?:to|with)|\bunlike|\brather than|\binstead of|\bas opposed to|\bversus|\bvs)"
    r"\s+(?:[\w'-]+\s+){0,3}$"
)
_COMPARATIVE = re.compile(r"\b((?:more|less|fewer)(?:\s+[a-z]+)?|[a-z]{3,}er)\b")
_NOT_COMPARATIVE = frozenset(
    "other another over under after number either neither whether ever never however water together there where her "
    "per answer corner center player flower paper power order river finger letter computer picture cover consider "
    "remember whenever rather former latter hamster butter mother father winter summer silver counter tower".split()
)
_REASONING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def strip_reasoning(reply: str) -> str | None:
    """Returns the reply without its thoughts, or None where they never end."""
    text = _REASONING.sub("", reply)
    _, end, tail = text.rpartition("</think>")
    if end:
        text = tail
    return None if "<think" in text.casefold() else text.replace("\u2019", "'")


def flatten(text: str) -> str:
    """Returns the text in lower case without markup, words and punctuation kept in place."""
    plain = re.sub(r"[*_`\"()\[\]#]+", " ", text.casefold())
    return _SPACES.sub(" ", plain.replace("-", " ")).strip()


def find_role(text: str, start: int, end: int) -> str:
    """Returns whether the mention at this place is `plain`, `negated`, or the `reference` of a comparison."""
    clause = re.split(r"[.,;:!?]", text[max(0, start - 60) : start])[-1]
    if _COMPARED.search(clause):
        return "reference"
    after = re.split(r"[.,;:!?]", text[end : end + 60])[0]
    if _DENIED_BEFORE.search(clause) or _DENIED_AFTER.search(after):
        return "negated"
    return "plain"


def find_comparatives(text: str) -> set[str]:
    """Returns the comparatives of a text: "brighter", "more ripe", "fewer"."""
    words = set(_COMPARATIVE.findall(text.casefold()))
    return {" ".join(word.split()) for word in words} - _NOT_COMPARATIVE
