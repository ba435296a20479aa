"""Splits, Parquet folders, images of a user's own, streaming; mini-CompBench and its photo part."""

import json
import random
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_compbench import audit_pairs, build_compbench, load_compbench, resolve_images, score
from hf_compbench.balance import swap_row
from hf_compbench.building import write_shards
from hf_compbench.features import build_features
from hf_compbench.runners import HeuristicRunner, run_model
from hf_compbench.splits import split_clean, split_official


def rows_of(source, relativity, n):
    return [{"source": source, "relativity": relativity, "number": i} for i in range(n)]


def test_official_split_is_the_reference_s_shuffle():
    numbers = list(range(50))
    random.seed(30)
    random.shuffle(numbers)
    splits = split_official(rows_of("celeba", "emotion", 50))
    assert [row["number"] for row in splits["official_test"]] == numbers[:40]
    assert [row["number"] for row in splits["official_val"]] == numbers[40:]


def test_official_split_is_the_released_one():
    """The authors' val file of CelebA has 295 entries; its entry 266 is entry 1447 of the 1471 in their label file."""
    val = split_official(rows_of("celeba", "emotion", 1471))["official_val"]
    assert (len(val), val[266]["number"]) == (295, 1447)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A release in small: two sources, shared images, duplicates, one-sided questions, images on disk."""
    folder = tmp_path_factory.mktemp("labels")
    celeba = [
        {
            "image_1": f"celeba/{i // 2}.png",
            "image_2": f"celeba/{50 + i}.png",
            "question": "Which person smiles more?",
            "answer": "Left",
        }
        for i in range(40)
    ]
    celeba += [celeba[0], {**celeba[1], "image_2": celeba[1]["image_1"]}, {}]
    brush = [
        {
            "image_1": f"magic_brush/{i}.png",
            "image_2": f"magic_brush/{i + 20}.png",
            "options": "dog,hat",
            "answer": "hat",
        }
        for i in range(10)
    ]
    brush.append({**brush[0], "image_1": "magic_brush/99.png", "answer": "cat"})
    (folder / "celebA_label.json").write_text(json.dumps(celeba))
    (folder / "mb_label.json").write_text(json.dumps(brush))
    images = tmp_path_factory.mktemp("images")
    for entry in celeba + brush:
        for key in ("image_1", "image_2"):
            if key in entry:
                path = images / entry[key]
                path.parent.mkdir(exist_ok=True)
                value = int(path.stem) * 2
                Image.new("RGB", (8, 6), (value, value // 2, 9)).save(path)
    return folder, images


def test_clean_split_shares_no_image_repeats_no_pair_and_is_balanced(labels):
    test, val = (load_compbench("all", split, path=labels[0]) for split in ("clean_test", "clean_val"))
    names = test.features["source"].names
    images = [
        {
            (names[s], k)
            for row in part
            for s, k in ((row["source"], row["image_1_key"]), (row["source"], row["image_2_key"]))
        }
        for part in (test, val)
    ]
    assert not images[0] & images[1]
    assert test.num_rows + val.num_rows == 50  # the duplicate, the self pair and the answer that is no option are out
    for part in (test, val):
        smiles = Counter(row["answer"] for row in part if "smiles" in row["question"])
        assert abs(smiles[0] - smiles[1]) <= 1
    keys = [
        (*sorted((row["image_1_key"], row["image_2_key"])), row["question"]) for part in (test, val) for row in part
    ]
    assert len(set(keys)) == len(keys)
    groups = [set(part["group_id"]) for part in (test, val)]
    assert not groups[0] & groups[1]


def test_swapping_to_balance_keeps_the_answer_true(labels):
    test = load_compbench("emotion", "clean_test", path=labels[0])
    for row in test:
        winner = row["image_1_key"] if row["answer_text"] == "Left" else row["image_2_key"]
        assert int(winner.split("/")[1][:-4]) < 50  # in the file the first image wins, and it is below 50
        assert row["options"][row["answer"]] == row["answer_text"]


def test_exact_duplicates_can_be_asked_and_scored(labels):
    ds = load_compbench("emotion", "official_test", path=labels[0], image_root=labels[1], accept_terms=True)
    ds = datasets.concatenate_datasets(
        [ds, load_compbench("emotion", "official_val", path=labels[0], image_root=labels[1], accept_terms=True)]
    )
    assert len(set(ds["id"])) == ds.num_rows == 42
    repeated = [row for row in ds.select_columns(["id", "issues"]) if "duplicate" in row["issues"]]
    assert [row["id"][-2:] for row in repeated] == ["#2"]
    scores = score(ds, run_model(ds, HeuristicRunner("left")), num_bootstrap=10)
    assert (scores.columns["CE"]["n"], scores.missing) == (42, 0)


def test_contradictory_labels_are_marked_and_left_out(tmp_path):
    entry = {"question": "Which person smiles more?", "answer": "Left"}
    pairs = [("1", "2", "Left"), ("2", "1", "Left"), ("3", "4", "Left"), ("4", "3", "Right")]
    pairs += [(f"5{i}", f"6{i}", "Left") for i in range(8)]
    entries = [{**entry, "image_1": f"celeba/{a}", "image_2": f"celeba/{b}", "answer": side} for a, b, side in pairs]
    (tmp_path / "celebA_label.json").write_text(json.dumps(entries))
    test, val = (load_compbench("all", f"official_{part}", path=tmp_path) for part in ("test", "val"))
    issues = {row["image_1_key"][7:]: row["issues"] for row in (*test, *val)}
    assert issues["1"] == ["contradiction"]
    assert issues["2"] == ["contradiction", "duplicate"]
    assert (issues["3"], issues["4"], issues["50"]) == ([], ["duplicate"], [])
    clean = [row for name in ("clean_test", "clean_val") for row in load_compbench("all", name, path=tmp_path)]
    assert sorted(min(row["image_1_key"], row["image_2_key"])[7:8] for row in clean) == ["3", *"55555555"]


def test_columns_of_one_source_share_no_image_across_clean_splits(tmp_path):
    """The attribute and the state labels of VAW ask about the same images."""
    entries = [
        {
            "image_1": f"vaw/{i % 25}.jpg",
            "image_2": f"vaw/{i % 25 + 100}.jpg",
            "question": f"Which is {i}?",
            "answer": "Left",
            "type": ("Color", "State")[i // 25 % 2],
        }
        for i in range(100)
    ]
    (tmp_path / "vaw_label.json").write_text(json.dumps(entries))
    test, val = (load_compbench("all", f"clean_{part}", path=tmp_path) for part in ("test", "val"))
    assert not {*test["image_1_key"], *test["image_2_key"]} & {*val["image_1_key"], *val["image_2_key"]}
    assert {*test["group_id"]}.isdisjoint(val["group_id"])
    # The audit sees what a split by column would share.
    color, state = (
        test.select([i for i, t in enumerate(test["subtype"]) if t == kind]) for kind in ("Color", "State")
    )
    shared = {
        check.column: check.value for check in audit_pairs(color, state).checks if check.name == "images in both"
    }
    assert shared["VA-a"] > 0


def test_clean_split_does_not_depend_on_the_order_of_the_file(labels):
    from hf_compbench.loading import build_splits, read_label_folder

    files = read_label_folder(labels[0])
    rows = [row for file in files for row in file.rows]
    forward, backward = split_clean(rows), split_clean(rows[::-1])
    for name in forward:
        assert {(row["id"], row["answer"]) for row in forward[name]} == {
            (row["id"], row["answer"]) for row in backward[name]
        }
    assert set(build_splits(files)) == {"official_test", "official_val", "clean_test", "clean_val"}


def test_built_folder_loads_with_plain_datasets(labels, tmp_path):
    counts = build_compbench(labels[0], tmp_path / "out", allow_leaks=True)
    assert counts["all"]["official_test"] == counts["emotion"]["official_test"] + counts["existence"]["official_test"]
    plain = datasets.load_dataset(
        str(tmp_path / "out"), "emotion", split="official_test", cache_dir=str(tmp_path / "c")
    )
    assert plain.features == build_features()
    direct = load_compbench("emotion", "official_test", path=labels[0])
    assert plain["id"][:] == direct["id"][:]
    assert load_compbench("emotion", "official_test", path=tmp_path / "out")["id"][:] == direct["id"][:]
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert skipped == {"celeba": [{"entry": 42, "reason": "empty entry"}]}
    with pytest.raises(ValueError, match="new or empty folder"):
        build_compbench(labels[0], tmp_path / "out", allow_leaks=True)


def test_a_leaky_set_is_not_written(labels, tmp_path):
    """All magic_brush labels of the fixture are "hat": the option prior knows them."""
    with pytest.raises(ValueError, match=r"MB: option prior 1\.000.*\n?.*allow_leaks=True"):
        build_compbench(labels[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build_compbench(labels[0], tmp_path / "out", allow_leaks=True)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {check["name"] for check in audit["checks"] if not check["passed"]} >= {"option prior"}
    assert "- MB: option prior 1.000" in (tmp_path / "out" / "README.md").read_text()


def test_large_splits_are_cut_into_shards(labels, tmp_path):
    ds = load_compbench("emotion", "official_test", path=labels[0])
    write_shards(ds, tmp_path / "data" / "emotion", "official_test", max_bytes=ds.data.nbytes // 4 + 1)
    names = sorted(path.name for path in (tmp_path / "data" / "emotion").iterdir())
    assert names == [f"official_test-{i:05d}-of-00004.parquet" for i in range(4)]
    assert load_compbench("emotion", "official_test", path=tmp_path)["id"][:] == ds["id"][:]


def test_a_repository_loads_like_a_folder(labels, tmp_path):
    """`source="hub"` hands its `path` to `load_dataset`, which takes a folder as it takes the id of a repository."""
    build_compbench(labels[0], tmp_path / "mllm-compbench-hub-test", allow_leaks=True)
    repository = {"source": "hub", "path": str(tmp_path / "mllm-compbench-hub-test")}
    local = load_compbench("emotion", "clean_test", path=labels[0])
    hub = load_compbench("emotion", "clean_test", **repository)
    assert hub.features == build_features()
    assert sorted(hub["id"]) == sorted(local["id"])
    assert [row["id"] for row in load_compbench("emotion", "clean_test", streaming=True, **repository)] == hub["id"][:]
    resolved = load_compbench("emotion", "clean_val", image_root=labels[1], accept_terms=True, **repository)
    assert resolved[0]["image_1"].size == (8, 6)


def test_streaming_equals_map_style(labels, tmp_path):
    build_compbench(labels[0], tmp_path / "out", allow_leaks=True)
    whole = load_compbench("all", "clean_test", path=labels[0])
    stream = load_compbench("all", "clean_test", path=tmp_path / "out", streaming=True)  # reads the Parquet files
    assert isinstance(stream, datasets.IterableDataset)
    assert sorted(row["id"] for row in stream) == sorted(whole["id"])
    built = load_compbench("all", "clean_test", path=tmp_path / "out")
    assert [row["id"] for row in stream] == built["id"][:]
    labels_only = load_compbench("all", "clean_test", path=labels[0], streaming=True)
    assert isinstance(labels_only, datasets.IterableDataset)


def test_images_come_from_the_user_s_folder_and_parquet_keeps_their_bytes(labels, tmp_path):
    folder, images = labels
    ds = load_compbench("emotion", "clean_val", path=folder, image_root=images, accept_terms=True)
    row = ds[0]
    value = int(row["image_1_key"].split("/")[1][:-4]) * 2
    assert np.asarray(row["image_1"])[0, 0].tolist() == [value, value // 2, 9]
    build_compbench(folder, tmp_path / "out", image_root=images, accept_terms=True, allow_leaks=True)
    built = load_compbench("emotion", "clean_val", path=tmp_path / "out").cast_column(
        "image_1", datasets.Image(decode=False)
    )
    for row in built:
        assert row["image_1"]["bytes"] == (images / row["image_1_key"]).read_bytes()


def test_terms_have_to_be_accepted_and_files_to_be_there(labels, tmp_path):
    folder, images = labels
    with pytest.raises(PermissionError, match=r"accept_terms=True.*\n- celeba: CelebA is for non-commercial research"):
        load_compbench("emotion", "clean_val", path=folder, image_root=images)
    ds = load_compbench("emotion", "official_test", path=folder)
    with pytest.raises(FileNotFoundError, match=r"are missing, e\.g\. celeba/"):
        resolve_images(ds, tmp_path, accept_terms=True)
    (tmp_path / "celeba").mkdir()
    for key in (ds[0]["image_1_key"], ds[0]["image_2_key"]):
        (tmp_path / key).write_bytes((images / key).read_bytes())
    assert resolve_images(ds, tmp_path, accept_terms=True, on_missing="skip").num_rows >= 1


def test_links_out_of_the_folder_are_refused(labels, tmp_path):
    ds = load_compbench("emotion", "official_test", path=labels[0]).select([0])
    (tmp_path / "celeba").mkdir()
    for key in (ds[0]["image_1_key"], ds[0]["image_2_key"]):
        (tmp_path / key).symlink_to(labels[1] / key)
    with pytest.raises(ValueError, match="is a link to"):
        resolve_images(ds, tmp_path, accept_terms=True)


def test_mini_holds_all_kinds_and_every_answer_is_true(mini):
    assert mini.features == build_features()
    names = mini.features["relativity"].int2str
    assert Counter(map(names, mini["relativity"])) == dict.fromkeys(mini.features["relativity"].names, 8)
    assert len(set(mini["id"])) == mini.num_rows
    keys = [key for row in mini.select_columns(["image_1_key", "image_2_key"]) for key in row.values()]
    assert len(set(keys)) == len(keys)  # no image is in two pairs


def test_mini_splits_share_no_image(mini):
    other = load_compbench("mini", "validation", num_pairs=8, image_size=64, relativities=("quantity", "state"))
    assert not set(other["image_1_key"]) & (set(mini["image_1_key"]) | set(mini["image_2_key"]))


def test_mini_is_the_same_every_time_and_streams(mini):
    options = {"num_pairs": 8, "image_size": 64, "relativities": ("temporality",)}
    again = load_compbench("mini", "test", **options)
    wanted = [row["id"] for row in mini if mini.features["relativity"].int2str(row["relativity"]) == "temporality"]
    assert again["id"][:] == wanted
    assert [row["id"] for row in load_compbench("mini", "test", streaming=True, **options)] == wanted


def test_mini_answers_follow_from_pixels():
    """What was darkened is darker, and where something is missing pixels differ."""
    ds = load_compbench("mini", num_pairs=24, image_size=64, relativities=("quality", "existence"))
    checked = Counter()
    for row in ds:
        if row["subtype"] == "exposure" and row["answer_text"] != "Same":
            light = [np.asarray(row[side]).mean() for side in ("image_1", "image_2")]
            assert (light[0] > light[1]) == (row["answer_text"] == "Left")
            checked["exposure"] += 1
        if row["subtype"] == "difference":
            change = np.abs(np.asarray(row["image_1"]).astype(int) - np.asarray(row["image_2"]))
            assert (change.max() > 40) == (row["answer_text"] != "None")
            checked[row["answer_text"] == "None"] += 1
    assert all(checked[name] for name in ("exposure", True, False)), checked


@pytest.mark.slow
def test_mini_at_its_default_size_passes_an_audit_that_can_fail():
    ds = load_compbench("mini", "heldout", seed=1000, image_size=64)
    names = ds.features["relativity"].int2str
    assert Counter(map(names, ds["relativity"])) == dict.fromkeys(ds.features["relativity"].names, 60)
    report = audit_pairs(ds)
    assert report.passed, str(report)
    limits = [check.limit for check in report.checks if check.name in ("question prior", "option prior")]
    assert max(limits) < 1
    rows = [
        {**row, "relativity": names(row["relativity"]), "source": "mini_scenes"}
        for row in ds.remove_columns(["image_1", "image_2", "composite"])
    ]
    one_sided = [swap_row(row) if row["answer_text"] == "Right" else row for row in rows]
    assert {check.name for check in audit_pairs(one_sided).failures} >= {"question prior", "side balance"}


def test_photos_give_pairs_with_known_edits(photo_folder):
    ds = load_compbench(
        "mini",
        "heldout",
        num_pairs=8,
        image_size=64,
        relativities=("quality", "attribute", "existence", "quantity"),
        image_root=photo_folder,
    )
    sources = Counter(map(ds.features["source"].int2str, ds["source"]))
    assert sources == {"mini_scenes": 32, "mini_photos": 32}
    checked = 0
    for row in ds:
        if ds.features["source"].int2str(row["source"]) == "mini_photos" and "brighter" in row["question"]:
            light = [np.asarray(row[side]).mean() for side in ("image_1", "image_2")]
            assert (light[0] > light[1]) == (row["answer_text"] == "Left")
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "maxi"}, "Expected `config` to be one of mini, all, attribute"),
        ({"split": "dev"}, "train, validation, test, heldout, got 'dev'"),
        ({"num_pairs": 1}, "at least 4, got 1"),
        ({"config": "all", "split": "clean_test"}, "no official Hub copy"),
        ({"config": "all", "split": "test", "path": "x"}, "official_test.*got 'test'"),
        ({"config": "all", "split": "clean_test", "path": "x", "num_pairs": 9}, "are for config 'mini'"),
        ({"source": "web"}, "'local' or 'hub', got 'web'"),
        ({"path": "x"}, "takes no `path`"),
        ({"relativities": ("size",)}, r"got \['size'\]"),
    ],
)
def test_bad_arguments_give_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_compbench(**arguments)


def test_missing_folders_give_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="label files of MLLM-CompBench"):
        load_compbench("all", "clean_test", path=tmp_path / "none")
    with pytest.raises(ValueError, match=r"Expected label files .*st_label\.json"):
        load_compbench("all", "clean_test", path=tmp_path)
    with pytest.raises(FileNotFoundError, match="found none"):
        load_compbench("mini", image_root=tmp_path, num_pairs=4)
