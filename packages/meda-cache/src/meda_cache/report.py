"""What a cache holds, as numbers and as a table."""

from dataclasses import asdict, dataclass
from typing import Any


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

    Example:

    ```python
    >>> from meda_cache import LayerStats
    >>> LayerStats(layer_idx=0, logical_length=9, physical_length=3, stored_bytes=96,
    ...            allocated_bytes=96, entropy=[1.0], entropy_kind=["cross"], weight=[1.0], budget=[2],
    ...            kept_text=[1.0], kept_visual=[1.0]).physical_length
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


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """All compressed layers of a [`MedaCache`]; printing it gives a table.

    Args:
        is_compressed (`bool`): whether the prompt has been compressed.
        layers (`list[LayerStats]`): one entry per compressed layer.

    Example:

    ```python
    >>> from meda_cache import CacheStats
    >>> CacheStats(is_compressed=False, layers=[]).stored_bytes
    0

    ```
    """

    is_compressed: bool
    layers: list[LayerStats]

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
        return {**asdict(self), "stored_bytes": self.stored_bytes, "allocated_bytes": self.allocated_bytes}

    def __str__(self) -> str:
        header = "layer seen stored bytes entropy weight budget text visual"
        rows: list[tuple[str, ...]] = [tuple(header.split())]
        for layer in self.layers:
            per_prompt = (
                ("{:.2f}", [float("nan") if entropy is None else entropy for entropy in layer.entropy]),
                ("{:.3f}", layer.weight),
                ("{}", layer.budget),
                ("{:.1f}", layer.kept_text),
                ("{:.1f}", layer.kept_visual),
            )
            head = (layer.layer_idx, layer.logical_length, layer.physical_length, layer.stored_bytes)
            rows.append((*map(str, head), *("/".join(form.format(x) for x in values) for form, values in per_prompt)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
