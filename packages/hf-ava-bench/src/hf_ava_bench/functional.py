"""The mathematics of the metrics: arrays in, arrays out, in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SRGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


def box_iou(boxes: Any, references: Any) -> tuple[Array, Array]:
    """Returns IoU and generalized IoU of boxes, pair by pair.

    `GIoU = I / U - (C - U) / C` with the area `C` of the smallest box around both (Rezatofighi et al., CVPR 2019). It
    lies in (-1, 1]. Corners may come in any order on each axis. Where the union is empty IoU is 0, and where `C` is
    empty GIoU is IoU.

    Args:
        boxes (array of shape `(n, 4)`): `x1, y1, x2, y2` in any unit.
        references (array of shape `(n, 4)`): the same.

    Returns:
        `tuple` of two arrays of shape `(n,)`.

    Example:

    ```python
    >>> from hf_ava_bench.functional import box_iou
    >>> [value.tolist() for value in box_iou([[0, 0, 1, 1]], [[1, 0, 3, 1]])]
    [[0.0], [0.0]]
    >>> [value.tolist() for value in box_iou([[0, 0, 1, 1]], [[3, 0, 4, 1]])]
    [[0.0], [-0.5]]

    ```
    """
    a, b = (np.asarray(value, dtype=np.float64).reshape(-1, 2, 2) for value in (boxes, references))
    (a_low, a_high), (b_low, b_high) = ((value.min(axis=1), value.max(axis=1)) for value in (a, b))
    area_a, area_b = (np.prod(high - low, axis=1) for low, high in ((a_low, a_high), (b_low, b_high)))
    overlap = np.prod(np.clip(np.minimum(a_high, b_high) - np.maximum(a_low, b_low), 0, None), axis=1)
    hull = np.prod(np.maximum(a_high, b_high) - np.minimum(a_low, b_low), axis=1)
    union = area_a + area_b - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    gap = np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
    return iou, iou - gap


def srgb_to_lab(rgb: Any) -> Array:
    """Returns CIELAB (D65, 2 degrees) of 8-bit sRGB colours.

    Args:
        rgb (array of shape `(..., 3)`): channels in [0, 255].

    Example:

    ```python
    >>> from hf_ava_bench.functional import srgb_to_lab
    >>> srgb_to_lab([255, 0, 0]).round(2).tolist()
    [53.24, 80.09, 67.2]

    ```
    """
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ SRGB_TO_XYZ.T / WHITE_D65
    delta = 6 / 29
    f = np.where(xyz > delta**3, np.cbrt(xyz), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(lab: Any, reference: Any) -> Array:
    """Returns the colour difference CIEDE2000 with unit weights, in the form of Sharma, Wu and Dalal (2005).

    Args:
        lab (array of shape `(..., 3)`): CIELAB colours.
        reference (array of shape `(..., 3)`): the same.

    Returns:
        array of shape `(...)`; 0 for equal colours.

    Example:

    ```python
    >>> from hf_ava_bench.functional import ciede2000, srgb_to_lab
    >>> float(ciede2000(srgb_to_lab([255, 0, 0]), srgb_to_lab([0, 255, 0])).round(6))
    86.608237

    ```
    """
    lightness, a, b = np.moveaxis(np.stack(np.broadcast_arrays(lab, reference)).astype(np.float64), -1, 0)
    chroma = np.hypot(a, b).mean(axis=0)
    a = a * (1.5 - 0.5 * _chroma_weight(chroma))  # a' = (1 + G) a
    c = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360  # 0 where both are 0
    grey = c[0] * c[1] == 0
    turn = hue[1] - hue[0]
    turn = np.where(grey, 0, turn - 360 * (turn > 180) + 360 * (turn < -180))
    d_light, d_chroma = lightness[1] - lightness[0], c[1] - c[0]
    d_hue = 2 * np.sqrt(c[0] * c[1]) * np.sin(np.radians(turn / 2))
    mean_light, mean_chroma, total = lightness.mean(axis=0), c.mean(axis=0), hue[0] + hue[1]
    far = np.abs(hue[0] - hue[1]) > 180
    mean_hue = np.where(grey, total, np.where(far, (total + np.where(total < 360, 360, -360)) / 2, total / 2))
    rad = np.radians
    t = (
        1
        - 0.17 * np.cos(rad(mean_hue - 30))
        + 0.24 * np.cos(rad(2 * mean_hue))
        + 0.32 * np.cos(rad(3 * mean_hue + 6))
        - 0.20 * np.cos(rad(4 * mean_hue - 63))
    )
    rotation = -np.sin(rad(60 * np.exp(-(((mean_hue - 275) / 25) ** 2)))) * 2 * _chroma_weight(mean_chroma)
    light = d_light / (1 + 0.015 * (mean_light - 50) ** 2 / np.sqrt(20 + (mean_light - 50) ** 2))
    chroma_term = d_chroma / (1 + 0.045 * mean_chroma)
    hue_term = d_hue / (1 + 0.015 * mean_chroma * t)
    squared = light**2 + chroma_term**2 + hue_term**2 + rotation * chroma_term * hue_term
    difference: Array = np.sqrt(np.clip(squared, 0, None))
    return difference


def _chroma_weight(chroma: Array) -> Array:
    """`sqrt(C^7 / (C^7 + 25^7))`, the term that G and R_C share."""
    weight: Array = np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    return weight


def levenshtein(a: str, b: str) -> int:
    """Returns the least number of inserted, deleted and replaced characters that turn one string into the other.

    Example:

    ```python
    >>> from hf_ava_bench.functional import levenshtein
    >>> levenshtein("kitten", "sitting")
    3

    ```
    """
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(above + (left != right), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def anls(prediction: str, references: Sequence[str], *, inclusive: bool = False) -> float:
    """Returns the average normalised Levenshtein similarity of one answer (Biten et al., ICCV 2019).

    With `NL = levenshtein / max(len)` the score is `1 - NL` below one half and 0 from there; the best over the
    references counts. Two empty strings give 1, one gives 0. Strings are compared as they are.

    Args:
        prediction (`str`): the answer.
        references (sequence of `str`): right answers.
        inclusive (`bool`, defaults to `False`): at exactly one half give 0.5 instead of 0, as some tools do.

    Example:

    ```python
    >>> from hf_ava_bench.functional import anls
    >>> anls("oberon", ["oberan"]), anls("ab", ["ac"]), anls("ab", ["ac"], inclusive=True)
    (0.8333333333333334, 0.0, 0.5)

    ```
    """
    return max(_similarity(prediction, reference, inclusive) for reference in references)


def _similarity(a: str, b: str, inclusive: bool) -> float:
    longest = max(len(a), len(b))
    if longest == 0:
        return 1.0
    # The difference in length alone is that many edits: no need to count more.
    if abs(len(a) - len(b)) * 2 > longest:
        return 0.0
    edits = levenshtein(a, b)
    good = 2 * edits <= longest if inclusive else 2 * edits < longest
    return 1 - edits / longest if good else 0.0


def relative_error(predictions: Any, references: Any) -> Array:
    """Returns `|p - g| / max(g, 1)` for counts and depths; a reference of 0 has the denominator 1.

    Depths below one metre are divided by themselves: the maximum applies where `g` is 0 only.

    Example:

    ```python
    >>> from hf_ava_bench.functional import relative_error
    >>> relative_error([5, 2, 0.4], [4, 0, 0.5]).round(2).tolist()
    [0.25, 2.0, 0.2]

    ```
    """
    p, g = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    error: Array = np.abs(p - g) / np.where(g == 0, 1.0, g)
    return error
