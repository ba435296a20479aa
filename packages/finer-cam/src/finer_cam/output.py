"""What a call of FinerCAM returns, and how maps follow from what was seen of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from finer_cam import drawing, geometry
from finer_cam.functional import clip_outliers, compute_maps, upsample_maps
from finer_cam.measures import top_pixels


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that maps of any gamma follow from, without the model.

    Args:
        activations: `(B, D, h, w)`, float32.
        main: gradient of the main part of the objective, `(B, Q, D, h, w)` or `(B, Q, D, 1, 1)` where it is equal at
            each place; for Score-CAM the scores of the channels, `(B, Q, K)`.
        reference: the same of the reference part.
        channels: for Score-CAM, the channels that were scored, `(B, K)`.
        grids: grid of each image, `(B, 2)`.
        sizes: pixels of each image, height and width.
        method, normalize, clip: options of [`FinerCAM`].
    """

    activations: Tensor
    main: Tensor
    reference: Tensor
    channels: Tensor | None
    grids: Tensor
    sizes: tuple[tuple[int, int], ...]
    method: str
    normalize: Any
    clip: float | None

    def select(self, row: int) -> "Evidence":
        """Returns what was seen of one image."""
        rows = slice(row, row + 1)
        tensors = {name: getattr(self, name)[rows] for name in ("activations", "main", "reference", "grids")}
        channels = None if self.channels is None else self.channels[rows]
        return replace(self, **tensors, channels=channels, sizes=self.sizes[rows])

    def raw_maps(self, gammas: Sequence[float]) -> Tensor:
        """Returns maps on the grid, `(B, Q, G, h, w)`; smaller grids are padded with zeros."""
        batch_size, num_targets = self.main.shape[:2]
        raw = self.activations.new_zeros(batch_size, num_targets, len(gammas), *self.activations.shape[2:])
        with torch.autocast(raw.device.type, enabled=False):
            for (height, width), rows in _groups(self.grids.tolist()):
                for index, gamma in enumerate(gammas):
                    raw[rows, :, index, :height, :width] = self._raw_map(rows, height, width, gamma)
        return raw

    def _raw_map(self, rows: list[int], height: int, width: int, gamma: float) -> Tensor:
        activations = self.activations[rows, :, :height, :width]
        if self.channels is not None:
            weights = (self.main[rows] - gamma * self.reference[rows]).softmax(dim=2)
            scored = activations.gather(1, self.channels[rows][..., None, None].expand(-1, -1, height, width))
            raw = torch.einsum("bqk,bkhw->bqhw", weights, scored).relu()
        else:
            gradients = self.main[rows] - gamma * self.reference[rows]
            raw = compute_maps(activations[:, None], gradients[..., :height, :width], self.method)
        return raw if self.clip is None else clip_outliers(raw, self.clip)

    def pixel_maps(self, raw: Tensor) -> Tensor:
        """Returns maps in pixels, `(B, Q, G, H, W)`, from those on the grid; smaller images are padded with zeros."""
        tallest, widest = max(h for h, _ in self.sizes), max(w for _, w in self.sizes)
        maps = raw.new_zeros(*raw.shape[:-2], tallest, widest)
        for ((height, width), grid), rows in _groups([*zip(self.sizes, map(tuple, self.grids.tolist()), strict=True)]):
            part = raw[rows][..., : grid[0], : grid[1]]
            maps[rows, ..., :height, :width] = upsample_maps(part, (height, width), self.normalize)
        return maps


def _groups(keys: list[Any]) -> list[tuple[Any, list[int]]]:
    """Returns the distinct keys with their rows, in order of appearance."""
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(row)
    return list(groups.items())


@dataclass(frozen=True, kw_only=True)
class FinerCAMOutput:
    """Maps of a batch, and what they are about.

    Axes Q and G are there if several targets or several gammas were asked for.

    Args:
        maps (`torch.Tensor` of shape `(B, [Q], [G], H, W)`): in [0, 1], in pixels of the processed images.
        raw (`torch.Tensor` of shape `(B, [Q], [G], h, w)`): on the grid of the target layer, not normalised.
        grid (`torch.Tensor` of shape `(B, 2)`): rows and columns of the grid.
        logits (`torch.Tensor` of shape `(B, num_classes)`): float32; for one logit y, those of the two classes.
        target (`torch.Tensor` of shape `(B, [Q])`): class explained.
        references (`torch.Tensor` of shape `(B, [Q], T)`): classes compared with; -1 is padding.
        weights (`torch.Tensor` of shape `(B, [Q], T)`): of the references.
        gamma (`tuple[float, ...]`): strengths of the comparison.
        is_empty (`torch.Tensor` of shape `(B, [Q], [G])`): whether nothing speaks for the target; such a map is zero.
        path (`str`): `"autograd"`, `"analytic"` or, for Score-CAM, `"forward"`.
        processor: as given to [`FinerCAM`].
        evidence: what maps of another gamma are made from.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from finer_cam import FinerCAM
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...                    image_size=32, patch_size=8, num_labels=5)
    >>> with FinerCAM(ViTForImageClassification(config)) as cam:
    ...     out = cam(pixel_values=torch.randn(2, 3, 32, 32))
    >>> out.maps.shape, out.references.shape, out.regamma([0, 0.6, 1]).maps.shape
    (torch.Size([2, 32, 32]), torch.Size([2, 3]), torch.Size([2, 3, 32, 32]))

    ```
    """

    maps: Tensor
    raw: Tensor
    grid: Tensor
    logits: Tensor
    target: Tensor
    references: Tensor
    weights: Tensor
    gamma: tuple[float, ...]
    is_empty: Tensor
    path: str
    processor: Any = None
    evidence: Evidence

    def regamma(self, gamma: float | Sequence[float]) -> "FinerCAMOutput":
        """Returns the maps of another strength, or of several, without calling the model."""
        several_targets = self.target.ndim == 2
        return replace(self, **_render(self.evidence, gamma, several_targets))

    def select(self, row: int) -> "FinerCAMOutput":
        """Returns the output of one image of the batch, with a batch axis of 1; without the padding of larger ones."""
        evidence = self.evidence.select(row)
        (height, width), (rows, columns) = evidence.sizes[0], evidence.grids[0].tolist()
        names = ("grid", "logits", "target", "references", "weights", "is_empty")
        fields: dict[str, Any] = {name: getattr(self, name)[row : row + 1] for name in names}
        fields["maps"] = self.maps[row : row + 1, ..., :height, :width]
        fields["raw"] = self.raw[row : row + 1, ..., :rows, :columns]
        return replace(self, **fields, evidence=evidence)

    def top_region(self, ratio: float) -> Tensor:
        """Returns the highest pixels of each map as a mask of the shape of `maps`.

        Exactly `floor(ratio * H * W)` pixels; ties go to the lower index, row by row.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"`ratio` must be in [0, 1], got {ratio}.")
        return top_pixels(self.maps, ratio)

    def to_original(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Returns maps in pixels of the images before the processor resized, cropped and padded them.

        Args:
            images: B of them.

        Returns:
            `list[torch.Tensor]` of shapes `([Q], [G], height, width)`; NaN where the model did not see the image.
        """
        images = [images] if isinstance(images, Image.Image) else list(images)
        if len(images) != len(self.maps):
            raise ValueError(f"expected one image for each of the {len(self.maps)} maps, got {len(images)}.")
        return [
            geometry.to_original(maps[..., :height, :width], image.size, self.processor)
            for maps, image, (height, width) in zip(self.maps, images, self.evidence.sizes, strict=True)
        ]

    def overlay(
        self, images: Sequence[Image.Image], colormap: str = "inferno", alpha: float = 0.5
    ) -> list[Image.Image]:
        """Returns the original images with their maps in colour over them; what was cropped away stays as it is.

        Args:
            images: B of them, as given to the processor.
            colormap: `"inferno"`, or a name of matplotlib's, which needs the extra `plots`.
            alpha: opacity of a map at its maximum, in [0, 1].

        Returns:
            `list[PIL.Image.Image]`
        """
        if self.maps.ndim != 3:
            raise ValueError(
                f"`overlay` draws one map for each image, got maps of shape {tuple(self.maps.shape)}; choose one with "
                "`regamma(g)`, and one target a call."
            )
        images = [images] if isinstance(images, Image.Image) else list(images)
        return [
            drawing.blend(image, one, colormap, alpha)
            for image, one in zip(images, self.to_original(images), strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, numbers and strings, ready for JSON; without maps in pixels, which `raw` gives."""
        tensors = {name: value.tolist() for name, value in self._tensors().items() if name != "maps"}
        return {**tensors, "gamma": list(self.gamma), "path": self.path, "method": self.evidence.method}

    def save(self, path: str | Path) -> None:
        """Writes all tensors to a safetensors file, whole or not at all."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"`path` must end in .safetensors, got {path.name!r}.")
        partial = path.with_suffix(".part")
        tensors = {**self._tensors(), "gamma": torch.tensor(self.gamma)}
        metadata = {"method": self.evidence.method, "path": self.path}
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=metadata)
        partial.replace(path)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("maps", "raw", "grid", "logits", "target", "references", "weights", "is_empty")
        return {name: getattr(self, name).detach().cpu() for name in names}


def _render(evidence: Evidence, gamma: float | Sequence[float], several_targets: bool) -> dict[str, Any]:
    """Returns the fields of an output that depend on gamma."""
    gammas = check_gamma(gamma)
    raw = evidence.raw_maps(gammas)
    fields = {"maps": evidence.pixel_maps(raw), "raw": raw, "is_empty": raw.amax(dim=(-2, -1)) <= 0}
    for name, value in fields.items():
        value = value if isinstance(gamma, Sequence) else value[:, :, 0]
        fields[name] = value if several_targets else value[:, 0]
    return {**fields, "gamma": gammas}


def check_gamma(gamma: float | Sequence[float]) -> tuple[float, ...]:
    """Returns the strengths as a tuple of floats.

    Raises:
        ValueError: if one is negative or no number, or there is none.
    """
    values = tuple(gamma) if isinstance(gamma, Sequence) else (gamma,)
    if not values or not all(isinstance(value, (int, float)) and 0 <= value < float("inf") for value in values):
        raise ValueError(f"`gamma` must be a number from 0 or a list of them, got {gamma!r}.")
    return tuple(float(value) for value in values)


def build_output(
    evidence: Evidence, gamma: float | Sequence[float], several_targets: bool, **fields: Any
) -> FinerCAMOutput:
    """Returns a [`FinerCAMOutput`]; `target`, `references` and `weights` come with the axis Q."""
    for name in ("target", "references", "weights"):
        fields[name] = fields[name] if several_targets else fields[name][:, 0]
    return FinerCAMOutput(
        **_render(evidence, gamma, several_targets), **fields, grid=evidence.grids, evidence=evidence
    )
