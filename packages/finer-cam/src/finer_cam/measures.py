"""How good a map is: relative drop, deletion, insertion, energy, pointing. Tensors in, tensors out."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rank_pixels(maps: Tensor) -> Tensor:
    """Returns the rank of each pixel, `(..., H, W)`: 0 for the highest value; ties go to the lower index."""
    order = maps.flatten(-2).sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.empty_like(order)
    ranks.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return ranks.reshape(maps.shape)


def count_pixels(ratio: float, size: int) -> int:
    """Returns `floor(ratio * size)`, where 0.29 * 100 is 29."""
    return int(ratio * size + 1e-9)


def top_pixels(maps: Tensor, ratio: float) -> Tensor:
    """Returns masks `(..., H, W)` of the `floor(ratio * H * W)` highest pixels."""
    return rank_pixels(maps) < count_pixels(ratio, maps.shape[-2] * maps.shape[-1])


def relative_drop(before: Tensor, after: Tensor) -> Tensor:
    """Returns how much more the target's probability falls than the look-alike's when the top pixels are masked.

    `RD = (p_c - p*_c) - (p_d - p*_d)` (Finer-CAM, arXiv 2501.11309, evaluation), with c the target, d its most similar
    class, and the star for the masked image. Higher is better.

    Args:
        before (`torch.Tensor` of shape `(..., 2)`): probabilities of target and look-alike on the image.
        after (`torch.Tensor` of shape `(..., 2)`): the same on the masked image.

    Returns:
        `torch.Tensor` of shape `(...)`, in [-2, 2]

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import relative_drop
    >>> round(float(relative_drop(torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.5]))), 4)
    0.75

    ```
    """
    drop = before - after
    return drop[..., 0] - drop[..., 1]


def area_under_curve(probabilities: Tensor) -> Tensor:
    """Returns the area under a curve over equal steps from fraction 0 to fraction 1 (RISE, arXiv 1806.07421).

    For deletion lower is better, for insertion higher.

    Args:
        probabilities (`torch.Tensor` of shape `(..., num_steps + 1)`): of the target, first and last step included.

    Returns:
        `torch.Tensor` of shape `(...)`, in [0, 1]: trapezoids.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import area_under_curve
    >>> area_under_curve(torch.tensor([1.0, 0.5, 0.0])).tolist()
    0.5

    ```
    """
    return torch.trapezoid(probabilities, dx=1 / (probabilities.shape[-1] - 1), dim=-1)


def energy_in_region(maps: Tensor, regions: Tensor) -> Tensor:
    """Returns the share of a map that lies in a region; higher is better.

    Args:
        maps (`torch.Tensor` of shape `(..., H, W)`): without negative values.
        regions (`torch.Tensor`): masks of the same shape, or boxes `(..., 4)` as `x0, y0, x1, y1` in half-open pixels;
            or one mask `(H, W)` or one box `(4,)` for all maps.

    Returns:
        `torch.Tensor` of shape `(...)`, in [0, 1]; 0 for a map that is zero everywhere. Summed in float64.

    Raises:
        ValueError: if the shapes do not fit.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import energy_in_region
    >>> energy_in_region(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([1, 0, 2, 2])).tolist()
    0.75

    ```
    """
    exact = maps.double()
    total = exact.sum(dim=(-2, -1))
    return ((exact * _to_masks(regions, maps)).sum(dim=(-2, -1)) / total.where(total > 0, 1.0)).to(maps.dtype)


def pointing_game(maps: Tensor, regions: Tensor, tolerance: int = 0) -> Tensor:
    """Returns whether the highest pixel of a map lies in a region (arXiv 1608.00507).

    Args:
        maps (`torch.Tensor` of shape `(..., H, W)`): ties go to the lower index; a map of zeros misses.
        regions (`torch.Tensor`): as for [`energy_in_region`].
        tolerance (`int`, defaults to 0): pixels by which the region is widened to all sides (15 in the paper).

    Returns:
        `torch.Tensor` of shape `(...)`, bool

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import pointing_game
    >>> maps, mask = torch.tensor([[0.1, 0.9, 0.0]]), torch.tensor([[True, False, False]])
    >>> bool(pointing_game(maps, mask)), bool(pointing_game(maps, mask, tolerance=1))
    (False, True)

    ```
    """
    masks = _to_masks(regions, maps).float()
    if tolerance:
        side = 2 * tolerance + 1
        flat = masks.reshape(-1, 1, *masks.shape[-2:])
        masks = F.max_pool2d(flat, side, stride=1, padding=tolerance).reshape(masks.shape)
    highest = maps.flatten(-2).sort(dim=-1, descending=True, stable=True).indices[..., :1]
    hit = masks.expand(maps.shape).flatten(-2).gather(-1, highest)[..., 0] > 0
    return hit & (maps.amax(dim=(-2, -1)) > 0)


def _to_masks(regions: Tensor, maps: Tensor) -> Tensor:
    """Returns regions as masks, bool, of the shape of maps or one for all of them."""
    leading, (height, width) = maps.shape[:-2], maps.shape[-2:]
    if regions.shape in (maps.shape, (height, width)):
        return regions > 0
    if regions.ndim == 0 or regions.shape[-1] != 4 or regions.shape[:-1] not in (leading, ()):
        raise ValueError(
            f"`regions` must be masks of shape {tuple(maps.shape)} or boxes of shape {(*leading, 4)}, or one mask "
            f"{(height, width)} or box (4,) for all, got {tuple(regions.shape)}."
        )
    x0, y0, x1, y1 = (edge[..., None, None] for edge in regions.unbind(dim=-1))
    rows = torch.arange(height, device=maps.device)[:, None]
    columns = torch.arange(width, device=maps.device)[None]
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
