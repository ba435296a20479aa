"""Reading a prompt: which tokens of a forward belong to it, and whether all of it has come."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meda_cache.prompt import Prompt, read_prompt, to_index


@dataclass(frozen=True)
class Part:
    """What a forward reads of one prompt.

    Args:
        tokens (`slice` or `torch.Tensor`): the slots of its tokens so far, in a layer that still has all of them.
        queries (`slice` or `torch.Tensor`): those of the forward's queries that belong to it.
        visual_mask (`torch.Tensor` of shape `(num_tokens,)`, bool): which of its tokens are visual.
        visible (`torch.Tensor` of shape `(num_queries, num_tokens)`, bool, *optional*):
            Which tokens a query sees, where that isn't the causal triangle.
    """

    tokens: slice | Tensor
    queries: slice | Tensor
    visual_mask: Tensor
    visible: Tensor | None


class Reading:
    """What a forward reads of the prompts: found out by the first layer, the same for all others.

    Args:
        prompt (`Prompt`): the prompts as far as they have come.
        num_seen (`int`): tokens that came in earlier forwards, padding included.
        is_whole (`bool`): whether this forward reads all of it.
    """

    def __init__(self, prompt: Prompt, num_seen: int, *, is_whole: bool):
        self.prompt = prompt
        self.num_seen = num_seen
        self.is_whole = is_whole
        self._attention_mask: Tensor | None = None
        self._parts: list[Part | None] | None = None

    def split(self, attention_mask: Tensor | None) -> list[Part | None]:
        """Returns the part of every prompt, None for a prompt of which this forward reads nothing.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, 1, num_queries, seq_len)`, *optional*):
                What the model gave the layer, boolean or additive.
        """
        if self._parts is None or not _is_same(attention_mask, self._attention_mask):
            self._parts = [self._read(row, attention_mask) for row in range(len(self.prompt))]
            self._attention_mask = attention_mask
        return self._parts

    def _read(self, row: int, attention_mask: Tensor | None) -> Part | None:
        tokens = self.prompt.token_index[row]
        positions = torch.arange(self.prompt.length)[tokens]
        queries = to_index(positions[positions >= self.num_seen] - self.num_seen)
        if isinstance(queries, slice) and queries.stop == queries.start:
            return None
        visible = None
        if attention_mask is not None:
            mask = attention_mask[row if len(attention_mask) > 1 else 0, 0]
            visible = _as_own_mask(mask[queries][:, tokens])
        return Part(tokens, queries, self.prompt.visual_mask[row][tokens], visible)


def _is_same(mask: Tensor | None, other: Tensor | None) -> bool:
    """Whether two masks of one forward are one, without a look at them: a view or a copy on another device is."""
    if mask is None or other is None:
        return mask is other
    is_copy = mask.device != other.device or mask.data_ptr() == other.data_ptr()
    return is_copy and mask.shape == other.shape


def _as_own_mask(mask: Tensor) -> Tensor | None:
    """Returns True where a query `(num_queries, num_keys)` sees a key, or None if the mask is the causal one."""
    num_queries, num_keys = mask.shape
    offset = num_keys - num_queries
    lowest = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    columns, step = torch.arange(num_keys, device=mask.device), max(1, 2**20 // max(num_keys, 1))
    for start in range(0, num_queries, step):
        rows = torch.arange(start, min(start + step, num_queries), device=mask.device)[:, None]
        tile = mask[start : start + step]
        if not torch.equal(tile if lowest is None else tile > lowest, columns <= rows + offset):
            return mask if lowest is None else mask > lowest
    return None


class PromptReader:
    """Follows the forwards of a model and knows what the prompt is, and how much of it has come.

    Args:
        visual_token_ids (`list[int]`): ids that stand for image or video features.
        pad_token_id (`int`, *optional*): id of padding.
    """

    def __init__(self, visual_token_ids: list[int], pad_token_id: int | None):
        self.visual_token_ids = visual_token_ids
        self.pad_token_id = pad_token_id
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.prompt: Prompt | None = None
        self.is_read = False  # whether a prompt has been read that is not compressed yet
        self.is_compressed = False
        self.is_drafting = False  # whether forwards carry tokens that may be taken back
        self.expected_length: int | None = None
        self._expected_visual: Tensor | None = None
        self._before: tuple[Prompt | None, bool] = (None, False)

    def expect(self, prompt_length: int | None, visual_mask: Tensor | None, *, num_seen: int) -> int:
        """Takes the declared length, or that of the declared mask, and returns it; see [`MedaCache.expect`]."""
        if visual_mask is not None:
            if prompt_length not in (None, visual_mask.shape[1]):
                raise ValueError(
                    f"Expected `visual_mask` of shape (batch_size, {prompt_length}), got {tuple(visual_mask.shape)}."
                )
            prompt_length = visual_mask.shape[1]
        if prompt_length is None or prompt_length <= num_seen:
            raise ValueError(f"Expected a prompt longer than the {num_seen} tokens seen, got {prompt_length}.")
        self.expected_length = prompt_length
        if visual_mask is not None:
            self._expected_visual = visual_mask
        return prompt_length

    def remember(self) -> None:
        """Remembers the prompt as it is, in case that the forward which begins fails."""
        self._before = (self.prompt, self.is_read)

    def restore(self) -> None:
        """Goes back to what was remembered."""
        self.prompt, self.is_read = self._before

    def close(self) -> None:
        """Takes note that the prompt is compressed."""
        self.is_compressed, self.is_read = True, False
        self.expected_length = self._expected_visual = None

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        *,
        inputs_embeds: Tensor | None,
        token_types: Tensor | None,
        has_images: bool,
        num_seen: int,
    ) -> Reading | None:
        """Takes in the tokens of a forward, and returns what layers read of the prompt, or None for other tokens.

        Raises:
            RuntimeError, ValueError: see [`MedaCache.begin_forward`].
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            return None
        batch_size, num_new = inputs.shape[:2]
        new = read_prompt(
            input_ids,
            attention_mask,
            num_seen=num_seen,
            num_new=num_new,
            batch_size=batch_size,
            visual_token_ids=self.visual_token_ids,
            token_types=token_types,
            visual_mask=self._take_declared(batch_size, num_seen, num_new),
            pad_token_id=self.pad_token_id,
        )
        if has_images and not new.visual_mask.any():
            raise ValueError(
                f"Expected the tokens of the images in `input_ids` (ids {self.visual_token_ids}), got none; make the "
                "cache from `model.config`, not from its text part."
            )
        self.prompt = new if self.prompt is None else self.prompt.extend(new)
        is_draft = self.is_drafting and self.expected_length is None
        if self.is_compressed and (num_new == 1 or is_draft):
            return None  # it decodes between two turns
        if is_draft:
            raise RuntimeError(
                "Expected the length of the prompt before assisted decoding; call `cache.expect(prompt_length)`, or "
                "`generate` of the attached model."
            )
        return self._cut(num_seen, num_new)

    def _cut(self, num_seen: int, num_new: int) -> Reading:
        """Leaves out what comes behind the declared length, and returns what is left to read."""
        assert self.prompt is not None
        length = self.expected_length
        self.prompt = self.prompt.cut(length or self.prompt.length)
        self.is_read = length is None or num_seen + num_new >= length
        if self.is_read and (empty := [row for row, number in enumerate(self.prompt.num_tokens) if number == 0]):
            raise ValueError(f"Expected at least one token in every prompt, got only padding in rows {empty}.")
        return Reading(self.prompt, num_seen, is_whole=num_seen == 0 and self.is_read)

    def _take_declared(self, batch_size: int, num_seen: int, num_new: int) -> Tensor | None:
        """Returns which new tokens were declared visual, `(batch_size, num_new)`, with a row for each beam."""
        mask = self._expected_visual
        if mask is None:
            return None
        if batch_size % len(mask):
            raise ValueError(
                f"Expected `visual_mask` with a row for each of the {batch_size} prompts, got {len(mask)} rows."
            )
        missing = max(0, num_seen + num_new - mask.shape[1])
        mask = nn.functional.pad(mask, (0, missing))[:, num_seen : num_seen + num_new]
        return mask.repeat_interleave(batch_size // len(mask), dim=0)
