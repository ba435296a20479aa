"""The formulas of MEDA (arXiv 2502.17599) for one prompt: tensors in, tensors out, no model, no cache.

Everything is computed in float32 whatever comes in. Attention is never held as a whole, see `meda_cache.ops`.
"""

from meda_cache.functional.budgets import allocate_budgets
from meda_cache.functional.entropy import attention_entropy, cross_modal_entropy, key_mass
from meda_cache.functional.merging import merge_tokens
from meda_cache.functional.selection import select_tokens

__all__ = [
    "allocate_budgets",
    "attention_entropy",
    "cross_modal_entropy",
    "key_mass",
    "merge_tokens",
    "select_tokens",
]
