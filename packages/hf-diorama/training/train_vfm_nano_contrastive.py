"""Trains `vfm-nano-contrastive` to tell two views of one image from views of others (SimCLR); it sees no label.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_vfm_nano_contrastive.py

Run the same command again to go on from the last checkpoint.
"""

import torch
from torch import nn
from vfm_nano import LAYOUT, build_tower, load_rows, move, parse_args, save_tower, train

NAME = "vfm-nano-contrastive"
TEMPERATURE = 0.2


class TwoViews(nn.Module):
    """The tower with a projection on which the loss is taken, and which is dropped afterwards.

    The loss is NT-Xent of "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709,
    equation 1) between the class tokens of two views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tower = build_tower()
        width = LAYOUT["hidden_size"]
        self.projection = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, pixel_values):
        pooled = self.tower(pixel_values).last_hidden_state[:, 0]
        z = nn.functional.normalize(self.projection(pooled).float(), dim=1)  # (2 * batch_size, 64): views in halves
        similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(z)).roll(len(z) // 2)
        return {"loss": nn.functional.cross_entropy(similarity, partner)}


def main() -> None:
    args = parse_args(NAME, steps=600)
    torch.set_num_threads(1)
    images = torch.cat([load_rows(world, ["key"])[0] for world in ("creatures", "scenes")])

    def collate(indices):
        chosen = images[torch.tensor(indices)]
        views = [move(chosen, smallest=0.5, jitter=0.15) for _ in range(2)]
        return {"pixel_values": torch.cat(views)}

    model = TwoViews()
    train(args, model, len(images), collate, batch_size=112, lr=1.2e-3)
    save_tower(model.tower, args.out)


if __name__ == "__main__":
    main()
