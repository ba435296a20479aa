"""What a world is: a name, a version, the features of a row, and a pure function from a row's key to the row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from hf_diorama.draws import Draws


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """Names one row: the same key gives the same row on any machine, in any order."""

    world: str
    version: int
    split: str
    seed: int
    index: int

    def draws(self, stream: str) -> Draws:
        """Returns the named stream of random draws of this row."""
        return Draws(self.world, self.version, self.split, self.seed, self.index, stream)


@dataclass(frozen=True, kw_only=True)
class World:
    """A world that can be rendered.

    Args:
        name (`str`): name under which `load` finds it.
        version (`int`): bumped whenever a pixel or an annotation changes.
        image_size (`int`): default height and width in pixels.
        options (`Mapping[str, Any]`): names and defaults of the keyword options that `render` takes.
        features (`Callable`): the options -> `datasets.Features` of a row.
        render (`Callable`): `(RowKey, image_size, **options)` -> a dict with one entry per feature.
    """

    name: str
    version: int
    image_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    features: Callable[..., datasets.Features]
    render: Callable[..., dict[str, Any]]
