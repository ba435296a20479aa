"""Pictures of what a cache keeps: budgets and entropies by layer, and kept tokens over the images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from meda_cache.cache import MedaCache
from meda_cache.report import CacheStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _import_pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('Plots need matplotlib; run `pip install "meda-cache[plots]"`.') from error
    return plt


def plot_layers(stats: CacheStats, *, row: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Draws the budget of every layer as a bar of text and visual tokens, and its entropy as a line.

    Args:
        stats (`CacheStats`): numbers of a compressed cache.
        row (`int`, *optional*, defaults to 0): prompt of the batch.
        ax (`matplotlib.axes.Axes`, *optional*): where to draw; a new figure by default.

    Returns:
        `matplotlib.axes.Axes`: the axes of the bars.

    Raises:
        ImportError: without the extra `plots`.
        ValueError: if nothing has been compressed yet.

    Example:

    ```python
    >>> from meda_cache import CacheStats, LayerStats, plot_layers
    >>> layer = LayerStats(layer_idx=0, logical_length=9, physical_length=3, stored_bytes=96,
    ...                    allocated_bytes=96, entropy=[1.0], entropy_kind=["cross"], weight=[1.0], budget=[2],
    ...                    kept_text=[1.0], kept_visual=[1.0], merged=[7.0])
    >>> axes = plot_layers(CacheStats(is_compressed=True, layers=[layer], requested=[2]))
    >>> [float(bar.get_height()) for bar in axes.patches]
    [1.0, 1.0]

    ```
    """
    plt = _import_pyplot()
    if not stats.layers or not stats.layers[0].budget:
        raise ValueError("Expected the stats of a cache that has compressed a prompt, got none; see `cache.compress`.")
    ax = plt.subplots(figsize=(7, 3.5), layout="constrained")[1] if ax is None else ax
    index = [layer.layer_idx for layer in stats.layers]
    text, visual = ([getattr(layer, name)[row] for layer in stats.layers] for name in ("kept_text", "kept_visual"))
    ax.bar(index, text, label="text", color="#4c78a8")
    ax.bar(index, visual, bottom=text, label="visual", color="#f58518")
    ax.set(xlabel="layer", ylabel="tokens kept", xticks=index)
    ax.legend(loc="upper left")
    entropies = [entropy for layer in stats.layers if (entropy := layer.entropy[row]) is not None]
    if len(entropies) == len(index):
        twin = ax.twinx()
        twin.plot(index, entropies, color="black", marker="o", label=f"{stats.layers[0].entropy_kind[row]} entropy")
        twin.set_ylabel("entropy in nats")
        twin.legend(loc="upper right")
    return ax


def plot_kept_tokens(
    cache: MedaCache, images: Sequence[Any], *, row: int = 0, grids: Sequence[tuple[int, int]] | None = None
) -> "Figure":
    """Draws over each image how many layers and heads keep its tokens: dark where all evict, clear where all keep.

    Args:
        cache (`MedaCache`): a compressed cache.
        images (sequence of images that matplotlib shows): those of the prompt, in order.
        row (`int`, *optional*, defaults to 0): prompt of the batch.
        grids (sequence of `(height, width)`, *optional*):
            Tokens of each image by rows and columns. By default its tokens form a square; tokens beyond the grid, such
            as ends of rows, are left out. An image is a run of visual tokens; where runs are not as many as images
            (tiles, or no text between two), they share the visual tokens evenly.

    Returns:
        `matplotlib.figure.Figure`: one panel an image.

    Raises:
        ImportError: without the extra `plots`.
        ValueError: if the images do not fit the visual tokens of the prompt.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from meda_cache import MedaCache, detach, plot_kept_tokens
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                      num_attention_heads=2)).eval()
    >>> cache = MedaCache.from_model(model, keep_ratio=0.5)
    >>> cache.expect(visual_mask=torch.tensor([[False, True, True, True, True, False]]))  # an image of 2 x 2 tokens
    >>> with torch.no_grad():
    ...     _ = model(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]), past_key_values=cache)
    >>> detach(model)
    >>> len(plot_kept_tokens(cache, [torch.zeros(8, 8, 3).numpy()]).axes)
    1

    ```
    """
    plt = _import_pyplot()
    shares = split_by_image(compute_kept_share(cache, row), _count_runs(cache, row), len(images))
    figure: Figure
    figure, axes = plt.subplots(1, len(images), figsize=(2.2 * len(images), 2.4), layout="constrained", squeeze=False)
    for number, (image, share, ax) in enumerate(zip(images, shares, axes[0], strict=True)):
        side = int(len(share) ** 0.5)
        height, width = (side, side) if grids is None else grids[number]
        if height * width > len(share):
            raise ValueError(
                f"Expected a grid of at most {len(share)} tokens for image {number}, got {height}x{width}."
            )
        ax.imshow(image, extent=(0, width, height, 0))
        evicted = 1 - share[: height * width].reshape(height, width).numpy()
        ax.imshow(0 * evicted, cmap="gray", vmin=0, vmax=1, alpha=0.85 * evicted, extent=(0, width, height, 0))
        ax.set(xticks=[], yticks=[], title=f"{float(share.mean()):.0%} kept")
    return figure


def compute_kept_share(cache: MedaCache, row: int) -> torch.Tensor:
    """Returns for each visual token of a prompt the share of layers and heads that keep it, `(num_visual,)`."""
    if cache.prompt is None or not cache.is_compressed:
        raise ValueError("Expected a cache that has compressed a prompt, got one that has not; see `cache.compress`.")
    visual_mask = cache.prompt.visual_mask[row].cpu()
    count, num_heads = torch.zeros(len(visual_mask) + 1), 0
    for layer in cache.managed_layers.values():
        num_heads += layer.keys.shape[1]
        if layer.positions is None:
            count += layer.keys.shape[1]
        else:
            positions = layer.positions[row].cpu().long().flatten()
            count += torch.bincount(torch.where(positions < 0, len(visual_mask), positions), minlength=len(count))
    return count[:-1][visual_mask] / num_heads


def _count_runs(cache: MedaCache, row: int) -> list[int]:
    """Returns how many tokens each run of visual tokens has."""
    assert cache.prompt is not None
    image_index = cache.prompt.image_index[row].cpu()
    return torch.bincount(image_index[image_index >= 0]).tolist()


def split_by_image(share: torch.Tensor, runs: list[int], num_images: int) -> list[torch.Tensor]:
    """Returns the visual tokens of each image: its run of them, or an equal part where runs are not as many."""
    if len(runs) == num_images > 0:
        return list(share.split(runs))
    if num_images == 0 or len(share) == 0 or len(share) % num_images:
        raise ValueError(
            f"Expected images that share the {len(share)} visual tokens of the prompt evenly, got {num_images} images."
        )
    return list(share.split(len(share) // num_images))
