"""The report page and the command."""

import json
import re

import pytest
from PIL import Image

import hf_diorama
from hf_compbench import build_report, save_report, score
from hf_compbench.cli import main
from hf_compbench.runners import HeuristicRunner, run_model

DATA = ["--num-pairs", "4"]


@pytest.fixture(scope="module")
def left(mini):
    return score(mini, run_model(mini, HeuristicRunner("left")), num_bootstrap=100)


def test_page_is_self_contained_and_shows_both_images_of_contradictions(mini, left, tmp_path):
    save_report(tmp_path / "r.html", mini, left, title="Always <left>", baselines={"again": left})
    page = (tmp_path / "r.html").read_text()
    assert "Always &lt;left&gt;" in page
    assert page.count("data:image/png;base64,") == 12  # six pairs
    assert "<th>again</th>" in page
    assert page.count("<rect") == len([column for column in left.columns.values() if "bias" in column])
    assert all(code in page for code in left.columns)
    assert 'src="http' not in page
    assert build_report(mini, left, num_examples=0).count("<figure>") == 1


def test_markdown_page(mini, left, tmp_path):
    save_report(tmp_path / "r.md", mini, left)
    text = (tmp_path / "r.md").read_text()
    assert "| MS-attribute" in text
    assert "| quality |" in text
    bars = [line for line in text.splitlines() if line.startswith("MS-") and "|" in line]
    assert [line for line in bars if line.startswith("MS-state")] == [f"MS-state        +50.0 {'#' * 20}|"]
    links = re.findall(r"!\[image_[12]\]\(([^)]*)\)", text)
    assert len(links) == 12
    assert {Image.open(tmp_path / link).size for link in links} == {(64, 64)}
    assert text.count("with the images exchanged: Left.") == 6
    later = save_report(tmp_path / "b.md", mini, left, baselines={"again": left}, num_examples=0)
    assert later is None
    assert "again" in (tmp_path / "b.md").read_text()
    with pytest.raises(ValueError, match=r"\.html or \.md, got 'r\.pdf'"):
        save_report(tmp_path / "r.pdf", mini, left)


def test_run_and_score_commands(tmp_path, capsys):
    store = str(tmp_path / "r.jsonl")
    assert main(["run", "heuristic:left", "--store", store, *DATA]) == 0
    report, out = tmp_path / "r.html", tmp_path / "scores.json"
    assert main(["score", store, *DATA, "--report", str(report), "--out", str(out)]) == 0
    assert "MS-spatiality" in capsys.readouterr().out
    assert json.loads(out.read_text())["columns"]["MS-state"]["pair_accuracy"] == 0
    assert report.exists()


@pytest.fixture
def made(mini, monkeypatch):
    """The set is there already: making it takes seconds for each command."""
    monkeypatch.setattr("hf_compbench.cli.load_compbench", lambda *args, **options: mini)


def test_score_picks_a_run_and_shows_baselines(made, tmp_path, capsys):
    store = tmp_path / "r.jsonl"
    for rule in ("left", "right"):
        assert main(["run", f"heuristic:{rule}", "--store", str(store), *DATA]) == 0
    assert main(["score", str(store), *DATA]) == 2
    assert "two to row" in capsys.readouterr().err
    assert main(["score", str(store), *DATA, "--model", "heuristic:left"]) == 0
    assert main(["score", str(store), *DATA, "--model", "heuristic:none"]) == 2
    assert "found none" in capsys.readouterr().err
    responses = [json.loads(line) for line in store.read_text().splitlines()]
    for rule in ("left", "right"):
        own = [json.dumps(one) for one in responses if one["model"] == f"heuristic:{rule}"]
        (tmp_path / f"{rule}.jsonl").write_text("\n".join(own) + "\n")
    baseline = f"always Right={tmp_path / 'right.jsonl'}"
    assert main(["score", str(tmp_path / "left.jsonl"), *DATA, "--baseline", baseline]) == 0
    assert "| always Right |" in capsys.readouterr().out


def test_check_batch_is_for_models(made, tmp_path, capsys):
    run = ["run", "--store", str(tmp_path / "r.jsonl"), *DATA, "--check-batch", "3"]
    assert main([*run, "heuristic:left"]) == 2
    assert "compares batches of a model, got 'heuristic:left'" in capsys.readouterr().err
    nano = [
        hf_diorama.model_path("llava-nano"),
        "--chat-template",
        "plain",
        "--prompt",
        "nano",
        "--layout",
        "text_first",
    ]
    assert main([*run, *nano]) == 0
    assert "0 of 3 replies change" in capsys.readouterr().out


def test_released_predictions_are_scored_beside_what_was_published(tmp_path, capsys):
    labels = [
        {"image_1": f"celeba/{i}.jpg", "image_2": f"celeba/{i + 500}.jpg", "question": "Which person smiles more?"}
        | {"answer": ("Left", "Right")[i % 2]}
        for i in range(50)
    ]
    (tmp_path / "celebA_label.json").write_text(json.dumps(labels))
    path = tmp_path / "0_141_gpt.json"
    path.write_text(json.dumps([{**label, "gpt_answer": "Left"} for label in labels]))
    data = ["--config", "all", "--split", "official_test", "--path", str(tmp_path)]
    assert main(["score", str(path), "--predictions", "celeba", "--paper", *data]) == 0
    out = capsys.readouterr().out
    assert re.search(r"CE: \d\d\.\d here, 91\.8 from the review-time files", out)
    assert "question_prior" in out
    assert main(["audit", str(tmp_path), "--split", "official"]) == 0
    assert "CE: 40 test and 10 val pairs; at review time 1176 and 295" in capsys.readouterr().out


def test_build_and_audit_commands(tmp_path, capsys):
    labels = [
        {"image_1": f"celeba/{i}.jpg", "image_2": f"celeba/{i + 500}.jpg", "question": question, "answer": answer}
        for i, (question, answer) in enumerate([("Which smiles more?", "Left"), ("Which is older?", "Right")] * 100)
    ]
    (tmp_path / "celebA_label.json").write_text(json.dumps(labels))
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "emotion: official_test 160, official_val 40" in capsys.readouterr().out
    report = tmp_path / "audit.json"
    assert main(["audit", str(tmp_path / "out"), "--split", "official", "--out", str(report)]) == 1
    failed = {check["name"] for check in json.loads(report.read_text())["checks"] if not check["passed"]}
    assert failed == {"question prior"}
    assert main(["audit", str(tmp_path / "out"), "--out", str(tmp_path / "audit.html")]) == 0


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main(["score", str(tmp_path / "none.jsonl"), *DATA]) == 2
    assert main(["build", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("hf-compbench: Expected") == 2
