"""The cache of visual tokens against recomputing them: ten epochs of a frozen tower, and of training a head on it.

`tokens` rows time the tokens of ten epochs alone: computed once, written and read nine times (ours), or computed ten
times (recomputing). `training` rows add ten epochs of a head, the same both ways. Towers: one that ships, and
an untrained ViT of the layout of DeiT-small (image 224, patch 16) on few images.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import ViTConfig, ViTModel

import harness
import hf_diorama
from hf_ava_bench import load_ability
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.head import AvaHead, Prompts
from hf_ava_bench.runner.profiles import Profile
from hf_ava_bench.runner.tiny import build_tiny_llm
from hf_ava_bench.runner.towers import VisionTower
from hf_ava_bench.runner.training import build_head, train_head

EPOCHS = 10
PROFILE = Profile(
    name="cache", epochs=EPOCHS, localization_epochs=EPOCHS, batch_size=32, learning_rate=2e-3, train_llm=True,
    system="", max_length=256, bf16=True,
)  # fmt: skip


def build_towers(quick: bool) -> dict[str, tuple[VisionTower, int]]:
    """Returns towers and how many images each is timed on."""
    small = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1_536)
    torch.manual_seed(0)
    return {
        "vfm-nano-supervised": (VisionTower(hf_diorama.model_path("vfm-nano-supervised")), 32 if quick else 256),
        "vit-small/16, 224 px": (VisionTower(ViTModel(small, add_pooling_layer=False)), 4 if quick else 16),
    }


def check(table: datasets.Dataset, tower: VisionTower, folder: Path) -> None:
    """Tokens from the cache are those of the tower, and so is the loss of a head on them."""
    fresh = tower.encode(table["image"][:], table["answer"][:])
    for _ in range(2):
        cached = compute_features(table, tower, folder, dtype=torch.float32, progress=False)
        assert torch.allclose(cached, fresh, atol=1e-5)
    model, tokenizer = build_tiny_llm()
    head, prompts = AvaHead(model, fresh.shape[2]).eval(), Prompts(tokenizer, fresh.shape[1], "", 256)
    batch = prompts.collate([prompts.encode(row["question"], row["answer"]) for row in table])
    losses = [head(features=tokens, **batch)["loss"].item() for tokens in (cached, fresh)]
    assert abs(losses[0] - losses[1]) < 1e-6, losses


def time_tokens(table: datasets.Dataset, tower: VisionTower, quick: bool) -> dict[str, list[float]]:
    def cached() -> None:
        folder = Path(tempfile.mkdtemp())
        for _ in range(EPOCHS):
            compute_features(table, tower, folder, progress=False)
        shutil.rmtree(folder)

    def recomputed() -> None:
        for _ in range(EPOCHS):
            compute_features(table, tower, progress=False)

    return harness.time_in_turn({"ours": cached, "peer": recomputed}, rounds=1 if quick else 3, seconds=0)


def time_head(table: datasets.Dataset, tower: VisionTower) -> float:
    tokens = compute_features(table, tower, progress=False)
    model, tokenizer = build_tiny_llm()
    head = build_head(model, tokens.shape[2], PROFILE, "scene", 0)
    prompts = Prompts(tokenizer, tokens.shape[1], "", 256)
    start = time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    train_head(head, prompts, table, tokens, PROFILE, ability="scene", folder=folder, seed=0, progress=False)
    return time.perf_counter() - start


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (tower, n) in build_towers(quick).items():
        size = tower.image_size
        check(load_ability("scene", "mini", "test", n=8, image_size=size), tower, Path(tempfile.mkdtemp()))
        table = load_ability("scene", "mini", "train", n=n, image_size=size)
        samples = time_tokens(table, tower, quick)
        ours, peer = (float(np.median(samples[way])) for way in ("ours", "peer"))
        ratios = np.quantile(np.array(samples["peer"]) / samples["ours"], [0.25, 0.5, 0.75])
        about = {"tower": name, "images": n, "epochs": EPOCHS}
        rows.append(
            {**about, "what": "tokens", "cached_s": ours, "recomputed_s": peer}
            | dict(zip(("ratio_q1", "ratio", "ratio_q3"), map(float, ratios), strict=True))
            | {"samples": samples}
        )
        head = time_head(table, tower)
        rows.append(
            {**about, "what": "training", "cached_s": ours + head, "recomputed_s": peer + head}
            | {"ratio": (peer + head) / (ours + head), "head_s": head}
        )
    return rows
