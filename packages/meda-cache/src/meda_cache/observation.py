"""What one layer sees of one prompt while the model reads it, in one forward or in several."""

import copy
from typing import Any

import torch
from torch import Tensor

from meda_cache.compression import CompressionConfig, Entropy
from meda_cache.functional.entropy import cross_modal_entropy, normalize_entropy, sum_row_entropies, take_strided
from meda_cache.functional.scores import pool_window_mass
from meda_cache.ops.statistics import attention_statistics


class PromptObserver:
    """Statistics of attention, added up over the forwards in which a prompt is read.

    Keys come without padding, the newest last; queries are those of the newest tokens. Only the cross-modal entropy
    without a causal mask needs more than sums: a token then attends to tokens that are yet to come, and queries are
    held until the prompt is complete (where it comes in one forward, none are).
    """

    def __init__(self, config: CompressionConfig):
        self.config = config
        self.key_mass: Tensor | None = None  # (num_key_value_heads, seq_len)
        self.num_queries: Tensor | None = None  # (seq_len,): how many queries see each key
        self.window: Tensor | None = None  # the last queries
        self.entropy: Tensor | None = None
        self.entropy_kind: Entropy | None = None
        self._scaling: float | None = None
        self._held: list[Tensor] = []
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # of row entropies, and numbers of rows

    def copy(self) -> "PromptObserver":
        """Returns another observer that goes on from here; tensors are replaced and never changed."""
        other = copy.copy(self)
        other._held, other._sums = list(self._held), dict(self._sums)
        return other

    def observe_keys(
        self,
        query_states: Tensor,
        key_states: Tensor,
        *,
        scaling: float | None,
        visible: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> None:
        """Adds the attention of new queries `(num_heads, num_new, head_dim)` to all keys so far.

        `visible` `(num_new, seq_len)` is the model's own mask where it isn't causal, and `lse` `(num_heads, num_new)`
        what the attention op knows of the rows, see [`meda_cache.ops.statistics.attention_statistics`].
        """
        self._scaling = scaling
        if self.config.needs_mass:
            self._add_mass(query_states, key_states, visible, lse, with_entropy=False)
        self._add_window(query_states)

    def observe(
        self,
        query_states: Tensor,
        key_states: Tensor,
        visual_mask: Tensor,
        *,
        scaling: float | None,
        visible: Tensor | None,
        lse: Tensor | None,
        has_both: bool,
        is_whole: bool,
    ) -> None:
        """Adds what [`observe_keys`] adds, and the entropies.

        `has_both` says whether text and visual tokens have come, and `is_whole` whether this one forward is all.
        """
        config = self.config
        with_cross = config.needs_entropy and config.entropy == "cross" and (has_both or not is_whole)
        with_full = config.needs_entropy and (config.entropy == "full" or not has_both)
        if with_full:
            self._scaling = scaling
            self._add_mass(query_states, key_states, visible, lse, with_entropy=True)
            self._add_window(query_states)
        else:
            self.observe_keys(query_states, key_states, scaling=scaling, visible=visible, lse=lse)
        if with_cross and config.causal:
            self._add_cross(query_states, key_states, visual_mask)
        elif with_cross and is_whole:
            self.entropy = self._compute_cross(query_states, key_states, visual_mask)
        elif with_cross:
            self._held.append(query_states)

    def complete(self, key_states: Tensor, visual_mask: Tensor, *, has_both: bool) -> None:
        """Computes the entropy of the complete prompt from what has been seen of it."""
        config = self.config
        if not config.needs_entropy:
            return
        self.entropy_kind = "cross" if config.entropy == "cross" and has_both else "full"
        if self.entropy_kind == "full":
            total, count = self._sums["full"]
            self.entropy = total / count.clamp(min=1)
        elif config.causal:
            self.entropy = sum(
                (total / count.clamp(min=1) for total, count in (self._sums["text"], self._sums["visual"])),
                start=torch.zeros((), device=key_states.device),
            )
        elif self._held:
            self.entropy = self._compute_cross(torch.cat(self._held, dim=1), key_states, visual_mask)
        self._held, self._sums = [], {}

    def compute_scores(self, key_states: Tensor, visual_mask: Tensor, seed: int) -> Tensor:
        """Returns the scores of all keys `(num_key_value_heads, seq_len)`; `visual_mask` has the same shape."""
        config, shape = self.config, key_states.shape[:2]
        if config.score == "none":
            return key_states.new_zeros(shape, dtype=torch.float32)
        if config.score == "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(shape, generator=generator).to(key_states.device)
        if config.score == "window":
            assert self.window is not None
            positions = torch.arange(shape[1], device=key_states.device)
            window = self.window[:, -shape[1] :]
            mass = attention_statistics(
                window,
                key_states,
                scaling=self._scaling,
                query_positions=positions[shape[1] - window.shape[1] :],
                key_positions=positions,
                backend=config.backend,
            ).key_mass
            assert mass is not None
            return pool_window_mass(mass, window.shape[1])
        assert self.key_mass is not None
        assert self.num_queries is not None
        if callable(config.score):
            scores = config.score(self.key_mass, visual_mask)
            if scores.shape != shape or bool(scores.isnan().any()):
                got = "NaN" if scores.shape == shape else f"shape {tuple(scores.shape)}"
                raise ValueError(f"Expected `score` to return numbers of shape {tuple(shape)}, got {got}.")
            return scores
        return self.key_mass / self.num_queries.clamp(min=1) if config.score == "mean" else self.key_mass

    def keep(self, kept: Tensor) -> None:
        """Forgets all but the kept keys `(num_key_value_heads, num_kept)`, for a further turn."""
        if self.key_mass is not None and self.num_queries is not None:
            self.key_mass = self.key_mass.gather(1, kept)
            self.num_queries = self.num_queries.expand(kept.shape[0], -1).gather(1, kept)
        self.window = None  # those queries are no longer the last ones

    def _add_window(self, query_states: Tensor) -> None:
        if self.config.score == "window":
            queries = query_states if self.window is None else torch.cat([self.window, query_states], dim=1)
            self.window = queries[:, -self.config.window_size :].clone()

    def _add_mass(
        self,
        query_states: Tensor,
        key_states: Tensor,
        visible: Tensor | None,
        lse: Tensor | None,
        *,
        with_entropy: bool,
    ) -> None:
        config, (num_rows, num_keys) = self.config, (query_states.shape[1], key_states.shape[1])
        positions = torch.arange(num_keys, device=key_states.device)
        rows = positions[num_keys - num_rows :]
        limit = config.entropy_query_limit
        one_pass = with_entropy and (limit is None or limit >= num_rows)
        chosen = take_strided(rows, limit) - (num_keys - num_rows)
        indices: list[Any] = [slice(None)] if one_pass or not with_entropy else [slice(None), chosen]
        for index in indices:
            with_mass = config.needs_mass and isinstance(index, slice)
            head_reduction = config.head_reduction if one_pass or not isinstance(index, slice) else None
            if not with_mass and head_reduction is None:
                continue
            statistics = attention_statistics(
                query_states[:, index],
                key_states,
                scaling=self._scaling,
                query_positions=rows[index] if visible is None else None,
                key_positions=positions if visible is None else None,
                visible=None if visible is None else visible[index],
                with_mass=with_mass,
                head_reduction=head_reduction,
                lse=None if lse is None else lse[:, index],
                backend=config.backend,
            )
            if statistics.row_entropy is not None:
                entropy = normalize_entropy(statistics.row_entropy, statistics.num_visible, config.normalize)
                self._add_sum("full", entropy.sum(), torch.tensor(len(entropy), device=entropy.device))
            if statistics.key_mass is not None:
                seen = (rows.flip(0)[0] + 1 - positions).clamp(max=num_rows) if visible is None else visible.sum(dim=0)
                self.key_mass = _add_padded(self.key_mass, statistics.key_mass)
                self.num_queries = _add_padded(self.num_queries, seen)

    def _add_cross(self, query_states: Tensor, key_states: Tensor, visual_mask: Tensor) -> None:
        num_rows, num_keys = query_states.shape[1], key_states.shape[1]
        positions = torch.arange(num_keys, device=key_states.device)
        first = num_keys - num_rows
        for name, is_row in (("text", ~visual_mask), ("visual", visual_mask)):
            rows = take_strided(positions[first:][is_row[first:]], self.config.entropy_query_limit)
            columns = positions[~is_row]
            total, count = sum_row_entropies(
                query_states[:, rows - first],
                key_states[:, columns],
                rows,
                columns,
                scaling=self._scaling,
                head_reduction=self.config.head_reduction,
                normalize=self.config.normalize,
                backend=self.config.backend,
            )
            self._add_sum(name, total, count)

    def _compute_cross(self, query_states: Tensor, key_states: Tensor, visual_mask: Tensor) -> Tensor:
        return cross_modal_entropy(
            query_states,
            key_states,
            visual_mask,
            scaling=self._scaling,
            head_reduction=self.config.head_reduction,
            normalize=self.config.normalize,
            query_limit=self.config.entropy_query_limit,
            backend=self.config.backend,
        )

    def _add_sum(self, name: str, total: Tensor, count: Tensor) -> None:
        before = self._sums.get(name)
        self._sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def _add_padded(before: Tensor | None, new: Tensor) -> Tensor:
    """Returns the sum of two tensors of which the first has not seen the last keys yet."""
    if before is None:
        return new
    new = new.expand(*before.shape[:-1], -1)
    padding = before.new_zeros(*before.shape[:-1], new.shape[-1] - before.shape[-1])
    return torch.cat([before, padding], dim=-1) + new
