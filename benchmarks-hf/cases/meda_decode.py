"""CPU time of a decoding step and stored bytes, with a MedaCache and with DynamicCache.

A Llama of random weights (speed does not depend on them) has read a prompt; each round decodes a few tokens and takes
them back. The floor is the same step with a cache of a single token: what no cache can save. Keys and values are all
the memory that grows with the context.

With a language model of the user, the longest context that it and the sweep have, its dtype, a GPU where there is one.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

import harness
from given import DEVICE, Given
from meda_cache import MedaCache, attach

NEEDS = ("llm",)
CONTEXTS = (1024, 4096, 8192)
KEEP_RATIOS = (1.0, 0.5, 0.2, 0.1)
TOKENS = 8  # decoded in a round
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=16384,
)


def decode(model: Any, cache: Any) -> torch.Tensor:
    """Logits of the last of `TOKENS` steps, on the CPU: a GPU has done its work by then. The cache is as before."""
    for token in range(TOKENS):
        ids = torch.tensor([[token + 3]], device=model.device)
        logits = model(input_ids=ids, past_key_values=cache).logits
    cache.crop(-TOKENS)
    return logits.cpu()


def stored_bytes(cache: Any) -> int:
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def measure(model: Any, context: int, ratios: tuple[float, ...], *, quick: bool) -> list[harness.Row]:
    """One row for each keep ratio: a decoding step after a prompt of random tokens."""
    config = model.config
    generator = torch.Generator().manual_seed(context)
    prompt = torch.randint(3, config.vocab_size, (1, context), generator=generator).to(model.device)
    peer, floor = DynamicCache(config=config), DynamicCache(config=config)
    model(input_ids=prompt, past_key_values=peer)
    model(input_ids=prompt[:, :1], past_key_values=floor)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    rows = []
    for ratio in ratios:
        cache = MedaCache(config, preset="h2o", keep_ratio=ratio)
        model(input_ids=prompt, past_key_values=cache)
        cache.compress()
        if ratio == 1:
            torch.testing.assert_close(decode(model, cache), decode(model, peer), atol=tolerance, rtol=tolerance)
        tokens = len(peer.layers) * context  # of all layers
        expected = stored_bytes(peer) * int(ratio * tokens + 0.5) // tokens
        assert stored_bytes(cache) == expected, f"stored {stored_bytes(cache)} bytes, expected {expected}"
        samples = harness.time_in_turn(
            {
                "ours": partial(decode, model, cache),
                "peer": partial(decode, model, peer),
                "floor": partial(decode, model, floor),
            },
            rounds=3 if quick else 20,
            seconds=0 if quick else 1,
        )
        ours, theirs, low = (1e3 * np.array(samples[name]) / TOKENS for name in ("ours", "peer", "floor"))
        ratios_of_rounds = np.quantile(theirs / ours, [0.25, 0.5, 0.75])
        rows.append(
            {
                "context": context,
                "keep_ratio": ratio,
                "ms_per_token": float(np.median(ours)),
                "dynamic_cache_ms": float(np.median(theirs)),
                "floor_ms": float(np.median(low)),
                **dict(zip(("speedup_q1", "speedup", "speedup_q3"), map(float, ratios_of_rounds), strict=True)),
                "stored_kib": stored_bytes(cache) / 1024,
                "dynamic_cache_kib": stored_bytes(peer) / 1024,
                "samples": samples,
            }
        )
    return rows


def run(*, quick: bool) -> list[harness.Row]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    rows = []
    with attach(model):
        for context in CONTEXTS[:1] if quick else CONTEXTS:
            rows += measure(model, context, KEEP_RATIOS, quick=quick)
    return rows


def run_given(given: Given, *, quick: bool) -> list[harness.Row]:
    model = AutoModelForCausalLM.from_pretrained(given.llm).eval().to(DEVICE)
    longest = 64 if quick else CONTEXTS[-1]
    context = min(longest, model.config.max_position_embeddings - TOKENS)
    with attach(model):
        return measure(model, context, (1.0, 0.2), quick=quick)


PLOT = {"x": "context", "y": "speedup", "line": "keep_ratio", "low": "speedup_q1", "high": "speedup_q3"}
