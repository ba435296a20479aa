"""Options: what is refused, and what is written."""

from typing import Any

import pytest

from prompt_cam import PromptCAMConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"variant": "wide"}, "deep, shallow, interpolated, late"),
        ({"blur": "none"}, "patches, all_tokens"),
        ({"prompt_dropout": 1.0}, r"\[0, 1\)"),
        ({"variant": "interpolated"}, "needs it"),
        ({"insert_layer": 3}, "for the variant 'interpolated'"),
        ({"variant": "late", "num_agnostic_prompts": 4}, "no class-agnostic prompts"),
        ({"num_agnostic_prompts": -1}, "at least 0"),
        ({"id2label": {0: "a", 2: "b", 3: "c"}}, "name the classes 0 to 2"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptCAMConfig(**{"num_classes": 3, **options})


def test_insert_layer_beyond_the_backbone() -> None:
    with pytest.raises(ValueError, match="from 1 to the 3 layers"):
        PromptCAMConfig(num_classes=3, variant="interpolated", insert_layer=4).find_insert_layer(3)


def test_round_trip() -> None:
    config = PromptCAMConfig(
        num_classes=2,
        variant="interpolated",
        insert_layer=2,
        num_agnostic_prompts=7,
        prompt_dropout=0.2,
        blur="all_tokens",
        id2label={0: "finch", 1: "heron"},
        base_model_name_or_path="name/model",
        revision="main",
    )
    values = config.to_dict()
    assert values["peft_type"] == "PROMPT_CAM"
    assert values["label2id"] == {"finch": 0, "heron": 1}
    assert PromptCAMConfig.from_dict(values) == config


def test_other_adapters_and_newer_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="'LORA'"):
        PromptCAMConfig.from_dict({"peft_type": "LORA", "r": 8})
    with pytest.raises(ValueError, match=r"\['novelty'\]"):
        PromptCAMConfig.from_dict({**PromptCAMConfig(num_classes=3).to_dict(), "novelty": 1})
