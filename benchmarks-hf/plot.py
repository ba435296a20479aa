"""Draws figures/<case>.png from each results/<case>.json that says how, and from nothing else."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel for each value of the column `panel`, if there is one."""
    plot = result["plot"]
    rows = [row for row in result["rows"] if plot["y"] in row]
    panels = list(dict.fromkeys(row[plot["panel"]] for row in rows)) if "panel" in plot else [None]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(7 * len(panels), 4.5), layout="constrained", sharey=True, squeeze=False
    )
    for panel, axes in zip(panels, all_axes[0], strict=True):
        draw_panel([row for row in rows if panel is None or row[plot["panel"]] == panel], plot, axes)
        axes.set(xlabel=plot["x"].replace("_", " "), ylabel=plot["y"].replace("_", " "), title=panel)
    figure.suptitle(result["about"])
    if "line" in plot:
        figure.legend(*all_axes[0][-1].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_panel(rows: list[dict[str, Any]], plot: dict[str, str], axes: Any) -> None:
    """One line for each value of the column `line`, if there is one; range and bar where there are such columns."""
    for number, name in enumerate(dict.fromkeys(row.get(plot.get("line")) for row in rows)):
        points = sorted((row for row in rows if row.get(plot.get("line")) == name), key=lambda row: row[plot["x"]])
        x, y = ([row[plot[axis]] for row in points] for axis in ("x", "y"))
        (line,) = axes.plot(x, y, marker="os^"[number // 10 % 3], label=name)  # there are ten colors
        if "low" in plot:
            low, high = ([row[plot[end]] for row in points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
        for row in points:
            if "bar" in row:
                axes.plot(row[plot["x"]], row["bar"], marker="_", markersize=18, color=line.get_color())
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    args = parser.parse_args()
    args.figures.mkdir(exist_ok=True)
    for path in sorted(args.results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("plot"):
            figure = args.figures / f"{path.stem}.png"
            draw(result, figure)
            print(figure)


if __name__ == "__main__":
    main()
