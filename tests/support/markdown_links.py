"""Finds the links of a Markdown file to files that are not there."""

import re
from pathlib import Path

LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")


def broken_links(path: Path) -> list[str]:
    """The relative links and pictures that lead nowhere, in order."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [target for target in LINK.findall(text) if not (path.parent / target).exists()]
