"""Baselines that answer without a model: a side, a coin, or a simple look at the pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_compbench.groups import hash_unit

Choose = Callable[[Any, Sequence[Image.Image]], str]


def _light(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L"), dtype=np.float64).mean())


def _edges(image: Image.Image) -> float:
    gray = np.asarray(image.convert("L"), dtype=np.float64)
    return float(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())


def _by(measure: Callable[[Image.Image], float]) -> Choose:
    def choose(row: Any, images: Sequence[Image.Image]) -> str:
        if "Left" not in row["options"] or len(images) < 2:
            return str(row["options"][0])
        return "Left" if measure(images[0]) > measure(images[1]) else "Right"

    return choose


def _side(side: str) -> Choose:
    return lambda row, images: side if side in row["options"] else str(row["options"][0])


HEURISTICS: dict[str, Choose] = {
    "left": _side("Left"),
    "right": _side("Right"),
    "brighter": _by(_light),
    "sharper": _by(_edges),
}
"""Name -> what it chooses of a row whose images are shown in this order. `random` is there beside these."""


class HeuristicRunner:
    """Answers by a simple rule.

    Args:
        rule: `"left"`, `"right"`, `"brighter"`, `"sharper"`, or `"random"`.
        seed: seed of `"random"`.

    Example:

    ```python
    >>> from hf_compbench.runners import HeuristicRunner
    >>> HeuristicRunner("left").name
    'heuristic:left'

    ```
    """

    def __init__(self, rule: str, seed: int = 0):
        if rule not in (*HEURISTICS, "random"):
            raise ValueError(f"Expected `rule` to be one of {', '.join([*HEURISTICS, 'random'])}, got {rule!r}.")
        self.rule, self.seed = rule, seed
        self.name = f"heuristic:{rule}" + (f":{seed}" if rule == "random" else "")

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """Returns one reply for each request."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Any) -> str:
        if self.rule == "random":
            options = request.row["options"]
            return str(options[int(len(options) * hash_unit(self.seed, request.key))])
        return HEURISTICS[self.rule](request.row, request.images)
