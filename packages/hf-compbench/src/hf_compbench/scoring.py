"""From replies to numbers with intervals. Needs neither torch nor a model nor the images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_compbench import functional
from hf_compbench.baselines import majority_share, option_prior, prior_accuracy, question_prior, uniform_chance
from hf_compbench.extraction import extract_answer, extract_as_paper
from hf_compbench.functional import UNPARSED
from hf_compbench.intervals import bootstrap_macro_mean, clustered_standard_error, wilson_interval
from hf_compbench.scores import Scores
from hf_compbench.sources import group_by_column

Row = Mapping[str, Any]
Mode = Literal["strict", "paper"]
ORDERS = ("12", "21")
"""Image orders: as the row has them, and exchanged."""

_NEEDED = ("id", "relativity", "source", "question", "options", "answer", "group_id")
_WANTED = (*_NEEDED, "image_2_key")
Found = dict[tuple[str, str], list[int]]
"""By (row id, image order) the answers as option indices, one for each shift of the options, shift 0 first."""


def read_rows(dataset: Iterable[Row]) -> list[dict[str, Any]]:
    """Returns the columns that scoring needs, images untouched, with relativity and source as names."""
    table: Any = dataset
    if hasattr(table, "select_columns"):
        table = table.select_columns([name for name in _WANTED if name in (table.column_names or _NEEDED)])
    names = {}
    for column in ("relativity", "source"):
        feature = (getattr(table, "features", None) or {}).get(column)
        names[column] = getattr(feature, "int2str", str)
    rows = []
    for row in table:
        if missing := [name for name in _NEEDED if name not in row]:
            raise ValueError(f"Expected rows with the columns {', '.join(_NEEDED)}; {', '.join(missing)} is missing.")
        named = {key: names[key](row[key]) if isinstance(row[key], int) else row[key] for key in names}
        rows.append({**row, **named})
    return rows


def read_answer(row: Row, response: Row, mode: Mode = "strict") -> tuple[int, str]:
    """Returns the option index (of the options in the row's own order) that one response gives, and the step.

    A response holds a `reply` (text), or `scores` (one number for each option; the highest wins, a tie is unparsed),
    and `shift` if its options were shown moved by so many places.
    """
    options, origin = functional.rotate_options(row["options"], int(response.get("shift", 0)))
    scores, reply = response.get("scores"), response.get("reply")
    if scores is not None:
        if len(scores) != len(options):
            raise ValueError(f"Expected {len(options)} scores for row {row['id']!r}, got {len(scores)}.")
        best = max(scores)
        index, step = (list(scores).index(best), "scores") if list(scores).count(best) == 1 else (UNPARSED, "unparsed")
    elif not isinstance(reply, str):
        raise ValueError(f"Expected a text `reply` or `scores` in the response to row {row['id']!r}, got {reply!r}.")
    else:
        read = extract_as_paper(reply, options) if mode == "paper" else extract_answer(reply, options, row["question"])
        index, step = read.index, read.step
    return (origin[index] if index >= 0 else UNPARSED), step


def score(
    dataset: Iterable[Row],
    responses: Iterable[Row],
    *,
    mode: Mode = "strict",
    train: Iterable[Row] | None = None,
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> Scores:
    """Returns accuracy and swap metrics for each column, with intervals.

    An unparsed reply is wrong, and so is every reply to a row whose label is none of its options. A pair without any
    reply (not asked yet, or an error) is left out and counted in `missing`. Accuracy is the mean over the image orders
    and the shifts of options that were asked; the metrics of both orders are those of shift 0.

    Args:
        dataset: rows in the canonical form (`datasets.Dataset` or dicts); images are not decoded.
        responses: dicts with `id`, `order` (`"12"` or `"21"`), and `reply` or `scores`; `shift`, `status` if any.
        mode: `"strict"` reads replies by the extraction ladder, `"paper"` as the authors' scripts did.
        train: rows to learn priors from, e.g. the val split that goes with a test split: how far one gets without
            images stands beside the accuracy.
        num_bootstrap: number of bootstrap samples for the interval of the macro mean.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if a column is missing, a response is not of the form, or no reply belongs to a row.

    Example:

    ```python
    >>> from hf_compbench import score
    >>> row = {"id": "a", "relativity": "state", "source": "vaw", "question": "Which cup is fuller?",
    ...        "options": ["Left", "Right"], "answer": 0, "group_id": "g"}
    >>> replies = [{"id": "a", "order": "12", "reply": "Left"}, {"id": "a", "order": "21", "reply": "left!"}]
    >>> scores = score([row], replies, num_bootstrap=100)
    >>> scores.columns["VA-s"]["accuracy"], scores.columns["VA-s"]["pair_accuracy"]
    (0.5, 0.0)

    ```
    """
    if mode not in ("strict", "paper"):
        raise ValueError(f"Expected `mode` to be 'strict' or 'paper', got {mode!r}.")
    rows: list[dict[str, Any]] = read_rows(dataset)
    responses = list(responses)
    found, steps = _collect(rows, responses, mode)
    debiased = _debiased(rows, responses)
    learned = None if train is None else group_by_column(read_rows(train))
    columns, values = {}, []
    answers: dict[str, dict[str, Any]] = {}
    by_column = group_by_column(row for row in rows if any((row["id"], order) in found for order in ORDERS))
    for code, members in by_column.items():
        columns[code], right = _score_column(members, found)
        if both := [debiased[row["id"]] for row in members if row["id"] in debiased]:
            columns[code]["debiased_accuracy"] = float(np.mean(both))
        if learned is not None:
            known = learned.get(code, [])
            columns[code]["option_prior"] = prior_accuracy(members, option_prior(known, members))
            columns[code]["question_prior"] = prior_accuracy(members, question_prior(known, members))
        values.append((right, [row["group_id"] for row in members]))
        answers |= _answers_of(members, right, found)
    accuracies = {code: column["accuracy"] for code, column in columns.items()}
    kinds = {code: members[0]["relativity"] for code, members in by_column.items()}
    relativities = functional.compute_macro_means(accuracies, kinds)
    low, high = bootstrap_macro_mean(values, replicates=num_bootstrap, seed=seed)
    return Scores(
        columns=columns,
        relativities=relativities,
        macro=float(np.mean(list(accuracies.values()))),
        macro_low=low,
        macro_high=high,
        macro_relativities=float(np.mean(list(relativities.values()))),
        micro=float(np.concatenate([right for right, _ in values]).mean()),
        steps=dict(steps),
        missing=_count_missing(rows, found),
        answers=answers,
    )


def _collect(rows: Sequence[Row], responses: Iterable[Row], mode: Mode) -> tuple[Found, Counter[str]]:
    """Returns the answers, and how they were read."""
    by_id: dict[str, Row] = {row["id"]: row for row in rows}
    found: Found = {}
    steps: Counter[str] = Counter()
    seen: set[tuple[str, str, int]] = set()
    unknown = 0
    for response in sorted(responses, key=lambda response: response.get("shift", 0)):
        if response.get("status", "ok") != "ok":
            continue
        row, order = by_id.get(response["id"]), response.get("order", "12")
        if order not in ORDERS:
            raise ValueError(f"Expected `order` to be one of {', '.join(ORDERS)}, got {order!r}.")
        if row is None:
            unknown += 1
            continue
        place = (row["id"], order, response.get("shift", 0))
        if place in seen:
            raise ValueError(
                f"Expected one reply to each question, got two to row {row['id']!r} in order {order}. "
                "A store may hold several runs: keep the responses of one `model`, `prompt` and `shown`."
            )
        seen.add(place)
        index, step = read_answer(row, response, mode)
        steps[step] += 1
        found.setdefault((row["id"], order), []).append(index)
    if not found:
        raise ValueError(
            f"Expected replies to the rows of the dataset, got none; {unknown} replies are to other rows."
        )
    return found, steps


def _count_missing(rows: Sequence[Row], found: Found) -> int:
    """The number of (row, order) without a reply, of the orders that were asked; one picture of both has one order."""
    orders = {order for _, order in found}
    return sum(
        (row["id"], order) not in found
        for row in rows
        for order in (orders if row.get("image_2_key") != "" else orders & {"12"})
    )


def _debiased(rows: Sequence[Row], responses: Iterable[Row]) -> dict[str, bool]:
    """Returns by row id whether the option with the best mean score over both image orders is right."""
    scores = {
        (response["id"], response.get("order", "12")): np.array(response["scores"])
        for response in responses
        if response.get("scores") is not None and not response.get("shift", 0)
    }
    right = {}
    for row in rows:
        if all((row["id"], order) in scores for order in ORDERS):
            first, second = (scores[row["id"], order] for order in ORDERS)
            best = functional.debias(first, second, functional.build_swap_map(row["options"]))
            right[row["id"]] = best == row["answer"] and best >= 0
    return right


def _answers_of(rows: Sequence[Row], right: npt.NDArray[np.float64], found: Found) -> dict[str, dict[str, Any]]:
    """Returns what was answered to each row, for [`Scores.answers`]."""
    answers = {}
    for row, value in zip(rows, right.tolist(), strict=True):
        given = {
            name: found[row["id"], order][0]
            for name, order in zip(("first", "second"), ORDERS, strict=True)
            if (row["id"], order) in found
        }
        answers[row["id"]] = {"gold": row["answer"], "right": value, **given}
    return answers


def _score_column(rows: Sequence[Row], found: Found) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Returns the numbers of one column, and how right each pair is (the share of its replies that are)."""
    gold = np.array([row["answer"] for row in rows], dtype=np.int64)
    swap_maps = [functional.build_swap_map(row["options"]) for row in rows]
    given = {
        order: np.array([found.get((row["id"], order), [UNPARSED])[0] for row in rows], dtype=np.int64)
        for order in ORDERS
    }
    asked = {order: np.array([(row["id"], order) in found for row in rows]) for order in ORDERS}
    per_pair = _share_right(rows, swap_maps, found)
    low, high = wilson_interval(float(per_pair.sum()), len(rows))
    numbers = {
        "n": float(len(rows)),
        "accuracy": float(per_pair.mean()),
        "low": low,
        "high": high,
        "standard_error": clustered_standard_error(per_pair, [row["group_id"] for row in rows]),
        "chance": uniform_chance(rows),
        "majority": majority_share(rows),
        "coverage": float(np.concatenate([given[order][asked[order]] >= 0 for order in ORDERS]).mean()),
    }
    both = asked["12"] & asked["21"]
    if both.any():
        first, second = given["12"][both], given["21"][both]
        maps = [mapping for mapping, is_in in zip(swap_maps, both, strict=True) if is_in]
        swap = functional.compute_swap_metrics(gold[both], first, second, functional.apply_swap(second, maps))
        numbers |= {name: value for name, value in swap.items() if name not in ("accuracy", "coverage")}
        numbers["num_swapped"] = float(both.sum())
        options = [row["options"] for row, is_in in zip(rows, both, strict=True) if is_in]
        numbers |= functional.compute_side_metrics(options, gold[both], first, second)
    shifted = [answers for row in rows if len(answers := found.get((row["id"], "12"), [])) > 1]
    if shifted:
        same = [len(set(answers)) == 1 and answers[0] != UNPARSED for answers in shifted]
        numbers["option_consistency"] = float(np.mean(same))
    return numbers, per_pair


def _share_right(rows: Sequence[Row], swap_maps: Sequence[list[int]], found: Found) -> npt.NDArray[np.float64]:
    """Returns for each row the mean over its image orders of the share of shifts that were answered right."""
    shares = []
    for row, mapping in zip(rows, swap_maps, strict=True):
        orders = []
        for order in ORDERS:
            if answers := found.get((row["id"], order)):
                gold = row["answer"] if order == "12" or row["answer"] < 0 else mapping[row["answer"]]
                orders.append(sum(answer == gold and answer >= 0 for answer in answers) / len(answers))
        shares.append(sum(orders) / len(orders))
    return np.array(shares)
