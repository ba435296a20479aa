"""The command line on saved logits and on a model folder: JSON, files, exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessor

from partial_tune import ClassPartition, LogitCalibrator, average_logit_gap, seen_absent_sweep
from partial_tune.cli import main
from support.partial_models import NAMES, build_vit

PARTITION = ClassPartition(NAMES, (0, 2, 3))
GENERATOR = np.random.default_rng(1)
LOGITS = GENERATOR.normal(size=(60, 6)).astype(np.float32)
LABELS = GENERATOR.integers(0, 6, 60)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file({"logits": torch.tensor(LOGITS)}, tmp_path / "all.safetensors")
    np.save(tmp_path / "all.npy", LABELS)
    is_seen = np.isin(LABELS, PARTITION.seen)
    np.save(tmp_path / "train_logits.npy", LOGITS[is_seen])
    np.save(tmp_path / "train.npy", LABELS[is_seen])
    (tmp_path / "classes.json").write_text(PARTITION.to_json())
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    LogitCalibrator(PARTITION, 1.0).save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "calibrator.json").write_text('{"version": 1}')
    return tmp_path


TRAIN = ["--logits", "train_logits.npy", "--labels", "train.npy", "--partition", "classes.json"]
ALL = ["--logits", "all.safetensors", "--labels", "all.npy", "--partition", "classes.json"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(list(argv)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_fit_apply_and_report_on_logits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = run(capsys, "fit", *TRAIN, "--out", "cal")
    is_seen = np.isin(LABELS, PARTITION.seen)
    expected = average_logit_gap(LOGITS[is_seen], LABELS[is_seen], PARTITION).gamma
    assert fitted["gamma"] == LogitCalibrator.from_pretrained(folder / "cal").gamma == expected
    run(capsys, "apply", "cal", "--logits", "all.safetensors", "--out", "new.safetensors")
    shifted = load_file(folder / "new.safetensors")["logits"]
    torch.testing.assert_close(shifted, torch.tensor(LOGITS) + expected * PARTITION.absent_mask)
    report = run(capsys, "report", *ALL, "--calibrator", "cal", "--plot", "curve.png", "--out", "report.json")
    assert report["after"]["Y/Y"] == float((shifted.argmax(1).numpy() == LABELS).mean())
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_other_methods_on_logits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "fit", "--method", "1.5", "--partition", "classes.json", "--out", "a")["gamma"] == 1.5
    oracle = run(capsys, "fit", "--method", "oracle", *ALL, "--out", "b")
    assert oracle["uses_absent_labels"] is True
    matched = run(capsys, "fit", "--method", "source_match", "--prior", "0.5", *ALL, "--out", "c")
    assert seen_absent_sweep(LOGITS, LABELS, PARTITION).predicted_absent_rate(matched["gamma"]) == 0.5


def test_sweep_with_intervals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "sweep", *ALL, "--gamma", "0.5", "--bootstrap", "20")
    expected = seen_absent_sweep(LOGITS, LABELS, PARTITION)
    assert found["ausuc"] == expected.ausuc
    assert found["at"][1]["absent"] == expected.at(0.5).absent
    assert found["bootstrap"]["ausuc"] == list(expected.bootstrap(20)["ausuc"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sweep"], "Expected --logits and --labels and --partition."),
        (["fit", "--method", "best", "--out", "x"], "a number or one of alg"),
        (["fit", "--method", "pcv", *TRAIN, "--out", "x"], "use Python"),
        (["fit", *ALL, "--out", "x"], "not on the test set"),
        (["apply", "nowhere", "--logits", "all.safetensors", "--out", "x"], "nowhere"),
        (["sweep", "--logits", "all.npy", "--labels", "all.npy", "--partition", "classes.json"], "floating-point"),
        (
            ["sweep", "--logits", "classes.json", "--labels", "all.npy", "--partition", "classes.json"],
            ".npy or .safet",
        ),
        (["sweep", "--logits", "gone.npy", "--labels", "all.npy", "--partition", "classes.json"], "gone"),
        (["sweep", "--logits", "empty.npy", "--labels", "all.npy", "--partition", "classes.json"], "an empty file"),
        (["sweep", "--logits", "bad.safetensors", "--labels", "all.npy", "--partition", "classes.json"], "damaged"),
        (["sweep", "--logits", "all.safetensors", "--labels", "all.npy", "--partition", "list.json"], "is missing"),
        (["report", "--model", "model"], "Expected --data and --partition."),
        (["apply", "half", "--logits", "all.safetensors", "--out", "x"], "in calibrator.json"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(argv) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_pickled_arrays_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert main(["sweep", "--logits", "bad.npy", "--labels", "all.npy", "--partition", "classes.json"]) == 1
    assert "allow_pickle=False" in capsys.readouterr().err


def test_model_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    build_vit().save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
    for name in ("README.md", "chat_template.jinja", "spiece.model", "optimizer.pt", "model.safetensors.index.json"):
        (folder / "model" / name).write_text("{}")
    for index, name in enumerate(("ant", "cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (80 * index, 40 * number, 9)).save(folder / "images" / name / f"{number}.png")
    fitted = run(capsys, "fit", "--model", "model", "--data", "images", "--out", "cal")
    assert fitted["seen"] == ["ant", "cat", "dog"]
    assert fitted["fit"]["num_samples"] == 9
    run(capsys, "apply", "cal", "--model", "model", "--out", "new")
    assert (folder / "new" / "README.md").read_text() == "{}"  # the model's own
    assert sorted(path.name for path in (folder / "new").iterdir()) == [
        "README.md",
        "calibrator.json",
        "calibrator.safetensors",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "spiece.model",
    ]
    old, new = (AutoModelForImageClassification.from_pretrained(folder / name) for name in ("model", "new"))
    difference = new.classifier.bias - old.classifier.bias
    torch.testing.assert_close(difference, fitted["gamma"] * PARTITION.absent_mask.float())
    assert main(["apply", "cal", "--model", "model", "--out", "new"]) == 1
    assert "which exists" in capsys.readouterr().err
    assert main(["apply", "cal", "--model", "new", "--out", "twice"]) == 1
    assert "folded into its head" in capsys.readouterr().err


def test_sweep_and_report_of_a_model_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = build_vit().eval()
    model.save_pretrained(folder / "model")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(folder / "model")
    images, labels = [], [0, 1, 2, 3, 4, 5] * 2
    for number, label in enumerate(labels):
        path = folder / "images" / NAMES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(Image.new("RGB", (8, 8), (20 * number, 40 * label, 9)))
        images[-1].save(path)
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    expected = seen_absent_sweep(logits, torch.tensor(labels), PARTITION)
    inputs = ["--model", "model", "--data", "images", "--partition", "classes.json"]
    found = run(capsys, "sweep", *inputs, "--gamma", "0.5")
    assert found["ausuc"] == expected.ausuc
    assert run(capsys, "report", *inputs, "--gamma", "0.5")["after"]["U/Y"] == expected.at(0.5).absent
    Image.new("RGB", (8, 8)).save(folder / "flat.png")
    (folder / "flat").mkdir()
    (folder / "flat.png").rename(folder / "flat" / "a.png")
    assert main(["fit", "--model", "model", "--data", "flat", "--out", "x"]) == 1
    assert "one subfolder of images for each class" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    command = [str(Path(sys.executable).with_name("partial-tune")), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fit" in result.stdout
