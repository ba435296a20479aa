"""Where the `evaluate` modules of this package are."""

from pathlib import Path

METRICS = ("compbench_accuracy", "swap_consistency")


def metric_path(name: str) -> str:
    """Returns the folder of a metric, for `evaluate.load`.

    Args:
        name: `"compbench_accuracy"` or `"swap_consistency"`.

    Raises:
        ValueError: for any other name.

    Example:

    ```python
    >>> import evaluate
    >>> from hf_compbench import metric_path
    >>> metric = evaluate.load(metric_path("swap_consistency"))
    >>> result = metric.compute(predictions=["Left"], references=["Left"], swapped_predictions=["Left"],
    ...                         options=[["Left", "Right"]])
    >>> result["pair_accuracy"]
    0.0

    ```
    """
    if name not in METRICS:
        raise ValueError(f"Expected the name of a metric ({', '.join(METRICS)}), got {name!r}.")
    return str(Path(__file__).parent / "metrics" / name)
