"""A KV cache for transformers that gives each layer what it needs (MEDA, arXiv 2502.17599)."""

from meda_cache.attachment import attach, detach
from meda_cache.cache import MedaCache
from meda_cache.compression import PRESETS, CompressionConfig
from meda_cache.functional import (
    allocate_budgets,
    attention_entropy,
    cross_modal_entropy,
    key_mass,
    merge_tokens,
    select_tokens,
)
from meda_cache.plots import plot_kept_tokens, plot_layers
from meda_cache.report import CacheStats, LayerStats

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CacheStats",
    "CompressionConfig",
    "LayerStats",
    "MedaCache",
    "allocate_budgets",
    "attach",
    "attention_entropy",
    "cross_modal_entropy",
    "detach",
    "key_mass",
    "merge_tokens",
    "plot_kept_tokens",
    "plot_layers",
    "select_tokens",
]
