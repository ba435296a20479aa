"""Numbers of the published code: logits, maps, loss, gradients, blurred scores and greedy orders."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from support import prompt_cam_reference as reference

Tensors = dict[str, torch.Tensor]


def test_logits(golden_model: Any, golden: Tensors) -> None:
    assert_close(golden_model(golden["pixel_values"]).logits, golden["logits"], atol=1e-5, rtol=0)


def test_maps_of_all_classes(golden_model: Any, golden: Tensors) -> None:
    maps = golden_model.maps(golden["pixel_values"], list(range(9)), normalize=None)
    expected = golden["class_to_patch"].transpose(1, 2).unflatten(-1, (4, 4))
    assert_close(maps, expected, atol=1e-5, rtol=0)
    returned = golden_model(golden["pixel_values"], return_maps=True).class_maps
    assert_close(returned, expected / expected.sum((-1, -2), keepdim=True), atol=1e-5, rtol=0)


def test_loss_and_gradients(golden_model: Any, golden: Tensors, train_step: Tensors) -> None:
    golden_model.train()
    output = golden_model(golden["pixel_values"], labels=train_step["labels"].long())
    assert_close(output.loss, train_step["loss"][0], atol=5e-6, rtol=0)
    output.loss.backward()
    gradients = torch.stack([golden_model.prompts[f"layer_{index}"].grad for index in range(3)])
    assert_close(gradients, train_step["grad.prompt_embeddings"], atol=5e-6, rtol=0)
    assert_close(golden_model.head.weight.grad, train_step["grad.head.weight"], atol=5e-6, rtol=0)
    assert_close(golden_model.head.bias.grad, torch.zeros(1), atol=5e-6, rtol=0)


@pytest.mark.parametrize(("key", "classes"), [("pred", None), ("cls2", 2)])
def test_greedy_ranking(golden_model: Any, golden: Tensors, key: str, classes: int | None) -> None:
    ranked = golden_model.rank_heads(golden["pixel_values"], classes, blur="all_tokens")
    for image in range(3):
        prefix = f"greedy.{key}.img{image}"
        assert ranked.classes[image] == golden[f"{prefix}.target"].item()
        assert ranked.order[image].flip(0).tolist() == golden[f"{prefix}.blur_order"].tolist()
        assert_close(ranked.removal_probabilities[image], golden[f"{prefix}.prob"], atol=2e-6, rtol=0)
        table = golden[f"{prefix}.table"]
        assert_close(ranked.candidates[image], table, atol=2e-6, rtol=0, equal_nan=True)


def test_reference_agrees_with_the_published_code(timm_weights: Tensors, golden: Tensors) -> None:
    """The oracle of the other tests, checked itself: plain scores, attention, and the row of a class blurred."""
    prompts = dict(enumerate(timm_weights["vpt.prompt_embeddings"]))
    sizes: dict[str, Any] = {"num_layers": 3, "num_heads": 4, "patch": 8}
    for image in range(3):
        pixels = golden["pixel_values"][image]
        plain = reference.run(timm_weights, prompts, pixels, **sizes)
        assert_close(plain.scores.float(), golden["logits"][image], atol=1e-5, rtol=0)
        assert_close(plain.attention.float(), golden["attention_last"][image, :, :9], atol=1e-5, rtol=0)
        blurred = reference.run(
            timm_weights, prompts, pixels, **sizes, blur="all_tokens", blurred_heads=(1, 3), blurred_class=4
        )
        assert_close(blurred.scores.float(), golden["logits_blur_heads1_3_class4"][image], atol=1e-5, rtol=0)
