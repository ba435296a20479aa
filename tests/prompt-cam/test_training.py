"""Training: with Trainer and resumed, with accelerate on one and two processes, and what comes out of it."""

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, aggregate_heads, get_prompt_cam_model
from support.planted import NUM_CLASSES, PlantedDataset, build_planted, build_random_vit
from support.tiny_vits import build_inputs, build_vit

ROOT = Path(__file__).resolve().parents[2]


def build_model(**options: Any) -> PromptCAMForImageClassification:
    torch.manual_seed(0)
    return get_prompt_cam_model(build_random_vit(), PromptCAMConfig(num_classes=NUM_CLASSES, **options))


def train(model: Any, folder: Path, steps: int, resume: bool = False, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **{"save_strategy": "no", "per_device_train_batch_size": 64, **options},
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=PlantedDataset(1024, seed=0),
        eval_dataset=PlantedDataset(400, seed=1),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def hash_backbone(model: Any) -> str:
    digest = hashlib.sha256()
    for tensor in model.backbone.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_trained_prompts_find_the_planted_trait(tmp_path: Path) -> None:
    model = build_model()
    digest = hash_backbone(model)
    trainer = train(model, tmp_path, steps=120)
    assert trainer.evaluate()["eval_accuracy"] > 0.9
    assert hash_backbone(model) == digest

    images, labels, cells, without = build_planted(400, seed=1)
    model.eval()
    ranked = model.rank_heads(images, labels)
    top = aggregate_heads(model.maps(images, labels), ranked.order, 1).flatten(1)
    energy = top.gather(1, cells[:, None]).mean().item()
    assert energy > 4 / 16  # four times what an even map puts there

    before, after = (model(batch).logits.argmax(1) for batch in (images, without))
    flipped = (after != before)[before == labels].float().mean().item()
    assert flipped > 0.6  # 0.75 is chance among four classes
    wrong = (labels + 1) % NUM_CLASSES
    other = aggregate_heads(model.maps(images, wrong), model.rank_heads(images, wrong).order, 1).flatten(1)
    assert energy > other.gather(1, cells[:, None]).mean().item()  # the top head of a class that is not there


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Without clipping, which would hide a gradient that is four times too long."""
    options: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0}
    whole = train(build_model(prompt_dropout=0), tmp_path, steps=3, **options).model
    small = {**options, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}
    parts = train(build_model(prompt_dropout=0), tmp_path, steps=3, **small).model
    start = build_model(prompt_dropout=0).state_dict()
    for name, tensor in whole.state_dict().items():
        assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    assert (whole.state_dict()["prompts.layer_0"] - start["prompts.layer_0"]).abs().max() > 1e-4


def test_trainer_hands_siglip2_its_masks_and_shapes(tmp_path: Path) -> None:
    """`Trainer` drops the columns that `forward` does not name."""
    model = get_prompt_cam_model(build_vit("siglip2_vision_model"), PromptCAMConfig(num_classes=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = build_inputs("siglip2_vision_model", batch_size=6)
    rows = [
        {**{name: column[index] for name, column in inputs.items()}, "labels": index % 3, "note": f"image {index}"}
        for index in range(6)
    ]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert all((tensor != before[name]).any() for name, tensor in model.state_dict().items() if name != "head.bias")


def test_checkpoints_are_small_and_training_goes_on(tmp_path: Path) -> None:
    straight = train(build_model(), tmp_path / "straight", steps=6).model
    train(build_model(), tmp_path / "parts", steps=3, save_strategy="steps", save_steps=3)
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    assert set(load_file(checkpoint / "model.safetensors")) == set(straight.state_dict())
    loaded = build_model()
    loaded.load_state_dict(load_file(checkpoint / "model.safetensors"))  # a checkpoint becomes an adapter
    loaded.save_pretrained(tmp_path / "adapter")
    PromptCAMForImageClassification.from_pretrained(tmp_path / "adapter", build_random_vit())
    resumed = train(build_model(), tmp_path / "parts", steps=6, resume=True).model
    for name, tensor in straight.state_dict().items():
        assert_close(resumed.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_trainer_switches_checkpointing_on(tmp_path: Path) -> None:
    plain = train(build_model(), tmp_path, steps=2).model
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"  # < 5.23
    saving = train(build_model(), tmp_path, steps=2, **{name: True}).model
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.backbone.modules())
    for name, tensor in plain.state_dict().items():
        assert_close(saving.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_trainer_takes_features_of_the_late_variant(tmp_path: Path) -> None:
    model = build_model(variant="late", prompt_dropout=0)
    dataset = PlantedDataset(256, seed=0)
    features = model.features(dataset.images)
    rows = [{"hidden_states": one, "labels": label} for one, label in zip(features, dataset.labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=150,
        per_device_train_batch_size=64,
        learning_rate=0.02,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    images, labels, *_ = build_planted(400, seed=1)
    accuracy = (model.eval()(images).logits.argmax(1) == labels).float().mean().item()
    assert accuracy > 0.8


@pytest.mark.loopback
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    out = tmp_path / "two.safetensors"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in ("0", "1"):
        command = [sys.executable, "-W", "ignore", "-m", "support.prompt_cam_steps", str(out)]
        environment = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"processes": "2"}

    model, data = build_model(prompt_dropout=0), PlantedDataset(48, seed=0)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for images, labels in zip(data.images.split(16), data.labels.split(16), strict=True):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    two = load_file(out)
    assert two.keys() == start.keys()
    for name, tensor in model.state_dict().items():
        assert_close(two[name], tensor, atol=1e-6, rtol=1e-5)
    assert (two["prompts.layer_0"] - start["prompts.layer_0"]).abs().max() > 1e-4  # they did learn
