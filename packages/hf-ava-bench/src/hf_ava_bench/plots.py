"""Pictures of fingerprints. Need the extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ava_bench.abilities import ABILITIES
from hf_ava_bench.comparison import RankingComparison
from hf_ava_bench.fingerprint import Fingerprint
from hf_ava_bench.scoring import Score


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
    >>> from hf_ava_bench import RankingComparison, plot_rankings
    >>> comparison = RankingComparison(n=2, towers=("a", "b"), abilities={}, overall={"tau_b": 1.0},
    ...                                mean_ranks=({"a": 1.0, "b": 2.0}, {"a": 1.2, "b": 1.8}), friedman=({}, {}),
    ...                                cost_ratio=None)
    >>> plot_rankings(comparison, "slopes.png").name
    'slopes.png'

    ```
    """
    figure = _new_figure(figsize=(5, 1.5 + 0.5 * max(4, comparison.n)), layout="constrained")
    axes = figure.add_subplot()
    places = [_spread(ranks, 0.045 * comparison.n) for ranks in comparison.mean_ranks]
    for tower in comparison.towers:
        ranks = [ranks[tower] for ranks in comparison.mean_ranks]
        (line,) = axes.plot([0, 1], ranks, marker="o")
        for x, side, place in ((0, "right", places[0][tower]), (1, "left", places[1][tower])):
            axes.text(
                x + (0.04 if x else -0.04), place, tower, ha=side, va="center", fontsize=8, color=line.get_color()
            )
    axes.set_xticks([0, 1], list(labels))
    axes.set_xlim(-0.7, 1.7)
    axes.invert_yaxis()
    axes.set_ylabel("mean rank over abilities")
    axes.set_title(f"tau-b {comparison.overall['tau_b']:.2f}, n = {comparison.n} towers", fontsize=9)
    figure.savefig(path, dpi=150)
    return Path(path)


def _spread(ranks: Mapping[str, float], gap: float) -> dict[str, float]:
    """Returns the ranks moved down where they are closer than `gap`, so that their labels do not overlap."""
    places: dict[str, float] = {}
    last = float("-inf")
    for tower, rank in sorted(ranks.items(), key=lambda item: (item[1], item[0])):
        last = places[tower] = max(rank, last + gap)
    return places


def plot_bins(scores: Mapping[str, Score], path: str | Path) -> Path:
    """Draws the headline metric of several models in each bin of the truth as bars, and returns the path.

    Args:
        scores (mapping of `str` to `Score`): name of a model -> its score; all of one ability.
        path (`str` or `Path`): a `.png`, `.svg` or `.pdf` file.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there are no scores, they are of several abilities, or the ability has no bins.

    Example:

    ```python
    >>> from hf_ava_bench import compute_score, plot_bins
    >>> truth = ["3", "8", "25"]
    >>> scores = {"small": compute_score("counting", ["3", "5", "9"], truth),
    ...           "large": compute_score("counting", ["3", "8", "20"], truth)}
    >>> plot_bins(scores, "bins.png").name
    'bins.png'

    ```
    """
    abilities = {score.ability for score in scores.values()}
    if len(abilities) != 1:
        raise ValueError(f"Expected scores of one ability, got {', '.join(sorted(abilities)) or 'none'}.")
    first = next(iter(scores.values()))
    bins = list(dict.fromkeys(name for score in scores.values() for name in score.bins))
    if not bins:
        raise ValueError(f"{first.ability!r} has no bins.")
    figure = _new_figure(figsize=(max(4.0, 1.2 + 0.9 * len(bins)), 3.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(scores)
    for i, (model, score) in enumerate(scores.items()):
        heights = [score.bins.get(name, {}).get(score.metric, np.nan) for name in bins]
        axes.bar(np.arange(len(bins)) + (i - (len(scores) - 1) / 2) * width, heights, width, label=model)
    answer = ABILITIES[first.ability].answer
    counts = [max(score.bins.get(name, {"n": 0})["n"] for score in scores.values()) for name in bins]
    axes.set_xticks(
        range(len(bins)),
        [f"{_name_bin(name, answer)}\nn = {n}" for name, n in zip(bins, counts, strict=True)],
        fontsize=8,
    )
    better = "higher" if first.higher_is_better else "lower"
    axes.set_ylabel(f"{first.metric} ({better} is better)")
    axes.set_xlabel("class" if answer == "class" else f"{_OF_BINS[first.ability]} of the truth")
    axes.set_title(first.ability.replace("_", " "), fontsize=9)
    if len(scores) > 1:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return Path(path)


_OF_BINS = {"abs_depth": "meters", "counting": "number", "localization": "share of the image", "ocr": "characters"}


def _name_bin(name: str, answer: str) -> str:
    """A bin in words; classes as they are. Bins of numbers hold their upper ends, others their lower ones."""
    low, _, high = name.partition("_")
    if not low.replace(".", "", 1).isdigit():
        return name
    if answer == "number":
        return (f"over {low} to {high}" if high else f"over {low}") if low != "0" else f"up to {high}"
    return f"{low} to {high}" if high else f"{low} and more"
