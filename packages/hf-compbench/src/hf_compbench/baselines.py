"""What can be scored without looking at an image: the numbers to read beside every accuracy."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_compbench.functional import UNPARSED

Row = Mapping[str, Any]


def uniform_chance(rows: Sequence[Row]) -> float:
    """Returns the expected accuracy of drawing one of the options: the mean of one over their number."""
    return float(np.mean([1 / len(row["options"]) for row in rows]))


def majority_share(rows: Sequence[Row]) -> float:
    """Returns the accuracy of always giving the most frequent answer of these very rows."""
    return max(Counter(row["options"][row["answer"]] for row in labelled(rows)).values(), default=0) / len(rows)


def labelled(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows whose answer is one of their options: no other can be learned from or be right."""
    return [row for row in rows if row["answer"] >= 0]


def question_prior(train: Iterable[Row], rows: Iterable[Row]) -> list[int]:
    """Returns for each row the option that was right most often for the same question in `train`, without images.

    Ties and unseen questions give -1. Fixed sides for a question make this strong: in the authors' Fashionpedia labels
    it beats every model.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in labelled(train):
        counts[row["question"]][row["options"][row["answer"]]] += 1
    return [_most_frequent(row["options"], counts.get(row["question"], Counter())) for row in rows]


def option_prior(train: Iterable[Row], rows: Iterable[Row]) -> list[int]:
    """Returns for each row the offered option that was the answer most often in `train`; -1 on ties."""
    counts = Counter(row["options"][row["answer"]] for row in labelled(train))
    return [_most_frequent(row["options"], counts) for row in rows]


def image_prior(
    train: Iterable[Row], rows: Iterable[Row], keys: Sequence[str] = ("image_1_key", "image_2_key")
) -> list[int]:
    """Returns for each row the side whose image won more often in `train`; -1 where neither image was seen or on ties.

    Args:
        keys: columns that identify the two images.
    """
    wins: dict[str, int] = defaultdict(int)
    for row in labelled(train):
        winner = row["options"][row["answer"]]
        if winner in ("Left", "Right"):
            first, second = (row[key] for key in keys)
            wins[first] += 1 if winner == "Left" else -1
            wins[second] += 1 if winner == "Right" else -1
    found = []
    for row in rows:
        first, second = (wins.get(row[key], 0) for key in keys)
        options = list(row["options"])
        is_known = first != second and "Left" in options and "Right" in options
        found.append(options.index("Left" if first > second else "Right") if is_known else UNPARSED)
    return found


def prior_accuracy(rows: Sequence[Row], guesses: Sequence[int]) -> float:
    """Returns the accuracy of a prior's guesses; where it has none (-1) it draws one of the options."""
    right = [
        1 / len(row["options"]) if guess == UNPARSED else float(guess == row["answer"])
        for row, guess in zip(rows, guesses, strict=True)
        if row["answer"] >= 0
    ]
    return sum(right) / len(rows)


def _most_frequent(options: Sequence[str], counts: Counter[str]) -> int:
    numbers = [counts[option] for option in options]
    best = max(numbers)
    return numbers.index(best) if best > 0 and numbers.count(best) == 1 else UNPARSED
