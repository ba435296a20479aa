"""Masking what a map calls important, and watching the probabilities: all images, ratios and steps in one stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finer_cam.layers import unwrap
from finer_cam.measures import area_under_curve, count_pixels, rank_pixels, relative_drop
from finer_cam.tail import call_model, take_rows, undisturbed

Fill = Literal["zero_normalized", "black", "mean", "blur"]
BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # of RISE's insertion


@dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """What masking did to the probabilities of a batch.

    Args:
        relative_drop (`dict[float, torch.Tensor]`): for each ratio of masked pixels, `(B,)`; higher is better.
        target_drop, reference_drop (`dict[float, torch.Tensor]`): its two terms.
        deletion (`torch.Tensor` of shape `(B,)`): area under the target's probability while the highest pixels are
            masked first; lower is better.
        insertion (`torch.Tensor` of shape `(B,)`): while they are put into a blurred image; higher is better.
        deletion_curve, insertion_curve (`torch.Tensor` of shape `(B, num_steps + 1)`): these probabilities.
        fill, insertion_fill (`str`): what masked pixels became.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import Faithfulness
    >>> none = torch.zeros(1)
    >>> scores = Faithfulness(relative_drop={0.05: torch.tensor([0.25])}, target_drop={0.05: none},
    ...                       reference_drop={0.05: none}, deletion=none, insertion=none, deletion_curve=none,
    ...                       insertion_curve=none, fill="mean", insertion_fill="blur")
    >>> scores.to_dict()["relative_drop"]
    {0.05: 0.25}

    ```
    """

    relative_drop: dict[float, Tensor]
    target_drop: dict[float, Tensor]
    reference_drop: dict[float, Tensor]
    deletion: Tensor
    insertion: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor
    fill: str
    insertion_fill: str

    def to_dict(self) -> dict[str, Any]:
        """Returns means over the images, and the fills."""
        drops = ("relative_drop", "target_drop", "reference_drop")
        means = {name: {ratio: float(one.mean()) for ratio, one in getattr(self, name).items()} for name in drops}
        areas = {name: float(getattr(self, name).mean()) for name in ("deletion", "insertion")}
        return {**means, **areas, "fill": self.fill, "insertion_fill": self.insertion_fill}


def compute_faithfulness(
    model: nn.Module,
    pixel_values: Tensor,
    maps: Tensor,
    target: Tensor,
    references: Tensor,
    *,
    ratios: Sequence[float] = (0.05, 0.1),
    num_steps: int = 100,
    reduce: Literal["first", "mean", "max"] = "first",
    fill: Fill | Tensor = "zero_normalized",
    insertion_fill: Fill | Tensor = "blur",
    processor: Any = None,
    batch_size: int = 64,
    **kwargs: Any,
) -> Faithfulness:
    """Returns relative drop, deletion and insertion of maps, on softmax probabilities of the model.

    Pixels are ranked by the map, highest first, ties by index, and exactly `floor(ratio * H * W)` of them are masked.
    Relative drop is Finer-CAM's (arXiv 2501.11309); deletion and insertion are RISE's (arXiv 1806.07421). What the
    paper fills masked pixels with is not confirmed, so it is an option, and part of the result.

    Args:
        model (`torch.nn.Module`): the classifier.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): processed images.
        maps (`torch.Tensor` of shape `(B, H, W)`): of any kind.
        target (`torch.Tensor` of shape `(B,)`, int64): the explained class.
        references (`torch.Tensor` of shape `(B,)` or `(B, T)`, int64): look-alikes, nearest first; negative ids are
            padding.
        ratios (`Sequence[float]`, defaults to `(0.05, 0.1)`): shares of pixels masked for the relative drop.
        num_steps (`int`, defaults to 100): steps of deletion and insertion; 0 leaves them out (areas are NaN).
        reduce (`"first"`, `"mean"` or `"max"`, defaults to `"first"`):
            Which drop of several references counts: that of the nearest, the mean, or the largest, which is stricter.
        fill, insertion_fill (defaults to `"zero_normalized"` and `"blur"`):
            What a pixel becomes: 0 after normalisation, `"black"` before it (needs `processor`), the `"mean"` of the
            image, a Gaussian `"blur"` of 11 x 11 pixels and sigma 5, or a tensor that broadcasts to the images.
        processor (*optional*): for `"black"`, whose mean and standard deviation say what black is.
        batch_size (`int`, defaults to 64): masked images in one forward.
        **kwargs: for the model; a tensor with one entry for each image goes along with it.

    Returns:
        [`Faithfulness`]

    Raises:
        ValueError: if shapes or options do not fit.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import compute_faithfulness
    >>> class Sum(torch.nn.Module):  # class 0: the left pixel, class 1: the right one
    ...     def forward(self, x):
    ...         return x.sum(1).flatten(1)
    >>> x, maps = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    >>> scores = compute_faithfulness(Sum(), x, maps, torch.tensor([0]), torch.tensor([1]), ratios=[0.5], num_steps=2)
    >>> round(float(scores.relative_drop[0.5]), 4)  # softmax(0, 1) instead of softmax(1, 1)
    0.4621

    ```
    """
    references = references[:, None] if references.ndim == 1 else references
    _check_shapes(pixel_values, maps, target, references)
    _check_options(ratios, num_steps, reduce)
    model, size = unwrap(model), maps.shape[1] * maps.shape[2]
    counts = [0, *(count_pixels(ratio, size) for ratio in ratios)]
    steps = [count_pixels(step / num_steps, size) for step in range(num_steps + 1)] if num_steps else []
    num_masked = torch.tensor([*counts, *steps, *steps], device=maps.device)
    inserts = torch.arange(len(num_masked), device=maps.device) >= len(counts) + len(steps)
    with undisturbed(model):
        fills = [build_fill(pixel_values, one, processor) for one in (fill, insertion_fill)]
        ranks, results = rank_pixels(maps), []
        for items in torch.arange(len(maps) * len(num_masked), device=maps.device).split(batch_size):
            row, item = items // len(num_masked), items % len(num_masked)
            top = (ranks[row] < num_masked[item, None, None]) ^ inserts[item, None, None]
            filled = fills[0][row].where(~inserts[item, None, None, None], fills[1][row])
            masked = filled.where(top[:, None], pixel_values[row])
            logits = call_model(model, masked, take_rows(kwargs, row, len(maps)))
            probabilities = logits.float().softmax(dim=1)
            chosen = torch.cat([target[row, None], references[row].clamp(min=0)], dim=1)
            results.append(probabilities.gather(1, chosen.to(probabilities.device)))
    table = torch.cat(results).unflatten(0, (len(maps), len(num_masked)))  # (B, M, 1 + T)
    return _summarise(table, references, list(ratios), len(steps), reduce, _name(fill), _name(insertion_fill))


def _check_shapes(pixel_values: Tensor, maps: Tensor, target: Tensor, references: Tensor) -> None:
    if pixel_values.ndim != 4 or maps.shape != (len(pixel_values), *pixel_values.shape[2:]):
        raise ValueError(
            f"expected `pixel_values` (B, C, H, W) and one map (H, W) for each image, got {tuple(pixel_values.shape)} "
            f"and {tuple(maps.shape)}; choose one gamma and one target."
        )
    if target.shape != (len(maps),) or references.ndim != 2 or len(references) != len(maps):
        raise ValueError(
            f"expected `target` (B,) and `references` (B,) or (B, T) for {len(maps)} maps, got {tuple(target.shape)} "
            f"and {tuple(references.shape)}."
        )
    if not (has_reference := (references >= 0).any(dim=1)).all():
        raise ValueError(
            f"`references` must have a class for each image, got none for image {int((~has_reference).nonzero()[0])}; "
            "give the look-alike whose drop is subtracted."
        )


def _check_options(ratios: Sequence[float], num_steps: int, reduce: str) -> None:
    if any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"`ratios` must be in [0, 1], got {list(ratios)}.")
    if num_steps < 0:
        raise ValueError(f"`num_steps` must be 0 or more, got {num_steps}.")
    if reduce not in ("first", "mean", "max"):
        raise ValueError(f"`reduce` must be 'first', 'mean' or 'max', got {reduce!r}.")


def _summarise(
    table: Tensor,
    references: Tensor,
    ratios: list[float],
    num_points: int,
    reduce: str,
    fill: str,
    insertion_fill: str,
) -> Faithfulness:
    """Returns the scores from probabilities `(B, 1 + ratios + 2 * points, 1 + T)` of target and references."""
    before, masked = table[:, :1], table[:, 1 : 1 + len(ratios)]
    drops = before - masked  # (B, ratios, 1 + T)
    others, valid = drops[..., 1:], (references >= 0)[:, None].to(drops.device)
    if reduce == "first":
        first = valid.int().argmax(dim=2, keepdim=True)  # padding may come before it
        reference_drop = others.gather(2, first.expand(-1, len(ratios), -1))[..., 0]
    elif reduce == "mean":
        reference_drop = (others * valid).sum(dim=2) / valid.sum(dim=2)
    else:
        reference_drop = others.masked_fill(~valid, -torch.inf).amax(dim=2)
    pair = torch.stack([drops[..., 0], reference_drop], dim=2)
    relative = relative_drop(pair, torch.zeros_like(pair))
    curves = [table[:, 1 + len(ratios) + start :][:, :num_points, 0] for start in (0, num_points)]
    areas = [area_under_curve(curve) if num_points else curve.new_full((len(table),), torch.nan) for curve in curves]
    return Faithfulness(
        relative_drop={ratio: relative[:, i] for i, ratio in enumerate(ratios)},
        target_drop={ratio: pair[:, i, 0] for i, ratio in enumerate(ratios)},
        reference_drop={ratio: pair[:, i, 1] for i, ratio in enumerate(ratios)},
        deletion=areas[0],
        insertion=areas[1],
        deletion_curve=curves[0],
        insertion_curve=curves[1],
        fill=fill,
        insertion_fill=insertion_fill,
    )


def _name(fill: Any) -> str:
    return fill if isinstance(fill, str) else "tensor"


def build_fill(pixel_values: Tensor, fill: Any, processor: Any) -> Tensor:
    """Returns what masked pixels become, of the shape of `pixel_values`."""
    if isinstance(fill, Tensor):
        return fill.to(pixel_values).expand_as(pixel_values)
    if fill == "zero_normalized":
        return torch.zeros_like(pixel_values)
    if fill == "mean":
        return pixel_values.mean(dim=(2, 3), keepdim=True).expand_as(pixel_values)
    if fill == "blur":
        return _blur(pixel_values)
    if fill != "black":
        raise ValueError(f"`fill` must be zero_normalized, black, mean, blur or a tensor, got {fill!r}.")
    processor = getattr(processor, "image_processor", processor)
    if processor is None or not getattr(processor, "image_mean", None):
        raise ValueError(
            "`fill='black'` needs `processor=` with `image_mean` and `image_std`, which say what black is."
        )
    mean, std = (pixel_values.new_tensor(list(x))[:, None, None] for x in (processor.image_mean, processor.image_std))
    return (-mean / std).expand_as(pixel_values)


def _blur(pixel_values: Tensor) -> Tensor:
    """Returns images behind a Gaussian of 11 x 11 pixels and sigma 5, edges repeated."""
    offsets = torch.arange(BLUR_SIZE, dtype=torch.float32, device=pixel_values.device) - BLUR_SIZE // 2
    line = torch.exp(-offsets.square() / (2 * BLUR_SIGMA**2))
    line = (line / line.sum()).to(pixel_values)
    channels = pixel_values.shape[1]
    padded = F.pad(pixel_values, [BLUR_SIZE // 2] * 4, mode="replicate")
    rows = F.conv2d(padded, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
