"""Images a second that hf-diorama renders on one core."""

from collections.abc import Callable
from typing import Any

import numpy as np

import hf_diorama
from harness import Timing

IMAGES = 16  # a call

Render = Callable[[int], dict[str, Any]]


def setup(world: str, image_size: int) -> Render:
    """Renders row `index`. Rows differ in cost, so that every call does the same ones."""
    return lambda index: hf_diorama.render(world, index=index, seed=0, image_size=image_size)


def check(render: Render) -> None:
    """Rows have pictures, are the same again, out of order too, and differ from each other."""
    pictures = [np.asarray(render(index)["image"]) for index in range(IMAGES)]
    again = [np.asarray(render(index)["image"]) for index in reversed(range(IMAGES))][::-1]
    for index, (picture, other) in enumerate(zip(pictures, again, strict=True)):
        assert picture.ndim == 3, f"row {index} has no RGB picture"
        assert picture.std() > 0, f"row {index} is of one colour"
        assert np.array_equal(picture, other), f"row {index} differs when rendered again"
    assert len({picture.tobytes() for picture in pictures}) == IMAGES, "two rows are the same"


def ours(render: Render) -> None:
    for index in range(IMAGES):
        render(index)


CASE = Timing(
    sizes=[
        {"world": "creatures", "image_size": 64, "bar": 150},
        {"world": "creatures", "image_size": 128},
        {"world": "creatures", "image_size": 256},
        {"world": "scenes", "image_size": 64},
        {"world": "scenes", "image_size": 128, "bar": 60},
        {"world": "scenes", "image_size": 256},
    ],
    setup=setup,
    check=check,
    ours=ours,
    items=IMAGES,
    unit="images",
)
PLOT = {"x": "image_size", "y": "images_per_s", "line": "world", "low": "q1", "high": "q3"}
