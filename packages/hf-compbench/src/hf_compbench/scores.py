"""The numbers of one run, as a table, as plain values, and as flat names for loggers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compbench.functional import nan_to_none

_TABLE = ("chance", "majority", "option_prior", "question_prior", "pair_accuracy", "consistency", "bias", "coverage")
_ALWAYS = ("chance", "majority", "pair_accuracy", "consistency", "bias", "coverage")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What [`hf_compbench.score`] returns; fractions throughout.

    Args:
        columns: by column code, in the order of the data: `n`, `accuracy` with its Wilson interval `low` and `high`,
            `standard_error` over groups, `chance`, `majority`; with `train` the accuracy of `option_prior` and
            `question_prior`; where both image orders were asked `pair_accuracy`, `consistency`, `bias`, `side_gap`,
            ...; where options were scored in both orders `debiased_accuracy`, that of the option with the best mean
            score; where options were shown in several shifts `option_consistency`.
        relativities: mean accuracy of each kind of comparison over its columns.
        macro: mean accuracy over columns, `macro_low` and `macro_high` its 95 percent bootstrap interval.
        macro_relativities: mean over the kinds of comparison.
        micro: accuracy over all pairs.
        steps: how many replies each step of the extraction ladder read.
        missing: number of (pair, order) without a reply; they are in no accuracy. Composites have one order.
        answers: by row id the answers as option indices: `gold`, `first`, `second` (as given, for the swapped order),
            `right` (the share of its replies that are).

    Example:

    ```python
    >>> from hf_compbench import score
    >>> row = {"id": "a", "relativity": "emotion", "source": "celeba", "question": "Which person smiles more?",
    ...        "options": ["Left", "Right"], "answer": 0, "group_id": "g"}
    >>> score([row], [{"id": "a", "reply": "Left"}], num_bootstrap=10).to_metrics()["acc/CE"]
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
        result: dict[str, Any] = nan_to_none(values)
        return result

    def to_metrics(self) -> dict[str, float]:
        """Returns flat names for loggers: `acc/<column>`, `acc/<relativity>`, `macro`, `macro8`, `micro`."""
        flat = {f"acc/{name}": column["accuracy"] for name, column in self.columns.items()}
        flat |= {f"acc/{name}": value for name, value in self.relativities.items()}
        return {**flat, "macro": self.macro, "macro8": self.macro_relativities, "micro": self.micro}

    def to_table(self, baselines: Mapping[str, "Scores"] | None = None) -> str:
        """Returns the columns as a Markdown table, in percent; what is missing is said below.

        Args:
            baselines: scores of other runs whose accuracy stands beside, e.g. `{"blank images": scores}`.
        """
        others = dict(baselines or {})
        names = [name for name in _TABLE if name in _ALWAYS or any(name in one for one in self.columns.values())]
        lines = [["column", "n", "accuracy", *names, *others]]
        for code, column in self.columns.items():
            cells = [_percent(column, name) for name in names]
            cells += [_percent(other.columns.get(code, {}), "accuracy") for other in others.values()]
            accuracy = _with_interval(column["accuracy"], column["low"], column["high"])
            lines.append([code, str(int(column["n"])), accuracy, *cells])
        macro = _with_interval(self.macro, self.macro_low, self.macro_high)
        total = str(int(sum(column["n"] for column in self.columns.values())))
        means = [f"{100 * other.macro:.1f}%" for other in others.values()]
        lines.append(["macro mean", total, macro, *[""] * len(names), *means])
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        lines.insert(1, ["-" * width for width in widths])
        table = "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
        return table + (f"\n\nMissing: {self.missing} replies, in no accuracy." if self.missing else "")

    def __str__(self) -> str:
        return self.to_table()


def _percent(column: Mapping[str, float], name: str) -> str:
    return f"{100 * column[name]:{'+' if name == 'bias' else ''}.1f}%" if name in column else ""


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
