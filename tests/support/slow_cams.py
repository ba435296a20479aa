"""Class activation maps the slow way: float64 loops that follow the papers, one place and one channel at a time."""

import math
from itertools import product

from torch import Tensor


def grad_cam_weight(activation: Tensor, gradient: Tensor, k: int) -> float:
    """Grad-CAM (1610.02391), eq. 1."""
    places = list(product(range(activation.shape[1]), range(activation.shape[2])))
    return sum(float(gradient[k, i, j]) for i, j in places) / len(places)


def xgrad_cam_weight(activation: Tensor, gradient: Tensor, k: int) -> float:
    """XGrad-CAM (2008.02312), eq. 7, with grad-cam's epsilon."""
    places = list(product(range(activation.shape[1]), range(activation.shape[2])))
    total = sum(float(activation[k, i, j]) for i, j in places) + 1e-7
    return sum(float(activation[k, i, j]) * float(gradient[k, i, j]) for i, j in places) / total


def grad_cam_plus_plus_weight(activation: Tensor, gradient: Tensor, k: int) -> float:
    """Grad-CAM++ (1710.11063), eq. 5 and 19, with grad-cam's epsilon."""
    places = list(product(range(activation.shape[1]), range(activation.shape[2])))
    total = sum(float(activation[k, i, j]) for i, j in places)
    weight = 0.0
    for i, j in places:
        g = float(gradient[k, i, j])
        alpha = g**2 / (2 * g**2 + total * g**3 + 1e-6) if g else 0.0
        weight += alpha * max(g, 0.0)
    return weight


CHANNEL_WEIGHTS = {
    "gradcam": grad_cam_weight,
    "xgradcam": xgrad_cam_weight,
    "gradcam++": grad_cam_plus_plus_weight,
    "cam": lambda a, g, k: grad_cam_weight(a, g, k) * a.shape[1] * a.shape[2],
}


def slow_map(activation: Tensor, gradient: Tensor, method: str) -> list[list[float]]:
    """The map `(h, w)` of one image from activation and gradient `(D, h, w)`."""
    channels, height, width = activation.shape
    if method in CHANNEL_WEIGHTS:
        weights = [CHANNEL_WEIGHTS[method](activation, gradient, k) for k in range(channels)]
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            value = 0.0
            for k in range(channels):
                a, g = float(activation[k, i, j]), float(gradient[k, i, j])
                if method == "hirescam":
                    value += g * a
                elif method == "layercam":
                    value += max(g, 0.0) * a
                else:
                    value += weights[k] * a
            row.append(max(value, 0.0))
        rows.append(row)
    return rows


def slow_finer_map(
    activation: Tensor, gradients: Tensor, target: int, references: list[int], gamma: float, method: str
) -> list[list[float]]:
    """Finer-CAM (2501.11309) of one image: the mean over references of the differences, then the base map once."""
    differences = [gradients[target] - gamma * gradients[d] for d in references]
    return slow_map(activation, sum(differences) / len(differences), method)


def slow_energy(values: list[list[float]], inside: list[list[bool]]) -> float:
    """The share of a map inside a mask."""
    pairs = [(v, m) for row, marks in zip(values, inside, strict=True) for v, m in zip(row, marks, strict=True)]
    return math.fsum(v for v, m in pairs if m) / math.fsum(v for v, _ in pairs)
