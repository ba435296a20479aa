"""docs/demo/page.py makes one page that needs nothing else, and says what is missing otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIXEL = '<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'


def write_demo(folder: Path, name: str, html: str, result: object) -> None:
    (folder / name).mkdir()
    (folder / name / "section.html").write_text(html, encoding="utf-8")
    (folder / name / "result.json").write_text(json.dumps(result), encoding="utf-8")


def run_page(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / "demo" / "page.py"), str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_page_joins_sections_in_the_order_given(tmp_path: Path) -> None:
    write_demo(
        tmp_path, "one", f"<p>first</p>{PIXEL}", {"summary": {"stored bytes": 512, "answer < best": "it is red"}}
    )
    write_demo(
        tmp_path, "two", '<p>second, see <a href="https://example.org">this</a></p>', {"summary": {"images": 3}}
    )
    result = run_page(tmp_path, "two", "one")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:3] == [
        "two  images         3",
        "one  stored bytes   512",
        "one  answer < best  it is red",
    ]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("<p>second") < page.index("<p>first</p>" + PIXEL)
    assert "<td>answer &lt; best</td>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "one", "two"]


@pytest.mark.parametrize(
    ("html", "result", "message"),
    [
        ('<img src="kept.png">', {"summary": {}}, '<img src="kept.png">'),
        ('<link href="https://example.org/a.css">', {"summary": {}}, "must hold its pictures as data: addresses"),
        ("<p>", {"accuracy": 1}, 'must have an object "summary"'),
    ],
)
def test_page_refuses_what_is_not_self_contained(tmp_path: Path, html: str, result: object, message: str) -> None:
    write_demo(tmp_path, "one", html, result)
    done = run_page(tmp_path, "one")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "index.html").exists()


def test_page_names_the_missing_file(tmp_path: Path) -> None:
    write_demo(tmp_path, "one", "<p>", {"summary": {}})
    (tmp_path / "one" / "section.html").unlink()
    assert "section.html is missing" in run_page(tmp_path, "one").stderr
