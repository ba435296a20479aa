"""Can the answers be had without comparing the images? Priors, leaks, duplicates and sides, column by column."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hf_compbench.baselines import image_prior, labelled, option_prior, prior_accuracy, question_prior
from hf_compbench.features import pair_key
from hf_compbench.functional import UNPARSED
from hf_compbench.groups import hash_unit
from hf_compbench.scoring import read_rows
from hf_compbench.sources import group_by_column

Row = Mapping[str, Any]
SIGMAS = 3.0
FOLDS = 5
_EXTRA = ("image_1_key", "image_2_key")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One test of one column.

    Args:
        name: what was tested.
        column: column code, or `all`.
        n: number of rows it rests on.
        value: accuracy, share, or count.
        limit: largest value that passes: chance plus three standard errors, or 0 for counts.
        detail: the worst case in words, if there is one.
    """

    name: str
    column: str
    n: int
    value: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit."""
        return self.value <= self.limit + 1e-12

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.column}: {self.name} {self.value:.3f}, limit {self.limit:.3f}, n = {self.n}{detail}"


@dataclass(frozen=True)
class AuditReport:
    """What [`audit_pairs`] returns: all checks; `print` shows those that failed first.

    Args:
        checks: every check of every column, with what it found and its limit.

    Example:

    ```python
    >>> from hf_compbench.audit import AuditReport, Check
    >>> report = AuditReport([Check(name="self pairs", column="CE", n=10, value=1, limit=0)])
    >>> report.passed
    False

    ```
    """

    checks: list[Check]

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def require_clean(self) -> None:
        """Raises a ValueError that lists what failed."""
        if self.failures:
            lines = "\n".join(f"- {check}" for check in self.failures)
            raise ValueError(f"The audit found answers that can be had without comparing images:\n{lines}")

    def to_dict(self) -> dict[str, Any]:
        """Returns all checks as plain values."""
        return {"passed": self.passed, "checks": [{**vars(check), "passed": check.passed} for check in self.checks]}

    def to_html(self) -> str:
        """Returns the checks as an HTML table, failures first."""
        rows = "\n".join(
            f"<tr><td>{'passed' if check.passed else '<b>FAILED</b>'}</td><td>{escape(check.column)}</td>"
            f"<td>{escape(check.name)}</td><td>{check.n}</td><td>{check.value:.3f}</td><td>{check.limit:.3f}</td>"
            f"<td>{escape(check.detail)}</td></tr>"
            for check in self._ordered()
        )
        head = (
            "<tr><th></th><th>column</th><th>check</th><th>n</th><th>value</th><th>limit</th><th>worst case</th></tr>"
        )
        return f"<table><thead>{head}</thead><tbody>\n{rows}\n</tbody></table>"

    def __str__(self) -> str:
        return "\n".join(f"{'passed' if check.passed else 'FAILED'}  {check}" for check in self._ordered())

    def _ordered(self) -> list[Check]:
        return sorted(self.checks, key=lambda check: check.passed)


def audit_pairs(dataset: Iterable[Row], train: Iterable[Row] | None = None) -> AuditReport:
    """Returns which answers can be had without comparing images. Images are not decoded.

    For each column: `question prior` (the most frequent answer to the same question text), `option prior` (the most
    frequent answer among those offered), `image prior` (which image won before), each learned on `train` or, without
    it, on the other folds of the set; `side balance`; `self pairs`, `repeated pairs`, `answers that are no option`;
    and with `train` `images in both`, `pairs in both`, over all columns of the source. A prior fails above chance plus
    three standard errors; what it has not seen counts as chance. Where that limit is 1 there are too few rows to tell,
    which `detail` says. Folds are split by `group_id`, so that without `train` no image is seen before and the image
    prior has nothing to find.

    Args:
        dataset: canonical rows to audit.
        train: rows that may be learned from, e.g. the val split that goes with a test split.

    Example:

    ```python
    >>> from hf_compbench import audit_pairs
    >>> questions = ["Which neckline is deeper?", "Which hem is longer?"]  # the first is always Left
    >>> rows = [{"id": str(i), "relativity": "attribute", "source": "fashionpedia", "group_id": str(i),
    ...          "answer": i % 2, "question": questions[i % 2], "options": ["Left", "Right"],
    ...          "image_1_key": f"{i}a", "image_2_key": f"{i}b"} for i in range(60)]
    >>> [check.name for check in audit_pairs(rows).failures]
    ['question prior']

    ```
    """
    rows = _read(dataset)
    others = None if train is None else _read(train)
    learned = None if others is None else group_by_column(labelled(others))
    checks: list[Check] = []
    for code, members in group_by_column(rows).items():
        checks += _check_counts(code, members, others)
        if usable := labelled(members):
            checks += _check_priors(code, usable, None if learned is None else learned.get(code, []))
            checks += _check_sides(code, usable)
    return AuditReport(checks)


def _read(dataset: Iterable[Row]) -> list[dict[str, Any]]:
    table: Any = dataset
    keys: list[Row] = []
    if hasattr(table, "select_columns"):
        keys = list(table.select_columns(list(_EXTRA)))
        return [{**row, **extra} for row, extra in zip(read_rows(table), keys, strict=True)]
    rows = list(dataset)
    if rows and (missing := [name for name in _EXTRA if name not in rows[0]]):
        raise ValueError(f"Expected rows with the columns {', '.join(_EXTRA)}; {', '.join(missing)} is missing.")
    return read_rows(rows)


def _check_counts(code: str, rows: Sequence[Row], others: Sequence[Row] | None) -> list[Check]:
    n = len(rows)
    pairs = Counter(pair_key(row) for row in rows)
    counts = {
        "self pairs": sum(row["image_1_key"] == row["image_2_key"] for row in rows),
        "repeated pairs": n - len(pairs),
        "answers that are no option": sum(row["answer"] < 0 for row in rows),
    }
    if others is not None:
        theirs = [row for row in others if row["source"] == rows[0]["source"]]
        seen = {row[key] for row in theirs for key in _EXTRA if row[key]}
        counts["images in both"] = len({row[key] for row in rows for key in _EXTRA} & seen)
        counts["pairs in both"] = len(set(pairs) & {pair_key(row) for row in theirs})
    return [Check(name=name, column=code, n=n, value=float(count), limit=0.0) for name, count in counts.items()]


Prior = Callable[[Iterable[Row], Iterable[Row]], list[int]]


def _check_priors(code: str, rows: Sequence[Row], train: Sequence[Row] | None) -> list[Check]:
    priors: dict[str, Prior] = {
        "question prior": question_prior,
        "option prior": option_prior,
        "image prior": image_prior,
    }
    checks = []
    for name, prior in priors.items():
        guesses = _cross_fit(prior, rows) if train is None else prior(train, rows)
        asked = list(zip(rows, guesses, strict=True))
        if name == "image prior":
            asked = [(row, guess) for row, guess in asked if guess != UNPARSED]
        if not asked:
            checks.append(Check(name=name, column=code, n=0, value=0.0, limit=0.0, detail="no image was seen before"))
            continue
        chances = [1 / len(row["options"]) for row, _ in asked]
        value = prior_accuracy(*zip(*asked, strict=True))
        n, chance = len(asked), sum(chances) / len(chances)
        limit = chance + SIGMAS * math.sqrt(chance * (1 - chance) / n)
        detail = _worst_question(rows) if name == "question prior" else ""
        if limit >= 1:
            detail = "; ".join(filter(None, ["too few to tell", detail]))
        checks.append(Check(name=name, column=code, n=n, value=value, limit=limit, detail=detail))
    return checks


def _cross_fit(prior: Prior, rows: Sequence[Row]) -> list[int]:
    """The guesses for each fold, learned on the others; a group is in one fold only."""
    fold_of = [int(FOLDS * hash_unit("fold", row["group_id"])) for row in rows]
    guesses = [UNPARSED] * len(rows)
    for fold in range(FOLDS):
        inside = [i for i, other in enumerate(fold_of) if other == fold]
        learned = prior(
            [row for row, other in zip(rows, fold_of, strict=True) if other != fold], [rows[i] for i in inside]
        )
        for i, guess in zip(inside, learned, strict=True):
            guesses[i] = guess
    return guesses


def _worst_question(rows: Sequence[Row]) -> str:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["question"], Counter())[row["options"][row["answer"]]] += 1
    question, answers = max(counts.items(), key=lambda item: max(item[1].values()) - sum(item[1].values()) / 2)
    answer, count = answers.most_common(1)[0]
    return f"{question!r}: {answer} {count} of {sum(answers.values())}"


def _check_sides(code: str, rows: Sequence[Row]) -> list[Check]:
    sides = [row["options"][row["answer"]] for row in rows if row["options"][row["answer"]] in ("Left", "Right")]
    if not sides:
        return []
    share = abs(sides.count("Left") / len(sides) - 0.5)
    limit = SIGMAS * 0.5 / math.sqrt(len(sides))
    detail = f"{sides.count('Left')} Left, {sides.count('Right')} Right"
    return [Check(name="side balance", column=code, n=len(sides), value=share, limit=limit, detail=detail)]
