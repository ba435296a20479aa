"""Creatures, a ViT with LoRA: fine-tuning on half of the species in a new domain, and what repairs the other half.

The source model is hf-diorama's vit-nano, which knows 96 species; the target domain is `rotated`. Five seeds; each
draws the seen species, the adapter's initial weights and the batches; source model and images are the same for all, so
that the intervals do not hold their variance. Images come from the `test` split (training) and the `heldout` split
(test), which vit-nano never saw. LOLSGD averages the adapters' products ("svd"), for A and B are trained as in
fine-tuning. Gradients are not clipped.
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
STEPS = 100
NUM_TRAIN, NUM_TEST = 960, 960


@lru_cache(maxsize=3)
def load_samples(split: str, count: int, domain: str | None) -> Samples:
    """Creatures in a domain, or as they are drawn, as pixel values."""
    rows = hf_diorama.load("creatures", split=split, n=count, seed=11, image_size=64)
    processor = AutoImageProcessor.from_pretrained(hf_diorama.model_path("vit-nano"))
    images = rows["image"][:]
    if domain is not None:
        images = [hf_diorama.shift(image, domain, seed=index) for index, image in enumerate(images)]
    return Samples(processor(images, return_tensors="pt")["pixel_values"], torch.tensor(rows["label"][:]))


def build_creatures(seed: int, *, quick: bool) -> Experiment:
    path = hf_diorama.model_path("vit-nano")
    base = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32)
    set_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(copy.deepcopy(base), lora)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(base.config.num_labels, generator=generator)[: base.config.num_labels // 2].tolist()
    num_train, num_test = (480, 96) if quick else (NUM_TRAIN, NUM_TEST)
    return Experiment(
        source=lambda: copy.deepcopy(model),
        train=load_samples("test", num_train, DOMAIN),
        test=load_samples("heldout", num_test, DOMAIN),
        source_test=load_samples("heldout", num_test, None),
        partition=ClassPartition.from_names(base.config, [base.config.id2label[index] for index in seen]),
        seed=seed,
        options={
            "max_steps": 5 if quick else STEPS,
            "per_device_train_batch_size": 24,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
            "lora_average": "svd",
        },
        optimizer=(torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.0}),
        workers=3,
        rounds=5,
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
