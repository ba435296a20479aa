"""Files in, typed results out: the released JSON forms, the command, the folder of a Space."""

import json

import evaluate
import pytest

from hf_ava_bench import export_space, score_files
from hf_ava_bench.cli import main
from hf_ava_bench.formats import read_entries, split_conversation, to_conversation, to_question, write_json

TRUTH = [
    {"question_id": "a", "answer": "4", "dataset_type": "LVIS"},
    {"question_id": "b", "answers": [{"answer": "7"}]},
    {"question_id": "c", "text": "12"},
]
PREDICTIONS = [
    {"question_id": "b", "prompt": "How many?", "text": "many", "answer_id": "x", "model_id": "m", "metadata": {}},
    {"question_id": "a", "prompt": "How many?", "text": "5", "answer_id": "x", "model_id": "m", "metadata": {}},
]


@pytest.fixture
def files(tmp_path):
    write_json(tmp_path / "predictions.json", PREDICTIONS)
    write_json(tmp_path / "truth.json", TRUTH)
    return tmp_path


@pytest.mark.parametrize("form", ["list", "annotations", "by id"])
def test_all_three_forms_of_ground_truth(files, form):
    by_id = {entry["question_id"]: {k: v for k, v in entry.items() if k != "question_id"} for entry in TRUTH}
    write_json(files / "truth.json", {"list": TRUTH, "annotations": {"annotations": TRUTH}, "by id": by_id}[form])
    result = score_files(files / "predictions.json", files / "truth.json", ability="counting", values=True)
    (score,) = result["scores"]
    assert (score["n"], score["n_missing"], score["n_unparsable"]) == (3, 1, 1)
    assert dict(zip(score["ids"], score["values"], strict=True)) == {"a": 0.25, "b": 1.0, "c": 1.0}
    assert result["schema"] == "hf-ava-bench/result/1"
    assert set(result["files"]) == {str(files / "predictions.json"), str(files / "truth.json")}


def test_entries_may_name_their_abilities(tmp_path):
    rows = [
        {"id": 1, "ability": "Counting", "prediction": "5", "answer": "4"},
        {"id": 2, "ability": "rel_depth", "text": "red", "answer": "car",
         "question": "Which is closer, the car (red box) or the tree (blue box)?"},
        {"id": 3, "ability": "scene", "text": "2", "answer": "sea", "options": ["desert", "sea"]},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = score_files(tmp_path / "rows.jsonl")["scores"]
    assert [(score["ability"], score["value"]) for score in scores] == [
        ("counting", 0.25),
        ("rel_depth", 1.0),
        ("scene", 1.0),
    ]


def test_prompts_of_predictions_tell_what_is_asked_and_sources_are_told_apart(tmp_path):
    prompt = "Which is closer, the car (red box) or the tree (blue box)?"
    write_json(tmp_path / "p.json", [{"question_id": i, "prompt": prompt, "text": "red"} for i in (1, 2)])
    truth = [{"question_id": 1, "text": "car", "dataset_type": "KITTI"}, {"question_id": 2, "text": "tree"}]
    write_json(tmp_path / "t.json", truth)
    (score,) = score_files(tmp_path / "p.json", tmp_path / "t.json", ability="rel_depth")["scores"]
    assert score["value"] == 0.5
    assert score["sources"]["KITTI"] == {"n": 1, "accuracy": 1.0}


def test_a_result_without_any_answer_is_json_all_the_same(tmp_path, capsys):
    write_json(tmp_path / "p.json", [{"id": 1, "text": "many", "answer": "4"}])
    out = tmp_path / "r.json"
    arguments = ["score", str(tmp_path / "p.json"), "--ability", "counting", "--unparsable", "skip"]
    assert main([*arguments, "--values", "--out", str(out)]) == 0
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["scores"][0]["value"] is None
    assert "mae_gt no answer counted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"text": "5"}], "Expected `question_id` or `id` in entry 0"),
        ([{"id": 1, "text": "5"}, {"id": "1", "text": "6"}], "comes twice"),
        (["5"], "Expected `question_id` or `id` in entry 0"),
        ({"annotations": 5}, "Expected a list of entries"),
        ([{"id": "zzz", "text": "5"}], "1 predictions of .* are not in .*, the first is 'zzz'"),
        ([{"id": "a", "answer": "5"}], "Expected a prediction"),
    ],
    ids=range(6),
)
def test_bad_files_give_one_clear_error(files, data, message):
    write_json(files / "predictions.json", data)
    with pytest.raises(ValueError, match=message):
        score_files(files / "predictions.json", files / "truth.json", ability="counting")


def test_conversations_and_questions_round_trip():
    item = {"id": "7", "question": "How many?", "answer": "6", "source": "LVIS"}
    entry = to_conversation(item, "Counting/images/7.jpg")
    assert split_conversation(entry["conversations"]) == ("How many?", "6")
    assert entry["conversations"][0]["value"] == "<image>\nHow many?"
    assert read_entries([to_question(item, "Counting/images/7.jpg")])["7"]["text"] == "How many?"


def test_command_writes_a_result(files, capsys):
    out = files / "result.json"
    arguments = ["score", str(files / "predictions.json"), "--ground-truth", str(files / "truth.json")]
    assert main([*arguments, "--ability", "Counting", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["scores"][0]["value"] == pytest.approx(0.75)
    assert (
        "counting: mae_gt 0.7500 (lower is better; n 3, coverage 33.3%, unparsable 1, missing 1)"
        in capsys.readouterr().out
    )
    assert main(arguments) == 1
    assert "Expected the ability" in capsys.readouterr().err


def test_space_is_a_folder_that_evaluate_loads(tmp_path):
    folder = export_space("giou", tmp_path / "giou")
    assert evaluate.load(str(folder)).compute(predictions=["[0,0,1,1]"], references=["[0,0,1,1]"])["giou"] == 1
    assert "launch_gradio_widget" in (folder / "app.py").read_text()
    with pytest.raises(FileExistsError, match="holds something"):
        export_space("giou", folder)
