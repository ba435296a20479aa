"""The options of the compression, and the named combinations of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

from meda_cache.functional.merging import Merge
from meda_cache.functional.selection import TextPolicy
from meda_cache.ops import Backend
from meda_cache.ops.statistics import HeadReduction

Allocation = Literal["entropy", "uniform", "pyramid"]
Score = Literal["sum", "mean", "window", "random", "none"]
Entropy = Literal["cross", "full"]
Scope = Literal["head", "layer"]
MergeSpace = Literal["rotated", "unrotated"]
Commit = Literal["decode", "prefill"]
Recompress = Literal["never", "each_prefill"]
SelectFn = Callable[[Tensor, Tensor, int], Tensor]
MergeFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

CHOICES = {
    "allocation": Allocation,
    "entropy": Entropy,
    "head_reduction": HeadReduction,
    "score": Score,
    "text_policy": TextPolicy,
    "scope": Scope,
    "merge": Merge,
    "merge_space": MergeSpace,
    "commit": Commit,
    "recompress": Recompress,
    "backend": Backend,
}

_EVICTION: dict[str, Any] = {"allocation": "uniform", "text_policy": "none", "merge": "none"}
_WINDOW: dict[str, Any] = {**_EVICTION, "score": "window", "num_recent": 32}
PRESETS: dict[str, dict[str, Any]] = {
    "meda": {},
    "balanced": {**_EVICTION, "recent_fraction": 0.5, "per_image": True},
    "lookm": {"allocation": "uniform", "recent_fraction": 0.5, "merge": "pivotal"},
    "h2o": {**_EVICTION, "recent_fraction": 0.5},
    "snapkv": _WINDOW,
    "pyramidkv": {**_WINDOW, "allocation": "pyramid"},
    "streaming_llm": {**_EVICTION, "score": "none", "recent_fraction": 1.0, "num_sinks": 4},
    "uniform": {"allocation": "uniform"},
    "random": {**_EVICTION, "score": "random", "recent_fraction": 0.0},
    "none": {"keep_ratio": 1.0},
}
"""Options that differ from the defaults of [`CompressionConfig`], by name of the method."""

DEFAULT_PRESET = "balanced"
"""What [`MedaCache`] does unless told otherwise; `benchmarks-hf/cases/meda_quality.py` compares it with the others."""


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """Options of the compression; the defaults are those of MEDA (arXiv 2502.17599).

    The steps are score, allocate, select, merge; each takes a name or a function of your own.

    Args:
        keep_ratio (`float`, *optional*, defaults to 0.2):
            Share of the prompt's tokens kept on average over the layers, in (0, 1]. 1 keeps everything.
        allocation (`str`, sequence of `float` or a callable, *optional*, defaults to `"entropy"`):
            How the budget is divided over the layers: `"entropy"` by the softmax of the layers' entropies, `"uniform"`
            equally, `"pyramid"` falling linearly with depth (PyramidKV, arXiv 2406.02069), one weight for each
            compressed layer, or a function from entropies of shape `(num_layers,)` to such weights.
        entropy (`"cross"` or `"full"`, *optional*, defaults to `"cross"`):
            Cross-modal entropy, or the entropy of the model's own attention. Prompts of one modality use `"full"`.
        head_reduction (`"mean_attention"` or `"mean_entropy"`, *optional*, defaults to `"mean_attention"`):
            See [`cross_modal_entropy`].
        causal (`bool`, *optional*, defaults to `False`): see [`cross_modal_entropy`].
        normalize (`bool`, *optional*, defaults to `False`): see [`cross_modal_entropy`].
        temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the softmax over layers, in nats. 3 nats more are 20 times the budget at 1.0.
        entropy_query_limit (`int`, *optional*):
            Most rows of each modality, of one forward, that the entropy is taken from; None takes all.
        min_tokens (`int`, *optional*, defaults to 1): least number of tokens of a layer, one more than `num_sinks`.
        score (`str` or a callable, *optional*, defaults to `"sum"`):
            What makes a token important: `"sum"` the attention it gets from all queries (H2O, arXiv 2306.14048),
            `"mean"` the same divided by the number of queries that see it, `"window"` the attention from the last
            `window_size` queries, averaged over five neighbours (SnapKV, arXiv 2404.14469), `"random"`, `"none"`, or a
            function from the key mass of shape `(num_key_value_heads, seq_len)` and the visual mask of the same shape
            to scores of that shape.
        window_size (`int`, *optional*, defaults to 32): queries of the score `"window"`.
        per_image (`bool`, *optional*, defaults to `False`):
            Take from every image its best tokens first, so that no image is left out (ours).
        scope (`"head"` or `"layer"`, *optional*, defaults to `"head"`):
            Each key head keeps its own tokens, or all heads of a layer those with the largest mean score.
        select (callable, *optional*):
            Instead of what follows: a function from scores `(num_key_value_heads, seq_len)`, the visual mask of the
            same shape and the budget to ascending positions `(num_key_value_heads, budget)`.
        recent_fraction (`float`, *optional*, defaults to 0.75):
            Share of a layer's budget that goes to the last tokens of the prompt, in [0, 1]: the paper's 3:1.
        num_recent (`int`, *optional*): number of last tokens of the prompt to keep, instead of a share.
        text_policy (`"bias"`, `"protect"` or `"none"`, *optional*, defaults to `"bias"`):
            `"bias"` keeps any text before any visual token (LOOK-M's text prior) as far as the budget goes,
            `"protect"` keeps all text: layers that need more take it from the others, and where all together need
            more than there is, the overflow is in the stats. `"none"` makes no difference.
        num_sinks (`int`, *optional*, defaults to 0): number of first tokens that are always kept.
        merge (`str` or a callable, *optional*, defaults to `"average"`):
            See [`merge_tokens`]; or a function from keys and values `(num_key_value_heads, seq_len, head_dim)` and the
            kept positions to keys and values of the kept.
        merge_space (`"rotated"` or `"unrotated"`, *optional*, defaults to `"rotated"`):
            Match and merge keys as they are (the paper), or with the rotary embedding undone, and turn the result to
            the position of the kept token.
        similarity_threshold (`float` or `"mean"`, *optional*): see [`merge_tokens`].
        commit (`"decode"` or `"prefill"`, *optional*, defaults to `"decode"`):
            When to compress: `"decode"` once the prompt is complete, which `generate` and [`MedaCache.expect`] say and
            otherwise a first forward of a single token does; `"prefill"` after the first forward, so that a question
            that comes later is kept whole and has no say in what is kept.
        recompress (`"never"` or `"each_prefill"`, *optional*, defaults to `"never"`):
            Keep later turns whole, or compress everything anew after each; scores add up over turns and the weights of
            the layers stay.
        seed (`int`, *optional*, defaults to 0): seed of the score `"random"`.
        backend (`"auto"`, `"torch"` or `"triton"`, *optional*, defaults to `"auto"`): see `meda_cache.ops`.

    Raises:
        TypeError: for a value of another type, with the type.
        ValueError: for a value outside its range, with the range.

    Example:

    ```python
    >>> from meda_cache import CompressionConfig
    >>> CompressionConfig(keep_ratio=0.1, merge="value").recent_fraction
    0.75
    >>> CompressionConfig.from_preset("h2o", keep_ratio=0.1).merge
    'none'

    ```
    """

    keep_ratio: float = 0.2
    allocation: Allocation | Sequence[float] | Callable[[Tensor], Tensor] = "entropy"
    entropy: Entropy = "cross"
    head_reduction: HeadReduction = "mean_attention"
    causal: bool = False
    normalize: bool = False
    temperature: float = 1.0
    entropy_query_limit: int | None = None
    min_tokens: int = 1
    score: Score | Callable[[Tensor, Tensor], Tensor] = "sum"
    window_size: int = 32
    per_image: bool = False
    scope: Scope = "head"
    select: SelectFn | None = None
    recent_fraction: float = 0.75
    num_recent: int | None = None
    text_policy: TextPolicy = "bias"
    num_sinks: int = 0
    merge: Merge | MergeFn = "average"
    merge_space: MergeSpace = "rotated"
    similarity_threshold: float | Literal["mean"] | None = None
    commit: Commit = "decode"
    recompress: Recompress = "never"
    seed: int = 0
    backend: Backend = "auto"

    @classmethod
    def from_preset(cls, preset: str, **options: Any) -> "CompressionConfig":
        """Returns the options of a method by its name in [`PRESETS`], some of them replaced.

        Raises:
            TypeError: for an option of another name.
            ValueError: for a preset of another name, or a value outside its range.
        """
        if preset not in PRESETS:
            raise ValueError(f"Expected `preset` to be one of {', '.join(PRESETS)}, got {preset!r}.")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(names)):
            raise TypeError(f"Expected options of CompressionConfig ({', '.join(names)}), got {', '.join(unknown)}.")
        if preset == "none" and options.get("keep_ratio", 1) != 1:
            raise ValueError(
                'Expected no `keep_ratio` with the preset "none", which keeps everything, got '
                f"{options['keep_ratio']}."
            )
        return cls(**{**PRESETS[preset], **options})

    def __post_init__(self) -> None:
        self._check_types()
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(
                f"Expected `keep_ratio` in (0, 1], the share of tokens that is kept, got {self.keep_ratio}."
            )
        if not 0 <= self.recent_fraction <= 1:
            raise ValueError(f"Expected `recent_fraction` in [0, 1], got {self.recent_fraction}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Expected `temperature` > 0, got {self.temperature}.")
        for name, least in (
            ("num_sinks", 0),
            ("num_recent", 0),
            ("min_tokens", 1),
            ("window_size", 1),
            ("entropy_query_limit", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Expected `{name}` >= {least}, got {value}.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            is_own = name in ("allocation", "score", "merge") and callable(value)
            is_own = is_own or (name == "allocation" and not isinstance(value, str) and isinstance(value, Sequence))
            if not is_own and value not in get_args(choices):
                expected = ", ".join(map(repr, get_args(choices)))
                own = " or a callable" if name in ("allocation", "score", "merge") else ""
                raise ValueError(f"Expected `{name}` to be one of {expected}{own}, got {value!r}.")
        if self.merge_space == "unrotated" and (callable(self.merge) or self.recompress != "never"):
            raise ValueError(
                'Expected `merge_space="rotated"` with a `merge` of your own and with `recompress`, got "unrotated".'
            )

    def _check_types(self) -> None:
        for name in ("keep_ratio", "recent_fraction", "temperature"):
            if not isinstance(getattr(self, name), (int, float)):
                raise TypeError(f"Expected a number for `{name}`, got {getattr(self, name)!r}.")
        for name in ("num_sinks", "min_tokens", "window_size", "seed", "num_recent", "entropy_query_limit"):
            value = getattr(self, name)
            is_optional = name in ("num_recent", "entropy_query_limit")
            if not (isinstance(value, int) or (is_optional and value is None)):
                raise TypeError(f"Expected an integer for `{name}`, got {value!r}.")
        threshold = self.similarity_threshold
        if not (threshold is None or threshold == "mean" or isinstance(threshold, (int, float))):
            raise TypeError(f'Expected a number, "mean" or None for `similarity_threshold`, got {threshold!r}.')
        if self.select is not None and not callable(self.select):
            raise TypeError(f"Expected a callable for `select`, got {self.select!r}.")

    @property
    def needs_mass(self) -> bool:
        """Whether scores need the attention of all queries."""
        return callable(self.score) or self.score in ("sum", "mean")

    @property
    def needs_entropy(self) -> bool:
        """Whether budgets need the layers' entropies."""
        return callable(self.allocation) or self.allocation == "entropy"
