"""Which heads carry a class: exact rankings from one forward pass and single tokens.

Blurring a head of class `c` changes one row of the last attention, so only the prompt of `c` leaves the last layer
otherwise, and everything behind it (output projection, MLP, norms, head) treats tokens one by one. One forward pass
gives the attention and the values; each choice of blurred heads is then one token through the rest of the last layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from prompt_cam.backbone import Backbone
from prompt_cam.class_maps import Look
from prompt_cam.functional import (
    ScoreFn,
    blur_weights,
    count_traits,
    leave_one_out,
    remove_greedily,
    shapley_values,
)
from prompt_cam.last_attention import AttentionParts

TAIL_TOKENS = 8192
"""Tokens of a ranking that go through the last layer at once."""

Ranking = Literal["greedy", "shapley", "leave_one_out"]
RANKINGS = get_args(Ranking)
ReadScores = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HeadRanking:
    """Heads of the last layer by their importance for one class of each image.

    Args:
        ranking (`str`): `"greedy"`, `"shapley"` or `"leave_one_out"`.
        classes (`torch.LongTensor` of shape `(batch_size,)`): the class that was looked at.
        order (`torch.LongTensor` of shape `(batch_size, num_heads)`): heads, the most important first.
        importance (`torch.Tensor` of shape `(batch_size, num_heads)`):
            By head. Greedy: the step at which it was removed, from 0. Shapley: its value, in logits. Leave one out:
            how much the class score falls without it, in logits.
        score (`torch.Tensor` of shape `(batch_size,)`): class score with nothing blurred.
        removal_scores (`torch.Tensor` of shape `(batch_size, num_heads)`, *optional*):
            Greedy: class score after each removal.
        removal_probabilities (`torch.Tensor` of shape `(batch_size, num_heads)`, *optional*):
            Greedy: probability of the class after each removal.
        candidates (`torch.Tensor` of shape `(batch_size, num_heads, num_heads)`, *optional*):
            Greedy: probability of the class had this head (last dimension) been removed at this step; NaN if gone.
        num_traits (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Greedy: heads left just before the class stops winning, where the paper stops.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import HeadRanking
    >>> heads = torch.tensor([[2, 0, 1]])
    >>> ranked = HeadRanking("greedy", torch.tensor([7]), heads, torch.tensor([[1, 0, 2]]), torch.tensor([3.5]))
    >>> ranked.to_dict()["order"]
    [[2, 0, 1]]

    ```
    """

    ranking: str
    classes: torch.Tensor
    order: torch.Tensor
    importance: torch.Tensor
    score: torch.Tensor
    removal_scores: torch.Tensor | None = None
    removal_probabilities: torch.Tensor | None = None
    candidates: torch.Tensor | None = None
    num_traits: torch.Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists and strings."""
        values = vars(self).items()
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values}


def mix_heads(
    attention: torch.Tensor, values: torch.Tensor, patches: slice, blur: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what each head gives the class prompt, as it is and blurred.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, num_heads, seq_len)`): row of the class, after the softmax.
        values (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, head_dim)`): of the last layer.
        patches (`slice`): which tokens are patches.
        blur (`str`): see [`blur_weights`].

    Returns:
        two tensors of shape `(batch_size, num_heads, head_dim)`
    """
    even = blur_weights(values.shape[2], patches, blur).to(values)
    return torch.einsum("brt,brtd->brd", attention.to(values.dtype), values), torch.einsum("t,brtd->brd", even, values)


def build_score_fn(view: Backbone, look: Look, classes: torch.Tensor, read_scores: ReadScores, blur: str) -> ScoreFn:
    """Returns the function that scores the class of each image with some heads blurred, by single tokens.

    Args:
        view (`Backbone`): the backbone.
        look (`Look`): what a forward pass left behind.
        classes (`torch.LongTensor` of shape `(batch_size,)`): the class of each image.
        read_scores (`Callable`): from tokens after the final norm, `(num_tokens, hidden_size)`, to scores.
        blur (`str`): see [`blur_weights`].
    """
    parts, given = AttentionParts(view.last_layer), look.given
    attention = parts.attend(given, classes[:, None])[:, :, 0]
    sharp, blurred = mix_heads(attention, parts.values(given), look.patches, blur)
    prompt = given.hidden_states[torch.arange(len(classes), device=classes.device), classes]

    def score_fn(is_blurred: torch.Tensor) -> torch.Tensor:
        is_blurred = is_blurred.to(sharp.device)  # (B, K, R)
        images = torch.arange(len(sharp), device=sharp.device).repeat_interleave(is_blurred.shape[1])
        scores = []
        for image, choice in zip(images.split(TAIL_TOKENS), is_blurred.flatten(0, 1).split(TAIL_TOKENS), strict=True):
            heads = torch.where(choice[..., None], blurred[image], sharp[image])
            scores.append(read_scores(view.final_norm(parts.run_tail(prompt[image], heads, given))))
        return torch.cat(scores).view(is_blurred.shape[:2]).float()

    return score_fn


def rank_by_scores(
    score_fn: ScoreFn, classes: torch.Tensor, logits: torch.Tensor, num_heads: int, ranking: str
) -> HeadRanking:
    """Returns the ranking of heads for one class of each image.

    Args:
        score_fn (`Callable`): from boolean `(batch_size, num_choices, num_heads)`, true where a head is blurred, to
            scores of the class, `(batch_size, num_choices)`.
        classes (`torch.LongTensor` of shape `(batch_size,)`): the class of each image.
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): scores with nothing blurred.
        num_heads (`int`): number of heads.
        ranking (`str`): one of `"greedy"`, `"shapley"`, `"leave_one_out"`.
    """
    batch_size = len(logits)
    logits, classes = logits.float().cpu(), classes.cpu()
    score = logits.gather(1, classes[:, None])[:, 0]
    if ranking != "greedy":
        importance = (shapley_values if ranking == "shapley" else leave_one_out)(score_fn, batch_size, num_heads)
        order = importance.argsort(dim=1, descending=True, stable=True)
        return HeadRanking(ranking, classes, order, importance, score)
    removal = remove_greedily(score_fn, batch_size, num_heads)
    others = logits.scatter(1, classes[:, None], -torch.inf)
    rest = others.logsumexp(dim=1, keepdim=True)
    return HeadRanking(
        ranking,
        classes,
        order=removal.order.flip(1),
        importance=removal.order.argsort(dim=1),
        score=score,
        removal_scores=removal.scores,
        removal_probabilities=torch.sigmoid(removal.scores - rest),
        candidates=torch.sigmoid(removal.candidates - rest[..., None]),
        num_traits=count_traits(removal.scores, others.amax(dim=1)),
    )
