"""Trains `vfm-nano-supervised` on the labels of both worlds: species and trait looks, colours and shapes of objects.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_vfm_nano_supervised.py

Run the same command again to go on from the last checkpoint.
"""

import torch
from torch import nn
from vfm_nano import LAYOUT, build_tower, load_rows, move, parse_args, save_tower, train

from hf_diorama.worlds.creatures.taxonomy import TRAITS, build_tree
from hf_diorama.worlds.scenes.palette import COLORS
from hf_diorama.worlds.scenes.shapes import SHAPES

NAME = "vfm-nano-supervised"
THINGS = (*COLORS, *SHAPES)


class Labelled(nn.Module):
    """The tower with a head for species, one for the look of each trait part, and one for what is in a scene."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = build_tower()
        tree = build_tree()
        looks = [sorted({species.traits[part] for species in tree}) for part in range(len(TRAITS))]
        self.sizes = [len(options) for options in looks]
        table = [[looks[part].index(trait) for part, trait in enumerate(species.traits)] for species in tree]
        self.register_buffer("table", torch.tensor(table))
        width = LAYOUT["hidden_size"]
        self.species, self.things = nn.Linear(width, len(tree)), nn.Linear(width, len(THINGS))
        self.traits = nn.Linear(width, sum(self.sizes))

    def forward(self, pixel_values, species, things):
        pooled = self.tower(pixel_values).last_hidden_state[:, 0]
        creature = species >= 0
        labels = species[creature]
        loss = nn.functional.cross_entropy(self.species(pooled[creature]), labels, label_smoothing=0.1)
        for part, logits in enumerate(self.traits(pooled[creature]).split(self.sizes, dim=1)):
            loss = loss + 0.3 * nn.functional.cross_entropy(logits, self.table[labels, part])
        scene = nn.functional.binary_cross_entropy_with_logits(self.things(pooled[~creature]), things[~creature])
        return {"loss": loss + 3 * scene}


def main() -> None:
    args = parse_args(NAME, steps=1_200)
    torch.set_num_threads(1)
    creatures, creature_rows = load_rows("creatures", ["label"])
    scenes, scene_rows = load_rows("scenes", ["objects"])
    images = torch.cat([creatures, scenes])
    species = torch.cat([torch.tensor(creature_rows["label"][:]), torch.full((len(scenes),), -1)])
    things = torch.zeros(len(images), len(THINGS))
    for i, objects in enumerate(scene_rows["objects"], start=len(creatures)):
        for item in objects:
            things[i, [THINGS.index(item["color_name"]), THINGS.index(item["category"])]] = 1

    def collate(indices):
        indices = torch.tensor(indices)
        values = move(images[indices], smallest=0.85, jitter=0.05)
        return {"pixel_values": values, "species": species[indices], "things": things[indices]}

    model = Labelled()
    train(args, model, len(images), collate, batch_size=128, lr=1.5e-3)
    save_tower(model.tower, args.out)


if __name__ == "__main__":
    main()
