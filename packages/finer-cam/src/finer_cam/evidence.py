"""What a call has seen of a model, and how maps of any gamma follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finer_cam.functional import Normalization, clip_outliers, compute_maps, upsample_maps

Rows = slice | list[int]


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How maps are made: options of [`FinerCAM`]."""

    method: str
    normalize: Normalization
    clip_outliers: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """All that maps of any gamma follow from, without the model.

    Args:
        parts: what was seen of each distinct part of the objective (see `Objective`). For CAM, Grad-CAM, HiResCAM and
            XGrad-CAM, which are linear in the gradient, the signed map `(B, U, h, w)`; for LayerCAM and Grad-CAM++ the
            gradient, `(B, U, D, h, w)`, or `(B, U, D, 1, 1)` where it is equal at each place; for Score-CAM the scores
            of channels, `(B, U, K)`.
        main, reference: which of the U parts belong to each target, `(Q,)`.
        activations: `(B, D, h, w)`, float32; `None` where the parts are maps already.
        channels: for Score-CAM, the channels that were scored, `(B, K)`.
        grids: grid of each image, `(B, 2)`; smaller ones are padded with zeros.
        sizes: pixels of each image, height and width.
        options: how maps are made.
    """

    parts: Tensor
    main: Tensor
    reference: Tensor
    activations: Tensor | None
    channels: Tensor | None
    grids: Tensor
    sizes: tuple[tuple[int, int], ...]
    options: MapOptions

    def select(self, row: int) -> "Evidence":
        """Returns a copy of what was seen of one image, without the padding of larger ones."""
        rows = slice(row, row + 1)
        height, width = self.grids[row].tolist()
        parts = self.parts[rows] if self.channels is not None else self.parts[rows, ..., :height, :width]
        return replace(
            self,
            parts=parts.clone(),
            activations=None if self.activations is None else self.activations[rows, :, :height, :width].clone(),
            channels=None if self.channels is None else self.channels[rows].clone(),
            grids=self.grids[rows].clone(),
            sizes=self.sizes[rows],
        )

    def raw_maps(self, gammas: Sequence[float]) -> Tensor:
        """Returns maps on the grid, `(B, Q, G, h, w)`; smaller grids are padded with zeros."""
        groups = _groups(self.grids.tolist())
        with torch.autocast(self.parts.device.type, enabled=False):
            found = [self._raw_maps(rows, grid, gammas) for grid, rows in groups]
        if len(found) == 1:
            return found[0]
        tallest, widest = self.grids.amax(dim=0).tolist()
        raw = found[0].new_zeros(len(self.grids), *found[0].shape[1:3], tallest, widest)
        for ((height, width), rows), part in zip(groups, found, strict=True):
            raw[rows, ..., :height, :width] = part
        return raw

    def _raw_maps(self, rows: Rows, grid: tuple[int, int], gammas: Sequence[float]) -> Tensor:
        """Returns the maps of images of one grid."""
        main, reference = self.parts[rows][:, self.main], self.parts[rows][:, self.reference]
        if self.channels is None:
            main, reference = main[..., : grid[0], : grid[1]], reference[..., : grid[0], : grid[1]]
        if self.activations is None:
            strengths = main.new_tensor(gammas)[:, None, None]
            raw = (main[:, :, None] - strengths * reference[:, :, None]).relu()
        else:
            activations = self.activations[rows, :, : grid[0], : grid[1]]
            raw = torch.stack([self._map(activations, main - gamma * reference, rows) for gamma in gammas], dim=2)
        limit = self.options.clip_outliers
        return raw if limit is None else clip_outliers(raw, limit)

    def _map(self, activations: Tensor, objective: Tensor, rows: Rows) -> Tensor:
        """Returns the maps `(B, Q, h, w)` of the objective's gradient, or of its scores of channels."""
        if self.channels is None:
            return compute_maps(activations[:, None], objective, self.options.method)
        index = self.channels[rows][..., None, None].expand(-1, -1, *activations.shape[2:])
        return torch.einsum("bqk,bkhw->bqhw", objective.softmax(dim=2), activations.gather(1, index)).relu()

    def pixel_maps(self, raw: Tensor) -> Tensor:
        """Returns maps in pixels, `(B, Q, G, H, W)`, from those on the grid; smaller images are padded with zeros."""
        groups = _groups([*zip(self.sizes, map(tuple, self.grids.tolist()), strict=True)])
        if len(groups) == 1:
            return upsample_maps(raw, self.sizes[0], self.options.normalize)
        maps = raw.new_zeros(*raw.shape[:-2], *(max(size[axis] for size in self.sizes) for axis in (0, 1)))
        for ((height, width), grid), rows in groups:
            part = raw[rows][..., : grid[0], : grid[1]]
            maps[rows, ..., :height, :width] = upsample_maps(part, (height, width), self.options.normalize)
        return maps


def _groups(keys: list[Any]) -> list[tuple[Any, Rows]]:
    """Returns the distinct keys with their rows, in order of appearance; all rows as a slice, which copies nothing."""
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(row)
    if len(groups) == 1:
        return [(key, slice(None)) for key in groups]
    return list(groups.items())
