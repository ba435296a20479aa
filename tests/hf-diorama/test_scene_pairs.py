"""World `scenes`, the topics for comparing two rows: annotations are exact, and shortcuts lead nowhere."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

import hf_diorama as dio
from hf_diorama.worlds.scenes.existence import LIGHT, VIEWS
from hf_diorama.worlds.scenes.floor import CAMERA
from hf_diorama.worlds.scenes.quality import _compress, _smooth

TOPICS = ("attribute", "existence", "state", "expression", "temporal", "spatial_pair", "quantity", "quality")


def render(topic, index, image_size=64, split="test", **options):
    return dio.render("scenes", index, image_size=image_size, split=split, topic=topic, **options)


def rows(topic, n, image_size=64, **options):
    return [render(topic, index, image_size, **options) for index in range(n)]


def levels(row):
    return {level["name"]: level["value"] for level in row["levels"]}


def correlation(x, y):
    return abs(np.corrcoef(np.asarray(x, float), np.asarray(y, float))[0, 1])


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic not in ("quality",)])
def test_boxes_are_the_extents_of_the_mask(topic):
    for row in rows(topic, 20):
        mask = np.asarray(row["mask"])
        for label, entry in enumerate(row["objects"] + row["faces"], start=1):
            ys, xs = np.nonzero(mask == label)
            assert entry["bbox"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("topic", TOPICS)
def test_rows_survive_datasets(topic):
    ds = dio.load("scenes", split="test", n=3, image_size=48, topic=topic)
    for row, direct in zip(ds, rows(topic, 3, 48), strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(direct["image"]))
        assert [level["name"] for level in row["levels"]] == [level["name"] for level in direct["levels"]]
        assert (row["group_id"], row["time_step"]) == (direct["group_id"], direct["time_step"])


# First eight digits of the sha256 of rows 0 to 4: a change means a new world version.
GOLDEN = {
    "attribute": "f16840a8",
    "existence": "7e096539",
    "state": "bc25eb15",
    "expression": "61c6f863",
    "temporal": "538dc45d",
    "spatial_pair": "3b9bbe8d",
    "quantity": "85a53d80",
    "quality": "e4f12f1e",
}


def digest(topic):
    sha = hashlib.sha256()
    for row in rows(topic, 5):
        named = {key: value for key, value in row.items() if key not in ("image", "mask", "key")}
        sha.update(json.dumps(named, sort_keys=True).encode())
        sha.update(np.asarray(row["image"]).tobytes() + np.asarray(row["mask"]).tobytes())
    return sha.hexdigest()[:8]


@pytest.mark.parametrize("topic", TOPICS)
def test_rows_are_pinned(topic):
    assert digest(topic) == GOLDEN[topic]


def test_attribute_levels_are_what_the_picture_shows():
    plain, striped = 0, 0
    for row in rows("attribute", 60, 128):
        (item,) = row["objects"]
        inside = np.asarray(row["image"])[np.asarray(row["mask"]) == 1]
        found = levels(row)
        if item["texture"] == "plain":
            plain += 1
            assert set(found) == {"size", "lightness"}
            assert Counter(map(tuple, inside.tolist())).most_common(1)[0][0] == tuple(item["color_srgb"])
            assert found["lightness"] == item["color_lab"][0]
        else:
            striped += 1
            assert set(found) == {"size", "stripes"}
        if item["category"] == "circle":  # its box is its diameter
            x0, y0, x1, y1 = item["bbox"]
            assert found["size"] * 256 == pytest.approx((x1 - x0 + y1 - y0) / 2, abs=1.5)
    assert min(plain, striped) > 15


def test_attribute_levels_are_independent():
    found = [levels(row) for row in rows("attribute", 500, 32)]
    plain = [item for item in found if "lightness" in item]
    assert correlation([item["size"] for item in plain], [item["lightness"] for item in plain]) < 0.2
    striped = [item for item in found if "stripes" in item]
    assert correlation([item["size"] for item in striped], [item["stripes"] for item in striped]) < 0.2


def test_existence_views_differ_in_what_they_name_and_nowhere_else():
    for group in range(12):
        views = {row["states"][0]: row for row in (render("existence", 5 * group + i) for i in range(5))}
        assert set(views) == set(VIEWS)
        assert len({row["group_id"] for row in views.values()}) == 1
        things = {view: {(o["color_name"], o["category"]) for o in row["objects"]} for view, row in views.items()}
        assert things["base"] == things["relit"]
        for view in ("one missing", "another missing"):
            assert things[view] < things["base"]
            assert len(things["base"] - things[view]) == 1
        assert things["one missing"] != things["another missing"]
        assert len(things["one new"] - things["base"]) == 1
        base = np.asarray(views["base"]["image"]).astype(int)
        for view in VIEWS[2:]:
            row = views[view]
            rest = (np.asarray(row["mask"]) == 0) == (np.asarray(views["base"]["mask"]) == 0)
            difference = np.asarray(row["image"]).astype(int) - base
            # An edge pixel may be covered by less than half and carry no label.
            assert np.mean(np.abs(difference[rest]) <= LIGHT) > 0.97


def test_glasses_are_as_full_as_they_say():
    checked = 0
    for row in rows("state", 120, 128):
        if row["objects"][0]["category"] != "glass":
            continue
        checked += 1
        x0, y0, x1, y1 = row["objects"][0]["bbox"]
        column = np.asarray(row["image"]).astype(int)[y0:y1, (x0 + x1) // 2]
        filled = np.abs(column - row["objects"][0]["color_srgb"]).sum(axis=1) < 12
        # The glass is 1.82 radii high, the liquid 1.64 times the level.
        share = filled.sum() / (y1 - y0) * 1.82 / 1.64
        assert share == pytest.approx(levels(row)["fullness"], abs=0.06)
    assert checked > 15


def test_state_levels_and_size_are_independent():
    found = rows("state", 400, 32)
    for category in ("glass", "candle", "fruit", "door"):
        members = [row for row in found if row["objects"][0]["category"] == category]
        size = [row["objects"][0]["bbox"][2] - row["objects"][0]["bbox"][0] for row in members]
        if category != "candle":  # a burnt candle has a box of its own
            assert correlation(size, [row["levels"][0]["value"] for row in members]) < 0.25


def test_expression_follows_intensity_and_not_place():
    found = rows("expression", 400, 32)
    happy = [row for row in found if row["faces"][0]["emotion"] == "happy"]
    assert all(row["faces"][0]["smile"] == pytest.approx(0.85 * levels(row)["intensity"]) for row in happy)
    left = [row["faces"][0]["bbox"][0] for row in found]
    assert correlation(left, [levels(row)["intensity"] for row in found]) < 0.15
    assert {row["faces"][0]["emotion"] for row in found} == {"happy", "sad", "angry", "surprised"}


def test_frames_of_a_sequence_go_one_way():
    kinds = Counter()
    for group in range(20):
        frames = [render("temporal", 6 * group + step, 32) for step in range(6)]
        assert [row["time_step"] for row in frames] == list(range(6))
        assert len({row["group_id"] for row in frames}) == 1
        progress = [levels(row)["progress"] for row in frames]
        assert min(np.diff(progress)) >= 0.0599
        assert progress[0] >= 0
        assert progress[-1] <= 1
        category, state = frames[0]["objects"][0]["category"], frames[0]["states"]
        assert state == (["reversible"] if category == "pendulum" else ["irreversible"])
        kinds[category] += 1
    assert len(kinds) == 4


def test_light_tells_no_time():
    found = rows("temporal", 360, 32)
    light = [np.asarray(row["image"]).mean() for row in found]
    assert correlation(light, [row["time_step"] for row in found]) < 0.1


def test_distance_can_be_read_off_the_floor_and_not_off_the_size():
    found = rows("spatial_pair", 300, 128)
    for row in found[:60]:
        (item,) = row["objects"]
        foot = item["bbox"][3] / 128
        z = CAMERA.focal * CAMERA.height / (foot - CAMERA.horizon)
        assert abs(CAMERA.project(0, item["distance"])[1] - foot) < 1.6 / 128, (z, item["distance"])
    distance = np.log([row["objects"][0]["distance"] for row in found])
    height = [row["objects"][0]["bbox"][3] - row["objects"][0]["bbox"][1] for row in found]
    assert correlation(distance, height) < 0.15


def test_count_is_that_of_the_mask_and_ink_does_not_tell_it():
    found = rows("quantity", 300, 64)
    for row in found[:40]:
        assert len(np.unique(np.asarray(row["mask"]))) - 1 == len(row["objects"]) == levels(row)["count"]
    count = [len(row["objects"]) for row in found]
    assert set(count) == set(range(3, 13))
    ink = [(np.asarray(row["mask"]) > 0).mean() for row in found]
    assert correlation(count, ink) < 0.15


def test_quality_views_come_in_pairs_and_worse_is_worse():
    defects = Counter()
    for group in range(12):
        views = [render("quality", 8 * group + i) for i in range(8)]
        assert sorted(levels(row)["severity"] for row in views) == [0, 0, 1, 1, 2, 2, 3, 3]
        (defect,) = {row["states"][0] for row in views}
        defects[defect] += 1
        name = {"blur": "blur_sigma", "noise": "noise_sigma", "compression": "jpeg_quality", "exposure": "exposure"}
        ordered = sorted(views, key=lambda row: levels(row)["severity"])
        values = [row["quality"][0][name[defect]] for row in ordered]
        assert values == sorted(values, reverse=defect in ("compression", "exposure"))
        assert len({np.asarray(row["image"]).tobytes() for row in views}) >= 7  # equally good views are other crops
    assert len(defects) == 4


def test_blur_has_the_sigma_it_says():
    impulse = np.zeros((65, 65, 3), np.int64)
    impulse[32, 32] = 10**9
    blurred = _smooth(impulse, 12)[:, :, 0].astype(float)
    columns = blurred.sum(axis=0) / blurred.sum()
    x = np.arange(65) - 32
    assert (columns * x**2).sum() == pytest.approx(12 / 2, rel=0.01)


def test_compression_is_lossless_at_best_and_coarse_at_worst():
    pixels = np.asarray(render("attribute", 1, 64)["image"]).astype(np.int64)
    assert abs(_compress(pixels, 100) - pixels).max() <= 2
    errors = [abs(_compress(pixels, quality) - pixels).mean() for quality in (80, 35, 12, 4)]
    assert errors == sorted(errors)
    # A block of one colour has a constant coefficient only, in steps of 16 / 8 = 2 levels at quality 50.
    flat = np.full((16, 16, 3), 101, np.int64)
    assert (_compress(flat, 50) == _compress(flat, 50)[0, 0, 0]).all()
    assert abs(_compress(flat, 50) - 101).max() <= 1
