"""Successive halving: train all candidates a little, go on with the best, and so on (arXiv 1502.07943).

Candidates are stopped, never trained differently: learning rates follow the schedule of the whole training from the
start, so one that comes through all rounds is, bit for bit, what it would be without them.
"""

from math import ceil


def plan_rounds(num_candidates: int, keep_one_of: int) -> list[tuple[float, int]]:
    """When candidates are compared, and how many go on.

    Args:
        num_candidates: n, at the start.
        keep_one_of: eta; a round keeps one of so many, rounded up, and ends after eta times as much training as the
            one before it. The number of rounds is the largest that leaves one candidate or more.

    Returns:
        For each round, the share of the training at its end, in (0, 1), and the number of candidates that go on.

    Example:

    ```python
    >>> plan_rounds(24, keep_one_of=3)  # in all 24 / 9 + 8 * 2 / 9 + 3 * 2 / 3 = 6.4 trainings instead of 24
    [(0.1111111111111111, 8), (0.3333333333333333, 3)]

    ```
    """
    if isinstance(keep_one_of, bool) or not isinstance(keep_one_of, int) or keep_one_of < 2:
        raise ValueError(
            f"halving must be an integer from 2, the part of candidates of which one stays, got {keep_one_of}"
        )
    rounds = 0
    while keep_one_of ** (rounds + 1) <= num_candidates:
        rounds += 1
    return [
        (keep_one_of ** (number - rounds), ceil(num_candidates / keep_one_of ** (number + 1)))
        for number in range(rounds)
    ]
