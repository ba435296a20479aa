"""Encoders whose abilities are known before any benchmark runs: the test of the whole pipeline.

What each of them can and cannot know follows from its definition: patch colours know colours and no form inside a
patch, oriented edges know form and no colour, zeros know nothing, an oracle is given the answer.
"""

import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

SIZE, PATCH = 64, 8
SIDE = SIZE // PATCH
CHARACTERS = string.printable[:95]


def _patches(pixels: torch.Tensor) -> torch.Tensor:
    """`(B, C, SIZE, SIZE)` to `(B, SIDE * SIDE, C, PATCH, PATCH)`."""
    b, c = pixels.shape[:2]
    grid = pixels.view(b, c, SIDE, PATCH, SIDE, PATCH).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(b, SIDE * SIDE, c, PATCH, PATCH)


def _patch_color(pixels: torch.Tensor) -> torch.Tensor:
    """The mean colour of each patch."""
    return _patches(pixels).mean(dim=(3, 4))


def _raw_patch(pixels: torch.Tensor) -> torch.Tensor:
    """All pixels of each patch."""
    return _patches(pixels).flatten(2)


def _edge_histogram(pixels: torch.Tensor) -> torch.Tensor:
    """Oriented gradients of the brightness in each quarter of a patch, contrast taken out: blind to colour."""
    grey = pixels.mean(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength, angle = torch.hypot(dx, dy), torch.atan2(dy, dx)
    bins = ((angle + torch.pi) / (2 * torch.pi) * 8).floor().long() % 8
    votes = torch.zeros(pixels.shape[0], 8, SIZE, SIZE).scatter_(1, bins, strength)
    quarters = torch.nn.functional.avg_pool2d(votes, PATCH // 2)  # (B, 8, 2 SIDE, 2 SIDE)
    quarters = quarters / (quarters.flatten(1).amax(dim=1).view(-1, 1, 1, 1) + 1e-6)
    blocks = quarters.view(-1, 8, SIDE, 2, SIDE, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(len(pixels), SIDE * SIDE, 32)


def _grey_lowpass(pixels: torch.Tensor) -> torch.Tensor:
    """The mean brightness of each patch."""
    return _patches(pixels.mean(dim=1, keepdim=True)).mean(dim=(3, 4))


def _position_only(pixels: torch.Tensor) -> torch.Tensor:
    """Where each patch is, and nothing of what it shows."""
    place = torch.linspace(-1, 1, SIDE)
    grid = torch.stack(torch.meshgrid(place, place, indexing="ij"), dim=-1).flatten(0, 1)
    return grid.expand(len(pixels), -1, -1).clone()


def _blind(pixels: torch.Tensor) -> torch.Tensor:
    """Zeros."""
    return torch.zeros(len(pixels), SIDE * SIDE, 3)


KNOWN_ENCODERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "patch-colour": _patch_color,
    "raw-patch": _raw_patch,
    "edge-hist": _edge_histogram,
    "grey-lowpass": _grey_lowpass,
    "position-only": _position_only,
    "blind": _blind,
}


class KnownEncoder:
    """An encoder whose abilities are known: one of `KNOWN_ENCODERS`, or `"oracle"`, which is shown the answer.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_ava_bench.runner.encoders import KnownEncoder
    >>> KnownEncoder("patch-colour").encode([Image.new("RGB", (96, 96), (255, 0, 0))], [""])[0, 0, :3].tolist()
    [1.0, 0.0, 0.0]

    ```
    """

    image_size = SIZE

    def __init__(self, name: str):
        if name not in (*KNOWN_ENCODERS, "oracle"):
            raise ValueError(f"Expected one of {', '.join((*KNOWN_ENCODERS, 'oracle'))}, got {name!r}.")
        self.name, self.key = name, f"known-encoder/1/{name}"

    def encode(self, images: Sequence[Image.Image], answers: Sequence[str]) -> torch.Tensor:
        """Returns tokens `(batch_size, 64, width)`; their place is told by two more channels, but for `blind`."""
        if self.name == "oracle":
            return _spell(answers)
        arrays = [np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        tokens = KNOWN_ENCODERS[self.name](pixels)
        return tokens if self.name == "blind" else torch.cat([tokens, _position_only(pixels)], dim=2)


def _spell(answers: Sequence[str]) -> torch.Tensor:
    """One token for each character of the answer."""
    tokens = torch.zeros(len(answers), SIDE * SIDE, len(CHARACTERS))
    for row, answer in enumerate(answers):
        for place, character in enumerate(answer[: SIDE * SIDE]):
            if character in CHARACTERS:
                tokens[row, place, CHARACTERS.index(character)] = 1
    return tokens
