"""The demo does its work on a few questions, on renders and on photos, and refuses what it cannot use in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets", reason="the demo asks questions of hf-diorama, which is not installed")
pytest.importorskip("hf_diorama", reason="the demo asks questions of hf-diorama, which is not installed")

from PIL import Image  # noqa: E402

import hf_diorama  # noqa: E402

DEMO = Path(__file__).resolve().parents[2] / "packages" / "meda-cache" / "examples" / "demo.py"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_photos(folder: Path, names: list[str]) -> Path:
    """A folder as that of CIFAR-10: pictures of one color, one of each class."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures = [Image.new("RGB", (32, 32), (25 * number, 100, 50)) for number in range(len(names))]
    ds = datasets.Dataset.from_dict({"img": pictures, "label": list(range(len(names)))}, features=features)
    ds.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(DEMO), *options], capture_output=True, text=True, check=False)


def test_demo_asks_about_renders_and_photos(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, CIFAR10)
    sizes = ["--num-questions", "7", "--num-images", "2"]
    result = run_demo("--out", str(tmp_path / "out"), "--data-dir", str(photos), *sizes)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert [one["title"] for one in written["sets"]] == ["rendered images", "real photos"]
    for found in written["sets"]:
        full, *compressed = found["settings"]
        assert full["num_questions"] == 7
        assert all(setting["stored_bytes"] < 0.5 * full["stored_bytes"] for setting in compressed)
        equal, paper = compressed[0]["layers"], compressed[2]["layers"]
        spread = [
            max(budgets) - min(budgets) for budgets in ([one["budget"] for one in some] for some in (equal, paper))
        ]
        assert spread[0] <= 1 < spread[1]
        total = sum(layer["kept_text"] + layer["kept_visual"] for layer in paper)
        assert total == pytest.approx(sum(layer["budget"] for layer in paper))
    section = (tmp_path / "out" / "section.html").read_text(encoding="utf-8")
    assert section.count("<img ") >= 2 * 4 * 4 * 2  # sets, questions, caches, images
    for name in ("full cache", "keep_ratio 0.2", "keep_ratio 0.1", "meda, keep_ratio 0.2"):
        assert f"<td>{name}</td>" in section


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-questions", "0"], "--num-questions of at least 1"),
        (["--data-dir", "no-such-folder"], "an existing folder or a Hub id"),
    ],
)
def test_wrong_options_get_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    result = run_demo("--out", str(tmp_path), *options)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]


def test_photos_of_other_classes_are_refused(tmp_path: Path) -> None:
    """A word of the vocabulary that is no class of CIFAR-10, such as a color, is none of the answers."""
    photos = write_photos(tmp_path, ["red", "bird"])
    result = run_demo("--out", str(tmp_path / "out"), "--data-dir", str(photos))
    assert result.returncode == 1
    assert "classes of CIFAR-10, which llava-nano knows, got ['red']" in result.stderr.splitlines()[-1]
    assert hf_diorama.load("cifar10", split="test", data_dir=str(photos)).num_rows == 2
