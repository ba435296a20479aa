"""Label files in every legacy form, written here with the oddities that the release has."""

import json

import pytest

from hf_compbench.legacy import (
    CARS_QUESTION,
    find_label_files,
    normalise_entry,
    normalise_path,
    read_labels,
    split_options,
)

SMILE = "Which person smiles more?"


def test_sides_with_type_go_to_attribute_or_state():
    entry = {"image_1": "vaw/1.jpg", "image_2": "vaw/2.jpg", "question": "Which cup is fuller?", "answer": "Right"}
    row = normalise_entry({**entry, "type": "State", "adj": "full", "object": "cup"}, "vaw")
    assert (row["relativity"], row["subtype"], row["options"], row["answer"]) == (
        "state",
        "State",
        ["Left", "Right"],
        1,
    )
    assert json.loads(row["meta"]) == {"adj": "full", "object": "cup", "type": "State"}
    assert normalise_entry({**entry, "type": "Color"}, "vaw")["relativity"] == "attribute"
    assert normalise_entry({**entry, "type": "Mood"}, "vaw")["issues"] == ["unknown_type"]


def test_cars_have_one_question_and_vqa_has_same():
    row = normalise_entry({"image_1": "comp_cars/a.jpg", "image_2": "comp_cars/b.jpg", "answer": "Left"}, "comp_cars")
    assert row["question"] == CARS_QUESTION
    entry = {"image_1": "vqav2/a", "image_2": "vqav2/b", "question": "Which image has more birds?", "answer": "Same"}
    row = normalise_entry({**entry, "folder": "x"}, "vqav2")
    assert (row["options"], row["answer"]) == (["Left", "Right", "Same"], 2)


@pytest.mark.parametrize(
    "entry",
    [
        {
            "path_input": "magic_brush/in.png",
            "path_output": "magic_brush/out.png",
            "instruction": "add a hat",
            "CLIP_similarity": 0.97,
            "GPT_option": "dog, tree",
            "If_modified_option": True,
            "Modified_option": "hat, dog, , Dog, tree,",
            "Answeer": "hat",
            "Quality": "bad",
        },
        {
            "image_1": "magic_brush/in.png",
            "image_2": "magic_brush/out.png",
            "options": "hat, dog, , Dog, tree,",
            "answer": "Hat",
            "CLIP_similarity": "0.97",
        },
    ],
    ids=["review", "release"],
)
def test_magic_brush_in_both_forms(entry):
    row = normalise_entry(entry, "magic_brush")
    assert row["options"] == ["None", "hat", "dog", "tree"]
    assert (row["answer"], row["answer_text"]) == (1, "hat")
    assert row["clip_similarity"] == pytest.approx(0.97)
    assert ("quality_bad" in row["issues"]) == ("Quality" in entry)
    assert {"blank_option", "duplicate_option"} <= set(row["issues"])


@pytest.mark.parametrize(
    "entry",
    [
        {"image_diff": "d.png", "Modified_option": "car, people", "Answer": "people", "difference": ["x"]},
        {"gpt_extract_objects_gt": "car, people", "Answer": "people", "Modified_option": ""},
        {"options": "car, people", "answer": "people"},
    ],
    ids=["review", "unmodified", "release"],
)
def test_spot_the_diff_forms(entry):
    images = {"image_1": "spot-the-diff/a.png", "image_2": "spot-the-diff/b.png"}
    row = normalise_entry({**images, **entry}, "spot_the_diff")
    assert (row["options"], row["answer"]) == (["None", "car", "people"], 2)


@pytest.mark.parametrize("names", [("left", "right", "CLIP"), ("image_1", "image_2", "CLIP_similarity")])
def test_soccer_forms(names):
    entry = {
        names[0]: "soccernet/1.jpg",
        names[1]: "soccernet/2.jpg",
        names[2]: 0.9,
        "answer": "Left",
        "action": "Foul",
    }
    row = normalise_entry(entry, "soccernet")
    assert row["question"].startswith("These are two frames related to Foul in a soccer match.")
    assert (row["options"], row["subtype"]) == (["Left", "Right", "None"], "Foul")


@pytest.mark.parametrize("name", ["option", "options"])
def test_quality_is_one_picture(name):
    entry = {"image": "q-bench2/1.jpg", "question": "Which is sharper?", name: ["First", "Second"], "answer": "Second"}
    row = normalise_entry(entry, "q_bench2")
    assert (row["image_1_key"], row["image_2_key"], row["answer"]) == ("q-bench2/1.jpg", "", 1)
    assert normalise_entry({**entry, name: ["Second"]}, "q_bench2")["issues"] == ["single_option"]


@pytest.mark.parametrize(
    ("path", "source", "key", "issues"),
    [
        ("transformed_states\\release\\a.jpg", "mit_states", "transformed_states/release/a.jpg", ["windows_path"]),
        ("images/001/a.jpg", "cub_200_2011", "cub_200_2011/images/001/a.jpg", ["missing_prefix"]),
        ("/home/x/dataset/fer-2013/test/im1.png", "fer_2013", "fer-2013/test/im1.png", ["absolute_path"]),
        ("../../etc/celeba/../passwd", "celeba", "celeba/passwd", ["unsafe_path"]),
        ("celeba/1.jpg", "celeba", "celeba/1.jpg", []),
        ("/data/celeba/x/celeba/1.jpg", "celeba", "celeba/1.jpg", ["absolute_path"]),
    ],
)
def test_paths_are_mended(path, source, key, issues):
    assert normalise_path(path, source) == (key, issues)


def test_similarities_that_are_no_number_are_an_issue():
    entry = {"image_1": "celeba/1.jpg", "image_2": "celeba/2.jpg", "question": SMILE, "answer": "Left"}
    row = normalise_entry({**entry, "CLIP": "n/a"}, "celeba")
    assert (row["clip_similarity"], row["issues"]) == (None, ["bad_similarity"])


def test_answers_that_are_no_option_stay_visible():
    entry = {"image_1": "celeba/1.jpg", "image_2": "celeba/1.jpg", "question": SMILE, "answer": "None"}
    row = normalise_entry(entry, "celeba")
    assert (row["answer"], row["answer_text"]) == (-1, "None")
    assert row["issues"] == ["answer_not_in_options", "self_pair"]


def test_options_of_messy_lists():
    assert split_options("None, a  b,A B,none,") == (["None", "a b"], ["blank_option", "duplicate_option"])
    assert split_options(["x", "y"]) == (["None", "x", "y"], [])


def test_nothing_is_dropped_in_silence(tmp_path):
    good = {"image_1": "celeba/1.jpg", "image_2": "celeba/2.jpg", "question": SMILE, "answer": "Left"}
    entries = [good, {}, {"image_1": "celeba/3.jpg"}, 7, {**good, "question": ""}]
    path = tmp_path / "celebA_label.json"
    path.write_text(json.dumps(entries))
    file = read_labels(path, "celeba")
    assert len(file.rows) == 1
    assert [index for index, _ in file.skipped] == [1, 2, 3, 4]
    assert file.skipped[0][1] == "empty entry"


def test_ids_do_not_depend_on_the_file(tmp_path):
    good = {"image_1": "celeba/1.jpg", "image_2": "celeba/2.jpg", "question": SMILE, "answer": "Left"}
    moved = {**good, "image_1": "D:\\x\\celeba\\1.jpg"}
    assert normalise_entry(good, "celeba")["id"] == normalise_entry(moved, "celeba")["id"]
    assert normalise_entry(good, "celeba")["id"] != normalise_entry({**good, "question": "?"}, "celeba")["id"]


def test_label_files_are_found_by_the_names_of_the_release(tmp_path):
    (tmp_path / "cub_label").mkdir()
    (tmp_path / "cub_label" / "anything.json").write_text("[]")
    (tmp_path / "vqav2.json").write_text("[]")
    assert set(find_label_files(tmp_path)) == {"cub_200_2011", "vqav2"}
    (tmp_path / "cub_label" / "second.json").write_text("[]")
    with pytest.raises(ValueError, match=r"one label file of cub_200_2011.*anything\.json, second\.json"):
        find_label_files(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{}", "got dict"), ("[1,", "JSON list of labels")])
def test_broken_files_give_one_clear_error(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(path, "celeba")
    with pytest.raises(ValueError, match="got 'nowhere'"):
        read_labels(path, "nowhere")
