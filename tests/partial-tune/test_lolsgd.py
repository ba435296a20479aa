"""LOLSGD: draws, averages, LoRA modes, equality with plain SGD, resume at the end of a round."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from partial_tune.lolsgd import ModelAverage, default_drop, draw_batches, draw_classes, factor_product, lora_pairs
from partial_tune.lolsgd_loop import run_lolsgd
from support.partial_models import build_lora_vit, build_resnet, build_vit, image_rows
from support.partial_training import make_trainer, weights_equal

SEEN = (0, 2, 3, 5)


def test_draws_leave_out_classes_and_depend_on_seed_round_and_worker_alone() -> None:
    where = {"seed": 1, "round_id": 2, "worker": 3}
    assert draw_classes(SEEN, 0, **where) == SEEN
    one = draw_classes(SEEN, 1, **where)
    assert len(one) == 3
    torch.manual_seed(99)
    assert draw_classes(SEEN, 1, **where) == one
    many = [draw_classes(SEEN, 2, seed=1, round_id=r, worker=w) for r in range(10) for w in range(4)]
    assert len(set(many)) == 6  # all pairs of four classes
    for drop in (-1, 4):
        with pytest.raises(ValueError, match="`drop` from 0 to 3"):
            draw_classes(SEEN, drop, **where)
    assert [default_drop(count) for count in (1, 2, 4, 5, 30)] == [0, 1, 1, 2, 9]


def test_batches_are_full_and_use_every_sample_of_the_classes_before_one_comes_again() -> None:
    labels = np.array([0, 2, 3, 5] * 6)
    batches = draw_batches(labels, (0, 3), 9, 4, seed=0, round_id=0, worker=0)
    assert [len(batch) for batch in batches] == [4] * 9
    order = [index for batch in batches for index in batch]
    allowed = set(np.flatnonzero(np.isin(labels, (0, 3))).tolist())
    assert [set(order[start : start + 12]) for start in (0, 12, 24)] == [allowed] * 3
    assert draw_batches(labels, (0, 3), 9, 4, seed=0, round_id=0, worker=0) == batches
    assert draw_batches(labels, (0, 3), 9, 4, seed=0, round_id=0, worker=1) != batches
    with pytest.raises(ValueError, match="samples of the classes"):
        draw_batches(labels, (1,), 1, 4, seed=0, round_id=0, worker=0)


def test_average_is_the_mean_of_parameters_and_running_statistics_with_the_counters_of_worker_0() -> None:
    torch.manual_seed(0)
    workers = [build_resnet() for _ in range(3)]
    for number, worker in enumerate(workers):
        for name, buffer in worker.named_buffers():
            buffer.fill_(number + 1) if "num_batches" in name else buffer.normal_()
    model = copy.deepcopy(workers[0])
    average = ModelAverage(model, 3)
    for number, worker in enumerate(workers):
        model.load_state_dict(worker.state_dict())
        average.add(number)
    average.load()
    states = [worker.state_dict() for worker in workers]
    for name, value in model.state_dict().items():
        if "num_batches" in name:
            assert int(value) == 1
        else:
            mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
            torch.testing.assert_close(value, mean.float(), rtol=1e-6, atol=1e-7)


def fill(model: nn.Module, number: int, *, same_a: bool) -> None:
    generator = torch.Generator().manual_seed(number)
    for down, up in lora_pairs(model).values():
        with torch.no_grad():
            up.copy_(torch.randn(up.shape, generator=generator))
            if not same_a:
                down.copy_(torch.randn(down.shape, generator=generator))


@pytest.mark.parametrize(("mode", "same_a"), [("freeze_a", True), ("naive", False), ("svd", False)])
def test_average_of_adapters(mode: Any, same_a: bool) -> None:
    model = build_lora_vit(r=4)
    pairs = lora_pairs(model)
    assert len(pairs) == 2
    average = ModelAverage(model, 2, mode)
    products = {name: torch.zeros(up.shape[0], down.shape[1]) for name, (down, up) in pairs.items()}
    for worker in range(2):
        fill(model, worker, same_a=same_a)
        for name, (down, up) in pairs.items():
            products[name] += (up @ down).detach() / 2
        average.add(worker)
    average.load()
    for name, (down, up) in pairs.items():
        error = float((up @ down - products[name]).detach().norm() / products[name].norm())
        if mode == "freeze_a":
            assert error < 1e-6
        elif mode == "naive":
            assert error > 0.3
        else:  # the best approximation of rank 4 of a product of rank 8
            values = torch.linalg.svdvals(products[name])
            best = float(values[4:].square().sum().sqrt() / values.norm())
            assert error == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("mode", ["freeze_a", "svd", "naive"])
def test_a_training_averages_adapters_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    torch.manual_seed(0)
    model = build_lora_vit(init_lora_weights=False)
    start = {name: down.detach().clone() for name, (down, _) in lora_pairs(model).items()}
    factors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in start}
    add = ModelAverage.add

    def record(average: ModelAverage, worker: int) -> None:
        for name, (down, up) in lora_pairs(average.model).items():
            factors[name].append((down.detach().clone(), up.detach().clone()))
        add(average, worker)

    monkeypatch.setattr(ModelAverage, "add", record)
    options = {"method": "lolsgd", "workers": 3, "rounds": 1, "drop": 1, "max_steps": 3, "lora_average": mode}
    make_trainer(tmp_path, model, image_rows([0, 2, 3, 5] * 4), **options).train()
    for name, (down, up) in lora_pairs(model).items():
        assert len(factors[name]) == 3
        mean_down, mean_up = (torch.stack(parts).mean(dim=0) for parts in zip(*factors[name], strict=True))
        product = torch.stack([b @ a for a, b in factors[name]]).mean(dim=0)
        if mode == "svd":
            left, values, right = torch.linalg.svd(product)
            rank = len(down)
            torch.testing.assert_close(up @ down, left[:, :rank] * values[:rank] @ right[:rank], rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(down, mean_down, rtol=0, atol=1e-6)
            torch.testing.assert_close(up, mean_up, rtol=0, atol=1e-6)
        assert torch.equal(down, start[name]) == (mode == "freeze_a")
        if mode == "freeze_a":
            torch.testing.assert_close(up @ down, product, rtol=0, atol=1e-6)


def test_products_are_factored_with_missing_rank_filled_by_zeros() -> None:
    product = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    up, down = factor_product(product, 4)
    assert (up.shape, down.shape) == ((3, 4), (4, 5))
    torch.testing.assert_close(up @ down, product)


def test_one_worker_one_round_and_no_drop_is_plain_sgd_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_vit()
    plain = copy.deepcopy(model)
    rows = image_rows([0, 2, 3, 5] * 4)
    options = {"method": "lolsgd", "workers": 1, "rounds": 1, "drop": 0, "max_steps": 6, "seed": 3}
    make_trainer(tmp_path, model, rows, lr_scheduler_type="constant", max_grad_norm=0.0, **options).train()
    labels = np.array([row["labels"] for row in rows])
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    plain.train()
    for batch in draw_batches(labels, SEEN, 6, 4, seed=3, round_id=0, worker=0):
        optimizer.zero_grad()
        pixels = torch.stack([rows[index]["pixel_values"] for index in batch])
        plain(pixel_values=pixels, labels=torch.tensor(labels[batch])).loss.backward()
        optimizer.step()
    assert weights_equal(model, plain)


def test_schedule_runs_once_over_all_rounds_for_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    options = {"method": "lolsgd", "workers": 2, "rounds": 2, "drop": 1, "max_steps": 4, "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, build_vit(), image_rows([0, 2, 3, 5] * 4), **options)
    step = trainer.training_step

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert trainer.optimizer is not None
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", record)
    trainer.train()
    assert rates == pytest.approx([0.05, 0.0375, 0.05, 0.0375, 0.025, 0.0125, 0.025, 0.0125])
    assert trainer.state.global_step == 4


class _StopError(Exception):
    """Stands for a process that dies."""


def test_interrupted_adapter_training_is_resumed_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = image_rows([0, 2, 3, 5] * 4)
    options = {"method": "lolsgd", "workers": 2, "rounds": 3, "drop": 1, "max_steps": 6, "save_strategy": "epoch"}
    options |= {"lr_scheduler_type": "cosine"}

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build_lora_vit()

    whole = fresh()
    make_trainer(tmp_path / "whole", whole, rows, **options).train()
    trainer = make_trainer(tmp_path / "parts", fresh(), rows, **options)
    original = trainer.training_step
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third round, after two of 4 steps each
            raise _StopError
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", dying)
    with pytest.raises(_StopError):
        trainer.train()
    saved = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert saved == ["checkpoint-2", "checkpoint-4"]
    resumed = fresh()
    make_trainer(tmp_path / "parts", resumed, rows, **options).train(resume_from_checkpoint=True)
    assert weights_equal(resumed, whole)


def test_a_checkpoint_from_the_middle_of_a_round_is_refused(tmp_path: Path) -> None:
    rows = image_rows([0, 2, 3, 5] * 4)
    make_trainer(tmp_path, build_vit(), rows, max_steps=3, save_strategy="steps", save_steps=3).train()
    options = {"method": "lolsgd", "workers": 1, "rounds": 2, "max_steps": 8}
    trainer = make_trainer(tmp_path, build_vit(), rows, **options)
    with pytest.raises(ValueError, match=r"end of a round \(4 steps\), got step 3"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_what_lolsgd_cannot_do_is_refused(tmp_path: Path) -> None:
    rows = image_rows([0, 2, 3, 5] * 4)
    with pytest.raises(ValueError, match="`drop` from 0 to 3"):
        make_trainer(tmp_path, build_vit(), rows, method="lolsgd", drop=4)
    trainer = make_trainer(tmp_path, build_vit(), rows, method="lolsgd")
    trainer._train_labels = None
    with pytest.raises(ValueError, match="with a length"):
        run_lolsgd(trainer, None, None)
    options = {"method": "lolsgd", "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    with pytest.raises(ValueError, match="depends on the step alone"):
        make_trainer(tmp_path, build_vit(), rows, eval_dataset=rows, **options).train()


def test_evaluation_logs_and_callbacks_come_with_the_rounds(tmp_path: Path) -> None:
    rows = image_rows([0, 2, 3, 5] * 4)
    options = {"method": "lolsgd", "workers": 2, "rounds": 2, "max_steps": 4, "eval_strategy": "epoch"}
    options |= {"logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, build_vit(), rows, eval_dataset=image_rows([0, 1, 2, 3, 4, 5]), **options)
    output = trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 4]
    assert output.training_loss == pytest.approx(np.mean([entry["loss"] for entry in logged]), rel=1e-5)


DYING = """
import os, signal, sys
from pathlib import Path
from support import offline
offline.enter()
import torch
from transformers import TrainerCallback
from support.partial_models import build_resnet, image_rows
from support.partial_training import make_trainer

class Die(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
options = eval(sys.argv[2])
trainer = make_trainer(Path(sys.argv[1]), build_resnet(), image_rows([0, 2, 3, 5] * 4, size=16), **options)
trainer.add_callback(Die())
trainer.train()
"""


def test_a_killed_process_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    options = {"method": "lolsgd", "workers": 2, "rounds": 3, "drop": 1, "max_steps": 6, "save_strategy": "epoch"}
    command = [sys.executable, "-c", DYING, str(tmp_path / "parts"), repr(options)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = image_rows([0, 2, 3, 5] * 4, size=16)
    weights = []
    for folder, resume in (("whole", None), ("parts", True)):
        torch.manual_seed(0)
        model = build_resnet()
        make_trainer(tmp_path / folder, model, rows, **options).train(resume_from_checkpoint=resume)
        weights.append(model)
    assert weights_equal(*weights)
