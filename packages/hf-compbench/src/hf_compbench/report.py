"""One self-contained page of a run: numbers beside their baselines, side bias, and pairs that a model contradicts."""

import base64
import io
import itertools
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from hf_compbench.files import write_text
from hf_compbench.functional import build_swap_map
from hf_compbench.scores import Scores
from hf_compbench.sources import column_of

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8886; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 1rem 0; }} figure img {{ height: 128px; margin-right: .5rem; image-rendering: pixelated; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
_COLUMNS = ("accuracy", "pair_accuracy", "consistency", "bias", "debiased_accuracy", "coverage", "chance", "majority")
_PRIORS = ("option_prior", "question_prior")
_HEADING = "answers that do not survive exchanging the images"
_BIAS = (
    "Side bias: share of answers Left minus that of right answers Left, percent points. Bars to the left say Left too "
    "often."
)


def build_report(
    dataset: datasets.Dataset,
    scores: Scores,
    *,
    title: str = "Two-image comparisons",
    baselines: Mapping[str, Scores] | None = None,
    num_examples: int = 6,
) -> str:
    """Returns the report as an HTML fragment: a table by column, a chart of the side bias, and contradicted pairs.

    Args:
        dataset: the rows that were scored, with images.
        scores: as from [`score`].
        title: heading of the examples.
        baselines: scores of other runs to stand beside the accuracy, e.g. of blank images.
        num_examples: how many pairs are shown whose answer does not survive exchanging the images.

    Example:

    ```python
    >>> from hf_compbench import build_report, load_compbench, score
    >>> from hf_compbench.runners import HeuristicRunner, run_model
    >>> ds = load_compbench("mini", num_pairs=8, relativities=("quantity",), image_size=64)
    >>> scores = score(ds, run_model(ds, HeuristicRunner("left")), num_bootstrap=100)
    >>> build_report(ds, scores).count("<figure>")
    6

    ```
    """
    parts = [build_table(scores, baselines or {}), _relativities(scores), build_bias_chart(scores)]
    examples = _find_contradictions(dataset, scores, num_examples)
    if examples:
        parts.append(f"<h3>{escape(title)}: {_HEADING}</h3>")
        parts += [_figure(row, scores.answers[row["id"]]) for row in examples]
    return "\n".join(parts)


def save_report(
    path: str | Path,
    dataset: datasets.Dataset,
    scores: Scores,
    *,
    title: str = "Two-image comparisons",
    baselines: Mapping[str, Scores] | None = None,
    num_examples: int = 6,
) -> None:
    """Writes the report as one HTML page, or as Markdown with its images in a folder beside it.

    Args:
        path: ends in `.html` or `.md`; the images of `report.md` go to `report_images`.
        dataset, scores, title, baselines, num_examples: as in [`build_report`].

    Raises:
        ValueError: if `path` ends otherwise.

    Example:

    ```python
    >>> import pathlib, tempfile
    >>> from hf_compbench import load_compbench, save_report, score
    >>> from hf_compbench.runners import HeuristicRunner, run_model
    >>> ds = load_compbench("mini", num_pairs=8, relativities=("quantity",), image_size=64)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> save_report(path, ds, score(ds, run_model(ds, HeuristicRunner("left")), num_bootstrap=100))
    >>> path.read_text()[:15]
    '<!doctype html>'

    ```
    """
    target = Path(path)
    if target.suffix not in (".html", ".md"):
        raise ValueError(f"Expected a name that ends in .html or .md, got {target.name!r}.")
    if target.suffix == ".md":
        examples = _find_contradictions(dataset, scores, num_examples)
        write_text(target, _build_markdown(target, examples, scores, title, baselines or {}))
        return
    body = build_report(dataset, scores, title=title, baselines=baselines, num_examples=num_examples)
    write_text(target, _PAGE.format(title=escape(title), body=body))


def _build_markdown(
    target: Path, examples: list[dict[str, Any]], scores: Scores, title: str, baselines: Mapping[str, Scores]
) -> str:
    """The same as Markdown; the images of the examples are written to a folder."""
    kinds = [f"| {name} | {value:.1%} |" for name, value in scores.relativities.items()]
    lines = [f"# {title}", "", scores.to_table(baselines), "", "| kind | accuracy |", "|---|---|", *kinds, ""]
    bars = {code: column["bias"] for code, column in scores.columns.items() if "bias" in column}
    if bars:
        width = max(map(len, bars))
        chart = [f"{code:{width}} {100 * bias:+6.1f} {_draw_bar(bias)}" for code, bias in bars.items()]
        lines += ["## Side bias", "", "```", *chart, "```", "", _BIAS, ""]
    if examples:
        lines += [f"## {_HEADING[0].upper()}{_HEADING[1:]}", ""]
    folder = target.with_name(f"{target.stem}_images")
    for number, row in enumerate(examples):
        names = []
        for side in ("image_1", "image_2"):
            folder.mkdir(parents=True, exist_ok=True)
            _shrink(row[side]).save(folder / f"{number}_{side}.png")
            names.append(f"![{side}]({folder.name}/{number}_{side}.png)")
        lines += [" ".join(names), "", _caption(row, scores.answers[row["id"]]), ""]
    return "\n".join(lines)


def _draw_bar(bias: float, half: int = 20) -> str:
    """A bar to the left of the middle where Left is said too often, to the right of it otherwise."""
    length = min(half, round(abs(bias) * 2 * half))
    left, right = ("#" * length, "") if bias > 0 else ("", "#" * length)
    return f"{left:>{half}}|{right}".rstrip()


def build_table(scores: Scores, baselines: Mapping[str, Scores]) -> str:
    """Returns the numbers of each column as an HTML table, in percent."""
    names = [name for name in (*_COLUMNS, *_PRIORS) if any(name in column for column in scores.columns.values())]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ["column", "n", *names, *baselines])
    rows = []
    for code, column in scores.columns.items():
        cells = [code, str(int(column["n"]))]
        for name in names:
            cell = "" if name not in column else f"{100 * column[name]:.1f}"
            if name == "accuracy":
                cell += f" [{100 * column['low']:.1f}, {100 * column['high']:.1f}]"
            cells.append(cell)
        for other in baselines.values():
            theirs = other.columns.get(code)
            cells.append("" if theirs is None else f"{100 * theirs['accuracy']:.1f}")
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    macro = f"{100 * scores.macro:.1f} [{100 * scores.macro_low:.1f}, {100 * scores.macro_high:.1f}]"
    rows.append(f"<tr><td>macro mean</td><td></td><td>{macro}</td></tr>")
    missing = f"\n<p>Missing: {scores.missing} replies, in no accuracy.</p>" if scores.missing else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
    return f'<div style="overflow-x: auto">{table}</div>{missing}'


def _relativities(scores: Scores) -> str:
    cells = ", ".join(f"{escape(name)} {100 * value:.1f}" for name, value in scores.relativities.items())
    return f"<p>Accuracy by kind of comparison, percent: {cells}.</p>"


def build_bias_chart(scores: Scores) -> str:
    """Returns a bar chart (SVG) of the side bias of each column: to the left of the axis more Left than is right."""
    bars = [(code, column["bias"]) for code, column in scores.columns.items() if "bias" in column]
    if not bars:
        return ""
    step, middle, scale = 22, 380, 220
    lines = [f'<line x1="{middle}" y1="0" x2="{middle}" y2="{step * len(bars)}" stroke="currentColor"/>']
    for place, (code, bias) in enumerate(bars):
        width = abs(bias) * scale * 2
        x = middle - width if bias > 0 else middle
        lines.append(f'<rect x="{x:.1f}" y="{step * place + 3}" width="{width:.1f}" height="{step - 6}" fill="#5b8"/>')
        lines.append(
            f'<text x="0" y="{step * place + 16}" fill="currentColor">{escape(code)} {100 * bias:+.1f}</text>'
        )
    height = step * len(bars)
    return (
        f'<figure><svg viewBox="0 0 620 {height}" width="620" height="{height}" font-size="14" role="img" '
        f'aria-label="side bias by column">{"".join(lines)}</svg>'
        f"<figcaption>{_BIAS}</figcaption></figure>"
    )


def _find_contradictions(dataset: datasets.Dataset, scores: Scores, count: int) -> list[dict[str, Any]]:
    """Rows that were answered right in one image order only, columns in turn."""
    names = {name: dataset.features[name].int2str for name in ("relativity", "source")}
    by_column: dict[str, list[int]] = {}
    for place, row in enumerate(dataset.select_columns(["id", "options", *names])):
        answers = scores.answers.get(row["id"], {})
        if not {"first", "second"} <= set(answers) or answers["gold"] < 0:
            continue
        swapped_gold = build_swap_map(row["options"])[answers["gold"]]
        if (answers["first"] == answers["gold"]) != (answers["second"] == swapped_gold):
            code = column_of(names["source"](row["source"]), names["relativity"](row["relativity"]))
            by_column.setdefault(code, []).append(place)
    in_turn = [place for places in itertools.zip_longest(*by_column.values()) for place in places if place is not None]
    return [dataset[place] for place in in_turn[:count]]


def _caption(row: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    def said(index: int) -> str:
        return "nothing that could be read" if index < 0 else str(row["options"][index])

    return (
        f"{row['question']} Right: {row['answer_text']}. Said: {said(answers['first'])}; "
        f"with the images exchanged: {said(answers['second'])}."
    )


def _figure(row: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    images = "".join(f'<img src="{_inline(row[side])}" alt="{side}">' for side in ("image_1", "image_2"))
    return f"<figure>{images}<figcaption>{escape(_caption(row, answers))}</figcaption></figure>"


def _shrink(image: Image.Image, side: int = 192) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    _shrink(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
