"""How a prompt is compressed: its options, and the steps score -> allocate -> select -> merge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from meda_cache.functional import (
    allocate_budgets,
    attention_statistics,
    cross_modal_entropy,
    merge_tokens,
    select_tokens,
)

Allocation = Literal["entropy", "uniform"]
Score = Literal["sum", "mean"]
Entropy = Literal["cross", "full"]
HeadReduction = Literal["mean_attention", "mean_entropy"]
TextPolicy = Literal["bias", "none"]
Merge = Literal["average", "value", "none"]


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """Options of the compression; the defaults are those of MEDA (arXiv 2502.17599).

    Args:
        keep_ratio (`float`, *optional*, defaults to 0.2):
            Share of the prompt's tokens kept on average over the layers, in (0, 1]. 1 keeps everything.
        allocation (`"entropy"`, `"uniform"` or a callable, *optional*, defaults to `"entropy"`):
            How the budget is divided over the layers: by the softmax of the layers' entropies, equally, or by a
            function from entropies of shape `(num_layers,)` to positive weights of the same shape.
        entropy (`"cross"` or `"full"`, *optional*, defaults to `"cross"`):
            Cross-modal entropy, or the entropy of the whole causal attention. Prompts of one modality use `"full"`.
        head_reduction (`"mean_attention"` or `"mean_entropy"`, *optional*, defaults to `"mean_attention"`):
            See [`cross_modal_entropy`].
        causal (`bool`, *optional*, defaults to `False`): see [`cross_modal_entropy`].
        normalize (`bool`, *optional*, defaults to `False`): see [`cross_modal_entropy`].
        temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the softmax over layers, in nats. 3 nats more are 20 times the budget at 1.0.
        score (`"sum"`, `"mean"` or a callable, *optional*, defaults to `"sum"`):
            What makes a token important: the attention it gets from all queries, the same divided by the number of
            queries that can see it, or a function from the key mass of shape `(num_key_value_heads, seq_len)` and the
            visual mask of shape `(seq_len,)` to scores of the shape of the first.
        recent_fraction (`float`, *optional*, defaults to 0.75):
            Share of a layer's budget that goes to the last tokens of the prompt, in [0, 1]: the paper's 3:1.
        text_policy (`"bias"` or `"none"`, *optional*, defaults to `"bias"`):
            Whether among the important tokens any text comes before any visual token (LOOK-M's text prior).
        num_sinks (`int`, *optional*, defaults to 0): number of first tokens that are always kept.
        merge (`"average"`, `"value"` or `"none"`, *optional*, defaults to `"average"`): see [`merge_tokens`].

    Raises:
        ValueError: for a value outside its range, with the range.

    Example:

    ```python
    >>> from meda_cache import CompressionConfig
    >>> CompressionConfig(keep_ratio=0.1, merge="value").recent_fraction
    0.75

    ```
    """

    keep_ratio: float = 0.2
    allocation: Allocation | Callable[[Tensor], Tensor] = "entropy"
    entropy: Entropy = "cross"
    head_reduction: HeadReduction = "mean_attention"
    causal: bool = False
    normalize: bool = False
    temperature: float = 1.0
    score: Score | Callable[[Tensor, Tensor], Tensor] = "sum"
    recent_fraction: float = 0.75
    text_policy: TextPolicy = "bias"
    num_sinks: int = 0
    merge: Merge = "average"

    def __post_init__(self) -> None:
        for name in ("keep_ratio", "recent_fraction", "temperature"):
            if not isinstance(getattr(self, name), (int, float)):
                raise TypeError(f"Expected a number for `{name}`, got {getattr(self, name)!r}.")
        if not isinstance(self.num_sinks, int):
            raise TypeError(f"Expected an integer for `num_sinks`, got {self.num_sinks!r}.")
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(
                f"Expected `keep_ratio` in (0, 1], the share of tokens that is kept, got {self.keep_ratio}."
            )
        if not 0 <= self.recent_fraction <= 1:
            raise ValueError(f"Expected `recent_fraction` in [0, 1], got {self.recent_fraction}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Expected `temperature` > 0, got {self.temperature}.")
        if self.num_sinks < 0:
            raise ValueError(f"Expected `num_sinks` >= 0, got {self.num_sinks}.")
        for name, choices in (
            ("allocation", Allocation),
            ("score", Score),
            ("entropy", Entropy),
            ("head_reduction", HeadReduction),
            ("text_policy", TextPolicy),
            ("merge", Merge),
        ):
            value = getattr(self, name)
            may_be_callable = name in ("allocation", "score")
            if value not in get_args(choices) and not (may_be_callable and callable(value)):
                expected = ", ".join(map(repr, get_args(choices))) + (" or a callable" if may_be_callable else "")
                raise ValueError(f"Expected `{name}` to be one of {expected}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class PromptStatistics:
    """What one layer saw of one prompt: `key_mass` `(num_key_value_heads, seq_len)`, its entropy in nats and which."""

    key_mass: Tensor
    entropy: float | None
    entropy_kind: Entropy | None


def observe_prompt(
    query_states: Tensor,
    key_states: Tensor,
    visual_mask: Tensor,
    config: CompressionConfig,
    *,
    scaling: float | None,
    visible: Tensor | None,
) -> PromptStatistics:
    """Returns the statistics of one layer for one prompt without padding; shapes as in [`cross_modal_entropy`]."""
    kind: Entropy | None = None
    if config.allocation != "uniform":
        has_both = 0 < int(visual_mask.sum()) < len(visual_mask)
        kind = "cross" if config.entropy == "cross" and has_both else "full"
    mass, entropy = attention_statistics(
        query_states,
        key_states,
        scaling=scaling,
        visible=visible,
        head_reduction=config.head_reduction if kind == "full" else None,
        normalize=config.normalize,
    )
    if kind == "cross":
        entropy = cross_modal_entropy(
            query_states,
            key_states,
            visual_mask,
            scaling=scaling,
            head_reduction=config.head_reduction,
            causal=config.causal,
            normalize=config.normalize,
        )
    return PromptStatistics(key_mass=mass, entropy=float(entropy) if kind is not None else None, entropy_kind=kind)


def allocate_prompt(
    entropies: Sequence[float | None], seq_len: int, config: CompressionConfig
) -> tuple[list[float], list[int]]:
    """Returns the weight and the budget of every layer for a prompt of `seq_len` tokens."""
    entropy = torch.tensor([math.nan if value is None else value for value in entropies], dtype=torch.float64)
    if callable(config.allocation):
        weights = config.allocation(entropy).to("cpu", torch.float64)
        if weights.shape != entropy.shape:
            raise ValueError(
                f"Expected `allocation` to return one weight for each of the {len(entropies)} layers, got shape "
                f"{tuple(weights.shape)}."
            )
    elif config.allocation == "uniform":
        weights = torch.ones_like(entropy)
    else:
        weights = (entropy / config.temperature).softmax(dim=0)
    total = math.floor(config.keep_ratio * len(entropies) * seq_len + 0.5)
    minimum = min(config.num_sinks + 1, seq_len)
    return (weights / weights.sum()).tolist(), allocate_budgets(weights, total, minimum=minimum, maximum=seq_len)


def compress_prompt(
    key_states: Tensor,
    value_states: Tensor,
    visual_mask: Tensor,
    statistics: PromptStatistics,
    budget: int,
    config: CompressionConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns keys, values and kept positions of one layer of one prompt; shapes as in [`merge_tokens`]."""
    scores = statistics.key_mass
    if callable(config.score):
        scores = config.score(statistics.key_mass, visual_mask)
        if scores.shape != statistics.key_mass.shape or bool(scores.isnan().any()):
            raise ValueError(
                f"Expected `score` to return numbers of shape {tuple(statistics.key_mass.shape)}, got "
                f"{'NaN' if scores.shape == statistics.key_mass.shape else f'shape {tuple(scores.shape)}'}."
            )
    elif config.score == "mean":
        scores = scores / torch.arange(scores.shape[-1], 0, -1, device=scores.device)
    num_sinks = min(config.num_sinks, budget)
    num_recent = min(math.floor(config.recent_fraction * budget), budget - num_sinks)
    kept = select_tokens(
        scores,
        visual_mask,
        num_recent=num_recent,
        num_important=budget - num_sinks - num_recent,
        text_first=config.text_policy == "bias",
        num_sinks=num_sinks,
    )
    keys, values = merge_tokens(key_states, value_states, kept, merge=config.merge)
    return keys, values, kept
