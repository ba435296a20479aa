"""How far answers get that see nothing of what is asked: from the question alone, or from the mean colour."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from hf_ava_bench.abilities import find_ability
from hf_ava_bench.constants import fit_constant
from hf_ava_bench.fingerprint import anchor
from hf_ava_bench.functional import Array
from hf_ava_bench.results import score_items

FEWEST = 5
"""Train items that a group needs for an answer of its own."""
COLUMNS = ("answer_struct", "answer", "question", "options")


def audit_shortcuts(train: datasets.Dataset, test: datasets.Dataset) -> dict[str, float]:
    """Returns the anchored scores of two predictors that have no vision to speak of.

    `question` gives, to each question, the answer that is best for it on train. `mean_color` divides images into eight
    groups, by whether the mean of each channel is above that of all of train, and answers alike in each. Scores near 0
    say that the items cannot be answered that way; a score well above it is worth what it is worth without the
    ability.

    Args:
        train, test (`datasets.Dataset`): items of one ability, see [`load_ability`].

    Returns:
        `dict`: predictor -> score, where 0 is the best constant answer and 1 no mistake.

    Example:

    ```python
    >>> from hf_ava_bench import audit_shortcuts, load_ability
    >>> train, test = (load_ability("texture", "mini", split, n=40, image_size=32) for split in ("train", "test"))
    >>> sorted(audit_shortcuts(train, test))
    ['mean_color', 'question']

    ```
    """
    ability = find_ability(train[0]["ability"]).id
    columns = {column: list(train[column]) for column in COLUMNS}
    overall = fit_constant(ability, *columns.values())
    m0 = score_items(test, [overall] * len(test)).value
    m1 = find_ability(ability).perfect
    colors = [_mean_colors(table) for table in (train, test)]
    middle = colors[0].mean(axis=0)
    groups: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "question": (columns["question"], list(test["question"])),
        "mean_color": ([*map(tuple, colors[0] > middle)], [*map(tuple, colors[1] > middle)]),
    }
    scores = {}
    for name, (train_groups, test_groups) in groups.items():
        answer_of = _fit_groups(ability, train_groups, columns, overall)
        answers = [answer_of(group) for group in test_groups]
        scores[name] = anchor(score_items(test, answers).value, m0, m1)
    return scores


def _fit_groups(
    ability: str, groups: Sequence[Any], columns: Mapping[str, Sequence[Any]], overall: str
) -> Callable[[Any], str]:
    """Returns the best answer of each group, that of all items where a group is small or new."""
    answers: dict[Any, str] = {}
    for group in set(groups):
        rows = [index for index, own in enumerate(groups) if own == group]
        if len(rows) >= FEWEST:
            answers[group] = fit_constant(ability, *([column[i] for i in rows] for column in columns.values()))
    return lambda group: answers.get(group, overall)


def _mean_colors(table: datasets.Dataset) -> Array:
    """Returns the mean red, green and blue of each image, `(n, 3)`."""
    means = [
        np.asarray(image.convert("RGB").resize((8, 8)), dtype=np.float64).mean(axis=(0, 1)) for image in table["image"]
    ]
    return np.array(means)
