"""Real photos, a ResNet: fine-tuning on 5 of 10 CIFAR-10 classes in a shifted domain, and what repairs the other 5.

The ResNet is trained here on 20,000 training photos, once, on a GPU where there is one; the target domain is
hf-diorama's `rotated` shift of other training photos, and of test photos. Domain and network were chosen by the source
model's accuracy in the domains, on 1,000 further training photos. Five seeds; each draws the seen classes and the
batches; source model and photos are the same for all, so that the intervals do not hold their variance. Gradients are
not clipped.

The photos are read from the folder of Parquet files that the environment variable CIFAR10_DIR names, or from the Hub.
The committed result is of a folder of 50,000 training and 5,000 test photos that were encoded anew as JPEG.
"""

import copy
import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, set_seed
from transformers.utils.logging import tqdm

import hf_diorama
from cases.partial_tune_digits import NUM_SEEDS, Experiment, Samples, run_seed, summarise
from partial_tune import ClassPartition, interpolate

DOMAIN = "rotated"
NUM_SOURCE, NUM_TRAIN, NUM_TEST = 20_000, 2_000, 2_000
EPOCHS = 8


def to_pixels(images: list[Any]) -> Tensor:
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.tensor(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


@lru_cache(maxsize=4)
def load_photos(split: str, start: int, stop: int, domain: str | None) -> Samples:
    photos = hf_diorama.load("cifar10", split=split, data_dir=os.environ.get("CIFAR10_DIR")).select(range(start, stop))
    images = photos["image"][:]
    if domain is not None:
        images = [hf_diorama.shift(image, domain, seed=index) for index, image in enumerate(images)]
    return Samples(to_pixels(images), torch.tensor(photos["label"][:]))


def build_resnet() -> ResNetForImageClassification:
    """A ResNet of 0.3 million parameters for 32 x 32 pixels: without the max-pooling, its stages see 16, 8 and 4."""
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(config)
    model.resnet.embedder.pooler = nn.Identity()
    return model


@lru_cache(maxsize=1)
def train_source(num_photos: int) -> nn.Module:
    """A ResNet trained with flips and shifts of the images."""
    set_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_resnet().to(device)
    data = load_photos("train", 0, num_photos, None)
    steps = EPOCHS * num_photos // 64
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for _ in tqdm(range(steps), desc="source model"):
        rows = torch.randint(num_photos, (64,))
        images = data.images[rows].to(device)
        images = images.flip(3) if torch.rand(()) < 0.5 else images
        images = images.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), dims=(2, 3))
        optimizer.zero_grad()
        model(pixel_values=images, labels=data.labels[rows].to(device)).loss.backward()
        optimizer.step()
        schedule.step()
    return model.cpu().eval()


def build_photos(seed: int, *, quick: bool) -> Experiment:
    model = train_source(256 if quick else NUM_SOURCE)
    num_train, num_test = (256, 256) if quick else (NUM_TRAIN, NUM_TEST)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(10, generator=generator)[:5].tolist()
    return Experiment(
        source=lambda: copy.deepcopy(model),
        train=load_photos("train", NUM_SOURCE, NUM_SOURCE + num_train, DOMAIN),
        test=load_photos("test", 0, num_test, DOMAIN),
        source_test=load_photos("test", 0, num_test, None),
        partition=ClassPartition.from_dataset(model.config, seen),
        seed=seed,
        options={
            "max_steps": 5 if quick else 100,
            "per_device_train_batch_size": 64,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
        },
        optimizer=(torch.optim.SGD, {"lr": 3e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        workers=4,
        rounds=5,
    )


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    seeds = [
        run_seed(build_photos(seed, quick=quick), lambda source, tuned: interpolate(source, tuned, 0.5))
        for seed in tqdm(range(1 if quick else NUM_SEEDS), desc="seeds")
    ]
    return summarise(seeds, "photos")


PLOT = None
