"""What a prompt consists of: which tokens are visual, and which are tokens at all."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Which tokens of the prompts are visual and which are tokens at all: `(batch_size, length)`, bool.

    What the layers ask about it is found out once; lists have one entry per prompt, and cost a look at the masks.
    """

    visual_mask: Tensor
    token_mask: Tensor

    def __len__(self) -> int:
        return len(self.token_mask)

    @property
    def length(self) -> int:
        """Number of tokens, padding included."""
        return self.token_mask.shape[1]

    @cached_property
    def token_index(self) -> list[slice | Tensor]:
        """Positions of the tokens: a slice, or a tensor on the CPU where there is padding between them."""
        return [to_index(mask.nonzero().flatten()) for mask in self.token_mask.cpu()]

    @cached_property
    def num_tokens(self) -> list[int]:
        """Number of tokens, without padding."""
        counts: list[int] = self.token_mask.sum(dim=-1).tolist()
        return counts

    @cached_property
    def has_both(self) -> list[bool]:
        """Whether there are text and visual tokens."""
        num_visual = (self.visual_mask & self.token_mask).sum(dim=-1).tolist()
        return [0 < visual < tokens for visual, tokens in zip(num_visual, self.num_tokens, strict=True)]

    @cached_property
    def image_index(self) -> Tensor:
        """Number of the image of each token, -1 for text.

        An image is a run of visual tokens: two without text between them count as one, and a tile of an image that
        text tokens mark counts as an image of its own.
        """
        is_first = self.visual_mask & ~torch.nn.functional.pad(self.visual_mask, (1, 0))[:, :-1]
        return torch.where(self.visual_mask, is_first.cumsum(dim=1) - 1, -1)

    def extend(self, other: "Prompt") -> "Prompt":
        """Returns this prompt with the tokens of another behind it."""
        pairs = ((self.visual_mask, other.visual_mask), (self.token_mask, other.token_mask))
        return Prompt(*(torch.cat([first, second.to(first.device)], dim=1) for first, second in pairs))

    def cut(self, length: int) -> "Prompt":
        """Returns the first `length` tokens."""
        return Prompt(self.visual_mask[:, :length], self.token_mask[:, :length])

    def select(self, rows: Tensor) -> "Prompt":
        """Returns the given rows."""
        rows = rows.to(self.token_mask.device)
        return Prompt(self.visual_mask[rows], self.token_mask[rows])


def to_index(positions: Tensor) -> slice | Tensor:
    """Returns ascending positions on the CPU as a slice if they follow one another: indexing then copies nothing."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first == len(positions) - 1 else positions


def read_prompt(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    num_seen: int,
    num_new: int,
    batch_size: int,
    visual_token_ids: list[int],
    token_types: Tensor | None,
    visual_mask: Tensor | None,
    pad_token_id: int | None,
) -> Prompt:
    """Returns the new tokens of a forward from what the model is given.

    Args:
        input_ids (`torch.Tensor` of shape `(batch_size, num_new)`, *optional*): ids of the new tokens.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_seen + num_new)`, *optional*): 0 for padding.
        num_seen, num_new, batch_size (`int`): tokens before this forward, in it, and prompts.
        visual_token_ids (`list[int]`): ids that stand for image or video features.
        token_types (`torch.Tensor` of shape `(batch_size, num_new)`, *optional*): `mm_token_type_ids`, 0 for text.
        visual_mask (`torch.Tensor` of shape `(batch_size, num_new)`, *optional*): said by the caller; wins.
        pad_token_id (`int`, *optional*): id of padding, to find padding without a mask.

    Raises:
        ValueError: for embeddings without `visual_mask`, a mask of another shape, and padding without a mask.
    """
    shape = (batch_size, num_new)
    if attention_mask is not None and attention_mask.shape != (batch_size, num_seen + num_new):
        raise ValueError(
            f"Expected `attention_mask` of shape {(batch_size, num_seen + num_new)}, a column for each token so far, "
            f"got {tuple(attention_mask.shape)}; pass the mask of the tokenizer."
        )
    if visual_mask is not None:
        visual = visual_mask.bool()
    elif input_ids is None:
        raise ValueError(
            "Expected `input_ids` with the prompt, got none: which tokens are visual can't be told from "
            "`inputs_embeds`; call `cache.expect(visual_mask=...)` before, or pass `input_ids` (and `pixel_values`)."
        )
    else:
        visual = torch.zeros_like(input_ids, dtype=torch.bool)
        for token_id in visual_token_ids:
            visual = visual | (input_ids == token_id)
        if token_types is not None and token_types.shape == shape:
            visual = visual | (token_types.to(visual.device) > 0)
    if attention_mask is None:
        if input_ids is not None and num_seen == 0 and pad_token_id is not None:
            _refuse_padding(input_ids, pad_token_id)
        return Prompt(visual, torch.ones_like(visual))
    return Prompt(visual, attention_mask[:, num_seen:].bool().to(visual.device))


def _refuse_padding(input_ids: Tensor, pad_token_id: int) -> None:
    for is_pad, where in ((input_ids == pad_token_id, "begin"), (input_ids.flip(1) == pad_token_id, "end")):
        # One at the edge may be a token of its own that every prompt has; two, or one in some rows, are padding.
        is_padded = is_pad[:, 0] & (is_pad[:, :2].all(dim=-1) | bool((~is_pad[:, 0]).any()))
        if padded := is_padded.nonzero().flatten().tolist():
            raise ValueError(
                f"Expected `attention_mask` with padded prompts, got none and rows {padded} {where} with the "
                "padding token; pass the mask of the tokenizer."
            )
