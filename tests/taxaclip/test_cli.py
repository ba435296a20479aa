import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

from support.taxa import TAXA
from taxaclip import RANKS, TaxonClassifier, TaxonIndex, cli
from taxaclip.provenance import hash_model
from taxaclip.taxonomy import sort_taxa
from taxaclip.writing import read_taxa

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [str(GOLDEN / f"img_{number}.png") for number in range(4)]


@pytest.fixture(scope="module")
def folders(clip: tuple[CLIPModel, CLIPProcessor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, the taxa as CSV, and an index made from them on the command line."""
    root = tmp_path_factory.mktemp("cli")
    model, processor = clip
    model.save_pretrained(root / "model")
    processor.image_processor.save_pretrained(root / "model")
    processor.tokenizer.save_pretrained(root / "model")
    lines = [",".join([*RANKS, "common_name"]), *(",".join([*taxon.names, taxon.common_name]) for taxon in TAXA)]
    (root / "taxa.csv").write_text("\n".join(lines))
    arguments = ["index", str(root / "taxa.csv"), str(root / "index"), "--model", str(root / "model")]
    assert cli.main([*arguments, "--dtype", "float32"]) == 0
    return {name: str(root / name) for name in ("model", "taxa.csv", "index")}


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_those_of_the_class(
    folders: dict[str, str], clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["predict", *IMAGES, "--model", folders["model"], "--index", folders["index"], "--output", str(out)]
    assert cli.main([*arguments, "--rank", "genus", "--within", "Chordata", "--top-k", "2"]) == 0
    classifier = TaxonClassifier(*clip, TaxonIndex.from_pretrained(folders["index"]))
    expected = list(classifier.predict(IMAGES, rank="genus", within=["Chordata"], top_k=2))
    for line, name, rows in zip(read_rows(out), IMAGES, expected, strict=True):
        assert line["file_name"] == name
        assert [row["genus"] for row in line["rows"]] == [row["genus"] for row in rows]
        assert [row["score"] for row in line["rows"]] == pytest.approx([row["score"] for row in rows], abs=1e-6)


def test_labels_folders_and_embeddings(folders: dict[str, str], tmp_path: Path) -> None:
    common = [str(GOLDEN), "--model", folders["model"]]
    assert cli.main(["predict", *common, "--labels", "bee, wasp", "--output", str(tmp_path / "rows.jsonl")]) == 0
    lines = read_rows(tmp_path / "rows.jsonl")
    assert [line["file_name"] for line in lines] == IMAGES
    assert {row["classification"] for line in lines for row in line["rows"]} == {"bee", "wasp"}
    assert cli.main(["embed", *common, "--output", str(tmp_path / "embeds.safetensors")]) == 0
    with safe_open(tmp_path / "embeds.safetensors", "pt") as file:
        embeds, names = file.get_tensor("embeddings"), json.loads(file.metadata()["names"])
    assert names == IMAGES
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(4))


def test_a_run_goes_on_after_half_a_line(folders: dict[str, str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    arguments = ["predict", *IMAGES, "--model", folders["model"], "--index", folders["index"], "--batch-size", "1"]
    assert cli.main([*arguments, "--output", str(whole)]) == 0
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:2]) + lines[2][:30])
    assert cli.main([*arguments, "--output", str(cut)]) == 0
    assert cut.read_text() == whole.read_text()


def run_until(is_far: Callable[[], bool], arguments: list[str]) -> None:
    """Runs the command line in a process of its own and kills it when it has come far enough."""
    process = subprocess.Popen([sys.executable, "-m", "taxaclip.cli", *arguments], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not is_far():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_far()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(200):
        (images / f"{number:03d}.png").write_bytes(Path(IMAGES[number % 4]).read_bytes())
    return images


@pytest.mark.slow
def test_a_killed_prediction_goes_on(folders: dict[str, str], many: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["predict", str(many), "--model", folders["model"], "--index", folders["index"]]
    arguments += ["--batch-size", "1", "--output", str(out)]
    run_until(lambda: out.exists() and out.read_text().count("\n") >= 3, arguments)
    before = out.read_text()
    assert before.count("\n") < 200
    assert cli.main(arguments) == 0
    lines = read_rows(out)
    assert [Path(str(line["file_name"])).stem for line in lines] == [f"{number:03d}" for number in range(200)]
    assert out.read_text().startswith(before[: before.rfind("\n") + 1])


@pytest.mark.slow
def test_a_killed_embedding_goes_on(folders: dict[str, str], many: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "embeds.safetensors", tmp_path / ".embeds.safetensors.parts"
    arguments = ["embed", str(many), "--model", folders["model"], "--batch-size", "1", "--output"]
    run_until(lambda: len(list(parts.glob("*.safetensors"))) >= 3, [*arguments, str(out)])
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert len(done) < 200
    assert not out.exists()
    assert cli.main([*arguments, str(out)]) == 0
    assert not parts.exists()
    assert cli.main([*arguments, str(tmp_path / "whole.safetensors")]) == 0
    with safe_open(out, "pt") as found, safe_open(tmp_path / "whole.safetensors", "pt") as expected:
        assert found.metadata() == expected.metadata()
        assert torch.equal(found.get_tensor("embeddings"), expected.get_tensor("embeddings"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_the_rows_of_json_lines(suffix: str, folders: dict[str, str], tmp_path: Path) -> None:
    arguments = ["predict", "--model", folders["model"], "--index", folders["index"], "--top-k", "2"]
    lines, table = tmp_path / "rows.jsonl", tmp_path / f"rows{suffix}"
    assert cli.main([*arguments, *IMAGES, "--output", str(lines)]) == 0
    assert cli.main([*arguments, *IMAGES[:2], "--output", str(table)]) == 0
    assert cli.main([*arguments, *IMAGES, "--output", str(table)]) == 0
    expected = [row for line in read_rows(lines) for row in line["rows"]]  # type: ignore[attr-defined]
    found = pq.read_table(table) if suffix == ".parquet" else pa_csv.read_csv(table)
    assert [(row["file_name"], row["species"]) for row in found.to_pylist()] == [
        (row["file_name"], row["species"]) for row in expected
    ]
    assert found["score"].to_pylist() == pytest.approx([row["score"] for row in expected], abs=1e-6)


def test_log_says_what_made_the_rows(folders: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "run.json"
    arguments = ["predict", *IMAGES, "--model", folders["model"], "--index", folders["index"], "--log", str(log)]
    assert cli.main([*arguments, "--output", str(tmp_path / "rows.csv")]) == 0
    entries = json.loads(log.read_text())
    files = sorted(path for path in Path(folders["index"]).iterdir() if path.name != "README.md")
    lines = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    assert entries["index_sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert len(entries["processor_sha256"]) == 64
    assert entries["model_sha256"] == hash_model(CLIPModel.from_pretrained(folders["model"]))
    assert entries["versions"]["torch"] == importlib.metadata.version("torch")
    assert (entries["command"], entries["arguments"]["images"]) == ("predict", IMAGES)
    assert (entries["num_images"], entries["num_done_before"]) == (4, 0)
    assert entries["started"] <= entries["ended"]
    assert "error" not in entries
    assert cli.main([*arguments, "--output", str(tmp_path / "rows.csv"), "--within", "Nowhere"]) == 2
    assert "Nowhere" in json.loads(log.read_text())["error"]


def test_taxa_are_listed_as_the_csv_they_came_from(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["taxa", folders["index"], "--output", str(tmp_path / "taxa.csv")]) == 0
    assert read_taxa(tmp_path / "taxa.csv") == [TAXA[i] for i in sort_taxa(TAXA)]
    capsys.readouterr()
    assert cli.main(["taxa", folders["index"], "--rank", "class", "--within", "Chordata"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kingdom,phylum,class,common_name,num_taxa",
        "Animalia,Chordata,,,1",
        "Animalia,Chordata,Aves,,1",
        "Animalia,Chordata,Mammalia,,2",
    ]


def test_nothing_is_overwritten_by_mistake(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    arguments = ["predict", *IMAGES, "--model", folders["model"], "--index", folders["index"]]
    assert cli.main([*arguments, "--output", str(tmp_path / "notes.jsonl")]) == 2
    assert "line 1" in capsys.readouterr().err
    assert (tmp_path / "notes.jsonl").read_text() == "my notes\n"
    (tmp_path / "notes.jsonl").write_text("no line end")
    assert cli.main([*arguments, "--output", str(tmp_path / "notes.jsonl")]) == 2
    assert (tmp_path / "notes.jsonl").read_text() == "no line end"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["predict", *IMAGES, "--output", "x.jsonl"], "either --index or --labels"),
        (["predict", *IMAGES, "--labels", "a", "--output", "x.txt"], ".parquet"),
        (["predict", "gone.png", "--labels", "a", "--output", "x.jsonl"], "there is no gone.png"),
        (["embed", "gone", "--output", "x.safetensors"], "there is no gone"),
        (["index", "bad.csv", "x"], "order"),
        (["index", "empty.csv", "x"], "line 2"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    change: list[str],
    message: str,
    folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("kingdom,phylum\nA,B\n")
    Path("empty.csv").write_text(",".join(RANKS) + "\n,,,,,,\n")
    assert cli.main([*change, "--model", folders["model"]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
