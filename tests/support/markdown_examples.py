"""Runs the ```python blocks of a Markdown file, in order, in one namespace, offline.

    PYTHONPATH=tests python -m support.markdown_examples FILE [--alone]

A comment right before a block changes that:
    <!-- not run: REASON -->      never run
    <!-- needs: REQUIREMENT -->   not run with --alone, where only what the package itself requires is installed
"""

import argparse
import os
import re
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from support import no_network, offline

BLOCK = re.compile(
    r"(?:^[ \t]*<!--[ \t]*(?P<mark>not run|needs):[ \t]*(?P<reason>\S.*?)[ \t]*-->[ \t]*\n\s*)?"
    r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its source, the line of its first statement, and the comment before it, if any."""

    code: str
    line: int
    mark: str | None
    reason: str | None


def read_blocks(text: str) -> list[Block]:
    """The ```python blocks of a Markdown text, in order."""
    return [
        Block(
            code=textwrap.dedent(match["code"]),
            line=text.count("\n", 0, match.start("code")) + 1,
            mark=match["mark"],
            reason=match["reason"],
        )
        for match in BLOCK.finditer(text)
    ]


def run_file(path: Path, *, alone: bool) -> int:
    """Run the blocks of a file and return how many ran. An exception in a block is left to rise."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for block in read_blocks(path.read_text(encoding="utf-8")):
        if block.mark == "not run" or (alone and block.mark == "needs"):
            continue
        source = "\n" * (block.line - 1) + block.code  # tracebacks give the line in the Markdown file
        exec(compile(source, str(path), "exec"), namespace)
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--alone", action="store_true", help="skip the blocks that need more than the package itself")
    args = parser.parse_args()
    path = args.file.resolve()
    offline.enter()
    no_network.block()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        count = run_file(path, alone=args.alone)
        os.chdir(path.parent)
    if args.alone and count == 0:
        sys.exit(f"{path.name}: expected a python block that runs with the package alone, found none")
    print(f"{path.name}: {count} python blocks ran")


if __name__ == "__main__":
    main()
