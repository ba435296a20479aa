"""The forwards of an attached model as a cache follows them: what each reads, and that one which fails is undone.

These are called by the hooks of [`attach`].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from meda_cache.layer import MedaLayer
from meda_cache.upstream import get_length, get_rotary_function

if TYPE_CHECKING:
    from meda_cache.cache import MedaCache


@dataclass
class ForwardState:
    """What a cache knows of the forwards of its model."""

    is_under_way: bool = False
    num_seen: int = 0  # tokens before the forward
    is_reading: bool = False  # whether it reads of a prompt
    is_broken: bool = False  # whether one was cut short and can't be undone
    is_generating: bool = False
    hides_later: bool | None = None  # whether the masks of this `generate` hide tokens behind the prompt


def begin_generate(cache: "MedaCache", prompt_length: int | None) -> None:
    """Takes note that the attached model begins to generate after a prompt of so many tokens."""
    if cache.state.is_under_way:
        end_forward(cache, failed=True)  # hooks see no KeyboardInterrupt
    if prompt_length is not None and prompt_length > cache.get_seq_length():
        cache.expect(prompt_length)
    cache.state.is_generating, cache.state.hides_later = True, None


def end_generate(cache: "MedaCache", *, failed: bool = False) -> None:
    """Takes note that generation is over; if it failed, neither forward nor declared length is left behind."""
    cache.state.is_generating = False
    if failed:
        if cache.state.is_under_way:
            end_forward(cache, failed=True)
        if cache.get_seq_length() == 0:
            cache.reset()


def begin_forward(
    cache: "MedaCache",
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    **inputs: Any,
) -> None:
    """Takes in what the attached model is about to read; for `inputs` see [`PromptReader.read`].

    Raises:
        RuntimeError: if an earlier forward failed half way, or if a drafted forward comes undeclared.
        ValueError: if the prompt comes in several pieces without being declared, with images but without their
            tokens, as embeddings without `visual_mask`, or with padding but without a mask.
    """
    state, reader = cache.state, cache.reader
    if state.is_under_way:
        end_forward(cache, failed=True)
    if state.is_broken:
        raise RuntimeError(
            "Expected layers that have seen the same tokens, but a forward failed half way; call `cache.reset()` and "
            "read the prompt again."
        )
    state.is_under_way, state.num_seen, state.is_reading = True, cache.get_seq_length(), False
    reader.remember()
    given = input_ids if input_ids is not None else inputs_embeds
    if reader.is_read and given is not None:
        _close_prompt(cache, given.shape[1])
    reading = None
    if not cache.is_done_reading:
        reading = reader.read(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, num_seen=state.num_seen, **inputs
        )
    state.is_reading = reading is not None
    hides_later = _look_for_hidden(cache, attention_mask)
    for layer in cache.managed_layers.values():
        layer.reading = reading if cache.compression.keep_ratio < 1 else None
        layer.hides_later = hides_later


def _close_prompt(cache: "MedaCache", num_new: int) -> None:
    """Compresses a prompt that nobody declared when the first token comes after it."""
    if num_new > 1:
        raise ValueError(
            f"Expected the prompt in one forward, got {cache.state.num_seen} tokens and now {num_new} more; call "
            "`cache.compress()` between them to keep the later ones whole, or `cache.expect(prompt_length)` before "
            "the first."
        )
    cache.compress()
    cache.reader.remember()  # it stays compressed if this forward fails


def _look_for_hidden(cache: "MedaCache", attention_mask: Tensor | None) -> bool:
    """Returns whether the mask may hide tokens that come after the prompt.

    What `generate` adds is never hidden, so that one look at its first mask says it for all of its tokens. In a loop
    of the caller's own nobody knows, and a look at each mask would make a GPU wait.
    """
    state = cache.state
    if attention_mask is None:
        return False
    if not state.is_generating or attention_mask.ndim != 2:
        return True
    if state.hides_later is None:
        length = cache.prompt_length if cache.is_done_reading else cache.reader.expected_length
        later = attention_mask[:, attention_mask.shape[1] if length is None else length :]
        state.hides_later = not bool(later.all())
    return state.hides_later


def end_forward(cache: "MedaCache", *, failed: bool = False) -> None:
    """Takes note that the forward is over, and compresses a prompt that is complete.

    One that failed or was interrupted is undone: tokens after a compressed prompt are taken back, and of a prompt that
    some layer has read in part nothing is left. One that was refused leaves no trace.

    Raises:
        RuntimeError: if the attention of a layer did not go through the cache.
    """
    cache.state.is_under_way = False
    if failed:
        _undo_forward(cache)
        return
    cache.require_attention()
    if cache.reader.is_read and (cache.reader.expected_length is not None or cache.compression.commit == "prefill"):
        cache.compress()


def _undo_forward(cache: "MedaCache") -> None:
    state = cache.state
    for managed in cache.managed_layers.values():
        managed.reading, managed.awaits_attention = None, False
    changed: list[Any] = [layer for layer in cache.layers if get_length(layer) != state.num_seen]
    if state.num_seen == 0 or (changed and not cache.is_compressed):
        cache.reset()
    elif not changed:
        cache.reader.restore()
    elif not state.is_reading and all(isinstance(layer, MedaLayer) for layer in changed):
        cache.reader.restore()
        for layer in changed:
            layer.take_back(state.num_seen)
    else:
        state.is_broken = True  # statistics have been taken, or a layer of transformers can't go back


def record_rotary(cache: "MedaCache", module: nn.Module, position_embeddings: tuple[Tensor, Tensor]) -> None:
    """Keeps the rotary embedding of a prompt for merges in un-rotated space."""
    if cache.compression.merge_space == "unrotated":
        index: Any = module.layer_idx
        layer = cache.managed_layers.get(index)
        if layer is not None and layer.reading is not None:
            layer.rotary.append(position_embeddings)
            layer.rotary_function = get_rotary_function(module)
