"""Greedy head ranking of one image: single-token tails after one forward, against a forward for each candidate.

The peer is the published loop, R (R + 1) / 2 forwards, on the same model with the same fast attention (the released
code needs eager attention on top). Random weights: the work is the same. One thread, CPU time, so that other work on
the machine does not count; one round, for the peer takes more than a minute at ViT-B/16.
"""

import time
from typing import Any

import torch
from transformers import ViTConfig, ViTModel

from prompt_cam import PromptCAMConfig, get_prompt_cam_model

SIZES: list[dict[str, Any]] = [
    {"model": "ViT-Ti/16", "hidden_size": 192, "num_attention_heads": 3, "rounds": 1},
    {"model": "ViT-S/16", "hidden_size": 384, "num_attention_heads": 6, "rounds": 1},
    {"model": "ViT-B/16", "hidden_size": 768, "num_attention_heads": 12, "rounds": 1},
]
NUM_CLASSES, TARGET = 200, 7
BAR = 50
PLOT = None


def rank_by_forwards(model: Any, pixels: torch.Tensor) -> tuple[list[int], list[float]]:
    """The heads in order of removal and the score after each, by one whole forward for each candidate."""
    attention, width = model.backbone.layers[-1].attention, model.backbone.config.hidden_size
    num_heads = model.backbone.config.num_attention_heads
    blurred: list[int] = []
    means: list[torch.Tensor] = []

    def keep(module: Any, args: Any, values: torch.Tensor) -> None:
        means[:] = [values[:, -196:].mean(1)]

    def swap(module: Any, args: Any) -> Any:
        heads = args[0].clone()
        for head in blurred:
            part = slice(head * width // num_heads, (head + 1) * width // num_heads)
            heads[:, TARGET, part] = means[0][:, part]
        return (heads,)

    handles = [attention.v_proj.register_forward_hook(keep), attention.o_proj.register_forward_pre_hook(swap)]
    gone: list[int] = []
    after: list[float] = []
    for _ in range(num_heads):
        scores = {}
        for head in (head for head in range(num_heads) if head not in gone):
            blurred[:] = [*gone, head]
            scores[head] = model(pixels).logits[0, TARGET].item()
        gone.append(max(scores, key=lambda head: scores[head]))
        after.append(scores[gone[-1]])
    for handle in handles:
        handle.remove()
    return gone, after


@torch.no_grad()
def time_and_check(model: Any, pixels: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round for ours, one forward, and the peer, in turn; both have to rank alike."""
    samples: dict[str, list[float]] = {"ours": [], "forward": [], "peer": []}
    model(pixels)  # warm-up
    for _ in range(rounds):
        clock = [time.process_time()]
        ours = model.rank_heads(pixels, TARGET)
        clock.append(time.process_time())
        model(pixels)
        clock.append(time.process_time())
        order, scores = rank_by_forwards(model, pixels)
        clock.append(time.process_time())
        for name, start, end in zip(samples, clock[:-1], clock[1:], strict=True):
            samples[name].append(end - start)
        torch.testing.assert_close(ours.removal_scores[0], torch.tensor(scores), atol=1e-4, rtol=1e-4)
        assert ours.order[0].flip(0).tolist() == order, "both have to rank alike"
    return samples


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for size in SIZES[:1] if quick else SIZES:
        torch.manual_seed(0)
        heads, width = size["num_attention_heads"], size["hidden_size"]
        config = ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
        model = get_prompt_cam_model(ViTModel(config), PromptCAMConfig(num_classes=NUM_CLASSES)).eval()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        samples = time_and_check(model, torch.randn(1, 3, 224, 224), 1 if quick else size["rounds"])
        best = {name: min(values) for name, values in samples.items()}
        row = {"model": size["model"], "heads": heads, "classes": NUM_CLASSES, "cpu_seconds": best["ours"]}
        row |= {"forward_cpu_seconds": best["forward"], "peer_cpu_seconds": best["peer"]}
        row |= {"peer_forwards": heads * (heads + 1) // 2, "ratio": best["peer"] / best["ours"]}
        if heads == 12:
            row |= {"bar": BAR, "reached": row["ratio"] >= BAR}
        rows.append({**row, "samples": samples})
    return rows
