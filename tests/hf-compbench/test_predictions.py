"""The release in every legacy form: its counts, and its prediction files, which are joined to the labels by id.

The tests at the end run where a user names a copy of the release in the environment.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from hf_compbench import load_compbench, read_predictions, score
from hf_compbench.legacy import find_label_files
from hf_compbench.loading import build_splits, read_label_folder
from hf_compbench.published import ACCURACIES, COUNTS, compare_counts
from hf_compbench.sources import SOURCES, column_of, group_by_column

# Section 1 of the specification: column -> pairs in all, pairs of the test split.
PUBLISHED = """
ST-a 183 146 | FA 2435 1948 | VA-a 893 714 | CU 870 696 | WF 946 756 | MB 927 741 | SD 1270 1016 | ST-s 597 477
VA-s 470 376 | CE 1471 1176 | FE 3783 3026 | SN 8316 6652 | CC 5000 4000 | ND 1858 1486 | VQ 9766 7812 | QB 1000 800
"""
COLUMNS = {
    code: (int(total), int(test))
    for code, total, test in (c.split() for c in PUBLISHED.replace("\n", "|").split("|") if c.strip())
}
FOLDERS = {
    "mit_states": "transformed_states",
    "cub_200_2011": "att_cls_images",
    "spot_the_diff": "spot-the-diff",
    "fer_2013": "fer-2013",
    "q_bench2": "q-bench2",
}


def make_entries(code, name, count):
    """Labels of one column in the review-time form of its source."""
    folder = FOLDERS.get(name, name)
    for i in range(count):
        left, right = f"{folder}/{code}/{i}.jpg", f"{folder}\\{code}\\{i + count}.jpg"
        side = {"image_1": left, "image_2": right, "question": f"Which is {code}?", "answer": ("Left", "Right")[i % 2]}
        if name == "q_bench2":
            yield {
                "image": left,
                "question": "Which is clearer? Options: First, Second",
                "option": ["First", "Second"],
                "answer": "First",
            }
        elif name == "magic_brush":
            yield {
                "path_input": left,
                "path_output": right,
                "Modified_option": "dog, hat,",
                "Answeer": "dog",
                "Quality": "accept",
            }
        elif name == "spot_the_diff":
            yield {
                "image_1": left,
                "image_2": right,
                "Modified_option": "",
                "gpt_extract_objects_gt": "car, people",
                "Answer": "car",
            }
        elif name == "soccernet":
            yield {"left": left, "right": right, "answer": "Left", "CLIP": 0.9, "action": "Foul"}
        elif name == "comp_cars":
            yield {key: side[key] for key in ("image_1", "image_2", "answer")}
        elif name == "vqav2":
            yield {**side, "answer": ("Left", "Right", "Same")[i % 3], "folder": "7"}
        else:
            kind = {"a": {"type": "Color"}, "s": {"type": "State"}}.get(code.partition("-")[2], {})
            yield {**side, **kind}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Label files of all sixteen columns, as many labels as were released, and some empty entries."""
    folder = tmp_path_factory.mktemp("release")
    for name, source in SOURCES.items():
        codes = [code for code in COLUMNS if code.partition("-")[0] == source.code]
        entries = [entry for code in codes for entry in make_entries(code, name, COLUMNS[code][0])]
        (folder / f"{source.label_folder}.json").write_text(json.dumps([*entries, {}]))
    return folder


def test_counts_of_all_sixteen_columns(release):
    assert COUNTS == COLUMNS
    assert (sum(total for total, _ in COUNTS.values()), sum(test for _, test in COUNTS.values())) == (39_785, 31_822)
    files = read_label_folder(release)
    assert [file.skipped[0][1] for file in files] == ["empty entry"] * 14
    splits = build_splits(files)
    for name, wanted in (("official_test", 1), ("official_val", None)):
        counts = {code: len(rows) for code, rows in group_by_column(splits[name]).items()}
        assert counts == {c: n[1] if wanted else n[0] - n[1] for c, n in COLUMNS.items()}
    compared = compare_counts(splits["official_test"], splits["official_val"][1:])
    different = [row for row in compared if (row["test"], row["val"]) != (row["published_test"], row["published_val"])]
    assert [row["column"] for row in different] == [
        column_of(*(splits["official_val"][0][k] for k in ("source", "relativity")))
    ]
    assert len(compared) == 16
    ids = Counter(row["id"] for name in ("official_test", "official_val") for row in splits[name])
    assert max(ids.values()) == 1


def test_published_accuracies_are_of_known_columns():
    means = {model: sum(values.values()) / len(values) for model, values in ACCURACIES.items()}
    assert {model: round(mean, 1) for model, mean in means.items()} == {
        "gpt": 74.7,
        "llava": 66.0,
        "gemini": 63.5,
        "vila": 58.0,
    }
    assert "SN" not in ACCURACIES["gemini"]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_predictions_are_joined_to_the_labels(tmp_path, form):
    labels = [*make_entries("CU", "cub_200_2011", 20)]
    labels += [labels[0]]  # the release has such duplicates
    predictions = [{**label, "gpt_answer": "First" if i % 4 else "Left, not Right"} for i, label in enumerate(labels)]
    (tmp_path / "cub_label.json").write_text(json.dumps(labels))
    path = tmp_path / f"0_1000_gpt.{form}"
    lines = "\n".join(map(json.dumps, predictions))
    path.write_text(lines if form == "jsonl" else json.dumps([*predictions, {}]))
    responses = read_predictions(path, "cub_200_2011")
    test, val = (load_compbench("all", f"official_{part}", path=tmp_path) for part in ("test", "val"))
    assert {response["id"] for response in responses} == {*test["id"], *val["id"]}
    assert len(responses) == 21
    # Labels in turn Left, Right; every fourth reply names both sides, which the authors' scripts read as Right.
    replies = {response["id"]: response["reply"] for response in responses}
    left = [row["id"] for row in test if row["answer"] == 0]
    misread = [name for name in left if replies[name] != "First"]
    assert misread
    strict, paper = (score(test, responses, mode=mode, num_bootstrap=10).micro for mode in ("strict", "paper"))
    assert strict == pytest.approx(len(left) / len(test))
    assert paper == pytest.approx((len(left) - len(misread)) / len(test))


def test_bad_prediction_files_give_one_clear_error(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a_answer": "x", "b_answer": "y"}]))
    with pytest.raises(ValueError, match=r"one model .*\['a', 'b'\]; pass `model`"):
        read_predictions(path, "celeba")
    with pytest.raises(ValueError, match="got `model` 'c'"):
        read_predictions(path, "celeba", model="c")
    with pytest.raises(ValueError, match=r"mit_states.*got 'cub'"):
        read_predictions(path, "cub")


LABELS, PREDICTIONS = (os.environ.get(f"MLLM_COMPBENCH_{name}") for name in ("LABELS", "PREDICTIONS"))


@pytest.mark.skipif(not LABELS, reason="MLLM_COMPBENCH_LABELS names no folder of the review-time labels")
def test_a_user_s_release_has_the_published_counts():
    test, val = (load_compbench("all", f"official_{part}", path=LABELS) for part in ("test", "val"))
    for row in compare_counts(test, val):
        assert (row["test"], row["val"]) == (row["published_test"], row["published_val"]), row["column"]


@pytest.mark.skipif(
    not (LABELS and PREDICTIONS), reason="MLLM_COMPBENCH_PREDICTIONS names no folder of <source>_<model> files"
)
@pytest.mark.parametrize("model", sorted(ACCURACIES))
def test_a_user_s_predictions_give_the_published_accuracies(model):
    dataset = load_compbench("all", "official_test", path=LABELS)
    responses = []
    for source in find_label_files(Path(LABELS)):
        for path in sorted(Path(PREDICTIONS).glob(f"{source}_{model}.json*")):
            responses += read_predictions(path, source, model)
    columns = score(dataset, responses, mode="paper", num_bootstrap=10).columns
    for code, column in columns.items():
        assert 100 * column["accuracy"] == pytest.approx(ACCURACIES[model][code], abs=0.1), code
