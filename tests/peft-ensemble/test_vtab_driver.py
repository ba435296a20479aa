"""The driver of the study's table: its layout, its protocol, its command, and the verdicts of the few-shot cases."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from support.tiny_ensembles import draw_images, save_backbones

BENCHMARKS = Path(__file__).parents[2] / "benchmarks-hf"


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def cell(method, task, group, accuracy, parameters):
    return {"method": method, "task": task, "group": group, "accuracy": accuracy, "parameters": parameters}


def test_layout_is_tasks_then_groups_then_their_mean():
    import vtab

    cells = [
        cell("ssf", "late", "Structured", 0.5, 2000),
        cell("ssf", "b", "Natural", 0.6, 2000),
        cell("ssf", "a", "Natural", 0.8, 2100),
        cell("lora", "late", "Structured", 0.25, 5000),
        cell("lora", "b", "Natural", 0.9, 5000),
        cell("lora", "a", "Natural", 0.8, 5000),
    ]
    lines = vtab.format_table(cells).splitlines()
    assert lines[0] == "| method | a | b | late | Natural | Structured | mean of groups | params (M) |"
    assert lines[2] == "| ssf | **80.0** | 60.0 | **50.0** | 70.0 | **50.0** | **60.0** | 0.002 |"
    assert lines[3] == "| lora | **80.0** | **90.0** | 25.0 | **85.0** | 25.0 | 55.0 | 0.005 |"


def test_tuning_never_sees_the_test_set(monkeypatch):
    import vtab

    seen = []

    def fake(backbone, method, values, task, recipe, train, test):
        seen.append((values["learning_rate"], set(train["id"]), set(test["id"])))
        return {1e-3: 0.5, 1e-2: 0.75}[values["learning_rate"]], 7

    monkeypatch.setattr(vtab, "train_and_measure", fake)
    task = vtab.build_task("t", "Natural", draw_images(10, seed=0), draw_images(6, seed=1))
    found = vtab.run_cell("b", "ssf", task, vtab.Recipe(weight_decays=(0.0,)))
    train, test = set(task.train["id"]), set(task.test["id"])
    assert [(rate, len(fit), len(val)) for rate, fit, val in seen] == [(1e-3, 8, 2), (1e-2, 8, 2), (1e-2, 10, 6)]
    assert seen[0][1] | seen[0][2] == train
    assert not seen[0][1] & seen[0][2]
    assert seen[-1][1:] == (train, test)
    assert found["chosen"]["learning_rate"] == 1e-2


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # peft's own, about its own LN-tuning
def test_command_writes_cells_and_the_table_and_goes_on(tmp_path, monkeypatch, capsys):
    import vtab

    backbone, _ = save_backbones(tmp_path)
    for name, count, seed in (("train", 15, 0), ("test", 12, 1)):
        draw_images(count, seed).to_parquet(tmp_path / f"{name}.parquet")
    tasks = [
        {"name": "tints", "group": "Natural", **{key: str(tmp_path / f"{key}.parquet") for key in ("train", "test")}}
    ]
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tasks))
    words = ["--backbone", backbone, "--tasks", str(tmp_path / "tasks.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["vtab.py", *words, "--methods", "linear", "ln", "--epochs", "1"])
    vtab.main()
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| linear", "| ln"]
    assert json.loads((tmp_path / "out" / "linear-tints.json").read_text())["parameters"] == 0
    # 2 blocks with 2 norms, and the final one, of width 32: weight and bias.
    assert json.loads((tmp_path / "out" / "ln-tints.json").read_text())["parameters"] == 5 * 64
    monkeypatch.setattr(vtab, "run_cell", None)
    vtab.main()


def test_wrong_tasks_are_one_line(tmp_path, monkeypatch):
    import vtab

    (tmp_path / "tasks.yaml").write_text("- {name: a, group: Natural, train: nowhere, test: nowhere}")
    words = ["--backbone", "b", "--tasks", str(tmp_path / "tasks.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["vtab.py", *words])
    with pytest.raises(SystemExit, match="a folder of class folders"):
        vtab.main()
    with pytest.raises(ValueError, match="group must be one of Natural, Specialized, Structured, got 'Other'"):
        vtab.build_task("t", "Other", draw_images(3, seed=0), draw_images(3, seed=1))


@pytest.mark.parametrize(
    ("low", "high", "sign", "verdict"),
    [
        (0.01, 0.03, 1, "holds"),
        (-0.03, -0.01, 1, "does not hold"),
        (-0.03, -0.01, -1, "holds"),
        (-0.01, 0.03, 1, "open"),
        (float("nan"), float("nan"), 1, "open"),
        (0.01, 0.03, 0, "above"),
    ],
)
def test_verdicts_follow_from_intervals(low, high, sign, verdict):
    import few_shot

    assert few_shot.judge(low, high, sign) == verdict


def test_intervals_are_student_t():
    import numpy as np

    import few_shot

    mean, low, high = few_shot.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert high - mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
