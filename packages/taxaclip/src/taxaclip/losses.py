"""Contrastive losses of CLIP and BioCLIP 2: dense, in tiles, with several right captions, with experience replay."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    taxon_ids: torch.Tensor | None = None,
    rank_weights: Sequence[float] = (1.0,),
) -> torch.Tensor:
    """Returns the symmetric contrastive loss of CLIP, with all logits in memory.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): any length; normalised inside.
        logit_scale (`torch.Tensor`): logarithm of the scale, as `CLIPModel.logit_scale`.
        taxon_ids (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_ranks)`, *optional*): number of each
            row's taxon. Rows of one taxon are right answers for each other, in equal shares; by default only the own
            one is right. Or the numbers of its groups at several ranks, from the root.
        rank_weights (sequence of `float`, defaults to `(1.0,)`): weight of a row as an answer by the lowest rank that
            it shares, from the root.

    Returns:
        `torch.Tensor`: a scalar, mean over rows and both directions, in nats.

    Raises:
        ValueError: if the two batches, or `taxon_ids`, differ in size.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import contrastive_loss
    >>> x = torch.eye(4)
    >>> round(contrastive_loss(x, x, torch.tensor(100.0).log()).item(), 4)
    0.0

    ```
    """
    check_pairs(image_embeds, text_embeds, taxon_ids)
    image_embeds, text_embeds = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * image_embeds @ text_embeds.T
    if taxon_ids is None:
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    share = soft_targets(taxon_ids, taxon_ids, rank_weights).to(logits.dtype)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2


def check_pairs(image_embeds: torch.Tensor, text_embeds: torch.Tensor, taxon_ids: torch.Tensor | None = None) -> None:
    """Raises for images without a text each, and for taxa of another number of rows."""
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "Expected as many images as texts, of one size, "
            f"got {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}."
        )
    if taxon_ids is not None and len(taxon_ids) != len(image_embeds):
        raise ValueError(f"Expected `taxon_ids` of {len(image_embeds)} rows, got {len(taxon_ids)}.")


def soft_targets(
    row_ids: torch.Tensor, column_ids: torch.Tensor, rank_weights: Sequence[float] = (1.0,)
) -> torch.Tensor:
    """Returns how right each column is for each row: by the lowest rank that they share, in shares that sum to 1.

    Args:
        row_ids (`torch.Tensor` of shape `(num_rows,)` or `(num_rows, num_ranks)`): numbers of the rows' groups at each
            rank, from the root; groups of one number have the same parents.
        column_ids (`torch.Tensor` of shape `(num_columns,)` or `(num_columns, num_ranks)`): and of the columns'.
        rank_weights (sequence of `float`, defaults to `(1.0,)`): a weight in [0, 1] for each rank, the last above 0.

    Raises:
        ValueError: if there are not as many weights as ranks, or one is out of range.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.losses import soft_targets
    >>> ids = torch.tensor([[0, 0], [0, 1], [2, 2]])  # genus and species of three images
    >>> soft_targets(ids, ids, rank_weights=(0.25, 1.0))
    tensor([[0.8000, 0.2000, 0.0000],
            [0.2000, 0.8000, 0.0000],
            [0.0000, 0.0000, 1.0000]])

    ```
    """
    rows, columns = (ids if ids.ndim == 2 else ids[:, None] for ids in (row_ids, column_ids))
    if len(rank_weights) != rows.shape[1] or not all(0 <= w <= 1 for w in rank_weights) or not rank_weights[-1]:
        raise ValueError(f"Expected {rows.shape[1]} weights in [0, 1], the last above 0, got {tuple(rank_weights)}.")
    weights = torch.zeros(len(rows), len(columns), device=rows.device)
    for rank, weight in enumerate(rank_weights):
        weights.masked_fill_(rows[:, rank, None] == columns[None, :, rank], weight)
    return weights / weights.sum(dim=1, keepdim=True)


def replay_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    replay_image_embeds: torch.Tensor,
    replay_text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
) -> torch.Tensor:
    """Returns the loss of BioCLIP 2: of the biological batch, plus that of the replayed general batch.

    The two batches share the towers but not the similarity matrix, and weigh the same whatever their sizes. Replayed
    images go through a projection of their own.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): the biological batch.
        replay_image_embeds, replay_text_embeds (`torch.Tensor` of shape `(replay_size, dim)`): the general batch.
        logit_scale (`torch.Tensor`): logarithm of the scale.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import contrastive_loss, replay_loss
    >>> x, y, scale = torch.eye(3), torch.eye(2, 3), torch.tensor(1.0)
    >>> total = replay_loss(x, x, y, y, scale)
    >>> torch.equal(total, contrastive_loss(x, x, scale) + contrastive_loss(y, y, scale))
    True

    ```
    """
    biological = contrastive_loss(image_embeds, text_embeds, logit_scale)
    return biological + contrastive_loss(replay_image_embeds, replay_text_embeds, logit_scale)


def chunked_contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor, *, chunk_size: int = 1024
) -> torch.Tensor:
    """Returns the loss of `contrastive_loss` while no more than a tile of the logits exists.

    Log-sum-exps of rows and columns are accumulated tile by tile; the backward pass computes the tiles again.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`): any length; normalised inside.
        logit_scale (`torch.Tensor`): logarithm of the scale.
        chunk_size (`int`, defaults to 1024): height and width of a tile.

    Raises:
        ValueError: if the two batches differ in size, or a chunk is empty.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import chunked_contrastive_loss, contrastive_loss
    >>> image, text, scale = torch.randn(9, 4), torch.randn(9, 4), torch.tensor(2.0)
    >>> dense = contrastive_loss(image, text, scale)
    >>> torch.allclose(chunked_contrastive_loss(image, text, scale, chunk_size=4), dense, atol=1e-5)
    True

    ```
    """
    check_pairs(image_embeds, text_embeds)
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    image_embeds, text_embeds = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    loss: torch.Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        image_embeds, text_embeds, logit_scale.exp(), chunk_size
    )
    return loss


class _Chunked(torch.autograd.Function):
    """Mean over i of (row_lse_i + column_lse_i) / 2 - z_ii, for z = scale * image @ text.T."""

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, chunk_size: int
    ) -> torch.Tensor:
        size = len(image)
        rows = image.new_full((size,), -torch.inf)
        columns = rows.clone()
        for low in range(0, size, chunk_size):
            for left in range(0, size, chunk_size):
                tile = scale * image[low : low + chunk_size] @ text[left : left + chunk_size].T
                part = rows[low : low + chunk_size]
                rows[low : low + chunk_size] = torch.logaddexp(part, tile.logsumexp(dim=1))
                part = columns[left : left + chunk_size]
                columns[left : left + chunk_size] = torch.logaddexp(part, tile.logsumexp(dim=0))
        ctx.save_for_backward(image, text, scale, rows, columns)
        ctx.chunk_size = chunk_size
        return ((rows + columns) / 2 - scale * (image * text).sum(dim=1)).mean()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        image, text, scale, rows, columns = ctx.saved_tensors
        size, chunk_size = len(image), ctx.chunk_size
        # dL/dz = (softmax over rows + softmax over columns) / 2 - identity, over the size of the batch.
        grad_image, grad_text = -text.clone(), -image.clone()
        grad_scale = -(image * text).sum()
        for low in range(0, size, chunk_size):
            for left in range(0, size, chunk_size):
                part, other = image[low : low + chunk_size], text[left : left + chunk_size]
                cosine = part @ other.T
                tile = scale * cosine
                weight = (tile - rows[low : low + chunk_size, None]).exp()
                weight = (weight + (tile - columns[None, left : left + chunk_size]).exp()) / 2
                grad_image[low : low + chunk_size] += weight @ other
                grad_text[left : left + chunk_size] += weight.T @ part
                grad_scale = grad_scale + (weight * cosine).sum()
        factor = grads[0] / size
        return (
            factor * scale * grad_image,
            factor * scale * grad_text,
            (factor * grad_scale).reshape(scale.shape),
            None,
        )
