"""The exact sweep against the loop over breakpoints that the released code runs, and its memory at 50,000 x 1,000.

The loop is our re-statement of the released procedure: for each breakpoint, clone all logits, add the offset, take the
argmax. Both compute every vertex of the curve, and have to agree on it. Logits are normal random numbers.
"""

import resource
import time
from typing import Any

import numpy as np
import torch

import harness
from partial_tune import ClassPartition, SweepState, seen_absent_sweep
from partial_tune.functional import sweep_curve_by_loop

SIZES = ((20, 10), (200, 50), (500, 100), (2_000, 200))
LARGE = (50_000, 1_000)
BAR_SECONDS, BAR_RATIO = 2.0, 500.0

Inputs = tuple[torch.Tensor, torch.Tensor, ClassPartition]


def build_inputs(samples: int, classes: int) -> Inputs:
    generator = torch.Generator().manual_seed(samples)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += 2
    partition = ClassPartition(tuple(map(str, range(classes))), tuple(range(classes // 2)))
    return logits, labels, partition


def ours(inputs: Inputs) -> float | None:
    return seen_absent_sweep(*inputs).ausuc


def loop(inputs: Inputs) -> object:
    logits, labels, partition = inputs
    return sweep_curve_by_loop(logits, labels, partition.absent_mask)


def check(inputs: Inputs) -> None:
    logits, labels, partition = inputs
    curve = sweep_curve_by_loop(logits, labels, partition.absent_mask)
    result = seen_absent_sweep(logits, labels, partition)
    np.testing.assert_allclose(result.curve["seen"] * result.num_seen, curve.seen_hits, rtol=1e-12)
    np.testing.assert_allclose(result.curve["absent"] * result.num_absent, curve.absent_hits, rtol=1e-12)


def measure_large(samples: int, classes: int) -> dict[str, Any]:
    """Seconds of the whole sweep, and the memory that it takes beside the logits."""
    inputs = build_inputs(samples, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        ours(inputs)
        seconds.append(time.perf_counter() - start)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    state = SweepState(inputs[2])
    state.update(inputs[0], inputs[1])
    median = float(np.median(seconds[1:]))
    return {
        "samples": samples,
        "classes": classes,
        "ms": 1e3 * median,
        "peak_extra_mib": extra / 1024,
        "logits_mib": inputs[0].numel() * 4 / 2**20,
        "state_bytes_per_sample": state.nbytes / samples,
        "bar": BAR_SECONDS,
        "reached": median <= BAR_SECONDS,
        "raw": {"ours": seconds[1:]},
    }


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for samples, classes in SIZES[:2] if quick else SIZES:
        inputs = build_inputs(samples, classes)
        check(inputs)
        case = harness.Timing(sizes=[], setup=lambda: None, check=lambda _: None, ours=ours, peer=loop)
        times = harness.time_rounds(case, inputs, rounds=3 if quick else 20 if samples < 2_000 else 6, seconds=0)
        ratio = np.quantile(np.array(times["peer"]) / np.array(times["ours"]), [0.25, 0.5, 0.75])
        row = {
            "samples": samples,
            "classes": classes,
            "ms": 1e3 * float(np.median(times["ours"])),
            "loop_ms": 1e3 * float(np.median(times["peer"])),
            **dict(zip(("ratio_q1", "ratio", "ratio_q3"), map(float, ratio), strict=True)),
        }
        if (samples, classes) == SIZES[-1]:
            row |= {"bar": BAR_RATIO, "reached": row["ratio"] >= BAR_RATIO}
        rows.append({**row, "raw": times})
    # three sizes of classes at the same number of samples: the extra memory does not follow the logits
    large = [(2_000, 100)] if quick else [(50_000, 100), (50_000, 300), LARGE]
    return rows + [measure_large(*size) for size in large]


PLOT = None
