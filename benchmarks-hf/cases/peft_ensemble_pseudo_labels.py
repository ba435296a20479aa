"""Votes of several members on unlabelled images: one pass for all of them against a loop over members.

Members are AdaptFormers on hf-diorama's vfm-nano-contrastive (six blocks), in all blocks or in the last two, where the
first four run once for all. The loop is what one writes with transformers and peft alone: for each member, batches
through the image processor and the model. Models are loaded beforehand in both. Images a second count each image once,
however many members vote on it.
"""

from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging

import hf_diorama
from harness import Timing
from peft_ensemble import AdaptFormerConfig, MemberSpec, aggregate
from peft_ensemble.aggregation import vote_counts
from peft_ensemble.fitting import build_member, load_processor
from peft_ensemble.prediction import predict, share_weights

NUM_IMAGES = 32
NUM_CLASSES = 24


def setup(members: int, first_block: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    backbone = str(hf_diorama.model_path("vfm-nano-contrastive"))
    method = AdaptFormerConfig(bottleneck=16, blocks=list(range(first_block, 6)))
    specs = [MemberSpec(backbone=backbone, method=method, seed=seed) for seed in range(members)]
    models = [build_member(spec, [str(label) for label in range(NUM_CLASSES)]).eval() for spec in specs]
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for model in models for p in model.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    share_weights(models)
    images = hf_diorama.load("creatures", split="test", n=NUM_IMAGES, seed=3, image_size=64)["image"][:]
    dataset = Dataset.from_dict({"image": images, "id": [str(number) for number in range(NUM_IMAGES)]})
    return {"models": models, "processor": load_processor(specs[0]), "dataset": dataset}


def ask_together(inputs: dict[str, Any]) -> torch.Tensor:
    answers = predict(inputs["models"], inputs["processor"], inputs["dataset"], batch_size=NUM_IMAGES)
    return aggregate(torch.stack([answer["logits"] for answer in answers]))


@torch.no_grad()
def ask_in_a_loop(inputs: dict[str, Any]) -> torch.Tensor:
    logits = []
    for model in inputs["models"]:
        images = [image.convert("RGB") for image in inputs["dataset"]["image"]]
        pixel_values = inputs["processor"](images=images, return_tensors="pt")["pixel_values"]
        logits.append(model(pixel_values=pixel_values).logits)
    return vote_counts(torch.stack(logits)).double() / len(logits)


def check(inputs: dict[str, Any]) -> None:
    targets = ask_together(inputs)
    assert torch.equal(targets, ask_in_a_loop(inputs)), "both must give the same votes"
    assert len(inputs["models"]) == 1 or (targets.max(dim=1).values < 1).any(), "members must not all agree"


CASE = Timing(
    sizes=[
        {"members": 1, "first_block": 0},
        {"members": 4, "first_block": 0},
        {"members": 4, "first_block": 4},
        {"members": 8, "first_block": 4},
    ],
    setup=setup,
    check=check,
    ours=ask_together,
    peer=ask_in_a_loop,
    items=NUM_IMAGES,
    unit="images",
)
PLOT = {"x": "members", "y": "ratio", "line": "first_block", "low": "ratio_q1", "high": "ratio_q3"}
