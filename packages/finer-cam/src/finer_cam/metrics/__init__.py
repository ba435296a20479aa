"""Metrics for `evaluate.load`: one folder for each, loaded by its path."""

from pathlib import Path

FOLDER = Path(__file__).parent


def metric_path(name: str) -> str:
    """Returns the folder of a metric, for `evaluate.load`. Loading it needs the extra `evaluate`.

    Args:
        name (`str`): relative_drop, deletion, insertion, energy_in_region or pointing_game.

    Returns:
        `str`

    Raises:
        ValueError: if there is no such metric.

    Example:

    ```python
    >>> import evaluate
    >>> from finer_cam import metric_path
    >>> metric = evaluate.load(metric_path("relative_drop"))
    >>> metric.compute(references=[[0.75, 0.25]], predictions=[[0.25, 0.5]])
    {'relative_drop': 0.75, 'target_drop': 0.5, 'reference_drop': -0.25}

    ```
    """
    names = sorted(path.parent.name for path in FOLDER.glob("*/README.md"))
    if name not in names:
        raise ValueError(f"Expected a metric ({', '.join(names)}), got {name!r}.")
    return str(FOLDER / name)
