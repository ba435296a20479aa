"""The losses of llava-nano: right answers, patches that speak in words, and heads that look at what is asked about."""

import torch
import torch.nn.functional as F
from llava_nano_forward import BLOCK, Output, run
from llava_nano_sequences import Batch
from transformers import LlavaForConditionalGeneration

LOSSES = ("answer", "align", "bind", "gather", "point", "vote", "hint")


def answer_loss(model: LlavaForConditionalGeneration, output: Output, batch: Batch) -> torch.Tensor:
    """Returns the mean loss of the answer tokens."""
    is_next = batch.is_answer[..., 1:]
    logits = F.linear(output.hidden[..., :-1, :][is_next], model.lm_head.weight.to(output.hidden.dtype))
    return F.cross_entropy(logits.float(), batch.ids[..., 1:][is_next])


def align_loss(model, features: torch.Tensor, places: torch.Tensor, labels: dict, words: dict) -> torch.Tensor:
    """Returns how badly projected patches of an object point to the embeddings of its color and of its shape.

    Questions such as "which image shows the red star?" match words with patches: both have to live in one space first.

    Args:
        model (`LlavaForConditionalGeneration`): its projector and its token embeddings are used.
        features (`torch.Tensor` of shape `(..., 16, width)`): features of the tower.
        places (`torch.Tensor` of shape `(..., 16)`): 0, or 1 or 2 where the left or the right object covers the patch.
        labels (`dict` of `torch.Tensor` of shape `(..., 2)`): color and category of the left and the right object.
        words (`dict` of `torch.Tensor`): token ids of the colors and of the categories.
    """
    patches = model.model.multi_modal_projector(features[places > 0]).float()
    embeddings = model.get_input_embeddings().weight.detach()
    loss = torch.zeros(())
    for name, tokens in words.items():
        target = labels[name].gather(-1, (places - 1).clamp(min=0))[places > 0]
        loss = loss + F.cross_entropy(patches @ embeddings[tokens].T, target)
    return loss


def _log(attention: torch.Tensor) -> torch.Tensor:
    return (attention.float() + 1e-4).log()


def bind_loss(output: Output) -> torch.Tensor:
    """Returns how little head 0 of layer 1 looks from patches at the number before their image."""
    attention = output.within[0][:, 0].unflatten(-1, (-1, BLOCK)).unflatten(1, (-1, BLOCK))  # (B, K, 18, K, 18)
    own = attention.diagonal(dim1=1, dim2=3)  # (B, 18, 18, K)
    return -_log(own[:, 2:, 1]).mean()


def gather_loss(output: Output, places: torch.Tensor) -> torch.Tensor:
    """Returns how little head 2 of layer 2 looks from an image's last patch at each of its objects."""
    attention = output.within[1][:, 2].unflatten(-1, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
    own = attention.diagonal(dim1=1, dim2=3)[:, -1, 2:].transpose(1, 2)  # (B, K, 16)
    both = torch.stack([places == 1, places == 2], dim=-2)  # (B, K, 2, 16)
    mass = (own[:, :, None] * both).sum(-1)[both.any(-1)]
    return -_log(mass).mean()


def point_loss(output: Output, batch: Batch, places: torch.Tensor) -> torch.Tensor:
    """Returns how little head 0 of layer 3 looks at the object that this token, or the next, names."""
    b, g, t = torch.nonzero(batch.image >= 0, as_tuple=True)
    image, place = batch.image[b, g, t], batch.place[b, g, t]
    attention = output.onto[2][b, g, 0, t].unflatten(-1, (-1, BLOCK))[torch.arange(len(b)), image, 2:]  # (M, 16)
    target = (places[b, image] == place[:, None]) | (place == 0)[:, None]
    mass = (attention * target).sum(-1)[target.any(-1)]
    return -_log(mass).mean()


def vote_loss(output: Output, batch: Batch) -> torch.Tensor:
    """Returns how unequally head 2 of layer 3 looks at what is to be counted: the first token, and last patches."""
    b, g, t = torch.nonzero(batch.votes >= 0, as_tuple=True)
    attention = output.onto[2][b, g, 2, t]  # (M, P)
    seen = torch.cat([attention[:, :1], attention[:, BLOCK - 1 :: BLOCK]], dim=1)  # (M, 1 + K)
    votes = batch.votes[b, g, t][:, None] >> torch.arange(seen.shape[1] - 1) & 1
    target = F.pad(votes, (1, 0), value=1).float()
    return -((_log(seen) * target).sum(-1) / target.sum(-1)).mean()


def hint_loss(model: LlavaForConditionalGeneration, output: Output, batch: Batch) -> torch.Tensor:
    """Returns the mean loss of what names in questions know of the answer: an image, a count."""
    is_named = batch.hint >= 0
    logits = F.linear(output.hidden[is_named], model.lm_head.weight.to(output.hidden.dtype))
    return F.cross_entropy(logits.float(), batch.hint[is_named])


def all_losses(model, features, numbers, batch: Batch, places, labels, words) -> torch.Tensor:
    """Returns the losses, in the order of `LOSSES`."""
    output = run(model, features, numbers, batch.ids)
    return torch.stack([
        answer_loss(model, output, batch),
        align_loss(model, features, places, labels, words),
        bind_loss(output),
        gather_loss(output, places),
        point_loss(output, batch, places),
        vote_loss(output, batch),
        hint_loss(model, output, batch),
    ])  # fmt: skip
