"""The command does from the example's YAML file what the library does, and says what is wrong with a file."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from PIL import Image

from peft_ensemble.cli import main
from peft_ensemble.configuration_file import EnsembleFile, build_method, load_images, read_file
from support.tiny_ensembles import draw_images, save_backbones

EXAMPLE = Path(__file__).parents[2] / "packages" / "peft-ensemble" / "examples" / "ensemble.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the example names, and the ensemble fitted."""
    folder = tmp_path_factory.mktemp("cli")
    save_backbones(folder)
    sets = {"labeled": (12, 0, 60), "pool": (30, 1, 60), "test": (30, 2, 60), "shifted": (30, 3, 30)}
    for name, (count, seed, contrast) in sets.items():
        draw_images(count, seed, contrast).to_parquet(folder / f"{name}.parquet")
    shutil.copy(EXAMPLE, folder / "ensemble.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "ensemble.yaml", "--no-progress"]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(capsys, *words):
    capsys.readouterr()
    status = main([*words, "--no-progress"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_fit_goes_on_and_prints_the_selected_members(folder, capsys):
    weights = list(folder.glob("my-ensemble/members/*/adapter_model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in weights}
    status, out, _ = run(capsys, "fit", "ensemble.yaml")
    assert status == 0
    assert len(weights) == 8
    assert {path: path.stat().st_mtime_ns for path in weights} == before
    assert len(out.splitlines()) == 4
    assert "{'learning_rate': 0.01}" in out  # 1e-2 of the file is a number


def test_select_reports_regret_and_draws(folder, capsys):
    status, out, _ = run(capsys, "select", "ensemble.yaml", "--plots")
    assert status == 0
    assert out.count("regret") == 4
    table = json.loads((folder / "my-ensemble" / "reports" / "selection.json").read_text())
    for row in table.values():
        assert row["regret"] == pytest.approx(max(row["accuracies"]) - row["selected"])
    assert (folder / "my-ensemble" / "reports" / "selection-3.png").stat().st_size > 1000


def test_pseudo_labels_and_student(folder, capsys):
    status, out, _ = run(capsys, "pseudo-label", "ensemble.yaml")
    assert status == 0
    assert out.startswith("30 targets in my-ensemble")
    (path,) = (folder / "my-ensemble" / "pseudo_labels").glob("*mean_labels.parquet")
    assert set(Dataset.from_parquet(str(path))["n_members"]) == {4}
    status, out, _ = run(capsys, "self-train", "ensemble.yaml")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["student", "test", "shifted"]
    assert len(list((folder / "my-ensemble" / "students").glob("tiny-vit-ssf-*/adapter_model.safetensors"))) == 1


def test_diversity_and_wise_write_reports_and_figures(folder, capsys):
    reports = folder / "my-ensemble" / "reports"
    status, out, _ = run(capsys, "diversity", "ensemble.yaml", "--plots")
    assert status == 0
    assert "mean agreement" in out
    assert len(json.loads((reports / "diversity.json").read_text())["agreement"]) == 4
    assert (reports / "agreement.png").stat().st_size > 1000
    status, _, _ = run(capsys, "wise", "ensemble.yaml", "--plots")
    assert status == 0
    curves = json.loads((reports / "wise.json").read_text())
    assert [[row["alpha"] for row in curve] for curve in curves.values()] == [[0.0, 0.5, 1.0]] * 4
    assert set(next(iter(curves.values()))[0]) == {"alpha", "test", "shifted"}
    assert len(list(reports.glob("wise-*.png"))) == 4


def write(**changes):
    content = {**yaml.safe_load(EXAMPLE.read_text()), **changes}
    path = Path("changed.yaml")
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "a"}, "keys are not used .*'backbone'.*the keys are output_dir, backbones"),
        ({"methods": None}, "methods.*the keys are"),
        ({"methods": [{"peft_type": "loar"}]}, "peft_type must be one of .*adaptformer, .*got 'loar'"),
        ({"methods": [{"peft_type": "ssf", "rank": 2}]}, "ssf: .*unexpected keyword argument 'rank'"),
        ({"labeled": "nowhere.parquet"}, "a folder of class folders, a Parquet file or .*got 'nowhere.parquet'"),
        ({"label_names": None}, "expected a key `label_names`"),
        ({"output_dir": "elsewhere"}, "run `peft-ensemble fit` first"),
        ({"evaluation": None}, "expected a key `evaluation`"),
    ],
)
def test_a_wrong_file_is_one_line_on_stderr(capsys, changes, message):
    status, _, err = run(capsys, "diversity", write(**changes))
    assert status == 1
    assert err.count("\n") == 1
    assert err.startswith("peft-ensemble: ")
    assert re.search(message, err), err


@pytest.mark.parametrize("text", ["output_dir: [", "just words"])
def test_a_file_that_is_no_mapping_is_one_line_on_stderr(capsys, text):
    Path("broken.yaml").write_text(text)
    status, _, err = run(capsys, "fit", "broken.yaml")
    assert status == 1
    assert err.startswith("peft-ensemble: broken.yaml: ")
    assert err.count("\n") == 1
    assert "the keys are output_dir" in err


def test_a_curve_is_drawn_of_two_sets(capsys):
    status, _, err = run(capsys, "wise", write(evaluation={"test": "test.parquet"}), "--plots")
    assert status == 1
    assert "expected two labelled sets in `evaluation` to draw one against the other, got ['test']" in err


def test_methods_of_peft_and_ours_are_found_by_name():
    assert build_method({"peft_type": "VIS_SSF"}).peft_type.value == "VIS_SSF"
    assert build_method({"peft_type": "lora", "r": 3}).r == 3


def test_a_folder_of_classes_brings_its_names(tmp_path):
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / name / "one.png")
    assert load_images(str(tmp_path)).features["label"].names == ["cat", "dog"]


def test_example_has_every_key_and_its_numbers():
    assert set(yaml.safe_load(EXAMPLE.read_text())) == set(EnsembleFile.__dataclass_fields__)
    file = read_file(EXAMPLE)
    assert file.search == {"learning_rate": [1e-2, 1e-5]}
    assert file.build_arguments(True, num_train_epochs=2).num_train_epochs == 2
