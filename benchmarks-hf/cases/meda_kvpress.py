"""CPU time of reading and compressing a prompt to a fifth: MedaCache against the package kvpress, method by method.

SnapKV is `preset="snapkv"` of ours and SnapKVPress of theirs; accumulated attention is `preset="h2o"` and
ObservedAttentionPress, which needs eager attention. kvpress 0.5.5 wants transformers below 5.3 (its hooks read an
argument that later versions do not pass), we want 5.17 or later, so that each runs in an environment and a process of
its own, on the Llama of random weights of `meda_compress`. What is compared is the slowdown over a plain DynamicCache
of the same environment, read in turn with it: the transformers below do not count.

kvpress takes part if FOVEA_KVPRESS names the Python of an environment made by
    python -m venv DIR && DIR/bin/pip install kvpress==0.5.5 torch==2.13.0
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

CONTEXTS = (1024, 4096, 8192)
KEEP_RATIO = 0.2
METHODS = {"SnapKV": "snapkv", "accumulated attention": "h2o"}
PLOT = {"x": "context", "y": "slowdown", "line": "what", "low": "slowdown_q1", "high": "slowdown_q3"}


def build_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16384,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def read_plain(model: Any, prompt: torch.Tensor) -> Any:
    cache = DynamicCache(config=model.config)
    model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
    return cache


def read_ours(model: Any, prompt: torch.Tensor, method: str) -> Any:
    from meda_cache import MedaCache, attach

    with attach(model):
        cache = MedaCache(model.config, preset=METHODS[method], keep_ratio=KEEP_RATIO)
        model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
        if not cache.is_compressed:
            cache.compress()
    return cache


def read_theirs(model: Any, prompt: torch.Tensor, method: str) -> Any:
    from kvpress import ObservedAttentionPress, SnapKVPress

    press = {"SnapKV": SnapKVPress, "accumulated attention": ObservedAttentionPress}[method]
    model.set_attn_implementation("eager" if method == "accumulated attention" else "sdpa")
    with press(compression_ratio=1 - KEEP_RATIO)(model):
        cache = read_plain(model, prompt)
    model.set_attn_implementation("sdpa")
    return cache


@torch.no_grad()
def time_side(read: Callable[[Any, torch.Tensor, str], Any], context: int, rounds: int) -> list[dict[str, float]]:
    """CPU seconds of a plain cache and of each method, in each round; the first round is dropped."""
    torch.set_num_threads(1)
    model = build_model()
    prompt = torch.randint(3, 512, (1, context), generator=torch.Generator().manual_seed(context))
    found = []
    for _ in range(rounds + 1):
        seconds = {}
        for name in ("plain", *METHODS):
            start = time.process_time()
            cache = read_plain(model, prompt) if name == "plain" else read(model, prompt, name)
            seconds[name] = time.process_time() - start
            kept = sum(layer.keys.shape[-2] for layer in cache.layers) / (len(cache.layers) * context)
            wanted = 1 if name == "plain" else KEEP_RATIO
            assert abs(kept - wanted) < 2 / context, f"{name}: kept {kept}, expected {wanted}"
        found.append(seconds)
    return found[1:]


def run_side(python: str, side: str, context: int, rounds: int) -> list[dict[str, float]]:
    """`time_side` in a process of this Python."""
    command = [python, __file__, side, str(context), str(rounds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr.strip().splitlines()[-1]
    found: list[dict[str, float]] = json.loads(result.stdout.splitlines()[-1])
    return found


def run(*, quick: bool) -> list[dict[str, Any]]:
    theirs = os.environ.get("FOVEA_KVPRESS")
    if theirs is None:
        return [{"skipped": "FOVEA_KVPRESS names no Python with kvpress"}]
    rows = []
    for context in CONTEXTS[:1] if quick else CONTEXTS:
        for side, python in (("ours", sys.executable), ("kvpress", theirs)):
            rounds = run_side(python, side, context, 2 if quick else 10)
            for method in METHODS:
                slower = [one[method] / one["plain"] for one in rounds]
                low, median, high = (float(value) for value in np.quantile(slower, [0.25, 0.5, 0.75]))
                row = {"context": context, "method": method, "side": side, "what": f"{method}, {side}"}
                row |= {"slowdown_q1": low, "slowdown": median, "slowdown_q3": high}
                rows.append({**row, "samples": [one[method] for one in rounds]})
    return rows


if __name__ == "__main__":
    side, context, rounds = sys.argv[1:]
    read = {"ours": read_ours, "kvpress": read_theirs}[side]
    print(json.dumps(time_side(read, int(context), int(rounds))))
