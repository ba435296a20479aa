"""CPU time and memory of FinerCAM on batches of 8 against a forward, a full backward and the package grad-cam.

As `finer_cam_speed`, which says what is measured and how grad-cam takes part.
"""

from typing import Any

from cases import finer_cam_speed

BATCH_SIZE, ROUNDS = 8, 7


def run(*, quick: bool) -> list[dict[str, Any]]:
    return finer_cam_speed.run(quick=quick, batch_size=BATCH_SIZE, rounds=ROUNDS)
