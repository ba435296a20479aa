"""Seconds of a smoke fingerprint: two encoders over all 14 abilities with controls, a radar, on rendered items.

The example of the README of hf-ava-bench: `profile="smoke"`, head and encoders that ship with hf-diorama. The
bar is ten minutes on two cores for both together; here both run on one. Scores say nothing about photos.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import datasets

import hf_ava_bench
import hf_diorama

BAR_SECONDS = 600
NAMES = ("supervised", "random")


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    rows, fingerprints = [], []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            start, cpu = time.perf_counter(), time.process_time()
            fingerprint = hf_ava_bench.run_benchmark(
                hf_diorama.model_path(f"vfm-nano-{name}"),
                hf_diorama.model_path("llm-nano-s"),
                f"{folder}/{name}",
                ["scene"] if quick else "all",
                source="mini",
                profile="smoke",
                image_size=64,
                progress=False,
            )
            fingerprints.append(fingerprint)
            scores = {ability: result.score for ability, result in fingerprint.abilities.items()}
            rows.append(
                {
                    "tower": f"vfm-nano-{name}",
                    "num_abilities": len(scores),
                    "seconds": time.perf_counter() - start,
                    "cpu_seconds": time.process_time() - cpu,
                    "mean_score": sum(scores.values()) / len(scores),
                    "scores": scores,
                }
            )
        picture = hf_ava_bench.plot_fingerprints(fingerprints, Path(folder) / "radar.png")
        assert picture.read_bytes()[:4] == b"\x89PNG"
    seconds = time.perf_counter() - began
    assert quick or all(row["num_abilities"] == len(hf_ava_bench.ABILITIES) for row in rows)
    both = {"tower": "both, and the radar", "num_abilities": rows[0]["num_abilities"], "seconds": seconds}
    cpu_seconds = sum(row["cpu_seconds"] for row in rows)
    return [*rows, {**both, "cpu_seconds": cpu_seconds, "bar": BAR_SECONDS, "reached": seconds <= BAR_SECONDS}]
