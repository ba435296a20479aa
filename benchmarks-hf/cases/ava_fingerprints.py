"""Fingerprints of small towers through two language-model heads of size ratio 6: do they differ, do both rank alike?

Towers: the four `vfm-nano-*` of hf-diorama, which differ in what they were trained for, and three encoders whose
abilities follow from their definition; `blind` gives every head zeros, as the control. Heads: connector and LoRA on
`llm-nano-s` and `llm-nano-m`. Items: three abilities of mini-AVA, synthetic. Steps and rate were chosen on the
validation split; the test split was read once, by this case.

Rows: `ability` (one for each head, tower and ability, scores anchored at the best constant answer), `probe` (attentive
probe on the same tokens, no language model), `pairs` (do fingerprints differ) and `ranking` (do heads rank alike).

Finished towers are kept in the folder AVA_RUNS, or one in /tmp, and not repeated.
"""

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_diorama
from hf_ava_bench import Fingerprint, compare_rankings, find_ability, load_ability, rank_towers, run_benchmark
from hf_ava_bench.fingerprint import anchor
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.probe import score_probe
from hf_ava_bench.runner.profiles import Profile
from hf_ava_bench.runner.towers import VisionTower
from hf_ava_bench.statistics import bootstrap_interval

LLMS = ("llm-nano-s", "llm-nano-m")
KNOWN = ("patch-colour", "edge-hist", "grey-lowpass", "blind")
TOWERS = (*(f"vfm-nano-{kind}" for kind in ("supervised", "contrastive", "masked", "random")), *KNOWN)
ABILITIES = ("orientation", "scene", "texture")
SIZE = 64
PROFILE = Profile(
    name="nano", epochs=1.5, localization_epochs=1.5, batch_size=16, learning_rate=3e-3, lora_r=16, lora_alpha=32,
    lora_dropout=0.0, standardize=True, bf16=True, n_train=1_600, n_test=250, system="",
    max_length=256, closed_sets="loglik",
)  # fmt: skip
PLOT = {"x": "ability", "y": "score", "line": "tower", "panel": "head", "low": "low", "high": "high"}


def build_tower(name: str) -> Any:
    return KnownEncoder(name) if name in KNOWN else VisionTower(hf_diorama.model_path(name))


def load_llm(name: str) -> tuple[Any, Any]:
    path = hf_diorama.model_path(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model, AutoTokenizer.from_pretrained(path)


def describe(fingerprint: Fingerprint, llm: str, tower: str) -> list[dict[str, Any]]:
    rows = []
    for name, result in fingerprint.abilities.items():
        low, high = result.score_interval
        rows.append(
            {"row": "ability", "head": llm, "tower": tower, "ability": name, "score": result.score}
            | {"low": low, "high": high, "metric": result.metric, "value": result.value, "constant": result.m0}
            | {"n": result.n, "unparsable": result.n_unparsable, "shuffled": result.controls["shuffled"]}
            | {"train_cpu_s": result.cost["train_cpu_seconds"], "trained_parameters": result.cost["num_trained"]}
        )
    return rows


def probe(tower: str, like: Fingerprint, profile: Profile, tokens: Path, source: str = "mini") -> list[dict[str, Any]]:
    """Returns what an attentive probe reads from the same tokens: the gap to it is the head's."""
    rows = []
    for name, result in like.abilities.items():
        if find_ability(name).answer == "text":
            continue
        tables = [load_ability(name, source, split, n=n, image_size=SIZE)
                  for split, n in (("train", profile.n_train), ("test", profile.n_test))]  # fmt: skip
        features = [compute_features(table, build_tower(tower), tokens, progress=False) for table in tables]
        score = score_probe(name, *tables, *features, steps=300, batch_size=32)
        ends = [anchor(end, result.m0, result.m1) for end in bootstrap_interval(score.values)]
        rows.append(
            {
                "row": "probe",
                "head": "probe",
                "tower": tower,
                "ability": name,
                "score": anchor(score.value, result.m0, result.m1),
            }
            | {"low": min(ends), "high": max(ends), "metric": score.metric, "value": score.value, "n": score.n}
        )
    return rows


def compare_pairs(fingerprints: Mapping[str, Fingerprint], llm: str) -> dict[str, Any]:
    """Returns how many pairs of towers differ in some ability, and how many win one each: sign flips, Holm."""
    ranking = rank_towers([fingerprint for name, fingerprint in fingerprints.items() if name != "blind"])
    signs: dict[tuple[str, str], set[float]] = {}
    for pair in itertools.chain.from_iterable(ranking.pairs.values()):
        found = signs.setdefault(pair["pair"], set())
        if pair["p_holm"] < 0.05:
            found.add(float(np.sign(pair["difference"])))
    return {
        "row": "pairs",
        "head": llm,
        "pairs": len(signs),
        "differ": sum(bool(found) for found in signs.values()),
        "win_one_each": sum(len(found) == 2 for found in signs.values()),
        "friedman_p": ranking.friedman["p"],
        "crossing": [" / ".join(pair) for pair, found in signs.items() if len(found) == 2],
        "mean_ranks": dict(ranking.mean_ranks),
    }


def compare_heads(runs: Sequence[Mapping[str, Fingerprint]], what: str, towers: Sequence[str]) -> list[dict[str, Any]]:
    """Returns tau-b of the order of towers under both heads, for each ability and for the mean of the scores."""
    comparison = compare_rankings(*([side[name] for name in towers] for side in runs))
    rows = []
    for ability, found in {**comparison.abilities, "mean rank": comparison.overall}.items():
        told = [swap["significant_in_first"] and swap["significant_in_second"] for swap in found["swapped"]]
        numbers = {"tau_b": found["tau_b"], "spearman": found["spearman"]}
        numbers |= dict(zip(("low", "high"), found["tau_interval"], strict=True))
        rows.append(
            {"row": "ranking", "towers": what, "n": comparison.n, "ability": ability}
            | {key: None if np.isnan(value) else value for key, value in numbers.items()}  # all towers tied
            | {"top_1_agrees": found["top_1_agrees"], "swapped": len(told), "swapped_told_apart": sum(told)}
        )
    return rows


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp()) if quick else Path(os.environ.get("AVA_RUNS", "/tmp/ava-fingerprints"))
    towers = ("vfm-nano-random", "edge-hist", "blind") if quick else TOWERS
    abilities = ABILITIES[-2:] if quick else ABILITIES
    profile = replace(PROFILE, n_train=64, n_test=16) if quick else PROFILE
    rows: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Fingerprint]] = {}
    for llm in LLMS:
        runs[llm] = {}
        for name in towers:
            fingerprint = run_benchmark(
                build_tower(name), load_llm(llm), out / f"{llm}-{name}", abilities, source="mini", profile=profile,
                controls=("shuffled",), image_size=SIZE, progress=False,
            )  # fmt: skip
            runs[llm][name] = replace(fingerprint, tower=name)
            rows += describe(fingerprint, llm, name)
            print(fingerprint.table(), flush=True)
        rows.append(compare_pairs(runs[llm], llm))
    for name in towers:
        rows += probe(name, runs[LLMS[0]][name], profile, out / "tokens")
    both = list(runs.values())
    seconds = [sum(r["train_cpu_s"] for r in rows if r.get("head") == llm and r["row"] == "ability") for llm in LLMS]
    for what, chosen in (("vfm-nano", [name for name in towers if name not in KNOWN]),
                         ("all but blind", [name for name in towers if name != "blind"])):  # fmt: skip
        if len(chosen) > 1:
            rows += compare_heads(both, what, chosen)
    rows.append({"row": "cost", "cpu_s": dict(zip(LLMS, seconds, strict=True)), "ratio": seconds[1] / seconds[0]})
    return rows
