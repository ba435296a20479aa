"""From predictions and references of one ability to a score that hides nothing."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from hf_ava_bench.abilities import Ability, find_ability
from hf_ava_bench.parity import RELEASED, score_as_released
from hf_ava_bench.scorers import SCORERS, Items, Scored
from hf_ava_bench.scorers.base import Flags

Policy = Literal["worst", "skip", "raise"]
POLICIES = ("worst", "skip", "raise")
PARITY = "ava-2026"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one ability.

    Args:
        ability (`str`): our name of the ability.
        metric (`str`): name of the headline metric.
        value (`float`): the headline, a mean over items. Fractions everywhere, never percent.
        higher_is_better (`bool`): whether more is better.
        n (`int`): number of references.
        n_missing (`int`): references without a prediction.
        n_unparsable (`int`): predictions in which no answer was found.
        n_repaired (`int`): predictions whose form was not the expected one and that were read all the same.
        n_out_of_range (`int`): predictions that were moved into their range.
        coverage (`float`): share of the references that count with an answer of the model.
        policy (`str`): what was done about missing and unparsable ones: `"worst"` charges them, `"skip"` leaves them
            out of the mean, as the released evaluators do.
        charged (`str`): what `"worst"` charges.
        figures (`dict`): further figures of the ability.
        bins (`dict`): bin of the truth -> number of items, headline metric, and figures of the ability.
        sources (`dict`): data set that items come from -> number of items and headline metric, where it is known.
        parity (`str` or None): `"ava-2026"` where the value is that of the released evaluator, faults included.
        values (`tuple[float, ...]`): the metric of each item, in the order of the references.

    Example:

    ```python
    >>> from hf_ava_bench import compute_score
    >>> compute_score("scene", ["a sea", None], ["sea", "city"]).to_dict()["n_missing"]
    1

    ```
    """

    ability: str
    metric: str
    value: float
    higher_is_better: bool
    n: int
    n_missing: int
    n_unparsable: int
    n_repaired: int
    n_out_of_range: int
    coverage: float
    policy: str
    charged: str
    figures: dict[str, Any] = field(default_factory=dict)
    bins: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    parity: str | None = None
    values: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self, *, values: bool = False) -> dict[str, Any]:
        """Returns the score as plain JSON types, without the metric of each item unless asked.

        Where nothing was counted there is no mean: None stands for it.
        """
        result = {key: value for key, value in asdict(self).items() if key != "values"}
        result["value"] = None if math.isnan(self.value) else self.value
        if values:
            result["values"] = [None if math.isnan(value) else value for value in self.values]
        return result


def compute_score(
    ability: str,
    predictions: Sequence[str | None],
    references: Sequence[str | Sequence[str]],
    *,
    questions: Sequence[str] | None = None,
    options: Sequence[Sequence[str]] | None = None,
    image_sizes: Sequence[Sequence[int]] | None = None,
    sources: Sequence[str] | None = None,
    unparsable: Policy = "worst",
    coords: str = "auto",
    boundary: Literal["strict", "inclusive"] = "strict",
    prefer: Literal["text", "index"] = "text",
    clip_rel: float | None = None,
    parity: str | None = None,
) -> Score:
    """Returns the score of free-text answers, with all that was unreadable, repaired or out of range counted.

    The mean is over the references: a missing or unreadable answer counts as a wrong one.

    Args:
        ability (`str`): name of the ability, see [`find_ability`].
        predictions (sequence of `str` or None): what the model wrote; None where there is nothing.
        references (sequence of `str`, or of sequences of them): the truth; several texts are allowed for OCR.
        questions (sequence of `str`, *optional*): for `rel_depth`, whose answers name things of the question.
        options (sequence of sequences of `str`, *optional*): closed sets of answers.
        image_sizes (sequence of `(width, height)`, *optional*): for boxes in pixels.
        sources (sequence of `str`, *optional*): the data set of each item, for a mean of each.
        unparsable (`str`, defaults to `"worst"`):
            `"worst"` charges a fixed bad value, `"skip"` leaves such items out, `"raise"` raises at the first.
        coords (`str`, defaults to `"auto"`):
            Unit of predicted boxes: `"unit"`, `"permille"`, `"pixel"`, or decided once from all of them.
        boundary (`str`, defaults to `"strict"`): whether ANLS gives 0 or 0.5 (`"inclusive"`) at exactly one half.
        prefer (`str`, defaults to `"text"`): what counts where the number and the text of an option disagree.
        clip_rel (`float`, *optional*): largest relative error of a count or depth.
        parity (`str`, *optional*):
            `"ava-2026"` computes what the released evaluators compute, faults included, to explain differences.

    Returns:
        `Score`

    Raises:
        ValueError: if lengths differ, there are no references, a reference cannot be read, or an argument is unknown.

    Example:

    ```python
    >>> from hf_ava_bench import compute_score
    >>> score = compute_score("counting", ["There are 5.", "twelve", "many"], ["4", "12", "7"])
    >>> score.value, score.n, score.n_unparsable, score.coverage
    (0.4166666666666667, 3, 1, 0.6666666666666667)

    ```
    """
    known = find_ability(ability)
    if unparsable not in POLICIES:
        raise ValueError(f"`unparsable` must be one of {', '.join(POLICIES)}, got {unparsable!r}.")
    if boundary not in ("strict", "inclusive"):
        raise ValueError(f"`boundary` must be strict or inclusive, got {boundary!r}.")
    if prefer not in ("text", "index"):
        raise ValueError(f"`prefer` must be text or index, got {prefer!r}.")
    if clip_rel is not None and not clip_rel > 0:
        raise ValueError(f"`clip_rel` must be positive, got {clip_rel}.")
    for name, given in (("predictions", predictions), ("references", references)):
        if isinstance(given, str):
            raise TypeError(f"Expected a list of texts as `{name}`, got the text {given!r}.")
    items = Items(
        ability=known,
        predictions=list(predictions),
        references=list(references),
        questions=questions,
        options=options,
        image_sizes=image_sizes,
        sources=sources,
        coords=coords,
        inclusive=boundary == "inclusive",
        prefer=prefer,
        clip_rel=clip_rel,
    )
    _check_items(items)
    if parity is not None:
        return _released(items, parity)
    scored = SCORERS[known.answer](items)
    return _summarize(items, scored, unparsable)


def _check_items(items: Items) -> None:
    n = len(items.references)
    if n == 0:
        raise ValueError("Expected at least one reference, got none.")
    for name in ("predictions", "questions", "options", "image_sizes", "sources"):
        given = getattr(items, name)
        if given is not None and len(given) != n:
            raise ValueError(f"Expected {n} {name}, one for each reference, got {len(given)}.")
    for index, prediction in enumerate(items.predictions):
        if prediction is not None and not isinstance(prediction, str):
            raise TypeError(
                f"Expected the text that the model wrote, or None, got {prediction!r} at position {index}; "
                "pass str(...) of typed values."
            )
    for index, reference in enumerate(items.references):
        texts = [reference] if isinstance(reference, str) else reference
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"Expected a text, or a list of texts, as every reference, got {reference!r} at position {index}."
            )
    for index, names in enumerate(items.options or ()):
        if isinstance(names, str):
            raise TypeError(f"Expected a list of texts as the options of an item, got {names!r} at position {index}.")


def _summarize(items: Items, scored: Scored, unparsable: Policy) -> Score:
    missing = np.array([text is None for text in items.predictions], dtype=bool)
    failed = scored.failed | missing
    if unparsable == "raise" and failed.any():
        index = int(np.flatnonzero(failed)[0])
        raise ValueError(f"No answer can be read from {items.predictions[index]!r} at position {index}.")
    counted = ~failed if unparsable == "skip" else np.ones(len(failed), dtype=bool)
    values = np.where(counted, scored.values, np.nan)
    figures = dict(scored.facts)
    if counted.any():
        figures |= scored.summary(counted)
    return Score(
        ability=items.ability.id,
        metric=items.ability.metric,
        value=float(values[counted].mean()) if counted.any() else float("nan"),
        higher_is_better=items.ability.higher_is_better,
        n=len(failed),
        n_missing=int(missing.sum()),
        n_unparsable=int((scored.failed & ~missing).sum()),
        n_repaired=int((scored.repaired & ~failed).sum()),
        n_out_of_range=int((scored.out_of_range & ~failed).sum()),
        coverage=float(1 - failed.mean()),
        policy=unparsable,
        charged=scored.charged,
        figures=figures,
        bins=_bin_table(scored, counted, items.ability),
        sources=_table(items.sources or (), scored, counted, items.ability),
        values=tuple(values.tolist()),
    )


def _bin_table(scored: Scored, counted: Flags, ability: Ability) -> dict[str, dict[str, Any]]:
    table = _table(scored.groups, scored, counted, ability)
    if ability.answer == "class":
        return table
    groups = np.array(scored.groups)
    return {name: {**figures, **scored.summary((groups == name) & counted)} for name, figures in table.items()}


def _table(groups: Sequence[str], scored: Scored, counted: Flags, ability: Ability) -> dict[str, dict[str, Any]]:
    """Returns number and mean metric of the items of each group that count."""
    names = np.array(groups)
    table = {}
    for name in sorted(set(groups), key=_bin_order):
        chosen = (names == name) & counted
        if chosen.any():
            table[name] = {"n": int(chosen.sum()), ability.metric: float(scored.values[chosen].mean())}
    return table


def _bin_order(name: str) -> tuple[float, str]:
    """Bins of numbers by their lower end, classes by name."""
    head = name.partition("_")[0]
    return (float(head), "") if head.replace(".", "", 1).isdigit() else (float("inf"), name)


def _released(items: Items, parity: str) -> Score:
    if parity != PARITY:
        raise ValueError(f"`parity` must be {PARITY!r} or None, got {parity!r}.")
    if items.ability.id not in RELEASED:
        raise ValueError(
            f"No evaluator of {items.ability.id!r} was released; there are those of {', '.join(sorted(RELEASED))}."
        )
    references = [[text] if isinstance(text, str) else list(text) for text in items.references]
    values = score_as_released(items.ability.id, items.predictions, references)
    kept = [value for value in values if value is not None]
    return Score(
        ability=items.ability.id,
        metric=items.ability.metric,
        value=float(np.mean(kept)) if kept else float("nan"),
        higher_is_better=items.ability.higher_is_better,
        n=len(values),
        n_missing=sum(text is None for text in items.predictions),
        n_unparsable=sum(v is None and text is not None for v, text in zip(values, items.predictions, strict=True)),
        n_repaired=0,
        n_out_of_range=0,
        coverage=len(kept) / len(values),
        policy="skip",
        charged="nothing: what cannot be read is left out",
        parity=parity,
        values=tuple(float("nan") if value is None else value for value in values),
    )
