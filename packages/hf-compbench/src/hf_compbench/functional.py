"""The metrics of two-image comparison: arrays in, numbers out.

An answer is the index of an option, -1 where a reply could not be parsed. Every question may be asked in both image
orders; `swap_map` says which option of the swapped question means the same as each option of the original one: Left
and Right trade places, Same, None and the names of things stay. `gold` and `first` are answers to the original
question, `second` is the answer to the swapped one as it was given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_compbench.sources import SIDES

Answers = npt.NDArray[np.int64]
UNPARSED = -1


def build_swap_map(options: Sequence[str]) -> list[int]:
    """Returns the permutation of options that goes with exchanging the images.

    It is its own inverse: swapping twice changes nothing.

    Example:

    ```python
    >>> from hf_compbench.functional import build_swap_map
    >>> build_swap_map(["Left", "Right", "Same"]), build_swap_map(["None", "dog", "hat"])
    ([1, 0, 2], [0, 1, 2])

    ```
    """
    swapped = list(range(len(options)))
    if all(side in options for side in SIDES):
        left, right = (list(options).index(side) for side in SIDES)
        swapped[left], swapped[right] = right, left
    return swapped


def apply_swap(answers: Answers, swap_maps: Sequence[Sequence[int]]) -> Answers:
    """Returns each answer translated to the other image order; what is unparsed stays so."""
    pairs = zip(answers.tolist(), swap_maps, strict=True)
    return np.array([mapping[answer] if answer >= 0 else UNPARSED for answer, mapping in pairs], dtype=np.int64)


def is_right(answers: Answers, gold: Answers) -> npt.NDArray[np.bool_]:
    """Returns which answers are the gold one; nothing is right where the gold answer is no option (-1)."""
    right: npt.NDArray[np.bool_] = (answers == gold) & (gold >= 0)
    return right


def rotate_options(options: Sequence[str], shift: int) -> tuple[list[str], list[int]]:
    """Returns the options moved by `shift` places in a circle, and for each new place the index it had before.

    Example:

    ```python
    >>> from hf_compbench.functional import rotate_options
    >>> rotate_options(["a", "b", "c"], 1)
    (['b', 'c', 'a'], [1, 2, 0])

    ```
    """
    origin = [(place + shift) % len(options) for place in range(len(options))]
    return [options[index] for index in origin], origin


def compute_swap_metrics(gold: Answers, first: Answers, second: Answers, mapped_second: Answers) -> dict[str, float]:
    """Returns the metrics of questions asked in both image orders, as fractions.

    With `c1` and `c2` for being right in the two orders: `accuracy` is the mean of (c1 + c2) / 2, `pair_accuracy` the
    mean of c1 c2 (1/4 for independent coin flips between two sides, 0 for a constant side), `consistency` the share of
    parsed answers that mean the same in both orders. `coverage` is the share of replies that could be parsed; what
    could not is wrong and inconsistent. Where the gold answer is no option (-1) every answer is wrong.

    Args:
        gold, first: answers to the original order, shape `(num_pairs,)`.
        second: answers to the swapped order as given.
        mapped_second: those translated back by [`apply_swap`].
    """
    right_first, right_second = is_right(first, gold), is_right(mapped_second, gold)
    return {
        "accuracy": float((right_first.mean() + right_second.mean()) / 2),
        "accuracy_first": float(right_first.mean()),
        "accuracy_second": float(right_second.mean()),
        "pair_accuracy": float((right_first & right_second).mean()),
        "consistency": float(((first >= 0) & (first == mapped_second)).mean()),
        "coverage": float(((first >= 0).mean() + (second >= 0).mean()) / 2),
    }


def compute_side_metrics(
    options: Sequence[Sequence[str]], gold: Answers, first: Answers, second: Answers
) -> dict[str, float]:
    """Returns how far answers lean to one side, over both orders pooled; nothing where some options are no sides.

    `bias` is P(answer = Left) - P(gold = Left); `accuracy_left` and `accuracy_right` are over the questions whose gold
    is that side, `side_gap` their difference (nan without questions of one side).

    Args:
        options: of each question.
        gold, first: answers to the original order, shape `(num_pairs,)`.
        second: answers to the swapped order as given.
    """
    if not all(side in choices for choices in options for side in SIDES):
        return {}
    swapped_gold = apply_swap(gold, [build_swap_map(choices) for choices in options])
    golds, answers = np.concatenate([gold, swapped_gold]), np.concatenate([first, second])
    index = {side: np.array([list(choices).index(side) for choices in options] * 2) for side in SIDES}
    left, right = (answers == index[side] for side in SIDES)
    gold_left, gold_right = (golds == index[side] for side in SIDES)
    accuracy_left = float(left[gold_left].mean()) if gold_left.any() else float("nan")
    accuracy_right = float(right[gold_right].mean()) if gold_right.any() else float("nan")
    return {
        "bias": float(left.mean() - gold_left.mean()),
        "accuracy_left": accuracy_left,
        "accuracy_right": accuracy_right,
        "side_gap": accuracy_left - accuracy_right,
    }


def debias(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], swap_map: Sequence[int]) -> int:
    """Returns the option with the highest mean score over both image orders, -1 on a tie.

    A liking for a side adds the same to an option in one order and to its opposite in the other, and drops out.

    Args:
        first, second: one score (e.g. log-probability in nats) for each option, in the two orders.
        swap_map: as from [`build_swap_map`].

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_compbench.functional import debias
    >>> debias(np.array([-0.1, -2.0]), np.array([-0.4, -0.9]), [1, 0])  # Left is liked
    0

    ```
    """
    mean = first + second[list(swap_map)]
    best = int(mean.argmax())
    return best if (mean == mean[best]).sum() == 1 else UNPARSED


def compute_macro_means(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Returns the mean over columns for each group, e.g. for each kind of comparison, keyed by group.

    Args:
        values: number of each column.
        groups: group of each column.
    """
    members: dict[str, list[float]] = {}
    for column, value in values.items():
        members.setdefault(groups[column], []).append(value)
    return {group: float(np.mean(numbers)) for group, numbers in members.items()}


def nan_to_none(value: Any) -> Any:
    """Returns the value with every nan replaced by None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
