"""Where the true pixels of a mask are."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def extent(mask: Mask) -> list[int]:
    """Returns the half-open extent `[x0, y0, x1, y1]` of the true pixels, or `[]` if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
