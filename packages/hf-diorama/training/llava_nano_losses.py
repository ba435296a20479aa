"""The losses of llava-nano: right answers, and patches that point to the words of their object."""

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

IMAGE_TOKENS = 16


def answer_logits(
    model: LlavaForConditionalGeneration,
    features: torch.Tensor,
    ids: torch.Tensor,
    is_answer: torch.Tensor,
    numbers: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits (num_answer_tokens, vocab_size) and targets of the answers.

    Args:
        model (`LlavaForConditionalGeneration`): the model; its tower is not used.
        features (`torch.Tensor` of shape `(batch_size, num_images, 16, width)`): features of the tower.
        ids, is_answer (`torch.Tensor` of shape `(batch_size, seq_len)`): text after the images, padded on the right.
        numbers (`torch.Tensor` of shape `(num_images, 2)`): the tokens before each image.
    """
    llava = model.model
    embed = llava.language_model.embed_tokens
    images = llava.multi_modal_projector(features)  # (B, K, 16, D)
    prefix = torch.cat([embed(numbers).to(images.dtype).expand(len(ids), -1, -1, -1), images], dim=2).flatten(1, 2)
    embeds = torch.cat([prefix, embed(ids).to(images.dtype)], dim=1)
    hidden = llava.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, prefix.shape[1] - 1 : -1][is_answer]), ids[is_answer]


def alignment_loss(
    model: LlavaForConditionalGeneration,
    features: torch.Tensor,
    places: torch.Tensor,
    labels: dict[str, torch.Tensor],
    words: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Returns how badly projected patches of an object point to the embeddings of its color and of its shape.

    Questions such as "which image shows the red star?" match words with patches: both have to live in one space first.

    Args:
        model (`LlavaForConditionalGeneration`): its projector and its token embeddings are used.
        features (`torch.Tensor` of shape `(..., 16, width)`): features of the tower.
        places (`torch.Tensor` of shape `(..., 16)`): 0, or 1 or 2 where the left or the right object covers the patch.
        labels (`dict` of `torch.Tensor` of shape `(..., 2)`): color and category of the left and the right object.
        words (`dict` of `torch.Tensor`): token ids of the colors and of the categories.
    """
    patches = model.model.multi_modal_projector(features[places > 0])
    embeddings = model.get_input_embeddings().weight.detach()
    loss = torch.zeros(())
    for name, tokens in words.items():
        target = labels[name].gather(-1, (places - 1).clamp(min=0))[places > 0]
        loss = loss + F.cross_entropy((patches @ embeddings[tokens].T.to(patches.dtype)).float(), target)
    return loss
