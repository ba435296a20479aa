"""What a model card says about where numbers come from: the state of the scripts, and intervals of proportions."""

import math
import subprocess
from pathlib import Path


def read_commit() -> str:
    """Returns the short hash of the commit that is checked out, marked if tracked files of the package differ."""
    here = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    edited = git("status", "--porcelain", "--untracked-files=no", ".")
    return git("rev-parse", "--short", "HEAD") + (" with edits" if edited else "")


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Returns the 95 percent Wilson score interval of a proportion."""
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
