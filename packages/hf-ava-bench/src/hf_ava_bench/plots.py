"""Pictures of fingerprints. Need the extra `plots`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ava_bench.fingerprint import Fingerprint
from hf_ava_bench.ranking import RankingComparison


def _new_figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "hf-ava-bench[plots]"') from error
    return Figure(**options)


def plot_fingerprints(fingerprints: Sequence[Fingerprint], path: str | Path) -> Path:
    """Draws the anchored scores of several towers over each other as a radar, and returns the path.

    The centre is the best answer without an image, the rim no mistake. Shaded are 95 percent intervals.

    Args:
        fingerprints (sequence of `Fingerprint`): with the same abilities.
        path (`str` or `Path`): a `.png`, `.svg` or `.pdf` file.

    Raises:
        ImportError: without matplotlib.
        ValueError: if the abilities differ.

    Example:

    ```python
    >>> from hf_ava_bench import AbilityResult, Fingerprint, plot_fingerprints
    >>> result = AbilityResult(metric="accuracy", value=0.5, interval=(0.4, 0.6), n=9, coverage=1, n_unparsable=0,
    ...                        m0=0.1, m1=1.0, score=0.44, score_interval=(0.3, 0.6), split_origin="source",
    ...                        synthetic=True)
    >>> abilities = dict.fromkeys(("scene", "ocr", "color"), result)
    >>> fingerprint = Fingerprint(tower="vit", llm="llama", profile={}, seed=0, num_tokens=16, abilities=abilities)
    >>> plot_fingerprints([fingerprint], "radar.png").stat().st_size > 1000
    True

    ```
    """
    names = {tuple(sorted(fingerprint.abilities)) for fingerprint in fingerprints}
    if len(names) != 1:
        raise ValueError(f"Expected fingerprints with the same abilities, got {sorted(names)}.")
    abilities = next(iter(names))
    angles = np.linspace(0, 2 * np.pi, len(abilities), endpoint=False)
    closed = np.append(angles, angles[0])
    figure = _new_figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for fingerprint in fingerprints:
        results = [fingerprint.abilities[name] for name in abilities]
        values, lows, highs = (
            np.array([*line, line[0]])
            for line in zip(*[(result.score, *result.score_interval) for result in results], strict=True)
        )
        (line,) = axes.plot(closed, values, marker="o", markersize=3, label=fingerprint.tower)
        axes.fill_between(closed, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(angles, [name.replace("_", " ") for name in abilities], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0])
    axes.tick_params(axis="y", labelsize=7)
    llms = ", ".join(sorted({fingerprint.llm for fingerprint in fingerprints}))
    synthetic = any(result.synthetic for f in fingerprints for result in f.abilities.values())
    axes.set_title(f"anchored scores, head: {llms}{' (synthetic items)' if synthetic else ''}", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)
    return Path(path)


def plot_rankings(
    comparison: RankingComparison, path: str | Path, labels: tuple[str, str] = ("first", "second")
) -> Path:
    """Draws the mean rank of each tower under two heads as a slope chart, and returns the path.

    Args:
        comparison (`RankingComparison`): of [`compare_rankings`].
        path (`str` or `Path`): a `.png`, `.svg` or `.pdf` file.
        labels (`tuple[str, str]`, defaults to `("first", "second")`): names of the heads.

    Example:

    ```python
    >>> from hf_ava_bench import plot_rankings
    >>> from hf_ava_bench.ranking import RankingComparison
    >>> comparison = RankingComparison(n=2, towers=("a", "b"), abilities={}, overall={"tau_b": 1.0},
    ...                                mean_ranks=({"a": 1.0, "b": 2.0}, {"a": 1.2, "b": 1.8}), friedman=({}, {}),
    ...                                cost_ratio=None)
    >>> plot_rankings(comparison, "slopes.png").name
    'slopes.png'

    ```
    """
    figure = _new_figure(figsize=(4, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for tower in comparison.towers:
        ranks = [ranks[tower] for ranks in comparison.mean_ranks]
        axes.plot([0, 1], ranks, marker="o")
        axes.annotate(tower, (1, ranks[1]), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xticks([0, 1], list(labels))
    axes.set_xlim(-0.1, 1.6)
    axes.invert_yaxis()
    axes.set_ylabel("mean rank over abilities")
    axes.set_title(f"tau-b {comparison.overall['tau_b']:.2f}, n = {comparison.n} towers", fontsize=9)
    figure.savefig(path, dpi=150)
    return Path(path)
