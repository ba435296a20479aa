import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Trainer

from support import taxa_streams
from support.packages import ROOT
from support.taxa import TAXA
from support.taxa_streams import build_model, build_processor, draw, train, write_parquet
from taxaclip import ReplayCLIPModel, TaxonClassifier, TaxonIndex, contrastive_loss, replay_loss
from taxaclip.convert import REPLAY_FILE
from taxaclip.losses import soft_targets
from taxaclip.streams import ImageTextStream
from taxaclip.training import ContrastiveArguments, ContrastiveTrainer, last_whole_checkpoint

SCRIPT = taxa_streams.__file__


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parquet(tmp_path, 4, 6, "taxa")
    write_parquet(tmp_path, 2, 6, "captions")
    return tmp_path


def make_trainer(folder: Path, model: Any = None, replay: bool = True, **options: Any) -> ContrastiveTrainer:
    values = {"per_device_train_batch_size": 12, "max_steps": 1, "save_strategy": "no", "optim": "sgd"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "report_to": []}
    values |= {"replay_batch_size": 5, "learning_rate": 1e-1, "weight_decay": 0.0} if replay else {}
    args = ContrastiveArguments(str(folder / "out"), **{**values, **quiet, **options})
    taxa = ImageTextStream(sorted(folder.glob("taxa-*.parquet")), buffer_size=8)
    general = ImageTextStream(sorted(folder.glob("captions-*.parquet")), text="captions") if replay else None
    return ContrastiveTrainer(model or build_model(replay), args, build_processor(), taxa, general)


def gradients(trainer: ContrastiveTrainer, batch: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """The loss and all gradients of the first batch, in float64."""
    model = trainer.model.double()
    batch = batch or dict(next(iter(trainer.get_train_dataloader())))
    batch |= {name: value.double() for name, value in batch.items() if name.endswith("pixel_values")}
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(model, batch)
    return {"loss": loss, **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-7) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=atol, msg=name)


OPTIONS: dict[str, dict[str, Any]] = {
    "captions encoded once each": {"deduplicate": True},
    "GradCache": {"grad_cache_size": 5},
    "GradCache, one image at a time": {"grad_cache_size": 1},
    "tiles": {"loss_chunk_size": 5},
    "all of it": {"deduplicate": True, "grad_cache_size": 7, "loss_chunk_size": 4},
}


@pytest.mark.parametrize("replay", [True, False])
def test_savings_change_neither_loss_nor_gradients(folder: Path, replay: bool) -> None:
    plain = gradients(make_trainer(folder, replay=replay, deduplicate=False))
    assert ("replay_projection.weight" in plain) is replay
    assert len(plain) > 30
    for name, options in OPTIONS.items():
        found = gradients(make_trainer(folder, replay=replay, **{"deduplicate": False, **options}))
        try:
            assert_equal(found, plain)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True}], ids=["accumulated", "bf16"])
def test_grad_cache_takes_the_same_step(folder: Path, options: dict[str, Any]) -> None:
    before = build_model(replay=True).state_dict()
    weights = []
    for cached in ({}, {"grad_cache_size": 5}):
        trainer = make_trainer(folder, per_device_train_batch_size=6, **options, **cached)
        trainer.train()
        weights.append(trainer.model.state_dict())
    tolerance = 1e-2 if "bf16" in options else 1e-5
    for name, value in weights[0].items():
        assert value.dtype == torch.float32
        step, cached_step = value - before[name], weights[1][name] - before[name]
        assert (step - cached_step).norm() <= tolerance * max(float(step.norm()), 1e-3), name


def test_loss_is_that_of_the_paper_and_of_its_targets(folder: Path) -> None:
    for targets in ("diag", "multi", "hier"):
        trainer = make_trainer(folder, targets=targets)
        batch = dict(next(iter(trainer.get_train_dataloader())))
        model = trainer.model.eval()
        with torch.no_grad():
            loss = trainer.compute_loss(model, batch)
            names = ("pixel_values", "input_ids", "attention_mask")
            inputs = {name: value for name, value in batch.items() if name.removeprefix("replay_") in names}
            out = model(**inputs)
            image, text = out.image_embeds, out.text_embeds[batch["text_index"]]
            general = out.replay_image_embeds, out.replay_text_embeds[batch["replay_text_index"]]
            scale = model.logit_scale
            if targets == "diag":
                expected = replay_loss(image, text, *general, scale)
            else:
                lineages, weights = batch["lineages"], [0.0] * 6 + [1.0]
                if targets == "hier":
                    weights = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]
                expected = contrastive_loss(*general, scale) + contrastive_loss(
                    image, text, scale, taxon_ids=lineages, rank_weights=weights
                )
                assert (soft_targets(lineages, lineages, weights) > 0).sum() > len(lineages)
        torch.testing.assert_close(loss, expected)


def test_trained_model_tells_new_images_of_the_taxa_apart(folder: Path) -> None:
    values = {"optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_steps": 80}
    values["text_mix"] = {"sci": 1.0}  # a token is a byte here: longer captions would be cut
    trainer = make_trainer(folder, targets="multi", logging_strategy="steps", logging_steps=20, **values)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"] - 1
    assert 0 < logs[0]["repeated_captions"] < 1
    assert logs[0]["bad_samples"] == 0
    assert logs[0]["cut_captions"] == 0
    model = trainer.model.eval()
    assert not torch.equal(model.replay_projection.weight, model.visual_projection.weight)
    index = TaxonIndex.build(model, build_processor(), TAXA, text_type="sci")
    numbers = range(1000, 1060)
    images = [Image.open(io.BytesIO(draw(number))) for number in numbers]
    rows = TaxonClassifier(model, build_processor(), index).predict(images, top_k=1)
    right = [row["species"] == TAXA[n % len(TAXA)].scientific_name for n, (row,) in zip(numbers, rows, strict=True)]
    assert sum(right) >= 54


def test_scale_stays_in_its_range_and_decay_leaves_vectors_alone(folder: Path) -> None:
    model = build_model(replay=True)
    model.logit_scale.data.fill_(4.6)
    trainer = make_trainer(folder, model, optim="adamw_torch", learning_rate=1.0, max_steps=3)
    trainer.train()
    assert 0 <= model.logit_scale.item() <= math.log(100) + 1e-6
    decayed = trainer.get_decay_parameter_names(model)
    assert {"visual_projection.weight", "text_model.embeddings.position_embedding.weight"} <= set(decayed)
    assert not any("layer_norm" in name or "bias" in name or "logit_scale" in name for name in decayed)


def test_checkpoints_are_plain_and_go_on_to_the_same_weights(folder: Path) -> None:
    whole = train(folder, steps=5).model.state_dict()
    checkpoint = folder / "out" / "checkpoint-2"
    assert type(CLIPModel.from_pretrained(checkpoint)) is CLIPModel
    assert (checkpoint / REPLAY_FILE).is_file()
    for name in ("checkpoint-4", "checkpoint-5"):
        (folder / "out" / name / "trainer_state.json").write_text("{ cut")
    assert last_whole_checkpoint(folder / "out") == str(checkpoint)
    again = train(folder, steps=5)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_training_goes_on_to_the_same_weights(folder: Path, tmp_path: Path, num_workers: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-W", "ignore", SCRIPT, str(folder), "200", str(num_workers)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and last_whole_checkpoint(folder / "out") is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = last_whole_checkpoint(folder / "out")
    assert found is not None
    done = int(found.rpartition("-")[2])
    options = {"dataloader_num_workers": num_workers}
    assert done < 200
    resumed = train(folder, done + 5, **options)
    assert resumed.state.global_step == done + 5
    (folder / "out").rename(folder / "old")
    whole = train(folder, done + 5, **options)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_lora_trains_adapters_only(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["replay_projection"])
    base = build_model(replay=True)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, config)
    for options in ({}, {"grad_cache_size": 5}):
        trainer = make_trainer(folder, model, max_steps=2, save_strategy="steps", save_steps=1, **options)
        trainer.train()
    adapted = [name for name, value in model.named_parameters() if "lora_B" in name and value.abs().sum() > 0]
    assert len(adapted) == 4
    for name, value in model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(value, before[plain]), name
    loaded = PeftModel.from_pretrained(build_model(replay=True), folder / "out" / "checkpoint-2")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    merged = loaded.merge_and_unload()
    assert type(merged) is ReplayCLIPModel


def worker(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29541", GLOO_SOCKET_IFNAME="lo")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ["ACCELERATE_USE_CPU"] = "1"
    for number, options in enumerate(({}, {"grad_cache_size": 2}, {"loss_chunk_size": 3}, {"targets": "hier"})):
        trainer = make_trainer(Path(folder), per_device_train_batch_size=4, replay_batch_size=3, **options)
        trainer.train()
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        save_file(weights, Path(folder) / f"weights-{number}-{rank}.safetensors")
        if number == 0:
            trainer.batches.go_on({})
            batch = {k: v for k, v in next(iter(trainer.batches)).items() if isinstance(v, torch.Tensor)}
            save_file(batch, Path(folder) / f"batch-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.loopback
def test_two_processes_take_the_step_of_one(folder: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    batches = [load_file(folder / f"batch-{rank}.safetensors") for rank in (0, 1)]
    for number, targets in enumerate(("diag", "diag", "diag", "hier")):
        model = build_model(replay=True)
        embeds: dict[str, list[torch.Tensor]] = {"image": [], "text": [], "replay_image": [], "replay_text": []}
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if "index" not in name and name != "lineages"}
            out = model(**inputs)
            embeds["image"].append(out.image_embeds)
            embeds["text"].append(out.text_embeds[batch["text_index"]])
            embeds["replay_image"].append(out.replay_image_embeds)
            embeds["replay_text"].append(out.replay_text_embeds[batch["replay_text_index"]])
        image, text, *general = (torch.cat(parts) for parts in embeds.values())
        options: dict[str, Any] = {}
        if targets == "hier":
            ids = torch.cat([batch["lineages"] for batch in batches])
            options = {"taxon_ids": ids, "rank_weights": [2.0**-depth for depth in range(6, -1, -1)]}
        loss = contrastive_loss(image, text, model.logit_scale, **options)
        (loss + contrastive_loss(*general, model.logit_scale)).backward()
        for rank in (0, 1):
            found = load_file(folder / f"weights-{number}-{rank}.safetensors")
            for name, parameter in model.named_parameters():
                expected = parameter.data - 0.1 * parameter.grad
                if name == "logit_scale":
                    expected = expected.clamp(0, math.log(100))
                torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-6, msg=f"{number} {rank} {name}")


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    for model, options, message in (
        (build_model(replay=True), {"replay": False}, "ReplayCLIPModel"),
        (build_model(), {}, "ReplayCLIPModel"),
        (torch.nn.Linear(1, 1), {}, "got Linear"),
        (build_model(replay=True).half(), {}, "float32"),
        (None, {"targets": "all"}, "diag"),
        (None, {"targets": "multi", "loss_chunk_size": 4}, "diag"),
        (None, {"grad_cache_size": 0}, "grad_cache_size"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, model, **options)


@pytest.mark.parametrize("name", ["_save", "_save_rng_state", "_load_from_checkpoint", "get_decay_parameter_names"])
def test_trainer_still_has_what_ours_extends(name: str) -> None:
    assert callable(getattr(Trainer, name))


def test_state_of_the_trainer_is_the_last_file_of_a_checkpoint(folder: Path) -> None:
    train(folder, steps=2)
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "checkpoint-2").iterdir()}
    assert max(times, key=lambda name: times[name]) == "trainer_state.json"


def test_a_checkpoint_of_another_trainer_is_refused(folder: Path) -> None:
    build_model(replay=True).save_pretrained(folder / "other")
    with pytest.raises(FileNotFoundError, match=r"stream-0\.json"):
        make_trainer(folder).train(resume_from_checkpoint=str(folder / "other"))


def test_captions_without_taxa_have_no_hierarchy(folder: Path) -> None:
    trainer = make_trainer(folder, targets="multi")
    batch = dict(next(iter(trainer.get_train_dataloader())))
    batch["has_taxa"] = False
    with pytest.raises(ValueError, match="seven ranks"):
        trainer.training_step(trainer.model, batch)


def test_state_of_the_stream_is_saved_as_json(folder: Path) -> None:
    train(folder, steps=2)
    (state,) = json.loads((folder / "out" / "checkpoint-2" / "stream-0.json").read_text())
    assert state["step"] == 1
    assert state["stream"]["position"] == 8
