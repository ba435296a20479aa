"""Creatures, a ViT with LoRA: fine-tuning on half of the species in a new domain, and what repairs the other half.

The source model is hf-diorama's vit-nano, which knows 96 species; the target domain is `rotated`. Five seeds; each
draws the seen species and the batches. Images come from the `test` and `heldout` splits, which vit-nano never saw.
"""

import copy
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed
from transformers.utils.logging import tqdm

import hf_diorama
from cases.partial_tune_digits import NUM_SEEDS, Experiment, Samples, run_seed, summarise
from partial_tune import ClassPartition, interpolate_adapter

DOMAIN = "rotated"
NUM_TRAIN, NUM_TEST = 960, 480


@lru_cache(maxsize=2)
def load_samples(split: str, count: int) -> Samples:
    """Creatures in the target domain, as pixel values."""
    rows = hf_diorama.load("creatures", split=split, n=count, seed=11, image_size=64)
    processor = AutoImageProcessor.from_pretrained(hf_diorama.model_path("vit-nano"))
    shifted = [hf_diorama.shift(image, DOMAIN, seed=index) for index, image in enumerate(rows["image"][:])]
    return Samples(processor(shifted, return_tensors="pt")["pixel_values"], torch.tensor(rows["label"][:]))


def build_creatures(seed: int, *, quick: bool) -> Experiment:
    path = hf_diorama.model_path("vit-nano")
    base = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32)
    set_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(copy.deepcopy(base), lora)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(base.config.num_labels, generator=generator)[: base.config.num_labels // 2].tolist()
    return Experiment(
        source=lambda: copy.deepcopy(model),
        train=load_samples("test", 480 if quick else NUM_TRAIN),
        test=load_samples("heldout", 96 if quick else NUM_TEST),
        partition=ClassPartition.from_names(base.config, [base.config.id2label[index] for index in seen]),
        seed=seed,
        options={
            "max_steps": 4 if quick else 30,
            "per_device_train_batch_size": 24,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
        },
        optimizer=(torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.0}),
        workers=3,
        rounds=3,
    )


def halve_adapter(source: nn.Module, tuned: nn.Module) -> nn.Module:
    model = copy.deepcopy(tuned)
    interpolate_adapter(model, 0.5)
    return model


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    seeds = [
        run_seed(build_creatures(seed, quick=quick), halve_adapter)
        for seed in tqdm(range(1 if quick else NUM_SEEDS), desc="seeds")
    ]
    return summarise(seeds, "creatures")


PLOT = None
