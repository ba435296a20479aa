"""Items from all sources: one table, image-grouped hold-outs, built folders, leaks."""

import hashlib
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_ava_bench import ABILITIES, build_dataset, compute_score, export_json, find_leaks, load_ability
from hf_ava_bench.build import MANIFEST
from hf_ava_bench.cli import main
from hf_ava_bench.formats import to_conversation, to_question, write_json
from hf_ava_bench.schema import FEATURES


def png(value, size=16):
    pixels = np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("ability", ABILITIES)
def test_mini_has_all_abilities_and_its_answers_are_right(ability):
    table = load_ability(ability, source="mini", split="test", n=12, image_size=48)
    assert table.features == FEATURES
    assert len(set(table["id"])) == 12
    answers, options = list(table["answer"]), list(table["options"])
    score = compute_score(
        ability, answers, answers, questions=list(table["question"]), options=options if any(options) else None
    )
    assert score.value == pytest.approx(ABILITIES[ability].perfect)
    for row in table:
        assert json.loads(row["meta"])["synthetic"] is True
        assert row["source"] == "mini-ava-synthetic"
        assert not row["options"] or row["answer"] in row["options"]
        assert sum(value is not None for value in row["answer_struct"].values()) == 1


def test_mini_answers_are_those_of_the_picture():
    boxes = load_ability("localization", source="mini", split="test", n=5, image_size=64)
    import hf_diorama as dio

    for index, row in enumerate(boxes):
        truth = dio.render("scenes", index, image_size=64, split="test", topic="localization")["objects"][0]["bbox"]
        np.testing.assert_allclose(np.array(row["answer_struct"]["box"]) * 64, truth, atol=0.64 / 2 + 1e-3)


def test_mini_splits_share_nothing_and_depth_questions_have_their_own_rows():
    train, test = (
        load_ability("abs_depth", source="mini", split=split, n=8, image_size=32) for split in ("train", "test")
    )
    assert find_leaks(train, test, max_distance=-1) == []
    other = load_ability("rel_depth", source="mini", split="train", n=8, image_size=32)
    assert find_leaks(train, other, max_distance=-1) == []


def test_mini_streams_the_same_rows():
    table = load_ability("scene", source="mini", split="test", n=3, image_size=32)
    streamed = list(load_ability("scene", source="mini", split="test", n=3, image_size=32, streaming=True))
    assert [row["id"] for row in streamed] == list(table["id"])


def test_mini_on_photos_says_so_and_keeps_its_answers():
    photo = Image.new("RGB", (40, 30), (10, 120, 200))
    rows = load_ability("counting", source="mini", split="test", n=3, image_size=32, photos=[photo])
    plain = load_ability("counting", source="mini", split="test", n=3, image_size=32)
    assert set(rows["source"]) == {"mini-ava-synthetic-photos"}
    assert list(rows["answer"]) == list(plain["answer"])
    assert (np.asarray(rows[0]["image"]) == (10, 120, 200)).all(axis=2).mean() > 0.5


# A folder laid out as on the Hub: conversations, train only, some images with two questions.


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rows = []
    for index in range(60):
        image = index // 2 if index < 40 else index  # twenty images with two questions
        rows.append(
            {
                "id": "" if index % 2 else f"q{index}",
                "image": {"bytes": png(image), "path": None},
                "conversations": [
                    {"from": "human", "value": f"<image>\nHow many {index}?"},
                    {"from": "gpt", "value": str(1 + index % 25)},
                ],
                "difficulty": index % 3,
            }
        )
    target = folder / "train" / "Counting"
    target.mkdir(parents=True)
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(target / "train-00000.parquet")
    return folder


def test_hub_layout_is_read_and_held_out_by_image(hub_folder):
    train, test = (load_ability("Counting", f"path:{hub_folder}", split) for split in ("train", "test"))
    assert train.features == test.features == FEATURES
    assert len(train) + len(test) == 60
    assert 0.1 < len(test) / 60 < 0.35
    assert find_leaks(train, test, max_distance=-1) == []
    assert {json.loads(row["meta"])["split_origin"] for row in test} == {"holdout"}
    assert json.loads(train[0]["meta"])["difficulty"] in (0, 1, 2)
    assert train[0]["question"].startswith("How many")
    again = load_ability("counting", f"path:{hub_folder}", "test")
    assert list(again["id"]) == list(test["id"])
    other = load_ability("counting", f"path:{hub_folder}", "test", seed=1)
    assert list(other["id"]) != list(test["id"])


def test_hold_out_is_refused_while_streaming_and_train_alone_streams(hub_folder):
    with pytest.raises(ValueError, match="leave out `streaming`"):
        load_ability("counting", f"path:{hub_folder}", "test", streaming=True)


def test_hub_without_connection_says_what_works(monkeypatch):
    with pytest.raises(ConnectionError, match="source='mini'"):
        load_ability("counting")


def test_bytes_of_images_stay_as_they_are(hub_folder, tmp_path):
    source = load_ability("counting", f"path:{hub_folder}", "train").cast_column("image", datasets.Image(decode=False))
    built = build_dataset(tmp_path / "out", f"path:{hub_folder}", ["counting"])
    again = datasets.load_dataset(str(built), "Counting", split="train").cast_column(
        "image", datasets.Image(decode=False)
    )
    digest = [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in source]
    assert [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in again] == digest
    manifest = json.loads((built / MANIFEST).read_text())
    assert {info["split_origin"] for info in manifest["parts"].values()} == {"holdout"}


def test_built_folder_equals_what_load_dataset_reads(tmp_path):
    folder = build_dataset(tmp_path / "mini", "mini", ["counting", "ocr"], n=6, image_size=32)
    assert sorted(datasets.get_dataset_config_names(str(folder))) == ["Counting", "OCR"]
    direct = load_ability("ocr", "mini", "test", n=6, image_size=32)
    for table in (
        datasets.load_dataset(str(folder), "OCR", split="test"),
        load_ability("ocr", f"path:{folder}", "test"),
        list(datasets.load_dataset(str(folder), "OCR", split="test", streaming=True)),
    ):
        rows = list(table)
        assert len(rows) == 6
        for row, expected in zip(rows, direct, strict=True):
            assert np.array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))
            assert {k: v for k, v in row.items() if k != "image"} == {
                k: v for k, v in expected.items() if k != "image"
            }
    assert "synthetic" in (folder / "README.md").read_text()


def test_interrupted_build_goes_on_and_another_request_is_refused(tmp_path):
    folder = build_dataset(tmp_path / "mini", "mini", ["scene"], n=3, image_size=32, splits=["test"])
    part = folder / "Scene_Classification" / "test-00000-of-00001.parquet"
    first = part.stat().st_mtime_ns
    build_dataset(folder, "mini", ["scene"], n=3, image_size=32)
    assert part.stat().st_mtime_ns == first
    assert (folder / "Scene_Classification" / "train-00000-of-00001.parquet").exists()
    part.write_bytes(b"cut off")
    build_dataset(folder, "mini", ["scene"], n=3, image_size=32)
    assert len(load_ability("scene", f"path:{folder}", "test")) == 3
    with pytest.raises(ValueError, match="choose another folder"):
        build_dataset(folder, "mini", ["scene"], n=4, image_size=32)


@pytest.fixture
def json_folder(tmp_path):
    root = tmp_path / "ava" / "Localization"
    (root / "images").mkdir(parents=True)
    items = [
        {"id": str(i), "question": f"Where is thing {i}?", "answer": f"[0.1, 0.2, 0.{i + 3}, 0.9]", "source": "LVIS"}
        for i in range(4)
    ]
    for i in range(4):
        (root / "images" / f"{i}.png").write_bytes(png(i))
    paths = [f"Localization/images/{i}.png" for i in range(4)]
    write_json(root / "train.json", [to_conversation(items[i], paths[i]) for i in (0, 1)])
    write_json(root / "questions.json", [to_question(items[i], paths[i]) for i in (2, 3)])
    write_json(root / "ground_truth.json", {str(i): {"answer": items[i]["answer"]} for i in (2, 3)})
    return tmp_path / "ava"


def test_released_json_files_are_read(json_folder):
    train, test = (load_ability("location", f"path:{json_folder}", split) for split in ("train", "test"))
    assert list(train["id"]) == ["0", "1"]
    assert list(test["id"]) == ["2", "3"]
    np.testing.assert_allclose(test[0]["answer_struct"]["box"], [0.1, 0.2, 0.5, 0.9], atol=1e-6)
    assert test[0]["image"].size == (16, 16)


@pytest.mark.parametrize("ability", ["localization", "color", "rel_depth"])
def test_released_json_files_are_written_and_read_again(tmp_path, ability):
    export_json(tmp_path, "mini", [ability], n=4, image_size=32)
    for split in ("train", "test"):
        direct = load_ability(ability, "mini", split, n=4, image_size=32)
        again = load_ability(ability, f"path:{tmp_path}", split)
        for column in ("id", "question", "answer"):
            assert list(again[column]) == list(direct[column])
        left, right = (table.cast_column("image", datasets.Image(decode=False)) for table in (again, direct))
        assert [row["image"]["bytes"] for row in left] == [row["image"]["bytes"] for row in right]
    with pytest.raises(ValueError, match="splits of train and test"):
        export_json(tmp_path, "mini", [ability], splits=["validation"])


def test_command_exports(tmp_path):
    arguments = ["export", "json", "--source", "mini", "--abilities", "ocr", "--max-samples", "2", "--out"]
    assert main([*arguments, str(tmp_path / "released")]) == 0
    assert (tmp_path / "released" / "OCR" / "train.json").exists()
    assert main(["export", "space", "giou", "--out", str(tmp_path / "giou")]) == 0
    assert (tmp_path / "giou" / "giou.py").exists()


def test_items_of_mini_are_the_ones_they_always_were():
    golden = json.loads((Path(__file__).parent / "golden" / "mini.json").read_text())
    for ability in ABILITIES:
        rows = load_ability(ability, "mini", "test", n=8, image_size=48).remove_columns("image").to_list()
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        assert digest == golden[ability], ability


def test_photos_of_a_folder_are_backgrounds(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 40), (10, 120, 200)).save(photos / "a.png")
    (photos / "notes.txt").write_text("none")
    arguments = ["build", "--source", "mini", "--abilities", "counting", "--splits", "test", "--max-samples", "2"]
    assert main([*arguments, "--photos", str(photos), "--out", str(tmp_path / "x")]) == 0
    assert set(load_ability("counting", f"path:{tmp_path / 'x'}", "test")["source"]) == {"mini-ava-synthetic-photos"}
    (photos / "a.png").unlink()
    assert main([*arguments, "--photos", str(photos), "--out", str(tmp_path / "y")]) == 1
    assert "Expected photos" in capsys.readouterr().err


def test_questions_without_an_answer_are_named(json_folder):
    write_json(json_folder / "Localization" / "ground_truth.json", {"2": {"answer": "[0, 0, 1, 1]"}})
    with pytest.raises(ValueError, match=r"1 questions of .* have no answer in .*, first '3'"):
        load_ability("localization", f"path:{json_folder}", "test")


def test_paths_out_of_the_folder_are_refused(json_folder):
    (json_folder.parent / "secret.png").write_bytes(png(9))
    rows = [{"id": "0", "image": "../../secret.png", "conversations": [
        {"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "[0, 0, 1, 1]"}]}]  # fmt: skip
    write_json(json_folder / "Localization" / "train.json", rows)
    with pytest.raises(ValueError, match="inside"):
        load_ability("localization", f"path:{json_folder}")


def test_bad_rows_are_named_and_skipped_only_when_asked(tmp_path):
    folder = tmp_path / "bad" / "train" / "Localization"
    folder.mkdir(parents=True)
    turns = [
        [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": box}]
        for box in ("[0, 0, 1, 1]", "[0, 0, 3, 1]", "[0, 0, 1, 1]", "[0, 0, 1, 1]")
    ]
    images = [png(0), png(1), png(0), b"no image"]
    rows = [{"id": str(i), "image": {"bytes": images[i], "path": None}, "conversations": turns[i]} for i in range(4)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(folder / "train-0.parquet")
    test = tmp_path / "bad" / "test" / "Localization"
    test.mkdir(parents=True)
    (test / "test-0.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    source = f"path:{tmp_path / 'bad'}"
    with pytest.raises(ValueError, match=r"Item '1' of 'localization': its box .* is not within"):
        build_dataset(tmp_path / "a", source, ["localization"], splits=["train"])
    built = build_dataset(tmp_path / "b", source, ["localization"], splits=["train"], skip_bad_rows=True)
    (info,) = json.loads((built / MANIFEST).read_text())["parts"].values()
    assert info["num_rows"] == 1
    assert [bad["id"] for bad in info["bad_rows"]] == ["1", "2", "3"]
    assert "same question twice" in info["bad_rows"][1]["problem"]
    assert "cannot be decoded" in info["bad_rows"][2]["problem"]


def write_counting(folder, answers):
    """A folder laid out as on the Hub, train only, with these answers."""
    (folder / "train" / "Counting").mkdir(parents=True)
    rows = [
        {"id": str(i), "image": {"bytes": png(i), "path": None}, "conversations": [
            {"from": "human", "value": "How many?"}, {"from": "gpt", "value": answer}]}
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "train" / "Counting" / "train-0.parquet")
    return f"path:{folder}"


def test_answers_that_cannot_be_read_are_bad_rows_too(tmp_path):
    source = write_counting(tmp_path / "hub", ["3", "a few", "5", "7", "9", "11"])
    with pytest.raises(ValueError, match=r"Item '1' of 'counting' cannot be read: Expected a number .* got 'a few'"):
        load_ability("counting", source)
    with pytest.raises(ValueError, match="Item '1' of 'counting': it cannot be read"):
        build_dataset(tmp_path / "a", source, ["counting"])
    built = build_dataset(tmp_path / "b", source, ["counting"], skip_bad_rows=True)
    parts = json.loads((built / MANIFEST).read_text())["parts"].values()
    assert sum(part["num_rows"] for part in parts) == 5
    assert [bad["id"] for part in parts for bad in part["bad_rows"]] == ["1"]


def test_ids_that_come_twice_are_an_error_and_a_bad_row(tmp_path):
    source = write_counting(tmp_path / "hub", ["3", "5", "7", "9", "11"])
    path = tmp_path / "hub" / "train" / "Counting" / "train-0.parquet"
    table = datasets.Dataset.from_parquet(str(path)).map(
        lambda row: {"id": "same" if row["id"] in "12" else row["id"]}
    )
    table.to_parquet(path)
    with pytest.raises(ValueError, match="1 ids of 'counting' come more than once, the first is 'same'"):
        load_ability("counting", source)
    with pytest.raises(ValueError, match="its id comes more than once"):
        build_dataset(tmp_path / "a", source, ["counting"], splits=["train"], holdout=0.01)
    built = build_dataset(tmp_path / "b", source, ["counting"], splits=["train"], holdout=0.01, skip_bad_rows=True)
    assert list(load_ability("counting", f"path:{built}", "train")["id"]) == ["0", "same", "3", "4"]


def test_some_of_many_items_are_drawn_from_all_over_the_file(tmp_path):
    source = write_counting(tmp_path / "hub", [str(1 + i // 20) for i in range(100)])  # sorted by answer
    rows = load_ability("counting", source, "train", n=20)
    assert len(set(rows["answer"])) >= 4
    assert list(rows["id"]) == sorted(rows["id"], key=int)
    assert list(load_ability("counting", source, "train", n=20)["id"]) == list(rows["id"])
    assert list(load_ability("counting", source, "train", n=20, seed=1)["id"]) != list(rows["id"])


def test_other_columns_than_expected_are_named(tmp_path):
    (tmp_path / "train" / "Counting").mkdir(parents=True)
    datasets.Dataset.from_list([{"img": 1, "label": 2}]).to_parquet(tmp_path / "train" / "Counting" / "0.parquet")
    with pytest.raises(ValueError, match="Expected the column `image`, got img, label"):
        load_ability("counting", f"path:{tmp_path}")


def test_builds_from_other_photos_do_not_mix(tmp_path):
    red, blue = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    options = {"n": 2, "image_size": 32, "splits": ["test"]}
    build_dataset(tmp_path / "x", "mini", ["color"], photos=[red], **options)
    build_dataset(tmp_path / "x", "mini", ["color"], photos=[red], **options)
    with pytest.raises(ValueError, match="choose another folder"):
        build_dataset(tmp_path / "x", "mini", ["color"], photos=[blue], **options)
    with pytest.raises(ValueError, match="leave out `streaming`"):
        build_dataset(tmp_path / "y", "mini", ["color"], streaming=True)


def test_leak_check_finds_a_planted_copy_and_a_near_copy(tmp_path, capsys):
    train, test = (load_ability("counting", "mini", split, n=6, image_size=64) for split in ("train", "test"))
    assert find_leaks(train, test) == []
    row = train[2]
    near = np.asarray(row["image"]).astype(int)
    near = Image.fromarray(np.clip(near + 2, 0, 255).astype(np.uint8))
    planted = datasets.Dataset.from_list(
        [{**row, "id": "copy"}, {**row, "id": "near", "image": near}], features=FEATURES
    )
    leaks = find_leaks(train, datasets.concatenate_datasets([test, planted]))
    assert {(leak.left, leak.right) for leak in leaks} == {(row["id"], "copy"), (row["id"], "near")}
    folder = build_dataset(tmp_path / "m", "mini", ["counting"], n=6, image_size=64)
    assert main(["leaks", str(folder), "counting"]) == 0


def test_command_builds(tmp_path, capsys):
    arguments = ["build", "--source", "mini", "--abilities", "texture", "--max-samples", "2"]
    assert main([*arguments, "--out", str(tmp_path / "x")]) == 0
    assert (tmp_path / "x" / "Texture" / "test-00000-of-00001.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "web"}, 'must be "hub", "mini" or "path:DIR"'),
        ({"source": "path:/nowhere"}, "Expected a folder after `path:`"),
        ({"source": "mini", "split": "heldout"}, "must be one of train, validation, test"),
        ({"source": "mini", "holdout": 1.5}, "`holdout` must be in"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_ability("counting", **arguments)
