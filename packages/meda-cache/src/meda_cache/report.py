"""What a cache holds, as numbers and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meda_cache.allocation import PromptBudgets
from meda_cache.layer import MedaLayer
from meda_cache.prompt import Prompt


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """One layer of a [`MedaCache`]; lists have one entry per prompt of the batch.

    Entropies, weights and budgets are empty until the prompt is compressed, and if `keep_ratio` is 1.

    Args:
        layer_idx (`int`): index of the layer in the model.
        logical_length (`int`): tokens seen, padding included.
        physical_length (`int`): slots stored per head.
        stored_bytes (`int`): bytes of the keys and values in use.
        allocated_bytes (`int`): bytes taken, with the spare slots for tokens to come and the kept positions.
        entropy (`list[float | None]`): attention entropy in nats; None where the allocation does not need it.
        entropy_kind (`list[str | None]`): `"cross"`, or `"full"` where asked for and for prompts of one modality.
        weight (`list[float]`): share of the whole budget that the allocation asked for; adds up to 1 over layers.
        budget (`list[int]`): tokens of the prompt kept.
        kept_text (`list[float]`), kept_visual (`list[float]`): tokens of the prompt kept by modality, mean over heads.
        merged (`list[float]`): tokens merged into kept ones, mean over heads; the other evicted ones are dropped.

    Example:

    ```python
    >>> from meda_cache import LayerStats
    >>> LayerStats(layer_idx=0, logical_length=9, physical_length=3, stored_bytes=96,
    ...            allocated_bytes=96, entropy=[1.0], entropy_kind=["cross"], weight=[1.0], budget=[2],
    ...            kept_text=[1.0], kept_visual=[1.0], merged=[7.0]).physical_length
    3

    ```
    """

    layer_idx: int
    logical_length: int
    physical_length: int
    stored_bytes: int
    allocated_bytes: int
    entropy: list[float | None]
    entropy_kind: list[str | None]
    weight: list[float]
    budget: list[int]
    kept_text: list[float]
    kept_visual: list[float]
    merged: list[float]


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """All compressed layers of a [`MedaCache`]; printing it gives a table.

    Args:
        is_compressed (`bool`): whether the prompt has been compressed.
        layers (`list[LayerStats]`): one entry per compressed layer.
        requested (`list[int]`): for each prompt, the tokens to keep over all layers by `keep_ratio`. The budgets add
            up to it, unless bounds allow for less or ask for more (protected text, at least one token a layer).

    Example:

    ```python
    >>> from meda_cache import CacheStats
    >>> CacheStats(is_compressed=False, layers=[], requested=[]).stored_bytes
    0

    ```
    """

    is_compressed: bool
    layers: list[LayerStats]
    requested: list[int]

    @property
    def overflow(self) -> list[int]:
        """For each prompt, the tokens kept beyond what was requested."""
        kept = [sum(layer.budget[row] for layer in self.layers) for row in range(len(self.requested))]
        return [max(0, number - wanted) for number, wanted in zip(kept, self.requested, strict=True)]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the keys and values in use, over all compressed layers."""
        return sum(layer.stored_bytes for layer in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes taken over all compressed layers, with spare slots and kept positions."""
        return sum(layer.allocated_bytes for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists and numbers, ready for JSON."""
        return {
            **asdict(self),
            "stored_bytes": self.stored_bytes,
            "allocated_bytes": self.allocated_bytes,
            "overflow": self.overflow,
        }

    def __str__(self) -> str:
        header = "layer seen stored bytes entropy weight budget text visual merged"
        rows: list[tuple[str, ...]] = [tuple(header.split())]
        for layer in self.layers:
            per_prompt = (
                ("{}", ["-" if entropy is None else f"{entropy:.2f}" for entropy in layer.entropy]),
                ("{:.3f}", layer.weight),
                ("{}", layer.budget),
                ("{:.1f}", layer.kept_text),
                ("{:.1f}", layer.kept_visual),
                ("{:.1f}", layer.merged),
            )
            head = (layer.layer_idx, layer.logical_length, layer.physical_length, layer.stored_bytes)
            rows.append((*map(str, head), *("/".join(form.format(x) for x in values) for form, values in per_prompt)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def build_stats(
    layers: Mapping[int, MedaLayer], prompt: Prompt | None, budgets: Sequence[PromptBudgets], *, is_compressed: bool
) -> CacheStats:
    """Returns the numbers of the compressed layers of a cache; `budgets` has an entry for each row of the batch."""
    found = []
    for number, (index, layer) in enumerate(layers.items()):
        kept_text, kept_visual = count_kept(layer, prompt)
        tensors = [tensor for tensor in (layer.keys, layer.values) if tensor is not None]
        found.append(
            LayerStats(
                layer_idx=index,
                logical_length=layer.logical_length,
                physical_length=layer.physical_length,
                stored_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
                allocated_bytes=layer.count_allocated_bytes(),
                entropy=[row.entropy[number] for row in budgets],
                entropy_kind=[row.entropy_kind for row in budgets],
                weight=[row.weight[number] for row in budgets],
                budget=[row.budget[number] for row in budgets],
                kept_text=kept_text,
                kept_visual=kept_visual,
                merged=[row.merged[number] for row in budgets],
            )
        )
    requested = [row.requested for row in budgets]
    return CacheStats(is_compressed=is_compressed, layers=found, requested=requested)


def count_kept(layer: MedaLayer, prompt: Prompt | None) -> tuple[list[float], list[float]]:
    """Returns for each row how many text and visual tokens of the prompt are kept, averaged over heads."""
    if prompt is None:
        return [], []
    if layer.positions is None:
        visual = (prompt.visual_mask & prompt.token_mask).sum(dim=-1)
        return (prompt.token_mask.sum(dim=-1) - visual).float().tolist(), visual.float().tolist()
    positions = layer.positions.long()
    is_kept = positions >= 0
    is_visual = prompt.visual_mask.to(positions.device)[:, None].expand(-1, positions.shape[1], -1)
    kept_visual = (is_visual.gather(-1, positions.clamp(min=0)) & is_kept).sum(dim=-1).float()
    return (is_kept.sum(dim=-1) - kept_visual).mean(dim=-1).tolist(), kept_visual.mean(dim=-1).tolist()
