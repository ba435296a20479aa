"""The contrastive loss over all processes, and over batches that do not fit in memory at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from taxaclip.losses import check_pairs, chunked_contrastive_loss, soft_targets

Embed = Callable[[Any], tuple[torch.Tensor, ...]]


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient of a row is the sum over the processes that used it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)  # and a slice, since gloo has no reduce_scatter
        start = dist.get_rank() * ctx.size
        return total[start : start + ctx.size]


def distributed_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    taxon_ids: torch.Tensor | None = None,
    rank_weights: Sequence[float] = (1.0,),
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Returns this process's share of the loss over all processes' rows.

    Own rows meet all processes' columns. Averaged over processes, as DistributedDataParallel averages gradients, value
    and gradients are those of `contrastive_loss` on the whole batch. Without torch.distributed it is that loss.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): this process's rows, as many on each.
        logit_scale (`torch.Tensor`): logarithm of the scale.
        taxon_ids, rank_weights (*optional*): as of `contrastive_loss`, with the same numbers in all processes.
        chunk_size (`int`, *optional*): never hold more than a tile of the logits, as of `chunked_contrastive_loss`;
            each process then computes all of the loss.

    Returns:
        `torch.Tensor`: a scalar, in nats.

    Raises:
        ValueError: for sizes that differ, or `chunk_size` with `taxon_ids`, which tiles do not know.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import contrastive_loss, distributed_contrastive_loss
    >>> x, y, scale = torch.randn(4, 3), torch.randn(4, 3), torch.tensor(1.0)
    >>> torch.allclose(distributed_contrastive_loss(x, y, scale), contrastive_loss(x, y, scale))
    True

    ```
    """
    if chunk_size is not None and taxon_ids is not None:
        raise ValueError("Expected `chunk_size` without `taxon_ids`: the loss in tiles has one right answer a row.")
    check_pairs(image_embeds, text_embeds, taxon_ids)
    image_embeds, text_embeds = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    all_images, all_texts, all_ids, start = image_embeds, text_embeds, taxon_ids, 0
    if dist.is_available() and dist.is_initialized():
        all_images, all_texts = (_gather(rows) for rows in (image_embeds, text_embeds))
        all_ids = None if taxon_ids is None else _gather(taxon_ids)
        start = dist.get_rank() * len(image_embeds)
    if chunk_size is not None:
        return chunked_contrastive_loss(all_images, all_texts, logit_scale, chunk_size=chunk_size)
    if taxon_ids is None or all_ids is None:
        target = torch.arange(start, start + len(image_embeds), device=image_embeds.device)
    else:
        target = soft_targets(taxon_ids, all_ids, rank_weights).to(image_embeds.dtype)
    scale = logit_scale.exp()
    loss = F.cross_entropy(scale * image_embeds @ all_texts.T, target)
    return (loss + F.cross_entropy(scale * text_embeds @ all_images.T, target)) / 2


def _gather(rows: torch.Tensor) -> torch.Tensor:
    gathered: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def cached_backward(embed: Embed, micro_batches: Sequence[Any], loss: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Adds the gradients of a loss over a large batch to the parameters, with one micro-batch in memory at a time.

    GradCache (arXiv 2101.06983): all micro-batches are embedded without a graph, the loss gives the gradient of each
    embedding, and each micro-batch is embedded again, in the same random state, to carry it on. The gradients are
    those of the whole batch. Under DistributedDataParallel call it in `no_sync()` and average gradients afterwards.

    Args:
        embed (callable): from a micro-batch to embeddings, `(size, dim)` each: of images and texts, and, with replay,
            of replayed images and texts. Their sizes may differ.
        micro_batches (sequence): the parts of the batch.
        loss (callable): from as many embeddings, of the whole batch, to a scalar; other parameters in it get their
            gradient too.

    Returns:
        `torch.Tensor`: the loss, detached.

    Raises:
        ValueError: if there is no micro-batch.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import cached_backward, contrastive_loss
    >>> layer = torch.nn.Linear(3, 3)
    >>> parts = torch.randn(2, 4, 3)
    >>> value = cached_backward(lambda x: (layer(x), x), parts, lambda i, t: contrastive_loss(i, t, torch.tensor(1.0)))
    >>> value.shape, layer.weight.grad.shape
    (torch.Size([]), torch.Size([3, 3]))

    ```
    """
    if len(micro_batches) == 0:
        raise ValueError("Expected at least one micro-batch, got none.")
    states, parts = [], []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_random_state())
            parts.append(embed(batch))
    whole = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]
    value = loss(*whole)
    value.backward()
    after = _random_state()
    starts = [0] * len(whole)
    for batch, state in zip(micro_batches, states, strict=True):
        _restore(state)
        surrogate = torch.zeros((), device=value.device)
        for number, embeds in enumerate(embed(batch)):
            grad = whole[number].grad
            assert grad is not None
            rows = slice(starts[number], starts[number] + len(embeds))
            surrogate = surrogate + (embeds * grad[rows]).sum()
            starts[number] = rows.stop
        if surrogate.requires_grad:
            surrogate.backward()
    _restore(after)
    return value.detach()


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
