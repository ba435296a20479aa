"""CPU time and peak memory of reading and compressing a prompt, with a MedaCache and with attention matrices.

A MedaCache streams the statistics beside the model's own sdpa attention. `naive` is the formulation of the released
code: eager attention, whose matrices entropy and scores are taken from, and one similarity matrix for the merge. Both
are compared with reading the prompt into a DynamicCache. Prompts are text, whose entropy is that of the attention
itself; in `meda, images` 15 of 16 tokens are visual, and the cross-modal entropy has softmaxes of its own. A Llama of
random weights whose layers are mostly attention: where layers are wider all of it costs less beside the model.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from meda_cache import MedaCache, allocate_budgets, attach, select_tokens

CONTEXTS = (1024, 4096, 8192)
KEEP_RATIO = 0.2
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=16384,
)


def build_model(implementation: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    model.set_attn_implementation(implementation)
    return model


def build_prompt(context: int) -> torch.Tensor:
    return torch.randint(3, CONFIG.vocab_size, (1, context), generator=torch.Generator().manual_seed(context))


@torch.no_grad()
def read_dynamic(model: Any, context: int) -> None:
    model(input_ids=build_prompt(context), past_key_values=DynamicCache(config=CONFIG), logits_to_keep=1)


@torch.no_grad()
def read_ours(model: Any, context: int, preset: str, *, has_images: bool = False) -> MedaCache:
    with attach(model):
        cache = MedaCache(CONFIG, preset=preset, keep_ratio=KEEP_RATIO)
        if has_images:
            cache.expect(visual_mask=torch.arange(context)[None] % 16 != 0)
        model(input_ids=build_prompt(context), past_key_values=cache, logits_to_keep=1)
        if not cache.is_compressed:  # a prompt of declared length is compressed as soon as it is read
            cache.compress()
    return cache


@torch.no_grad()
def compress_naive(model: Any, prompt: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """MEDA from attention matrices: entropy of the mean over heads, sums of columns, merge by a similarity matrix."""
    config, cache, entropies, scores = model.config, DynamicCache(config=model.config), [], []

    def look(module: Any, args: Any, output: Any) -> None:
        attention = output[1][0].float()  # (H, n, n)
        entropies.append(torch.special.entr(attention.mean(dim=0)).sum(dim=-1).mean())
        scores.append(attention.sum(dim=1).unflatten(0, (config.num_key_value_heads, -1)).sum(dim=1))

    hooks = [layer.self_attn.register_forward_hook(look) for layer in model.model.layers]
    model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    context, weights = prompt.shape[1], torch.stack(entropies).softmax(dim=0)
    budgets = allocate_budgets(weights, int(KEEP_RATIO * len(scores) * context + 0.5), maximum=context)
    is_visual = torch.zeros(context, dtype=torch.bool, device=prompt.device)
    compressed = []
    for layer, score, budget in zip(cache.layers, scores, budgets, strict=True):
        recent = int(0.75 * budget)
        kept = select_tokens(score, is_visual, num_recent=recent, num_important=budget - recent)
        compressed.append(merge_naive(layer.keys[0], layer.values[0], kept))
    return compressed


def merge_naive(keys: torch.Tensor, values: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    heads, length, dim = keys.shape
    is_evicted = torch.ones(heads, length, dtype=torch.bool, device=keys.device).scatter_(1, kept, False)
    evicted = is_evicted.nonzero()[:, 1].reshape(heads, -1)
    unit = torch.nn.functional.normalize(keys, dim=-1)
    take = lambda states, index: states.gather(1, index[..., None].expand(-1, -1, dim))  # noqa: E731
    nearest = (take(unit, evicted) @ take(unit, kept).transpose(1, 2)).argmax(dim=-1)
    count = keys.new_ones(kept.shape).scatter_add(1, nearest, keys.new_ones(nearest.shape))
    index = nearest[..., None].expand(-1, -1, dim)
    merged = [take(s, kept).scatter_add(1, index, take(s, evicted)) / count[..., None] for s in (keys, values)]
    return merged[0], merged[1]


RUNS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {  # attention of the model, and what is done with it
    "dynamic": ("sdpa", read_dynamic),
    "meda": ("sdpa", lambda model, context: read_ours(model, context, "meda")),
    "meda, images": ("sdpa", lambda model, context: read_ours(model, context, "meda", has_images=True)),
    "balanced": ("sdpa", lambda model, context: read_ours(model, context, "balanced")),
    "naive": ("eager", lambda model, context: compress_naive(model, build_prompt(context))),
}


def measure(name: str, context: int) -> tuple[float, float]:
    """CPU seconds of one run in a process of its own, and the MiB that it took at its peak."""

    def work(connection: Any) -> None:
        implementation, read = RUNS[name]
        model = build_model(implementation)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        read(model, context)
        used = time.process_time() - start
        connection.send((used, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))

    context_fork = multiprocessing.get_context("fork")
    receiver, sender = context_fork.Pipe(duplex=False)
    process = context_fork.Process(target=work, args=(sender,))
    process.start()
    sender.close()
    result: tuple[float, float] = receiver.recv()
    process.join()
    return result


def check() -> None:
    """The two formulations keep the same: keys and values of all layers agree."""
    ours = read_ours(build_model("sdpa"), 256, "meda")
    naive = compress_naive(build_model("eager"), build_prompt(256))
    for layer, (keys, values) in zip(ours.layers, naive, strict=True):
        torch.testing.assert_close(layer.keys[0], keys, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(layer.values[0], values, atol=1e-4, rtol=1e-3)


def run(*, quick: bool) -> list[dict[str, Any]]:
    check()
    rows = []
    for context in CONTEXTS[:1] if quick else CONTEXTS:
        rounds = [{name: measure(name, context) for name in RUNS} for _ in range(1 if quick else 5)]
        base = np.array([one["dynamic"][0] for one in rounds])
        for name in RUNS:
            seconds = np.array([one[name][0] for one in rounds])
            low, median, high = np.quantile(seconds / base, [0.25, 0.5, 0.75])
            rows.append(
                {
                    "context": context,
                    "formulation": name,
                    "cpu_seconds": float(np.median(seconds)),
                    "slowdown_q1": float(low),
                    "slowdown": float(median),
                    "slowdown_q3": float(high),
                    "peak_mib": float(np.median([one[name][1] for one in rounds])),
                    "samples": [one[name] for one in rounds],
                }
            )
    return rows


PLOT = {"x": "context", "y": "slowdown", "line": "formulation", "low": "slowdown_q1", "high": "slowdown_q3"}
