"""Cost of calibrated inference: a ViT with the offset folded in, and with the hook, against the plain ViT."""

import copy
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

import harness
from partial_tune import ClassPartition, LogitCalibrator

BATCH_SIZES = (1, 4, 16, 64)
CONFIG = ViTConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=32,
    patch_size=8,
    num_labels=1000,
)


@torch.no_grad()
def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = ViTForImageClassification(CONFIG).eval()
    folded, hooked = copy.deepcopy(plain), copy.deepcopy(plain)
    calibrator = LogitCalibrator(ClassPartition.from_dataset(CONFIG, list(range(500))), 1.5)
    calibrator.fold_(folded)
    calibrator.attach(hooked)
    rows = []
    for batch_size in BATCH_SIZES[:1] if quick else BATCH_SIZES:
        x = torch.randn(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        expected = plain(pixel_values=x).logits + calibrator.offset
        for name, model in {"folded": folded, "hook": hooked}.items():
            torch.testing.assert_close(model(pixel_values=x).logits, expected, rtol=0, atol=1e-5)
            case = harness.Timing(
                sizes=[],
                setup=lambda: None,
                check=lambda _: None,
                ours=lambda pair: pair[0](pixel_values=pair[2]),
                peer=lambda pair: pair[1](pixel_values=pair[2]),
            )
            times = harness.time_rounds(case, (model, plain, x), rounds=3 if quick else 60, seconds=0 if quick else 2)
            ratio = np.quantile(np.array(times["ours"]) / np.array(times["peer"]), [0.25, 0.5, 0.75])
            rows.append(
                {
                    "how": name,
                    "batch_size": batch_size,
                    "ms": 1e3 * float(np.median(times["ours"])),
                    "plain_ms": 1e3 * float(np.median(times["peer"])),
                    **dict(zip(("slowdown_q1", "slowdown", "slowdown_q3"), map(float, ratio), strict=True)),
                    "raw": times if len(times["ours"]) < 200 else {key: value[:200] for key, value in times.items()},
                }
            )
    return rows


PLOT = None
