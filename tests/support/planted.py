"""Images of noise with one coloured patch, whose colour is the class: the trait, and where it is, are known."""

from typing import Any

import torch
import transformers

COLORS = 1.5 * torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
NUM_CLASSES, GRID, PATCH = 4, 4, 8


def build_planted(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns images, classes, the grid cell of each coloured patch, and the images without it."""
    generator = torch.Generator().manual_seed(seed)
    plain = 0.3 * torch.randn(n, 3, GRID * PATCH, GRID * PATCH, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (n,), generator=generator)
    cells = torch.randint(0, GRID * GRID, (n,), generator=generator)
    images = plain.clone()
    for index in range(n):
        row, column = divmod(int(cells[index]), GRID)
        where = (slice(None), slice(PATCH * row, PATCH * (row + 1)), slice(PATCH * column, PATCH * (column + 1)))
        images[(index, *where)] += COLORS[labels[index]][:, None, None]
    return images, labels, cells, plain


def build_random_vit() -> Any:
    """A ViT of large random weights: untrained, yet its tokens differ enough to be told apart."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        initializer_range=0.2,
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


class PlantedDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows that `Trainer` asks for."""

    def __init__(self, n: int, seed: int):
        self.images, self.labels, *_ = build_planted(n, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}
