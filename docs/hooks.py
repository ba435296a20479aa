"""Builds the site from the files of the repository where they lie: nothing is copied into git.

Every page keeps its path of the repository, so that a relative link is right on the site, on a code host and on disk.
A file that a page links to comes along. The reference of each package is a page `api/<package>.md` made here.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "packages/*/README.md",
    "packages/*/src/**/README.md",
    "docs/**/*.md",
    "benchmarks-hf/README.md",
)
# What is not at the path of its file: the entrance is docs/index.md.
MOVED = {"docs/index.md": "index.html", "README.md": "fovea.html"}
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")
OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source|link|video)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>|@import"
)


def find_pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files that are pages, without repeats, in order."""
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def find_linked_files(page: Path, root: Path = ROOT) -> list[Path]:
    """The files of the repository, other than pages, that a page links to."""
    targets = (Path(page.parent, target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8")))
    return sorted({path for path in targets if path.is_file() and path.suffix != ".md" and path.is_relative_to(root)})


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, what they link to, and a page of reference for each package."""
    from mkdocs.structure.files import File

    pages = find_pages()
    linked = {path for page in pages for path in find_linked_files(page)}
    for path in [*pages, *sorted(linked)]:
        name = path.relative_to(ROOT).as_posix()
        file = File.generated(config, name, abs_src_path=str(path))
        file.dest_uri = MOVED.get(name, file.dest_uri)
        files.append(file)
    for source in sorted(ROOT.glob("packages/*/src/*/__init__.py")):
        dist, module = source.parents[2].name, source.parent.name
        text = f"# {dist}\n\n::: {module}\n"
        files.append(File.generated(config, f"api/{dist}.md", content=text))
    return files


def tidy_reference(html: str) -> str:
    """Take off marks of docstrings that the doc builder of transformers reads and this one prints: [`X`], (`X`)."""
    html = re.sub(r"\[(<code>[^<]+</code>)\]", r"\1", html)
    return re.sub(
        r"<code>(`[^<]+)</code>",
        lambda match: f"<code>{match[1].replace('`', '').replace('*optional*', 'optional')}</code>",
        html,
    )


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that would load something from outside: the site is read offline."""
    if found := OUTSIDE.search(output):
        raise ValueError(f"{page.file.src_uri} loads something from outside: {found[0]}")
    return tidy_reference(output) if page.file.src_uri.startswith("api/") else output
