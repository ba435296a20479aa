"""Times a case fairly, and describes the machine and the code that a result comes from."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["accelerate", "datasets", "evaluate", "numpy", "peft", "pillow", "torch", "transformers", "triton"]
DISTRIBUTIONS = sorted([*LIBRARIES, *(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))])
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A case that measures speed: ours against a peer, against a bar, or both.

    Args:
        sizes: parameters of each point of the sweep. The key `bar`, if there, is the wanted number of items a second
            and is not handed to `setup`.
        setup: makes the inputs of one size.
        check: raises if ours is wrong on these inputs. Nothing is timed before it has passed.
        ours, peer: do the work on the inputs once.
        items: how many items one call handles.
        unit: what an item is, in the plural.
    """

    sizes: list[dict[str, Any]]
    setup: Callable[..., Any]
    check: Callable[[Any], None]
    ours: Callable[[Any], object]
    peer: Callable[[Any], object] | None = None
    items: int = 1
    unit: str = "items"


def time_in_turn(ways: dict[str, Callable[[], object]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each way in each round: in turn, the order alternating, for so many rounds and so long at least.

    The first round is dropped.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    began, done = time.perf_counter(), 0
    while done <= rounds or time.perf_counter() - began < seconds:
        for name in list(ways)[:: 1 if done % 2 else -1]:
            start = time.perf_counter()
            ways[name]()
            samples[name].append(time.perf_counter() - start)
        done += 1
    return {name: values[1:] for name, values in samples.items()}


def time_rounds(case: Timing, inputs: Any, *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each round, ours and peer in turn: see `time_in_turn`."""
    ways: dict[str, Callable[[], object]] = {"ours": lambda: case.ours(inputs)}
    if (peer := case.peer) is not None:
        ways["peer"] = lambda: peer(inputs)
    return time_in_turn(ways, rounds=rounds, seconds=seconds)


def run_timing(case: Timing, *, quick: bool) -> list[Row]:
    """One row for each size: items a second with quartiles, the ratio to the peer, the bar, and the raw seconds."""
    rows = []
    for size in case.sizes[:1] if quick else case.sizes:
        parameters = {key: value for key, value in size.items() if key != "bar"}
        inputs = case.setup(**parameters)
        case.check(inputs)
        samples = time_rounds(case, inputs, rounds=3 if quick else 20, seconds=0 if quick else 1)
        ours = np.array(samples["ours"])
        low, median, high = (float(value) for value in np.quantile(case.items / ours, [0.25, 0.5, 0.75]))
        row: Row = {**parameters, f"{case.unit}_per_s": median, "q1": low, "q3": high}
        if case.peer:
            ratio = np.quantile(np.array(samples["peer"]) / ours, [0.25, 0.5, 0.75])
            row |= dict(zip(("ratio_q1", "ratio", "ratio_q3"), map(float, ratio), strict=True))
        if "bar" in size:
            row |= {"bar": size["bar"], "reached": median >= size["bar"]}
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({**row, "samples": samples})
    return rows


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(dist: str) -> str | None:
    try:
        return metadata.version(dist)
    except metadata.PackageNotFoundError:
        return None


def describe_code() -> dict[str, Any]:
    """The commit that is checked out, and whether anything but results differs from it: to be asked before a run."""
    made = (f":!benchmarks-hf/{folder}" for folder in ("results", "figures"))
    return {
        "commit": _git("rev-parse", "HEAD") or None,
        "dirty": bool(_git("status", "--porcelain", "--", ".", *made)),
    }


def describe_run(code: dict[str, Any]) -> dict[str, Any]:
    """Where, when and with what a result was made. Torch is asked only if the case imported it."""
    torch = sys.modules.get("torch")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **code,
        "python": platform.python_version(),
        "versions": {dist: version for dist in DISTRIBUTIONS if (version := _version(dist))},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "threads": {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "torch": torch.get_num_threads() if torch else None,
        },
        "load_average": os.getloadavg()[0],
    }
