"""The site of `nox -s docs`: every page is in its navigation, keeps its path, and loads nothing from outside.

The build itself (`mkdocs build --strict`) checks links and anchors; it has an environment of its own.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from support.packages import find_packages

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_has_every_page_and_every_package(hooks: ModuleType) -> None:
    text = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", text.partition("\nnav:\n")[2], re.MULTILINE)
    pages = {path.relative_to(ROOT).as_posix() for path in hooks.find_pages()}
    cards = {page for page in pages if "/src/" in page}
    reference = {f"api/{package.dist}.md" for package in find_packages()}
    assert sorted(entries) == sorted((pages - cards) | reference)


def test_pages_are_files_of_the_repository_once(hooks: ModuleType) -> None:
    pages = hooks.find_pages()
    assert len(pages) == len(set(pages))
    names = {path.relative_to(ROOT).as_posix() for path in pages}
    assert {"README.md", "docs/index.md", "docs/papers/meda.md", "packages/meda-cache/README.md"} <= names
    assert set(hooks.MOVED) <= names


def test_files_that_a_page_links_to_come_along(hooks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.png", "b.json", "c.md", "d.png"):
        (tmp_path / name).touch()
    page = tmp_path / "docs" / "page.md"
    page.write_text("![a](../a.png) [b](../b.json#x) [c](../c.md) [gone](../e.png) [far](https://example.org/d.png)")
    assert hooks.find_linked_files(page, tmp_path) == [tmp_path / "a.png", tmp_path / "b.json"]


@pytest.mark.parametrize(
    "html",
    [
        '<script async src="https://cdn.example.org/a.js">',
        '<link rel="stylesheet" href="//fonts.example.org/a.css">',
        "<img alt='' src=https://example.org/a.png>",
        "<style>@import url(a.css)</style>",
    ],
)
def test_page_that_loads_something_from_outside_is_refused(hooks: ModuleType, html: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(ValueError, match=r"a\.md loads something from outside"):
        hooks.on_post_page(html, page, None)


def test_link_to_the_outside_is_no_load(hooks: ModuleType) -> None:
    html = '<a href="https://example.org">paper</a><img src="a.png"><script src="assets/a.js"></script>'
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    assert hooks.on_post_page(html, page, None) == html


def test_marks_of_docstrings_are_taken_off_the_reference(hooks: ModuleType) -> None:
    html = "see [<code>Cache</code>] <code>`int`, *optional*</code> <code>`Tensor` of shape `(B, *)`</code>"
    tidy = "see <code>Cache</code> <code>int, optional</code> <code>Tensor of shape (B, *)</code>"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api/a.md"))
    assert hooks.on_post_page(html, page, None) == tidy
