"""Joins the demo sections of the packages into one self-contained page and prints what they found.

    python docs/demo/page.py FOLDER PACKAGE [PACKAGE ...]

Each package's demo has written two files:
    FOLDER/PACKAGE/section.html   a piece of HTML, its pictures inlined as data: addresses
    FOLDER/PACKAGE/result.json    {"summary": {"what was measured": value, ...}, ...}
"""

import argparse
import json
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --link: #0a6cc4; }
@media (prefers-color-scheme: dark) { :root { --link: #6cb6ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
img, svg, video { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; opacity: .8; }
pre { overflow-x: auto; padding: .75rem; background: var(--soft); border-radius: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); }
td.number { text-align: right; white-space: nowrap; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fovea demo</title>
<style>{style}</style>
</head>
<body>
<h1>Fovea demo</h1>
<p>Made on this machine by <code>nox -s demo</code>.</p>
<div class="scroll"><table>
<thead><tr><th>package</th><th>what</th><th>result</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{sections}
</body>
</html>
"""


class _OutsideFiles(HTMLParser):
    """Collects what a piece of HTML would load from elsewhere. Links that a reader may follow are no such thing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in ("src", "srcset", "poster", "data") or (name == "href" and tag in ("link", "image", "use"))
            if loads and not (value or "").startswith(("data:", "#")):
                self.found.append(f'<{tag} {name}="{value}">')


def read_section(folder: Path) -> tuple[str, dict[str, object]]:
    """The HTML and the summary that a demo wrote."""
    section, result = folder / "section.html", folder / "result.json"
    if missing := [path.name for path in (section, result) if not path.exists()]:
        raise ValueError(f"expected section.html and result.json in {folder}, but {' and '.join(missing)} is missing")
    html = section.read_text(encoding="utf-8")
    parser = _OutsideFiles()
    parser.feed(html)
    if parser.found:
        raise ValueError(f"{section} must hold its pictures as data: addresses, but it has {parser.found[0]}")
    summary = json.loads(result.read_text(encoding="utf-8")).get("summary")
    if not isinstance(summary, dict):
        raise ValueError(f'{result} must have an object "summary" of names and values, got {summary!r}')
    return html, summary


def build_page(sections: dict[str, tuple[str, dict[str, object]]]) -> str:
    """The whole page, from the HTML and the summary of each package."""
    rows = [
        f'<tr><td><a href="#{escape(name)}">{escape(name)}</a></td><td>{escape(what)}</td>'
        f'<td class="number">{escape(str(value))}</td></tr>'
        for name, (_, summary) in sections.items()
        for what, value in summary.items()
    ]
    parts = [
        f'<section id="{escape(name)}">\n<h2>{escape(name)}</h2>\n{html}\n</section>'
        for name, (html, _) in sections.items()
    ]
    return PAGE.format(style=STYLE, rows="\n".join(rows), sections="\n".join(parts))


def format_table(sections: dict[str, tuple[str, dict[str, object]]]) -> str:
    """The summaries as lines of three columns."""
    cells = [(name, what, str(value)) for name, (_, summary) in sections.items() for what, value in summary.items()]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {what:<{widths[1]}}  {value}" for name, what, value in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+")
    args = parser.parse_args()
    try:
        sections = {name: read_section(args.folder / name) for name in args.packages}
    except ValueError as error:
        sys.exit(f"page.py: {error}")
    index = args.folder / "index.html"
    partial = index.with_suffix(".part")
    partial.write_text(build_page(sections), encoding="utf-8")
    partial.replace(index)
    print(format_table(sections))
    print(f"\nThe pictures: {index.resolve()}")


if __name__ == "__main__":
    main()
