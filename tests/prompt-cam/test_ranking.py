"""Rankings from single tokens against full forwards with the row blurred, in the reference and in every family."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from prompt_cam import PromptCAMConfig, get_prompt_cam_model
from prompt_cam.ranking import build_score_fn
from support import prompt_cam_reference as reference
from support.tiny_vits import BUILDERS, build_inputs, build_vit

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("blur", ["patches", "all_tokens"])
def test_every_step_equals_a_full_forward(
    golden_model: Any, timm_weights: Tensors, golden: Tensors, blur: str
) -> None:
    prompts = dict(enumerate(timm_weights["vpt.prompt_embeddings"]))
    pixels, target = golden["pixel_values"][0], 5
    ranked = golden_model.rank_heads(pixels[None], target, blur=blur)
    gone: tuple[int, ...] = ()
    for step in range(4):
        candidates = {}
        for head in sorted(set(range(4)) - set(gone)):
            result = reference.run(
                timm_weights,
                prompts,
                pixels,
                num_layers=3,
                num_heads=4,
                patch=8,
                blur=blur,
                blurred_heads=(*gone, head),
                blurred_class=target,
            )
            candidates[head] = result.scores.softmax(0)[target].item()
            assert ranked.candidates[0, step, head].item() == pytest.approx(candidates[head], abs=2e-6)
        gone = (*gone, max(candidates, key=lambda head: candidates[head]))
    assert ranked.order[0].flip(0).tolist() == list(gone)


@pytest.mark.parametrize("family", BUILDERS)
def test_leave_one_out_equals_a_full_forward(family: str) -> None:
    """A hook on the attention's output projection blurs one head of one row in a full forward."""
    torch.manual_seed(0)
    model = get_prompt_cam_model(build_vit(family), PromptCAMConfig(num_classes=5)).eval()
    inputs = build_inputs(family)
    ranked = model.rank_heads(**inputs, classes=torch.tensor([3, 1]), ranking="leave_one_out")
    attention = next(module for module in model._view().last_layer.children() if hasattr(module, "q_proj"))
    output = getattr(attention, "o_proj", None) or attention.out_proj
    values: list[torch.Tensor] = []
    attention.v_proj.register_forward_hook(lambda module, args, result: values.append(result))
    plain = model(**inputs).logits
    num_patches = 12 if family.startswith("siglip2") else 16
    start = 5 if family.startswith("siglip2") else values[-1].shape[1] - 16
    even = values[-1][:, start : start + num_patches].mean(1)  # (B, hidden_size)
    for head in range(4):
        part = slice(head * 8, head * 8 + 8)

        def blur(module: Any, args: Any, part: slice = part) -> Any:
            heads = args[0].clone()
            heads[0, 3, part], heads[1, 1, part] = even[0, part], even[1, part]
            return (heads,)

        handle = output.register_forward_pre_hook(blur)
        blurred = model(**inputs).logits
        handle.remove()
        others = [0, 2, 4]
        assert_close(blurred[:, others], plain[:, others], atol=1e-5, rtol=1e-5)
        fall = torch.stack([plain[0, 3] - blurred[0, 3], plain[1, 1] - blurred[1, 1]])
        assert_close(ranked.importance[:, head], fall, atol=2e-5, rtol=1e-4)


def score_sets(model: Any, pixels: torch.Tensor, target: int, blur: str = "patches") -> dict[tuple[int, ...], float]:
    """The score of a class for each set of blurred heads, as a ranking gets it."""
    sets = [gone for size in range(5) for gone in itertools.combinations(range(4), size)]
    is_blurred = torch.tensor([[head in gone for head in range(4)] for gone in sets])
    with torch.no_grad():
        look = model._look(pixels)
        score_fn = build_score_fn(model._view(), look, torch.tensor([target]), model._score, blur)
        return dict(zip(sets, score_fn(is_blurred[None])[0].tolist(), strict=True))


def test_blurred_logits_of_the_published_code(golden_model: Any, golden: Tensors) -> None:
    """Heads 1 and 3 of class 4 blurred over all tokens: its score is theirs, and theirs of the others do not move."""
    for image in range(3):
        pixels, expected = golden["pixel_values"][image : image + 1], golden["logits_blur_heads1_3_class4"][image]
        assert score_sets(golden_model, pixels, 4, "all_tokens")[1, 3] == pytest.approx(expected[4].item(), abs=1e-5)
        others = [index for index in range(9) if index != 4]
        assert_close(golden_model(pixels).logits[0, others], expected[others], atol=1e-5, rtol=0)


def test_shapley_values_equal_the_mean_over_all_orders(golden_model: Any, golden: Tensors) -> None:
    pixels = golden["pixel_values"][:1]
    ranked, scores = golden_model.rank_heads(pixels, 2, ranking="shapley"), score_sets(golden_model, pixels, 2)
    worth = {frozenset(range(4)) - set(gone): score for gone, score in scores.items()}
    expected = [0.0] * 4
    for order in itertools.permutations(range(4)):
        for place, head in enumerate(order):
            before = frozenset(order[:place])
            expected[head] += (worth[before | {head}] - worth[before]) / math.factorial(4)
    assert_close(ranked.importance[0], torch.tensor(expected), atol=1e-5, rtol=0)
    total = worth[frozenset(range(4))] - worth[frozenset()]
    assert ranked.importance[0].sum().item() == pytest.approx(total, abs=1e-5)
    assert ranked.order[0].tolist() == sorted(range(4), key=lambda head: -expected[head])


@pytest.mark.parametrize(("ranking", "calls"), [("greedy", 4), ("leave_one_out", 1), ("shapley", 1)])
def test_one_forward_and_then_single_tokens(golden_model: Any, golden: Tensors, ranking: Any, calls: int) -> None:
    """Where the published loop runs R (R + 1) / 2 = 10 forwards."""
    first, last = golden_model.backbone.layers[0], golden_model.backbone.layers[-1]
    lengths: dict[str, list[int]] = {"first": [], "last": []}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda module, args, name=name: lengths[name].append(args[0].shape[1]))
        for name, layer in (("first", first), ("last", last))
    ]
    golden_model.rank_heads(golden["pixel_values"], ranking=ranking)
    for handle in handles:
        handle.remove()
    assert lengths == {"first": [26], "last": [26] + [1] * calls}


@pytest.mark.parametrize("ranking", ["greedy", "leave_one_out", "shapley"])
def test_chunks_change_nothing(
    golden_model: Any, golden: Tensors, ranking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = golden_model.rank_heads(golden["pixel_values"], ranking=ranking)
    monkeypatch.setattr("prompt_cam.ranking.TAIL_TOKENS", 5)  # 3 images times 4, 5 or 16 choices: chunks cross images
    parts = golden_model.rank_heads(golden["pixel_values"], ranking=ranking)
    assert torch.equal(parts.order, whole.order)
    assert_close(parts.importance, whole.importance, atol=1e-5, rtol=1e-5)


def test_traits_are_counted_where_the_class_stops_winning(golden_model: Any, golden: Tensors) -> None:
    ranked = golden_model.rank_heads(golden["pixel_values"])
    logits = golden_model(golden["pixel_values"]).logits.detach()
    for image in range(3):
        others = logits[image].clone()
        others[ranked.classes[image]] = -torch.inf
        wins = (ranked.removal_scores[image] > others.max()).tolist()
        first_loss = wins.index(False) if False in wins else 4
        assert ranked.num_traits[image] == 4 - first_loss


def test_result_is_plain_on_request(golden_model: Any, golden: Tensors) -> None:
    values = golden_model.rank_heads(golden["pixel_values"], 2, ranking="leave_one_out").to_dict()
    assert values["classes"] == [2, 2, 2]
    assert values["candidates"] is None
    assert sorted(values["order"][0]) == [0, 1, 2, 3]
