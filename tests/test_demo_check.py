"""docs/demo/check.py finds what is wrong with a page of the demo."""

import importlib.util
import shutil
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "docs" / "demo" / "check.py"
SPEC = importlib.util.spec_from_file_location("demo_check", PATH)
assert SPEC is not None
assert SPEC.loader is not None
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

PIXEL = '<img alt="" src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">'
SUMMARY = {"one": {"answer < best": "12 %"}}
TABLE = "<table><tr><td>answer &lt; best</td><td class='number'>12 %</td></tr></table>"


def loaded(images: int = 2, broken: int = 0, width: int = 390, table: str = TABLE) -> str:
    return f'<body data-found="{images},{broken},{width},390">{table}</body>'


def test_page_without_faults() -> None:
    assert check.find_faults(loaded(), [], SUMMARY) == []


@pytest.mark.parametrize(
    ("html", "console", "fault"),
    [
        ("<body></body>", [], "did not load"),
        (loaded(broken=1), [], "1 of 2 pictures do not show"),
        (loaded(images=0), [], "0 of 0 pictures"),
        (loaded(width=1047), [], "1047 pixels wide on a screen of 390"),
        (loaded(), ["INFO:CONSOLE(1)] x is not defined"], "x is not defined"),
        (loaded(table=TABLE.replace("12 %", "13 %")), [], "answer < best is 12 % in result.json"),
    ],
    ids=["not loaded", "broken picture", "no picture", "wide", "console", "number"],
)
def test_each_fault_is_named(html: str, console: list[str], fault: str) -> None:
    (found,) = check.find_faults(html, console, SUMMARY)
    assert fault in found


@pytest.mark.skipif(not any(map(shutil.which, check.BROWSERS)), reason="no chromium here")
def test_browser_sees_pictures_errors_and_width(tmp_path: Path) -> None:
    browser = next(name for name in check.BROWSERS if shutil.which(name))
    page = tmp_path / "index.html"
    page.write_text(
        f'<!doctype html><body>{TABLE}{PIXEL}<img alt="" src="data:image/png;base64,AAAA">'
        '<div style="width:3000px">wide</div><script>undefined_name()</script></body>',
        encoding="utf-8",
    )
    faults = check.find_faults(*check.open_page(browser, page), SUMMARY)
    assert len(faults) == 3
    assert "undefined_name" in faults[0]
    assert faults[1] == "1 of 2 pictures do not show"
    assert "the page is 30" in faults[2]
