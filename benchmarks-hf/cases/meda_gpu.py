"""GPU: full-size LLaVA-1.5-7B and Qwen2.5-VL-7B decoders of random weights, with and without a MedaCache.

Speed does not depend on weights. Each row has the prefill with statistics and compression, and the time of a token,
against DynamicCache, StaticCache and a full MedaCache, which appends in place (`none@1.0`), and beside it the floor:
bytes of weights and cache over the measured bandwidth of the card. `naive` is the formulation of the released code
(attention matrices, see `meda_compress`), where it fits; `naive_over_ours` is what it adds to a prefill over what ours
adds. Rows of the cache `statistics` compare the kernels with one layer's attention. Needs a CUDA device.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

from cases.meda_compress import compress_naive
from meda_cache import MedaCache, attach, cross_modal_entropy, key_mass

CONTEXTS = (4096, 8192, 16384, 32768)
BATCH_SIZES = (1, 8)
KEEP_RATIOS = (0.2, 0.1)
TOKENS = 16
NAIVE_CONTEXT = 8192  # the longest for which attention matrices are tried
LLAVA = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32064,
    max_position_embeddings=65536,
)
QWEN = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    max_position_embeddings=131072,
)
# The text parts: the vision towers run once in the prefill and have no part in the cache.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "LLaVA-1.5-7B": lambda: LlamaForCausalLM(LLAVA),
    "Qwen2.5-VL-7B": lambda: Qwen2ForCausalLM(QWEN),
}


def time_ms(function: Callable[[], Any], rounds: int) -> list[float]:
    """Milliseconds of each round by events; one round warms up."""
    samples = []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end))
    return samples[1:]


def median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def measure_bandwidth() -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (median(time_ms(lambda: target.copy_(source), 10)) / 1e3)


def build_cache(name: str, config: Any, context: int) -> Any:
    if name == "dynamic":
        return DynamicCache(config=config)
    if name == "static":
        return StaticCache(config=config, max_cache_len=context + 4 * TOKENS)  # two rounds, and none is taken back
    preset, ratio = name.split("@")
    return MedaCache(config, preset=preset, keep_ratio=float(ratio))


@torch.no_grad()
def measure(model: PreTrainedModel, name: str, context: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Times of one cache on prompts half of which count as visual."""
    torch.cuda.reset_peak_memory_stats()
    prompt = torch.randint(10, 1000, (batch_size, context), generator=torch.Generator().manual_seed(0)).cuda()
    visual_mask = (torch.arange(context) % 64 >= 32).expand(batch_size, -1).cuda()
    caches: list[Any] = []

    def read() -> None:
        caches[:] = [build_cache(name, model.config, context)]
        if isinstance(caches[0], MedaCache):
            caches[0].expect(visual_mask=visual_mask)
        model(input_ids=prompt, past_key_values=caches[0], logits_to_keep=1)

    prefill = time_ms(read, rounds)
    cache, token = caches[0], prompt[:, :1]
    stored = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    if isinstance(cache, MedaCache):
        stats = cache.stats()
        assert not any(stats.overflow)
        assert stored == stats.stored_bytes, "stored bytes differ from the stats"

    def decode() -> None:
        for _ in range(TOKENS):
            model(input_ids=token, past_key_values=cache)
        if not isinstance(cache, StaticCache):
            cache.crop(-TOKENS)

    decoded = time_ms(decode, rounds) if not isinstance(cache, StaticCache) else time_ms(decode, 1)
    return {
        "prefill_ms": median(prefill),
        "ms_per_token": median(decoded) / TOKENS,
        "stored_mib": stored / 2**20,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "samples": {"prefill": prefill, "decode": decoded},
    }


@torch.no_grad()
def measure_statistics(config: Any, context: int, rounds: int) -> dict[str, float]:
    """One layer: its attention, the key mass of all rows, and the cross-modal entropy with 5 percent of text."""
    head_dim = config.hidden_size // config.num_attention_heads
    shapes = [(heads, context, head_dim) for heads in (config.num_attention_heads, config.num_key_value_heads)]
    queries, keys = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    visual_mask = torch.arange(context, device="cuda") % 20 != 0
    attend = torch.nn.functional.scaled_dot_product_attention
    work: dict[str, Callable[[], Any]] = {
        "attention_ms": lambda: attend(queries[None], keys[None], keys[None], is_causal=True, enable_gqa=True),
        "all_rows_ms": lambda: key_mass(queries, keys, backend="triton"),
        "cross_modal_ms": lambda: cross_modal_entropy(queries, keys, visual_mask, backend="triton"),
    }
    return {name: median(time_ms(function, rounds)) for name, function in work.items()}


def measure_naive(model: Any, context: int, rounds: int) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    prompt = torch.randint(10, 1000, (1, context), generator=torch.Generator().manual_seed(0)).cuda()
    samples = time_ms(lambda: compress_naive(model, prompt), rounds)
    peak = torch.cuda.max_memory_allocated() / 2**20
    return {"prefill_ms": median(samples), "peak_mib": peak, "samples": {"prefill": samples}}


def compare(found: dict[str, dict[str, Any]], weights: int, bandwidth: float) -> list[dict[str, Any]]:
    """The rows of one setting, with the floor and the ratios to DynamicCache where there is one."""
    base, full, naive, rows = found["dynamic"], found["none@1.0"], found.get("naive", {}), []
    for name, one in found.items():
        row = {"cache": name, **one}
        if "stored_mib" in one:
            row["floor_ms"] = (weights + one["stored_mib"] * 2**20) / bandwidth * 1e3
        for ratio, column in (("speedup", "ms_per_token"), ("prefill_slowdown", "prefill_ms")):
            if column in one and column in base:
                row[ratio] = base[column] / one[column] if ratio == "speedup" else one[column] / base[column]
        if "ms_per_token" in one and "ms_per_token" in full:
            row["speedup_over_in_place"] = full["ms_per_token"] / one["ms_per_token"]
        if "@0" in name and {"prefill_ms"} <= one.keys() & base.keys() & naive.keys():
            added, by_naive = (some["prefill_ms"] - base["prefill_ms"] for some in (one, naive))
            row["naive_over_ours"] = by_naive / added
        rows.append(row)
    return rows


def build_model(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return build().eval()
    finally:
        torch.set_default_dtype(torch.float32)


def run(*, quick: bool) -> list[dict[str, Any]]:
    assert torch.cuda.is_available(), "this case needs a CUDA device"
    bandwidth, rounds = measure_bandwidth(), 2 if quick else 5
    rows: list[dict[str, Any]] = []
    names = [
        "dynamic",
        "static",
        "none@1.0",
        *(f"{preset}@{ratio}" for preset in ("balanced", "meda") for ratio in KEEP_RATIOS),
    ]
    settings = [(context, batch_size) for context in CONTEXTS for batch_size in BATCH_SIZES]
    for model_name, build in MODELS.items():
        model = build_model(build)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        for context, batch_size in settings[:1] if quick else settings:
            found: dict[str, dict[str, Any]] = {}
            with_naive = batch_size == 1 and context <= NAIVE_CONTEXT
            for name in [*names, *(["naive"] if with_naive else [])]:
                model.set_attn_implementation("eager" if name == "naive" else "sdpa")
                try:
                    if name == "naive":
                        found[name] = measure_naive(model, context, rounds)
                    else:
                        with attach(model):
                            found[name] = measure(model, name, context, batch_size, rounds)
                except torch.OutOfMemoryError:
                    found[name] = {"out_of_memory": True}
                gc.collect()
                torch.cuda.empty_cache()
            if batch_size == 1:
                found["statistics"] = measure_statistics(model.config, context, rounds)
            setting = {"model": model_name, "context": context, "batch_size": batch_size}
            rows += [setting | row for row in compare(found, weights, bandwidth)]
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return rows


PLOT = None
