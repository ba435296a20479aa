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
    """One line for each value of the column `line`, with the range from `low` to `high` if there is one."""
    plot, rows = result["plot"], result["rows"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(row[plot["line"]] for row in rows):
        points = sorted((row for row in rows if row[plot["line"]] == name), key=lambda row: row[plot["x"]])
        x, y = ([row[plot[axis]] for row in points] for axis in ("x", "y"))
        (line,) = axes.plot(x, y, marker="o", label=name)
        if "low" in plot:
            low, high = ([row[plot[end]] for row in points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
        for row in points:
            if "bar" in row:
                axes.plot(row[plot["x"]], row["bar"], marker="_", markersize=18, color=line.get_color())
    axes.set(xlabel=plot["x"].replace("_", " "), ylabel=plot["y"].replace("_", " "), title=result["about"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    args = parser.parse_args()
    args.figures.mkdir(exist_ok=True)
    for path in sorted(args.results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["plot"]:
            figure = args.figures / f"{path.stem}.png"
            draw(result, figure)
            print(figure)


if __name__ == "__main__":
    main()
