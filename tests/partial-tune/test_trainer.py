"""PartialTuneTrainer: methods, extra losses, BatchNorm policies, and the traps it refuses."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from transformers import HfArgumentParser

from partial_tune import (
    CalibrationCallback,
    LogitCalibrator,
    PartialTuneArguments,
    PartialTuneTrainer,
    SeenAbsentMetrics,
)
from partial_tune.running import read_sample_labels
from partial_tune.upstream import find_head
from support.partial_models import NAMES, build_llama, build_lora_vit, build_resnet, build_vit, image_rows
from support.partial_training import PARTITION, arguments, make_trainer

SEEN_ROWS = image_rows([0, 2, 3, 5] * 4)


def make(folder: Path, model: nn.Module, rows: Any = None, source: Any = None, **options: Any) -> PartialTuneTrainer:
    return make_trainer(folder, model, SEEN_ROWS if rows is None else rows, source_model=source, **options)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return build_vit()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_resnet()


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {name for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


def test_frozen_head_trains_everything_else(tmp_path: Path) -> None:
    model = vit()
    before = copy.deepcopy(model)
    make(tmp_path, model, method="frozen_head").train()
    names = changed(before, model)
    assert names
    assert not any(name.startswith("classifier") for name in names)


def test_probe_then_tune_trains_the_head_alone_at_first(tmp_path: Path) -> None:
    model = vit()
    before = copy.deepcopy(model)
    trainer = make(tmp_path, model, method="lp_ft", probe_ratio=1.0)
    trainer.train()
    assert changed(before, model) == {"classifier.weight", "classifier.bias"}
    trainer = make(tmp_path, vit(), method="lp_ft", probe_ratio=0.5)
    trainer.train()
    assert len(changed(before, trainer.model)) > 10  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("policy", "statistics", "affine", "others"),
    [
        ("train", True, True, True),
        ("freeze_stats", False, True, True),
        ("freeze_all", False, False, True),
        ("stats_only", True, False, False),
        ("affine_only", True, True, False),
    ],
)
def test_batch_norm_policies_change_what_they_say(
    tmp_path: Path, policy: str, statistics: bool, affine: bool, others: bool
) -> None:
    model = resnet()
    before = copy.deepcopy(model)
    make(tmp_path, model, image_rows([0, 2, 3, 5] * 4, size=16), bn=policy, weight_decay=0.1).train()
    names = changed(before, model)
    norm = {name for name in model.state_dict() if "normalization" in name}
    running = {name for name in norm if "running" in name}
    assert bool(names & running) == statistics
    assert bool(names & {name for name in norm if name.endswith(("weight", "bias"))}) == affine
    assert bool(names - norm) == others


def test_batch_norm_policies_need_batch_norm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model with BatchNorm"):
        make(tmp_path, vit(), bn="freeze_all")


def test_extra_losses_are_added_with_their_weight(tmp_path: Path) -> None:
    model, source = vit(), vit()
    with torch.no_grad():
        source.classifier.weight.add_(torch.randn_like(source.classifier.weight))
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in SEEN_ROWS[:6]]),
        "labels": torch.tensor([row["labels"] for row in SEEN_ROWS[:6]]),
    }
    model.train()
    losses = {}
    for name, options in {
        "plain": {},
        "distill": {"distill_weight": 2.0, "distill_warmup_ratio": 0.0},
        "rank": {"rank_weight": 3.0},
        "warming up": {"distill_weight": 2.0},
    }.items():
        trainer = make(tmp_path, model, source=source, **options)
        trainer.state.max_steps = 100
        losses[name] = float(trainer.compute_loss(model, dict(batch)).detach())
    with torch.no_grad():
        plain = model(**batch, return_dict=True)
        teacher = source(pixel_values=batch["pixel_values"], return_dict=True).logits
        features = model.vit(batch["pixel_values"], return_dict=True).last_hidden_state[:, 0]
    absent = [1, 4]
    p, q = teacher[:, absent].softmax(1), plain.logits[:, absent].softmax(1)
    divergence = float((p * (p / q).log()).sum(1).mean())
    correlation = torch.corrcoef(features.T)
    assert losses["plain"] == pytest.approx(float(plain.loss), abs=1e-6)
    assert losses["distill"] - losses["plain"] == pytest.approx(2 * divergence, rel=1e-4)
    assert losses["rank"] - losses["plain"] == pytest.approx(3 * float(correlation.square().mean()), rel=1e-4)
    assert losses["warming up"] == pytest.approx(losses["plain"])
    model.eval()
    assert float(trainer.compute_loss(model, dict(batch)).detach()) == pytest.approx(losses["plain"])


def test_distillation_keeps_relations_among_absent_classes(tmp_path: Path) -> None:
    drift = {}
    for weight in (0.0, 30.0):
        model, source = vit(), vit()
        options = {"distill_weight": weight, "max_steps": 30, "learning_rate": 0.02}
        make(tmp_path, model, source=source, **options).train()
        x = torch.stack([row["pixel_values"] for row in SEEN_ROWS])
        with torch.no_grad():
            p, q = (m.eval()(pixel_values=x).logits[:, [1, 4]].softmax(1) for m in (source, model))
        drift[weight] = float((p - q).abs().max())
    assert drift[30.0] < 0.7 * drift[0.0]


def test_distillation_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the frozen teacher"):
        make(tmp_path, vit(), distill_weight=1.0)
    model = vit()
    with pytest.raises(ValueError, match="got `model` itself"):
        make(tmp_path, model, source=model, distill_weight=1.0)


def test_rank_regulariser_is_not_for_heads_that_see_every_token(tmp_path: Path) -> None:
    rows = [{"input_ids": torch.arange(1, 6), "labels": label} for label in (0, 2, 3, 5)]
    with pytest.raises(ValueError, match="a head for every token"):
        make(tmp_path, build_llama(), rows, rank_weight=1.0).train()


def test_probing_first_needs_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialTuneArguments, "world_size", 2)
    with pytest.raises(ValueError, match="one process for `lp_ft`, which freezes and thaws, got 2"):
        make(tmp_path, vit(), method="lp_ft")


def test_options_are_read_from_a_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(PartialTuneArguments)  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--method", "lolsgd", "--bn", "freeze_stats", "--drop", "2"]
    (args,) = parser.parse_args_into_dataclasses(line)
    assert (args.method, args.bn, args.drop, args.lora_average) == ("lolsgd", "freeze_stats", 2, "freeze_a")


def test_heads_that_were_made_anew_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 4, as many as there are seen classes.*ignore_mismatched_sizes"):
        make(tmp_path, build_vit(id2label={index: str(index) for index in range(4)}, label2id=None))
    with pytest.raises(ValueError, match="in their order"):
        make(tmp_path, build_vit(id2label=dict(enumerate(NAMES[::-1]))))
    model = vit()
    LogitCalibrator(PARTITION, 1.0).fold_(model)
    with pytest.raises(ValueError, match="folded into its head"):
        make(tmp_path, model)


def test_labels_that_were_numbered_anew_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples of \[1\]; ids below 4 only.*numbered anew"):
        make(tmp_path, vit(), image_rows([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"samples of \[4\]\.$"):
        make(tmp_path, vit(), image_rows([0, 4, 5]))
    rows = datasets.Dataset.from_list([{"label": 0}, {"label": 1}])
    named = rows.cast_column("label", datasets.ClassLabel(names=["ant", "cat"]))
    with pytest.raises(ValueError, match="ids mean other classes"):
        make(tmp_path, vit(), named)


def test_labels_are_read_from_any_data_set() -> None:
    rows = [{"label": 3}, {"label": 1}]
    assert read_sample_labels(rows).tolist() == [3, 1]
    assert read_sample_labels(datasets.Dataset.from_list(rows).with_format("torch")).tolist() == [3, 1]
    assert read_sample_labels(torch.utils.data.TensorDataset(torch.zeros(2), torch.tensor([4, 2]))).tolist() == [4, 2]
    with pytest.raises(ValueError, match="`labels` or `label`"):
        read_sample_labels(datasets.Dataset.from_list([{"y": 3}]))
    with pytest.raises(ValueError, match="in row 0"):
        read_sample_labels([{"y": 3}])


class Pictures(torch.utils.data.Dataset[Any]):
    """As torchvision's data sets: a list `targets`, and samples that are slow to read."""

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets
        self.target_transform: Any = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a picture was decoded for its label")


def test_labels_are_read_without_decoding_images() -> None:
    pictures = Pictures([5, 4, 3])
    assert read_sample_labels(pictures).tolist() == [5, 4, 3]
    assert read_sample_labels(torch.utils.data.Subset(pictures, [2, 0])).tolist() == [3, 5]
    pictures.target_transform = abs  # then `targets` are not the labels
    with pytest.raises(AssertionError, match="decoded"):
        read_sample_labels(pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "finetune, frozen_head, lp_ft, lolsgd"),
        ({"bn": "none"}, "freeze_stats"),
        ({"workers": 0}, "`workers` to be at least 1"),
        ({"probe_ratio": 2.0}, r"`probe_ratio` in \[0, 1\]"),
        ({"rank_weight": -1.0}, "`rank_weight` to be at least 0"),
        ({"distill_temperature": 0.0}, "positive"),
        ({"bn": "stats_only", "method": "lolsgd"}, "nothing is trained"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_callback_fits_what_an_offline_pass_fits(tmp_path: Path) -> None:
    model = vit()
    eval_loader = [
        {
            "pixel_values": torch.stack([row["pixel_values"] for row in image_rows([0, 1, 2, 3, 4, 5])]),
            "labels": torch.arange(6),
        }
    ]
    callback = CalibrationCallback(PARTITION, eval_loader=eval_loader)
    args = arguments(tmp_path, save_strategy="steps", save_steps=2, dataloader_drop_last=True)
    rows = SEEN_ROWS[:15]
    trainer = PartialTuneTrainer(model, args, partition=PARTITION, train_dataset=rows, callbacks=[callback])
    trainer.train()
    batch = [
        {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
    ]
    offline = LogitCalibrator.fit(model, batch, PARTITION)
    assert callback.calibrator is not None
    assert callback.calibrator.estimate.num_samples == 15
    assert callback.calibrator.gamma == pytest.approx(offline.gamma, abs=1e-6)
    assert trainer.fit_calibrator().gamma == pytest.approx(offline.gamma, abs=1e-6)
    saved = LogitCalibrator.from_pretrained(tmp_path / "checkpoint-4")
    assert saved.gamma == callback.calibrator.gamma
    assert LogitCalibrator.from_pretrained(tmp_path / "checkpoint-2").gamma != saved.gamma
    report = trainer.state.log_history[-1]
    assert report["calibration_gamma"] == callback.report["calibration_gamma"] == callback.calibrator.gamma
    assert 0 <= report["calibration_ausuc"] <= 1
    trainer.log(callback.report)
    assert trainer.state.log_history[-1]["calibration_gamma"] == callback.calibrator.gamma


class Augmented(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples with other noise each time they are read."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, "pixel_values": row["pixel_values"] + torch.randn(3, 8, 8)}


def test_callback_fits_without_augmentation_on_a_loader_of_its_own(tmp_path: Path) -> None:
    def batch_of(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    model = vit()
    loader = torch.utils.data.DataLoader(SEEN_ROWS, batch_size=5, shuffle=True, collate_fn=batch_of)  # type: ignore[arg-type]
    plain, augmented = CalibrationCallback(PARTITION, train_loader=loader), CalibrationCallback(PARTITION)
    options: dict[str, Any] = {"partition": PARTITION, "callbacks": [plain, augmented]}
    PartialTuneTrainer(model, arguments(tmp_path), train_dataset=Augmented(SEEN_ROWS), **options).train()
    expected = LogitCalibrator.fit(model, [batch_of(SEEN_ROWS)], PARTITION).gamma
    assert plain.calibrator is not None
    assert augmented.calibrator is not None
    assert plain.calibrator.gamma == pytest.approx(expected, abs=1e-6)
    assert augmented.calibrator.gamma != pytest.approx(expected, abs=1e-4)


def test_callback_refuses_sharded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = PartialTuneTrainer(vit(), arguments(tmp_path), partition=PARTITION, train_dataset=SEEN_ROWS)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="a whole model in each process"):
        CalibrationCallback(PARTITION).on_train_begin(trainer.args, trainer.state, trainer.control)


def test_pseudo_cross_validation_uses_the_trainers_recipe_and_leaves_the_model(tmp_path: Path) -> None:
    model = vit()
    trainer = make(tmp_path, model, image_rows([0, 2, 3, 5] * 8), source=vit(), max_steps=3)
    trainer.train()
    before = copy.deepcopy(model)
    estimate = trainer.fit_calibrator("pcv", num_splits=2).estimate
    assert estimate.method == "pcv"
    assert [len(split["seen"]) for split in estimate.details["splits"]] == [2, 2]
    assert changed(before, model) == set()
    with pytest.raises(ValueError, match="pseudo cross-validation starts, got None"):
        make(tmp_path, vit(), image_rows([0, 2, 3, 5] * 8)).fit_calibrator("pcv")


def test_pseudo_models_know_their_own_classes_and_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[PartialTuneTrainer] = []
    train = PartialTuneTrainer.train
    losses = []

    def record(trainer: PartialTuneTrainer, *args: Any, **kwargs: Any) -> Any:
        trainers.append(trainer)
        return train(trainer, *args, **kwargs)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        losses.append(len(labels))
        return nn.functional.cross_entropy(outputs["logits"], labels)

    monkeypatch.setattr(PartialTuneTrainer, "train", record)
    options: dict[str, Any] = {"method": "lolsgd", "workers": 2, "rounds": 2, "drop": 2, "eval_on_start": True}
    model, source = vit(), vit()
    trainer = PartialTuneTrainer(
        model,
        arguments(tmp_path, **options),
        partition=PARTITION,
        source_model=source,
        train_dataset=image_rows([0, 2, 3, 5] * 8),
        eval_dataset=SEEN_ROWS,
        compute_loss_func=loss,
    )
    splits = trainer.fit_calibrator("pcv", num_splits=2).estimate.details["splits"]
    assert [list(one.partition.seen) for one in trainers] == [sorted(split["seen"]) for split in splits]
    assert [one._drop for one in trainers] == [1, 1]  # 2 of 4 classes: 1 of 2
    assert len(losses) == 2 * 2 * 4  # splits, workers, steps
    assert trainer.args.eval_on_start
    assert not any(one.args.eval_on_start for one in trainers)


def test_an_optimizer_that_cannot_be_made_anew_is_refused(tmp_path: Path) -> None:
    model = vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = PartialTuneTrainer(
        model,
        arguments(tmp_path),
        partition=PARTITION,
        source_model=vit(),
        train_dataset=image_rows([0, 2, 3, 5] * 8),
        optimizers=(optimizer, None),
    )
    with pytest.raises(ValueError, match="got `optimizers=`"):
        trainer.fit_calibrator("pcv")


def test_metrics_of_the_trainer_are_those_of_the_whole_logits(tmp_path: Path) -> None:
    from partial_tune import seen_absent_sweep

    model, rows = vit(), image_rows([0, 1, 2, 3, 4, 5] * 3)
    metrics = SeenAbsentMetrics(PARTITION, gamma=0.5)
    shapes = []

    def compute(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return metrics.compute_metrics(prediction)

    trainer = PartialTuneTrainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=4),
        partition=PARTITION,
        train_dataset=SEEN_ROWS,
        eval_dataset=rows,
        compute_metrics=compute,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
    )
    found = trainer.evaluate()
    assert shapes == [(18, 5)]
    with torch.no_grad():
        logits = model.eval()(pixel_values=torch.stack([row["pixel_values"] for row in rows])).logits
    labels = torch.tensor([row["labels"] for row in rows])
    expected = seen_absent_sweep(logits, labels, PARTITION)
    assert found["eval_ausuc"] == pytest.approx(expected.ausuc)
    assert found["eval_absent_calibrated"] == expected.at(0.5).absent
    assert found["eval_overall"] == expected.at(0.0).overall
    assert found["eval_overall_oracle"] == expected.at(expected.gamma_star).overall
    with pytest.raises(ValueError, match="to the Trainer as well"):
        metrics.compute_metrics((logits.numpy(), labels.numpy()))


def test_adapters_train_and_the_trained_head_copy_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_lora_vit()
    head = find_head(model, 6)
    assert head is model.get_base_model().classifier.modules_to_save["default"]
    make(tmp_path, model, method="frozen_head").train()
    assert torch.equal(head.weight, model.get_base_model().classifier.original_module.weight)
