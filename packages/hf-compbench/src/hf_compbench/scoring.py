"""From replies to numbers with intervals. Needs neither torch nor a model nor the images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_compbench import functional
from hf_compbench.baselines import majority_share, uniform_chance
from hf_compbench.extraction import extract_answer, extract_as_paper
from hf_compbench.functional import UNPARSED
from hf_compbench.intervals import bootstrap_macro_mean, clustered_standard_error, wilson_interval
from hf_compbench.sources import column_of

Row = Mapping[str, Any]
Mode = Literal["strict", "paper"]
ORDERS = ("12", "21")
"""Image orders: as the row has them, and exchanged."""

_NEEDED = ("id", "relativity", "source", "question", "options", "answer", "group_id")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What [`score`] returns; fractions throughout.

    Args:
        columns: by column code, in the order of the data: `n`, `accuracy` with its Wilson interval `low` and `high`,
            `standard_error` over groups, `chance`, `majority`, and where both image orders were asked
            `pair_accuracy`, `consistency`, `bias`, `side_gap`, ...; where options were scored in both orders
            `debiased_accuracy`, that of the option with the best mean score.
        relativities: mean accuracy of each kind of comparison over its columns.
        macro: mean accuracy over columns, `macro_low` and `macro_high` its 95 percent bootstrap interval.
        macro_relativities: mean over the kinds of comparison.
        micro: accuracy over all pairs.
        steps: how many replies each step of the extraction ladder read.
        missing: number of (pair, order) without a reply; they are in no accuracy.
        answers: by row id the answers as option indices: `gold`, `first`, `second` (as given, for the swapped order),
            `right`.

    Example:

    ```python
    >>> from hf_compbench import score
    >>> row = {"id": "a", "relativity": "emotion", "source": "celeba", "question": "Which person smiles more?",
    ...        "options": ["Left", "Right"], "answer": 0, "group_id": "g"}
    >>> score([row], [{"id": "a", "reply": "Left"}], bootstrap=10).to_metrics()["acc/CE"]
    1.0

    ```
    """

    columns: dict[str, dict[str, float]]
    relativities: dict[str, float]
    macro: float
    macro_low: float
    macro_high: float
    macro_relativities: float
    micro: float
    steps: dict[str, int]
    missing: int
    answers: dict[str, dict[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single answers as plain values that JSON can hold."""
        values = {key: value for key, value in vars(self).items() if key != "answers"}
        result: dict[str, Any] = functional.nan_to_none(values)
        return result

    def to_metrics(self) -> dict[str, float]:
        """Returns flat names for loggers: `acc/<column>`, `acc/<relativity>`, `macro`, `macro8`, `micro`."""
        flat = {f"acc/{name}": column["accuracy"] for name, column in self.columns.items()}
        flat |= {f"acc/{name}": value for name, value in self.relativities.items()}
        return {**flat, "macro": self.macro, "macro8": self.macro_relativities, "micro": self.micro}

    def to_table(self) -> str:
        """Returns the columns as a Markdown table, in percent."""
        names = ["chance", "majority", "pair_accuracy", "consistency", "bias", "coverage"]
        lines = [["column", "n", "accuracy", *names]]
        for code, column in self.columns.items():
            interval = f"{column['accuracy']:.1%} [{100 * column['low']:.1f}, {100 * column['high']:.1f}]"
            cells = [
                f"{100 * column[name]:{'+' if name == 'bias' else ''}.1f}%" if name in column else "" for name in names
            ]
            lines.append([code, str(int(column["n"])), interval, *cells])
        macro = f"{self.macro:.1%} [{100 * self.macro_low:.1f}, {100 * self.macro_high:.1f}]"
        lines.append(
            ["macro mean", str(int(sum(column["n"] for column in self.columns.values()))), macro, *[""] * len(names)]
        )
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)

    def __str__(self) -> str:
        return self.to_table()


def read_rows(dataset: Iterable[Row]) -> list[dict[str, Any]]:
    """Returns the columns that scoring needs, images untouched, with relativity and source as names."""
    table: Any = dataset
    if hasattr(table, "select_columns"):
        table = table.select_columns([name for name in _NEEDED if name in (table.column_names or _NEEDED)])
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
    scores = response.get("scores")
    if scores is not None:
        if len(scores) != len(options):
            raise ValueError(f"Expected {len(options)} scores for row {row['id']!r}, got {len(scores)}.")
        best = max(scores)
        index, step = (list(scores).index(best), "scores") if list(scores).count(best) == 1 else (UNPARSED, "unparsed")
    elif mode == "paper":
        found = extract_as_paper(response["reply"], options)
        index, step = found.index, found.step
    else:
        found = extract_answer(response["reply"], options, row["question"])
        index, step = found.index, found.step
    return (origin[index] if index >= 0 else UNPARSED), step


def _debiased(rows: Sequence[Row], responses: Iterable[Row]) -> dict[str, bool]:
    """Returns by row id whether the option with the best mean score over both image orders is right."""
    scores = {
        (response["id"], response.get("order", "12")): np.array(response["scores"])
        for response in responses
        if response.get("scores") is not None and not response.get("shift", 0)
    }
    return {
        row["id"]: functional.debias(
            scores[row["id"], "12"], scores[row["id"], "21"], functional.build_swap_map(row["options"])
        )
        == row["answer"]
        for row in rows
        if all((row["id"], order) in scores for order in ORDERS)
    }


def _collect(
    rows: Sequence[Row], responses: Iterable[Row], mode: Mode
) -> tuple[dict[tuple[str, str], list[int]], Counter[str]]:
    """Returns the answers by (id, order), those with `shift` 0 first, and how they were read."""
    by_id: dict[str, Row] = {row["id"]: row for row in rows}
    found: dict[tuple[str, str], list[int]] = {}
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


def score(
    dataset: Iterable[Row],
    responses: Iterable[Row],
    *,
    mode: Mode = "strict",
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Scores:
    """Returns accuracy and swap metrics for each column, with intervals.

    An unparsed reply is wrong. A pair without any reply (not asked yet, or an error) is left out and counted in
    `missing`. Where a pair was asked in both image orders its accuracy is the mean of both.

    Args:
        dataset: rows in the canonical form (`datasets.Dataset` or dicts); images are not decoded.
        responses: dicts with `id`, `order` (`"12"` or `"21"`), and `reply` or `scores`; `shift`, `status` if any.
        mode: `"strict"` reads replies by the extraction ladder, `"paper"` as the authors' scripts did.
        bootstrap: number of bootstrap samples for the interval of the macro mean.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if a column is missing, or no reply belongs to a row.

    Example:

    ```python
    >>> from hf_compbench import score
    >>> row = {"id": "a", "relativity": "state", "source": "vaw", "question": "Which cup is fuller?",
    ...        "options": ["Left", "Right"], "answer": 0, "group_id": "g"}
    >>> replies = [{"id": "a", "order": "12", "reply": "Left"}, {"id": "a", "order": "21", "reply": "left!"}]
    >>> scores = score([row], replies, bootstrap=100)
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
    by_column: dict[str, list[Row]] = {}
    missing = 0
    expected = {order for _, order in found}
    for row in rows:
        missing += sum((row["id"], order) not in found for order in expected)
        if any((row["id"], order) in found for order in ORDERS):
            by_column.setdefault(column_of(row["source"], row["relativity"]), []).append(row)
    columns, values = {}, []
    answers: dict[str, dict[str, Any]] = {}
    for code, members in by_column.items():
        columns[code], right = _score_column(members, found)
        if both := [debiased[row["id"]] for row in members if row["id"] in debiased]:
            columns[code]["debiased_accuracy"] = float(np.mean(both))
        values.append((right, [row["group_id"] for row in members]))
        for member, value in zip(members, right.tolist(), strict=True):
            answers[member["id"]] = {"gold": member["answer"], "right": value} | {
                name: found[member["id"], order][0]
                for name, order in (("first", "12"), ("second", "21"))
                if (member["id"], order) in found
            }
    accuracies = {code: column["accuracy"] for code, column in columns.items()}
    relativities = functional.macro_means(
        accuracies, {code: rows[0]["relativity"] for code, rows in by_column.items()}
    )
    low, high = bootstrap_macro_mean(values, replicates=bootstrap, seed=seed)
    return Scores(
        columns=columns,
        relativities=relativities,
        macro=float(np.mean(list(accuracies.values()))),
        macro_low=low,
        macro_high=high,
        macro_relativities=float(np.mean(list(relativities.values()))),
        micro=float(np.concatenate([right for right, _ in values]).mean()),
        steps=dict(steps),
        missing=missing,
        answers=answers,
    )


def _score_column(
    rows: Sequence[Row], found: Mapping[tuple[str, str], list[int]]
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Returns the numbers of one column, and how right each pair is (0, 0.5 or 1)."""
    gold = np.array([row["answer"] for row in rows], dtype=np.int64)
    swap_maps = [functional.build_swap_map(row["options"]) for row in rows]
    given = {
        order: np.array([found.get((row["id"], order), [UNPARSED])[0] for row in rows], dtype=np.int64)
        for order in ORDERS
    }
    asked = {order: np.array([(row["id"], order) in found for row in rows]) for order in ORDERS}
    mapped = functional.apply_swap(given["21"], swap_maps)
    right = {"12": (given["12"] == gold) & asked["12"], "21": (mapped == gold) & asked["21"]}
    per_pair = (right["12"].astype(float) + right["21"]) / (asked["12"].astype(float) + asked["21"])
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
        swap = functional.compute_swap_metrics(gold[both], given["12"][both], given["21"][both], mapped[both])
        numbers |= {name: value for name, value in swap.items() if name not in ("accuracy", "coverage")}
        numbers["num_swapped"] = float(both.sum())
        numbers |= _score_sides([row for row, is_in in zip(rows, both, strict=True) if is_in], given, both, swap_maps)
    shifted = [found[key] for row in rows for key in ((row["id"], "12"),) if len(found.get(key, [])) > 1]
    if shifted:
        numbers["option_consistency"] = float(np.mean([len(set(answers)) == 1 for answers in shifted]))
    return numbers, per_pair


def _score_sides(
    rows: Sequence[Row], given: Mapping[str, functional.Answers], both: npt.NDArray[np.bool_], swap_maps: Any
) -> dict[str, float]:
    """Returns the side metrics over both orders; nothing for a column whose options are not sides."""
    if not all("Left" in row["options"] and "Right" in row["options"] for row in rows):
        return {}
    maps = [mapping for mapping, is_in in zip(swap_maps, both, strict=True) if is_in]
    gold = np.array([row["answer"] for row in rows], dtype=np.int64)
    pooled_gold = np.concatenate([gold, functional.apply_swap(gold, maps)])
    pooled = np.concatenate([given["12"][both], given["21"][both]])
    left = np.array([list(row["options"]).index("Left") for row in rows] * 2)
    right = np.array([list(row["options"]).index("Right") for row in rows] * 2)
    return functional.compute_side_metrics(pooled == left, pooled == right, pooled_gold == left, pooled_gold == right)
