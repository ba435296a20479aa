"""The report page and the command."""

import json

import pytest

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
