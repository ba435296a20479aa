"""Golden cases and tiny random classifiers of several families, for the tests of partial-tune."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from partial_tune import ClassPartition

GOLDEN = Path(__file__).parents[1] / "partial-tune" / "golden"
CASES = ("small", "medium", "fp64", "ties", "one_absent", "remaining")
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


@dataclass(frozen=True)
class Golden:
    name: str
    logits: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor
    partition: ClassPartition
    values: dict[str, Any]

    @property
    def curve(self) -> np.ndarray:
        return np.load(GOLDEN / f"{self.name}_exact_curve.npy")


def load_golden(name: str) -> Golden:
    values = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    arrays = [torch.tensor(np.load(GOLDEN / f"{name}_{part}.npy")) for part in ("logits", "labels", "features")]
    names = tuple(map(str, range(values["C"])))
    return Golden(name, *arrays, ClassPartition(names, values["seen"], values["absent"]), values)


LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
VISION = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
TEXT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}


def build_vit(**options: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(hidden_size=16, **VISION, **{**LABELS, **options}))


def build_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS)
    return ResNetForImageClassification(config)


def build_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(intermediate_size=16, **TEXT, **LABELS))


def build_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return LlamaForSequenceClassification(LlamaConfig(intermediate_size=16, **TEXT, **LABELS))


def add_lora(model: nn.Module, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**{"r": 2, **options}))


def build_lora_vit(**options: Any) -> nn.Module:
    settings = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    return add_lora(build_vit(), **{**settings, **options})


def build_lora_bert() -> nn.Module:
    return add_lora(build_bert(), target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)


def build_lora_llama() -> nn.Module:
    return add_lora(build_llama(), target_modules=["q_proj"], modules_to_save=["score"], init_lora_weights=False)


def image_inputs(count: int = 5, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"pixel_values": torch.randn(count, 3, size, size, generator=generator)}


def text_inputs(count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"input_ids": torch.randint(1, 20, (count, 6), generator=generator)}


@dataclass(frozen=True)
class Family:
    name: str
    model: nn.Module
    inputs: dict[str, torch.Tensor]
    has_bias: bool = True


FAMILIES = {
    "vit": lambda: Family("vit", build_vit(), image_inputs()),
    "resnet": lambda: Family("resnet", build_resnet(), image_inputs(size=16)),
    "bert": lambda: Family("bert", build_bert(), text_inputs()),
    "llama": lambda: Family("llama", build_llama(), text_inputs(), has_bias=False),
    "lora_vit": lambda: Family("lora_vit", build_lora_vit(), image_inputs()),
    "lora_bert": lambda: Family("lora_bert", build_lora_bert(), text_inputs()),
    "lora_llama": lambda: Family("lora_llama", build_lora_llama(), text_inputs(), has_bias=False),
}


def image_rows(labels: list[int], size: int = 8) -> list[dict[str, Any]]:
    """Samples as `Trainer` wants them, noise with a brightness that tells the class."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(len(labels), 3, size, size, generator=generator) * 0.3
    return [{"pixel_values": noise[i] + label - 2.5, "labels": label} for i, label in enumerate(labels)]
