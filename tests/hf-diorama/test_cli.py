"""The command `hf-diorama`."""

from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

import hf_diorama as dio
from hf_diorama.cli import main
from hf_diorama.contact_sheet import build_contact_sheet


@pytest.mark.parametrize("world", ["creatures", "scenes"])
def test_render_parquet_loads_as_a_dataset(world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows"
    assert main(["render", world, "--n", "3", "--seed", "2", "--image-size", "32", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"3 rows in {out}\n"
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    expected = dio.load(world, n=3, seed=2, image_size=32)
    assert loaded.features == expected.features
    assert [row["image"].tobytes() for row in loaded] == [row["image"].tobytes() for row in expected]
    card = DatasetCard((out / "README.md").read_text(encoding="utf-8"))
    assert (card.data.license, card.data.pretty_name) == ("apache-2.0", f"hf-diorama {world}")
    assert '"seed": 2' in card.text


def test_render_imagefolder_loads_as_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "rows"
    arguments = ["render", "creatures", "--n", "3", "--split", "test", "--format", "imagefolder", "--out", str(out)]
    assert main(arguments) == 0
    loaded = datasets.load_dataset(str(out), split="test", cache_dir=str(tmp_path / "cache"))
    expected = dio.load("creatures", "test", n=3)
    for a, b in zip(loaded, expected, strict=True):
        assert a["image"].tobytes() == b["image"].tobytes()
        assert a["part_masks"].tobytes() == b["part_masks"].tobytes()
        assert a["parts"] == b["parts"]
        assert a["species"] == b["species"]
        assert a["captions"] == b["captions"]


def test_show_writes_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sheets" / "creatures.png"
    assert main(["show", "creatures", "--n", "5", "--image-size", "64", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    with Image.open(path) as sheet:
        assert sheet.size == (6 + 5 * 70, 6 + 64 + 14 + 6)
        assert sheet.crop((6, 6, 70, 70)).tobytes() == dio.render("creatures", 0)["image"].tobytes()
    assert list(path.parent.iterdir()) == [path]


def test_models_lists_name_and_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == dio.list_models()
    assert all(Path(path, "config.json").is_file() for _, path in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "creature"], "creatures, scenes"),
        (["show", "digits"], "creatures, scenes"),
        (["show", "creatures", "--n", "0"], "--n must be at least 1"),
        (["show", "creatures", "--image-size", "0"], "32 to 512, got 0"),
        (["show", "creatures", "--split", "dev", "--out", "x.png"], "heldout"),
        (["render", "creatures", "--n", "0", "--out", "rows"], "from 1, got 0"),
        (["render", "creatures", "--image-size", "9", "--out", "rows"], "32 to 512"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("hf-diorama: ")
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_render_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows").mkdir()
    assert main(["render", "creatures", "--n", "1", "--out", str(tmp_path / "rows")]) == 1
    assert "does not exist yet" in capsys.readouterr().err


def test_failed_render_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", fail)
    assert main(["render", "creatures", "--n", "1", "--image-size", "32", "--out", str(tmp_path / "rows")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["render", "creatures"])
    assert error.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_contact_sheet_refuses_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        build_contact_sheet([])
    with pytest.raises(ValueError, match="caption for each of 1"):
        build_contact_sheet([Image.new("RGB", (4, 4))], captions=["a", "b"])
