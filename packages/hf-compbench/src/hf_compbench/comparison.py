"""Two models on the same pairs."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_compbench.intervals import bootstrap_macro_mean, holm, mcnemar_exact
from hf_compbench.scoring import Mode, Row, read_rows, score
from hf_compbench.sources import group_by_column


def compare(
    dataset: Iterable[Row],
    responses_a: Iterable[Row],
    responses_b: Iterable[Row],
    *,
    mode: Mode = "strict",
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns how much better model B is than model A on the pairs that both answered.

    `difference` is the macro mean over columns of accuracy B - A with its 95 percent interval from clusters drawn
    within columns. `columns` has for each the difference, McNemar's exact p-value on pairs that are fully right, and
    that p-value adjusted over columns by Holm's method.

    Args:
        dataset: canonical rows; images are not read.
        responses_a, responses_b: replies or option scores of each model, as of [`run_model`].
        mode: how answers are read from replies, as in [`score`].
        num_bootstrap: draws for the interval.
        seed: of the draws.

    Returns:
        dict with `difference`, its interval and `columns`; differences are fractions in [-1, 1].

    Raises:
        ValueError: if there is no pair that both answered, or rows or responses cannot be read.

    Example:

    ```python
    >>> from hf_compbench import compare
    >>> rows = [{"id": str(i), "relativity": "state", "source": "vaw", "question": "Which cup is fuller?",
    ...          "options": ["Left", "Right"], "answer": 0, "group_id": str(i)} for i in range(8)]
    >>> a = [{"id": str(i), "reply": "Right"} for i in range(8)]
    >>> b = [{"id": str(i), "reply": "Left"} for i in range(8)]
    >>> result = compare(rows, a, b, num_bootstrap=100)
    >>> result["difference"], result["columns"]["VA-s"]["p"]
    (1.0, 0.0078125)

    ```
    """
    rows = read_rows(dataset)
    answers = [
        score(rows, responses, mode=mode, num_bootstrap=1, seed=seed).answers
        for responses in (responses_a, responses_b)
    ]
    by_column = group_by_column(row for row in rows if all(row["id"] in one for one in answers))
    if not by_column:
        raise ValueError("Expected pairs that both models answered, got none.")
    columns, values = {}, []
    for code, members in by_column.items():
        a, b = (np.array([one[row["id"]]["right"] for row in members]) for one in answers)
        values.append((b - a, [row["group_id"] for row in members]))
        only_a, only_b = int(((a == 1) & (b < 1)).sum()), int(((b == 1) & (a < 1)).sum())
        columns[code] = {"n": len(members), "difference": float((b - a).mean()), "p": mcnemar_exact(only_a, only_b)}
    adjusted = holm([column["p"] for column in columns.values()])
    for column, value in zip(columns.values(), adjusted, strict=True):
        column["p_holm"] = value
    low, high = bootstrap_macro_mean(values, replicates=num_bootstrap, seed=seed)
    difference = float(np.mean([column["difference"] for column in columns.values()]))
    return {"difference": difference, "low": low, "high": high, "columns": columns}
