"""CPU time of a decoding step and stored bytes, with a MedaCache and with DynamicCache.

A Llama of random weights (speed does not depend on them) has read a prompt; each round decodes a few tokens and takes
them back. The floor is the same step with a cache of a single token: what no cache can save. Keys and values are all
the memory that grows with the context.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import harness
from meda_cache import MedaCache, attach

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
    """Logits of the last of `TOKENS` steps; the cache is as before."""
    for token in range(TOKENS):
        logits = model(input_ids=torch.tensor([[token + 3]]), past_key_values=cache).logits
    cache.crop(-TOKENS)
    return logits


def stored_bytes(cache: Any) -> int:
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    rows = []
    with attach(model):
        for context in CONTEXTS[:1] if quick else CONTEXTS:
            prompt = torch.randint(
                3, CONFIG.vocab_size, (1, context), generator=torch.Generator().manual_seed(context)
            )
            peer, floor = DynamicCache(config=CONFIG), DynamicCache(config=CONFIG)
            model(input_ids=prompt, past_key_values=peer)
            model(input_ids=prompt[:, :1], past_key_values=floor)
            for ratio in KEEP_RATIOS:
                cache = MedaCache(CONFIG, preset="h2o", keep_ratio=ratio)
                model(input_ids=prompt, past_key_values=cache)
                cache.compress()
                if ratio == 1:
                    torch.testing.assert_close(decode(model, cache), decode(model, peer), atol=1e-4, rtol=1e-4)
                expected = int(ratio * 4 * context + 0.5) * 2 * 4 * 32 * 4  # tokens, K and V, heads, head_dim, fp32
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
                ratios = np.quantile(theirs / ours, [0.25, 0.5, 0.75])
                rows.append(
                    {
                        "context": context,
                        "keep_ratio": ratio,
                        "ms_per_token": float(np.median(ours)),
                        "dynamic_cache_ms": float(np.median(theirs)),
                        "floor_ms": float(np.median(low)),
                        **dict(zip(("speedup_q1", "speedup", "speedup_q3"), map(float, ratios), strict=True)),
                        "stored_kib": stored_bytes(cache) / 1024,
                        "dynamic_cache_kib": stored_bytes(peer) / 1024,
                        "samples": samples,
                    }
                )
    return rows


PLOT = {"x": "context", "y": "speedup", "line": "keep_ratio", "low": "speedup_q1", "high": "speedup_q3"}
