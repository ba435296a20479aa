"""On a CUDA device as on the CPU: the sweep, the hook, the fold, LOLSGD."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from partial_tune import ClassPartition, LogitCalibrator, SweepState, diagnose, group_accuracies
from support.partial_models import NAMES, build_vit, image_inputs, image_rows
from support.partial_training import make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PARTITION = ClassPartition(NAMES, (0, 2, 3))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_vit().eval()


def test_the_sweep_and_the_accuracies_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 6, generator=generator), torch.randint(6, (500,), generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        state = SweepState(PARTITION)
        state.update(logits.to(device), labels.to(device))
        results.append(state.result().to_dict())
    assert results[0] == results[1]
    expected = group_accuracies(logits, labels, PARTITION, gamma=0.5)
    assert group_accuracies(logits.cuda(), labels, PARTITION, gamma=0.5) == expected


def test_a_calibrator_is_fitted_attached_and_folded(model: nn.Module) -> None:
    rows = image_rows([0, 2, 3] * 4)
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
    on_cpu = LogitCalibrator.fit(model, [batch], PARTITION)
    moved = copy.deepcopy(model).cuda()
    calibrator = LogitCalibrator.fit(moved, [batch], PARTITION)
    assert calibrator.gamma == pytest.approx(on_cpu.gamma, abs=1e-4)
    inputs = {name: value.cuda() for name, value in image_inputs().items()}
    with torch.no_grad():
        before = moved(**inputs).logits
        with calibrator.attach(moved):
            torch.testing.assert_close(moved(**inputs).logits, before + calibrator.offset.cuda())
        calibrator.fold_(moved)
        torch.testing.assert_close(moved(**inputs).logits, before + calibrator.offset.cuda())


def test_diagnosis_runs_models_where_they_are(model: nn.Module) -> None:
    rows = image_rows([0, 1, 2, 3, 4, 5] * 4)
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
    assert diagnose(model, copy.deepcopy(model).cuda(), [batch], PARTITION).verdict == "none"


def test_lolsgd_trains_on_the_device(tmp_path: Path, model: nn.Module) -> None:
    options = {"method": "lolsgd", "workers": 2, "rounds": 2, "drop": 1, "use_cpu": False}
    trainer = make_trainer(tmp_path, model, image_rows([0, 2, 3, 5] * 4), **options)
    trainer.train()
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert trainer.state.global_step == 4
