"""What the hooks do to masks and to pooling heads."""

import pytest
import torch

from prompt_cam.hooks import extend_mask, trim_pooled


def test_masks_grow_by_visible_prompts() -> None:
    flat = torch.tensor([[1, 1, 0]])
    assert extend_mask(flat, 2).tolist() == [[1, 1, 1, 1, 0]]
    assert extend_mask(flat.bool(), 1).tolist() == [[True, True, True, False]]
    hidden = torch.finfo(torch.float32).min
    additive = torch.tensor([[[[0.0, hidden]]]])  # (1, 1, 1, 2): one row for all queries
    assert extend_mask(additive, 1).tolist() == [[[[0.0, 0.0, hidden]]]]


def test_prompts_see_what_the_first_token_sees() -> None:
    mask = torch.tensor([[[[True, False], [True, True]]]])  # (1, 1, queries, keys)
    longer = extend_mask(mask, 2)
    assert longer.shape == (1, 1, 4, 4)
    assert longer[0, 0].tolist() == [
        [True, True, True, False],
        [True, True, True, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_mask_without_prompts_is_the_mask() -> None:
    mask = torch.ones(2, 3)
    assert extend_mask(mask, 0) is mask


def test_masks_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="got dict; use sdpa"):
        extend_mask({"full": torch.ones(1, 3)}, 2)


def test_pooling_head_gets_the_tokens_of_its_mask() -> None:
    head, tokens = torch.nn.Identity(), torch.arange(6.0).view(1, 6, 1)
    trimmed = trim_pooled(head, (tokens, torch.ones(1, 4)))
    assert trimmed is not None
    assert trimmed[0].flatten().tolist() == [2, 3, 4, 5]
    assert trim_pooled(head, (tokens,)) is None
    assert trim_pooled(head, (tokens, None)) is None
