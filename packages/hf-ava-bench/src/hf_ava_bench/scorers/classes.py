"""Classes: accuracy under one rule for all nine abilities that name one."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from hf_ava_bench.resolvers import (
    find_mentions,
    is_plain_direction,
    normalize,
    resolve_closer,
    resolve_direction,
    resolve_option,
    split_index,
)
from hf_ava_bench.scorers.base import Flags, Items, Scored

DIRECTIONAL = ("spatial", "orientation")


def _judge_option(
    text: str | None, gold: str, question: str, options: list[str], prefer: str
) -> tuple[str | None, bool]:
    if not options:
        index, rest = split_index(str(text))
        named = normalize(rest if index is not None and rest else text)
        return (None if text is None else named or None), index is not None
    resolved = resolve_option(text, options, prefer=prefer)
    return (None if resolved.value is None else _key(resolved.value)), resolved.repaired


def _judge_direction(
    text: str | None, gold: str, question: str, options: list[str], prefer: str
) -> tuple[str | None, bool]:
    """Directions are compared by their axes; an answer that gives an option's number only is looked up first."""
    index, rest = split_index(str(text))
    if text is not None and index is not None and not rest and options:
        text = resolve_option(text, options, prefer=prefer).value
    direction = resolve_direction(text)
    if direction is None:
        return None, False
    return _direction_key(direction), not is_plain_direction(str(text))


def _judge_closer(
    text: str | None, gold: str, question: str, options: list[str], prefer: str
) -> tuple[str | None, bool]:
    names = options if len(options) == 2 else find_mentions(question)
    if not names:  # nobody said between which two things: only the name itself can be right
        return (None if text is None else normalize(text) or None), False
    resolved = resolve_closer(text, question, names)
    return (None if resolved.value is None else _key(resolved.value)), resolved.repaired


def _direction_key(direction: tuple[str, str, str]) -> str:
    return " ".join(word for word in direction if word != "none")


def _key(text: str) -> str:
    """Returns a class as it is compared and counted: without a number of its own."""
    index, rest = split_index(text)
    return normalize(rest if index is not None and rest else text)


def _gold_key(gold: str, ability: str, question: str, options: list[str]) -> str:
    if ability in DIRECTIONAL:
        direction = resolve_direction(gold)
        if direction is None:
            raise ValueError(f"Expected a direction in every reference of {ability!r}, got {gold!r}.")
        return _direction_key(direction)
    if ability == "rel_depth":
        resolved = resolve_closer(gold, question, options if len(options) == 2 else ())
        return _key(resolved.value or gold)
    if options:
        return _key(resolve_option(gold, options).value or gold)
    return _key(gold)


def score_classes(items: Items) -> Scored:
    """Returns 1 for each right answer and 0 for each other; an answer that names no class is charged 0."""
    judge: Callable[..., tuple[str | None, bool]] = _judge_option
    if items.ability.id in DIRECTIONAL:
        judge = _judge_direction
    elif items.ability.id == "rel_depth":
        judge = _judge_closer
    n = len(items.references)
    questions = items.questions or [""] * n
    options = [list(names) for names in items.options] if items.options else [[] for _ in range(n)]
    golds = [
        _gold_key(*row)
        for row in zip(items.first_references(), [items.ability.id] * n, questions, options, strict=True)
    ]
    judged = [
        judge(text, gold, question, names, items.prefer)
        for text, gold, question, names in zip(items.predictions, golds, questions, options, strict=True)
    ]
    answers = [answer for answer, _ in judged]
    values = np.array([float(answer == gold) for answer, gold in zip(answers, golds, strict=True)])
    classes = sorted(set(golds))

    def summarize(chosen: Flags) -> dict[str, Any]:
        picked = np.flatnonzero(chosen)
        truth = np.array([golds[i] for i in picked])
        recall = [float(values[picked][truth == name].mean()) for name in classes if (truth == name).any()]
        figures: dict[str, Any] = {
            "balanced_accuracy": float(np.mean(recall)),
            "chance": float(np.mean([1 / len(options[i]) if options[i] else 1 / len(classes) for i in picked])),
            "majority": max(Counter(truth.tolist()).values()) / len(truth),
        }
        if items.ability.id in DIRECTIONAL:
            figures |= _axis_accuracy([answers[i] for i in picked], truth.tolist())
            figures["confusion"] = _confusion([answers[i] for i in picked], truth.tolist())
        return figures

    never = np.zeros(n, dtype=bool)
    return Scored(
        values=values,
        failed=np.array([answer is None for answer in answers], dtype=bool),
        repaired=np.array([repaired for _, repaired in judged], dtype=bool),
        out_of_range=never,
        charged="0.0",
        groups=golds if len(classes) <= 50 else (),
        summary=summarize,
    )


def _axis_accuracy(answers: list[str | None], golds: list[str]) -> dict[str, float]:
    pairs = [(resolve_direction(answer), resolve_direction(gold)) for answer, gold in zip(answers, golds, strict=True)]
    return {
        f"{name}_accuracy": float(np.mean([a is not None and g is not None and a[axis] == g[axis] for a, g in pairs]))
        for axis, name in enumerate(("horizontal", "vertical", "depth"))
    }


def _confusion(answers: list[str | None], golds: list[str]) -> dict[str, dict[str, int]]:
    """Returns truth -> answer -> number; the answer of those that name none is empty."""
    table: dict[str, Counter[str]] = {}
    for answer, gold in zip(answers, golds, strict=True):
        table.setdefault(gold, Counter())[answer or ""] += 1
    return {gold: dict(sorted(row.items())) for gold, row in sorted(table.items())}
