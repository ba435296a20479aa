"""What a call of FinerCAM returns: maps, what they are about, pictures and files."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from finer_cam import drawing, geometry
from finer_cam.evidence import Evidence
from finer_cam.measures import top_pixels

TENSORS = ("maps", "raw", "grid", "logits", "target", "references", "weights", "is_empty")


@dataclass(frozen=True, kw_only=True, eq=False)
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
        return replace(self, **_render(self.evidence, gamma, self.target.ndim == 2))

    def select(self, row: int) -> "FinerCAMOutput":
        """Returns a copy of one image's part, with a batch axis of 1 and without the padding of larger images."""
        row = range(len(self.maps))[row]
        evidence = self.evidence.select(row)
        (height, width), (rows, columns) = evidence.sizes[0], evidence.grids[0].tolist()
        fields: dict[str, Any] = {name: getattr(self, name)[row][None] for name in TENSORS}
        fields["maps"] = fields["maps"][..., :height, :width]
        fields["raw"] = fields["raw"][..., :rows, :columns]
        return replace(self, **{name: value.clone() for name, value in fields.items()}, evidence=evidence)

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
        return {**tensors, "gamma": list(self.gamma), "path": self.path, "method": self.evidence.options.method}

    def save(self, path: str | Path) -> None:
        """Writes all tensors to a safetensors file, whole or not at all."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"`path` must end in .safetensors, got {path.name!r}.")
        tensors = {**self._tensors(), "gamma": torch.tensor(self.gamma)}
        metadata = {"method": self.evidence.options.method, "path": self.path}
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=metadata)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach().cpu() for name in TENSORS}


def _render(evidence: Evidence, gamma: float | Sequence[float], has_several_targets: bool) -> dict[str, Any]:
    """Returns the fields of an output that depend on gamma."""
    gammas = check_gamma(gamma)
    raw = evidence.raw_maps(gammas)
    fields = {"maps": evidence.pixel_maps(raw), "raw": raw, "is_empty": raw.amax(dim=(-2, -1)) <= 0}
    for name, value in fields.items():
        value = value if isinstance(gamma, Sequence) else value[:, :, 0]
        fields[name] = value if has_several_targets else value[:, 0]
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
    evidence: Evidence, gamma: float | Sequence[float], has_several_targets: bool, **fields: Any
) -> FinerCAMOutput:
    """Returns a [`FinerCAMOutput`]; `target`, `references` and `weights` come with the axis Q."""
    for name in ("target", "references", "weights"):
        fields[name] = fields[name] if has_several_targets else fields[name][:, 0]
    return FinerCAMOutput(
        **_render(evidence, gamma, has_several_targets), **fields, grid=evidence.grids, evidence=evidence
    )
