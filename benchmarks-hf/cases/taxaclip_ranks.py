"""Probabilities of a rank's groups from 200,000 taxa: sums over intervals against a dictionary over names.

The peer is the loop of pybioclip, restated: for each image, every taxon with a probability above 1e-9 adds to the
entry of its group. Scores are flat and random, the worst case for the loop: peaked ones leave it fewer taxa.
"""

from collections import defaultdict
from typing import Any

import torch

from harness import Timing
from taxaclip.functional import group_sums, rank_offsets

NUM_TAXA = 200_000


def setup(groups: int, batch_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch_size, NUM_TAXA, generator=generator)
    genus = torch.randint(groups, (NUM_TAXA,), generator=generator).sort().values.tolist()
    names = [("A", "B", "C", "D", "E", f"g{number:06d}", f"s{row:06d}") for row, number in enumerate(genus)]
    names.sort()
    return {"probs": logits.softmax(dim=1), "names": names, "offsets": rank_offsets(names)["genus"]}


def ours(inputs: dict[str, Any]) -> torch.Tensor:
    return group_sums(inputs["probs"], inputs["offsets"])


def peer(inputs: dict[str, Any]) -> list[dict[str, float]]:
    results = []
    for row in inputs["probs"]:
        sums: dict[str, float] = defaultdict(float)
        for taxon in torch.nonzero(row > 1e-9).flatten():
            sums[inputs["names"][taxon][5]] += row[taxon]
        results.append(sums)
    return results


def check(inputs: dict[str, Any]) -> None:
    names = [inputs["names"][start][5] for start in inputs["offsets"][:-1]]
    for got, wanted in zip(ours(inputs), peer(inputs), strict=True):
        expected = torch.tensor([float(wanted[name]) for name in names])
        assert torch.allclose(got, expected, atol=1e-7), "sums differ from the dictionary's"


CASE = Timing(
    sizes=[{"groups": groups, "batch_size": 2} for groups in (80, 800, 8_000, 80_000)],
    setup=setup,
    check=check,
    ours=ours,
    peer=peer,
    items=2,
    unit="images",
)
PLOT = {"x": "groups", "y": "ratio", "line": "batch_size", "low": "ratio_q1", "high": "ratio_q3"}
