"""The best answer that looks at no image: what "no vision" is worth, fitted on train, scored on test."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_ava_bench.abilities import find_ability
from hf_ava_bench.functional import Array, anls, box_iou, ciede2000, srgb_to_lab
from hf_ava_bench.scorers.texts import normalize_text
from hf_ava_bench.scoring import compute_score

MOST = 500
"""Train items that a search over candidates looks at."""


def fit_constant(
    ability: str,
    structs: Sequence[dict[str, Any]],
    answers: Sequence[str],
    questions: Sequence[str] | None = None,
    options: Sequence[Sequence[str]] | None = None,
) -> str:
    """Returns the one answer with the best mean metric on train items.

    Classes: the most frequent; for the nearer of two things also the one in the red or in the blue box. Counts and
    depths: the median weighted by `1 / g`, which minimises the mean relative error. Boxes: coordinate descent on a
    grid. Colours: the best of a grid and of the train colours. Texts: the best of the train texts.

    Args:
        ability (`str`): the ability.
        structs (sequence of `dict`): `answer_struct` of train items.
        answers (sequence of `str`): their answers.
        questions, options (sequences, *optional*): theirs, for `rel_depth`.

    Example:

    ```python
    >>> from hf_ava_bench.constants import fit_constant
    >>> fit_constant("counting", [{"number": value} for value in (1.0, 2.0, 30.0)], ["1", "2", "30"])
    '1'

    ```
    """
    kind = find_ability(ability).answer
    if kind == "class":
        frequent = Counter(sorted(answers)).most_common(1)[0][0]
        candidates = (frequent, "red", "blue") if ability == "rel_depth" else (frequent,)
        return max(candidates, key=lambda text: _accuracy(ability, text, answers, questions, options))
    if kind == "number":
        value = _weighted_median(np.array([struct["number"] for struct in structs]))
        return f"{value:g} meters" if ability == "abs_depth" else f"{value:g}"
    chosen = list(structs[:MOST])
    if kind == "box":
        return str([round(float(value), 3) for value in _best_box(np.array([s["box"] for s in chosen]))])
    if kind == "rgb":
        return str([round(float(value)) for value in _best_color(np.array([s["rgb"] for s in chosen], dtype=float))])
    return _best_text([str(struct["text"]) for struct in chosen])


def _accuracy(
    ability: str,
    text: str,
    answers: Sequence[str],
    questions: Sequence[str] | None,
    options: Sequence[Sequence[str]] | None,
) -> float:
    return compute_score(ability, [text] * len(answers), answers, questions=questions, options=options).value


def _weighted_median(values: Array) -> float:
    order = np.sort(values)
    weights = 1 / np.where(order == 0, 1.0, order)
    return float(order[np.searchsorted(np.cumsum(weights), weights.sum() / 2)])


def _best_box(boxes: Array) -> Array:
    best = np.median(boxes, axis=0)
    grid = np.linspace(0, 1, 41)
    for _ in range(3):
        for axis in range(4):
            candidates = np.repeat(best[None], len(grid), axis=0)
            candidates[:, axis] = grid
            means = [box_iou(np.repeat(box[None], len(boxes), axis=0), boxes)[1].mean() for box in candidates]
            best = candidates[int(np.argmax(means))]
    return np.sort(best.reshape(2, 2), axis=0).reshape(4)


def _best_color(colors: Array) -> Array:
    levels = np.linspace(0, 255, 7)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    candidates = np.concatenate([grid, colors[:100]])
    lab, truth = srgb_to_lab(candidates), srgb_to_lab(colors)
    means = [ciede2000(np.broadcast_to(color, truth.shape), truth).mean() for color in lab]
    best: Array = candidates[int(np.argmin(means))]
    return best


def _best_text(texts: Sequence[str]) -> str:
    plain = [normalize_text(text) for text in texts]
    candidates = sorted(set(plain))[:200]
    return max(candidates, key=lambda candidate: sum(anls(candidate, [text]) for text in plain))
