"""Creatures: a synthetic tree of life for fine-grained and hierarchical recognition, with exact part masks."""

from hf_diorama.worlds.base import World
from hf_diorama.worlds.creatures.edits import counterfactual, discriminating_parts
from hf_diorama.worlds.creatures.rendering import creature_features, render_creature
from hf_diorama.worlds.creatures.taxonomy import BRANCHING

CREATURES = World(
    name="creatures",
    version=1,
    image_size=64,
    options={"branching": BRANCHING, "habitat_bias": 0.3, "long_tail": 0.0},
    features=creature_features,
    render=render_creature,
)

__all__ = ["CREATURES", "counterfactual", "discriminating_parts"]
