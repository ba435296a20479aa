"""The worlds that ship with the package."""

from hf_diorama.worlds.base import RowKey, World
from hf_diorama.worlds.creatures import CREATURES
from hf_diorama.worlds.scenes import SCENES

WORLDS = {world.name: world for world in (CREATURES, SCENES)}

__all__ = ["WORLDS", "RowKey", "World"]
