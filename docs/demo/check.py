"""Opens the page of the demo in a browser, as wide as a phone, and says what is wrong with it.

    python docs/demo/check.py FOLDER PACKAGE [PACKAGE ...]

Needs chromium; without one it says so and checks nothing. Wrong are: a picture that does not show, an error in the
browser's console, a page wider than the screen, and a number of a result.json that the page does not show.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = "390,844"
PROBE = """<script>
window.addEventListener("load", () => {
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  document.body.dataset.found = [document.images.length, broken, document.documentElement.scrollWidth, innerWidth];
});
</script>"""


def open_page(browser: str, page: Path) -> tuple[str, list[str]]:
    """The page as the browser has it after loading, and what its console said."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        command = [browser, *options, f"--user-data-dir={folder}/profile", f"--window-size={PHONE}", copy.as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


def find_faults(html: str, console: list[str], summaries: dict[str, dict[str, object]]) -> list[str]:
    """What is wrong with a page, in words."""
    found = re.search(r'data-found="(\d+),(\d+),(\d+),(\d+)"', html)
    if found is None:
        return ["the page did not load to its end"]
    images, broken, width, screen = map(int, found.groups())
    faults = [f"the console says: {line}" for line in console]
    if not images or broken:
        faults.append(f"{broken} of {images} pictures do not show")
    if width > screen:
        faults.append(f"the page is {width} pixels wide on a screen of {screen}")
    cells = {unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)}
    faults += [
        f"{package}: {what} is {value} in result.json, and not on the page"
        for package, summary in summaries.items()
        for what, value in summary.items()
        if not {what, str(value)} <= cells
    ]
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+")
    args = parser.parse_args()
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    if browser is None:
        print(f"The page was not checked: none of {', '.join(BROWSERS)} is here.")
        return
    summaries = {
        name: json.loads((args.folder / name / "result.json").read_text(encoding="utf-8"))["summary"]
        for name in args.packages
    }
    html, console = open_page(browser, args.folder / "index.html")
    if faults := find_faults(html, console, summaries):
        sys.exit("check.py: " + "\n".join(faults))
    print(f"Checked in {browser}: every picture shows, on a phone, and every number is that of its result.json.")


if __name__ == "__main__":
    main()
