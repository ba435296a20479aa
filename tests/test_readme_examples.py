"""Every ```python block of the READMEs and the docs runs as printed, and every relative link leads to a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import markdown_examples, markdown_links

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("README.md", "CONTRIBUTING.md", "packages/*/README.md", "docs/**/*.md", "benchmarks-hf/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
WITH_BLOCKS = [page for page in PAGES if markdown_examples.read_blocks(page.read_text(encoding="utf-8"))]


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "support.markdown_examples", str(path), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=page_id)
def test_python_blocks_run_as_printed(path: Path) -> None:
    result = run(path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_to_files(path: Path) -> None:
    assert markdown_links.broken_links(path) == []


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_blocks_of_one_file_share_names(tmp_path: Path) -> None:
    result = run(page(tmp_path, "```python\nx = 1\n```\ntext\n```python\nassert x == 1\nprint('two')\n```\n"))
    assert result.returncode == 0, result.stderr
    assert "two\npage.md: 2 python blocks ran" in result.stdout


def test_failing_block_fails_and_gives_its_line(tmp_path: Path) -> None:
    result = run(page(tmp_path, "# Title\n\n```python\nx = 1\nassert x == 2\n```\n"))
    assert result.returncode == 1
    assert 'page.md", line 5' in result.stderr


def test_block_that_opens_a_connection_fails(tmp_path: Path) -> None:
    result = run(page(tmp_path, "```python\nimport socket\nsocket.create_connection(('10.0.0.1', 80))\n```\n"))
    assert result.returncode == 1
    assert "NetworkBlockedError" in result.stderr


def test_only_a_comment_with_a_reason_leaves_a_block_out(tmp_path: Path) -> None:
    block = "```python\nraise SystemExit(3)\n```\n"
    assert run(page(tmp_path, "<!-- not run: needs a Hub -->\n" + block)).returncode == 0
    assert run(page(tmp_path, "<!-- not run: -->\n" + block)).returncode == 3
    assert run(page(tmp_path, "<!-- not run: needs a Hub -->\ntext\n" + block)).returncode == 3


def test_block_with_needs_is_left_out_only_alone(tmp_path: Path) -> None:
    needs = "<!-- needs: hf-diorama[models] -->\n\n```python\nraise SystemExit(3)\n```\n"
    path = page(tmp_path, "```python\nx = 1\n```\n" + needs)
    assert run(path).returncode == 3
    assert run(path, "--alone").returncode == 0


def test_nothing_that_runs_alone_is_an_error(tmp_path: Path) -> None:
    result = run(page(tmp_path, "<!-- needs: torch -->\n```python\nx = 1\n```\n"), "--alone")
    assert result.returncode == 1
    assert "found none" in result.stderr


def test_broken_links_are_found(tmp_path: Path) -> None:
    text = (
        "[a](there.md) ![b](gone.png) [c](https://example.org/x) [d](gone.md#part) [e](#here)\n```\n[f](code)\n```\n"
    )
    (tmp_path / "there.md").touch()
    assert markdown_links.broken_links(page(tmp_path, text)) == ["gone.png", "gone.md"]
