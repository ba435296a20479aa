"""The formulas of maps: from activations and gradients to normalised maps. Tensors in, tensors out.

B images, Q targets, D channels, (h, w) the grid of the target layer, (H, W) pixels.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Method = Literal["cam", "gradcam", "hirescam", "layercam", "xgradcam", "gradcam++", "scorecam"]
METHODS: tuple[str, ...] = get_args(Method)
GRADIENT_METHODS = tuple(method for method in METHODS if method != "scorecam")
LINEAR_METHODS = ("cam", "gradcam", "hirescam", "xgradcam")  # their maps are linear in the gradient, before the ReLU
Normalization = Literal["minmax", "max"] | None
EPSILON = 1e-7  # added to the maximum of a map before it divides


def compute_maps(activations: Tensor, gradients: Tensor, method: str = "gradcam") -> Tensor:
    """Returns class activation maps from activations and the gradient of one objective.

    Grad-CAM (arXiv 1610.02391, eq. 1 and 2) weights a channel with the mean of its gradient; HiResCAM (2011.08891)
    multiplies gradient and activation at each place; LayerCAM (TIP 2021, eq. 5) does so with the positive part of the
    gradient; XGrad-CAM (2008.02312) weights by activation; Grad-CAM++ (1710.11063) by powers of the gradient; CAM
    (1512.04150) sums the gradient, which gives the classifier's weight where the head is mean pooling and a linear
    layer.

    Args:
        activations (`torch.Tensor` of shape `(..., D, h, w)`): output of the target layer.
        gradients (`torch.Tensor` of shape `(..., D, h, w)` or `(..., D, 1, 1)`): gradient of the objective; in the
            second form it is the same at each place.
        method (`str`, defaults to `"gradcam"`): cam, gradcam, hirescam, layercam, xgradcam or gradcam++.

    Returns:
        `torch.Tensor` of shape `(..., h, w)`, float32, with negative values set to zero.

    Raises:
        ValueError: if there is no such method.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam.functional import compute_maps
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # one image, two channels, a 1 x 2 grid
    >>> gradients = torch.tensor([[[[1.0, 1.0]], [[0.0, -2.0]]]])
    >>> compute_maps(activations, gradients).tolist()  # channel weights 1 and -1
    [[[0.0, 2.0]]]

    ```
    """
    if method not in GRADIENT_METHODS:
        raise ValueError(f"`method` must be one of {', '.join(GRADIENT_METHODS)}, got {method!r}.")
    if method in LINEAR_METHODS:
        return signed_maps(activations, gradients, method).relu()
    activations, gradients = _as_equals(activations, gradients)
    if method == "layercam":
        return (gradients.relu() * activations).sum(dim=-3).relu()
    return _weigh_channels(activations, _channel_weights(activations, gradients, method)).relu()


def signed_maps(activations: Tensor, gradients: Tensor, method: str) -> Tensor:
    """Returns maps `(..., h, w)` of one of `LINEAR_METHODS` with their negative values, see [`compute_maps`].

    The map of a sum of gradients is the sum of their maps.
    """
    activations, gradients = _as_equals(activations, gradients)
    if method == "hirescam":
        return (gradients * activations).sum(dim=-3)
    return _weigh_channels(activations, _channel_weights(activations, gradients, method))


def _as_equals(activations: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in float32, the gradient at each place."""
    return activations.float(), gradients.float().expand(*gradients.shape[:-2], *activations.shape[-2:])


def _weigh_channels(activations: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("...d,...dhw->...hw", weights, activations)


def _channel_weights(activations: Tensor, gradients: Tensor, method: str) -> Tensor:
    """Returns the weight of each channel, `(..., D)`."""
    grid = (-2, -1)
    if method == "cam":
        return gradients.sum(dim=grid)
    if method == "gradcam":
        return gradients.mean(dim=grid)
    total = activations.sum(dim=grid, keepdim=True)
    if method == "xgradcam":
        return (gradients * activations / (total + EPSILON)).sum(dim=grid)
    squares = gradients.square()
    alpha = squares / (2 * squares + total * squares * gradients + 1e-6)
    return (gradients.relu() * alpha.where(gradients != 0, 0.0)).sum(dim=grid)


def combine(
    activations: Tensor,
    gradients: Tensor,
    target: Tensor,
    references: Tensor,
    *,
    weights: Tensor | None = None,
    gamma: float = 0.6,
    method: str = "gradcam",
) -> Tensor:
    """Returns Finer-CAM maps from the gradients of all classes, without any model.

    The gradient of `y_c - gamma * sum_t weights_t y_dt` is put together first and the method of the base map applied
    once (Finer-CAM, arXiv 2501.11309, section 3): subtracting finished maps would be another, noisier thing.

    Args:
        activations (`torch.Tensor` of shape `(B, D, h, w)`): output of the target layer.
        gradients (`torch.Tensor` of shape `(B, num_classes, D, h, w)`): gradient of each class logit.
        target (`torch.Tensor` of shape `(B,)`, int64): class to explain.
        references (`torch.Tensor` of shape `(B, T)`, int64): classes to compare it with; negative ids are padding.
        weights (`torch.Tensor` of shape `(B, T)`, *optional*): of the references; uniform if not given.
        gamma (`float`, defaults to 0.6): strength of the comparison; 0 gives the base map.
        method (`str`, defaults to `"gradcam"`): base map, see [`compute_maps`].

    Returns:
        `torch.Tensor` of shape `(B, h, w)`, float32, not negative, not normalised.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import combine
    >>> activations = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])  # channel 0: what class 0 has alone; 1: shared
    >>> gradients = torch.tensor([[[[[1.0, 1.0]], [[1.0, 1.0]]], [[[0.0, 0.0]], [[1.0, 1.0]]]]])
    >>> target, references = torch.tensor([0]), torch.tensor([[1]])
    >>> combine(activations, gradients, target, references, gamma=0.0).tolist()
    [[[2.0, 1.0]]]
    >>> combine(activations, gradients, target, references, gamma=1.0).tolist()
    [[[1.0, 0.0]]]

    ```
    """
    if weights is None:
        weights = uniform_weights(references)
    rows = torch.arange(len(target), device=gradients.device)
    main = gradients[rows, target].float()
    chosen = gradients[rows[:, None], references.clamp(min=0)].float()  # (B, T, D, h, w)
    reference = torch.einsum("bt,btdhw->bdhw", weights.to(chosen), chosen)
    return compute_maps(activations, main - gamma * reference, method)


def normalize_maps(maps: Tensor, normalize: Normalization = "minmax") -> Tensor:
    """Returns maps brought to [0, 1], each by itself.

    Args:
        maps (`torch.Tensor` of shape `(..., H, W)`): maps without negative values.
        normalize (`"minmax"`, `"max"` or `None`, defaults to `"minmax"`): subtract the minimum and divide by the
            maximum of what is left (plus 1e-7), only divide, or neither. With `"minmax"` a map that is positive
            everywhere loses its floor. A constant map becomes zero under `"minmax"`.

    Returns:
        `torch.Tensor` of shape `(..., H, W)`

    Raises:
        ValueError: if there is no such normalisation.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import normalize_maps
    >>> normalize_maps(torch.tensor([[1.0, 2.0, 5.0]])).round(decimals=4).tolist()
    [[0.0, 0.25, 1.0]]

    ```
    """
    if normalize is None:
        return maps
    if normalize not in ("minmax", "max"):
        raise ValueError(f"`normalize` must be 'minmax', 'max' or None, got {normalize!r}.")
    if normalize == "minmax":
        maps = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return maps / (EPSILON + maps.amax(dim=(-2, -1), keepdim=True))


def upsample_maps(raw: Tensor, size: tuple[int, int], normalize: Normalization = "minmax") -> Tensor:
    """Returns maps in pixels: normalised on the grid, resized, and normalised again.

    The order is that of the grad-cam package: normalise, resize bilinearly with half-pixel centres (torch's
    `align_corners=False`, OpenCV's `INTER_LINEAR`), normalise.

    Args:
        raw (`torch.Tensor` of shape `(..., h, w)`): maps without negative values.
        size (`tuple[int, int]`): height and width in pixels.
        normalize (`"minmax"`, `"max"` or `None`, defaults to `"minmax"`): see [`normalize_maps`].

    Returns:
        `torch.Tensor` of shape `(..., *size)`, float32

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import upsample_maps
    >>> upsample_maps(torch.tensor([[0.0, 1.0]]), (1, 4)).round(decimals=3).tolist()
    [[0.0, 0.25, 0.75, 1.0]]

    ```
    """
    maps = normalize_maps(raw.float(), normalize)
    flat = F.interpolate(maps.reshape(-1, 1, *maps.shape[-2:]), size=size, mode="bilinear", align_corners=False)
    return normalize_maps(flat.reshape(*raw.shape[:-2], *size).relu(), normalize)


def uniform_weights(references: Tensor) -> Tensor:
    """Returns equal weights `(..., T)`, float32, over the references that are no padding; zero where all are."""
    valid = (references >= 0).float()
    return valid / valid.sum(dim=-1, keepdim=True).clamp(min=1)


def clip_outliers(raw: Tensor, quantile: float) -> Tensor:
    """Returns maps `(..., h, w)` cut at a quantile of their own values, against a few tokens of very large norm."""
    limit = raw.flatten(-2).quantile(quantile, dim=-1)[..., None, None]
    return raw.minimum(limit)
