"""Fingerprints on real photos: colour, counting, localization and OCR items built from CIFAR-10, answers known.

What is asked about is built in (a pasted photo, rendered letters, a region's mean colour); the photos are real, and
those of the test split are in no train item: see `photo_items.py`. The tower never saw a photo; two encoders have
abilities that follow from their definition. The head is connector and LoRA on `llm-nano-s`; the control is its answers
to tokens of other images. `probe` rows are an attentive probe on the same tokens, which cannot write text.

The photos are read from the folder of Parquet files that the environment variable CIFAR10_DIR names, or from the Hub.
Finished towers are kept in the folder AVA_RUNS, or one in /tmp, and not repeated.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import hf_diorama
from cases.ava_fingerprints import PLOT, PROFILE, build_tower, describe, load_llm, probe
from hf_ava_bench import run_benchmark
from photo_items import BUILDERS, write_items

__all__ = ["PLOT", "run"]
LLM = "llm-nano-s"
TOWERS = ("vfm-nano-supervised", "patch-colour", "edge-hist")
SIZES = {"train": 1_200, "test": 250}


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp()) if quick else Path(os.environ.get("AVA_RUNS", "/tmp/ava-fingerprints")) / "photos"
    sizes = {"train": 32, "test": 8} if quick else SIZES
    photos = {
        split: hf_diorama.load("cifar10", split=split, data_dir=os.environ.get("CIFAR10_DIR")) for split in sizes
    }
    source = write_items(out / "items", photos, sizes)
    profile = replace(
        PROFILE, name="photos", n_train=sizes["train"], n_test=sizes["test"], epochs=13, localization_epochs=5
    )
    rows: list[dict[str, Any]] = []
    for name in TOWERS[-2:] if quick else TOWERS:
        fingerprint = run_benchmark(
            build_tower(name), load_llm(LLM), out / name, tuple(BUILDERS), source=source, profile=profile,
            controls=("shuffled",), progress=False,
        )  # fmt: skip
        assert not any(result.synthetic for result in fingerprint.abilities.values())
        print(fingerprint.table(), flush=True)
        rows += describe(fingerprint, LLM, name)
        rows += probe(name, fingerprint, profile, out / "tokens", source=source)
    return rows
