"""World `scenes`, the topics of the 14 abilities: annotations are exact, and shortcuts lead nowhere."""

import hashlib
import json
import math
from collections import Counter

import numpy as np
import pytest

import hf_diorama as dio
from hf_diorama.worlds.scenes import TOPICS
from hf_diorama.worlds.scenes.action import ACTIONS
from hf_diorama.worlds.scenes.depth import CAMERA, HEIGHTS
from hf_diorama.worlds.scenes.faces import EMOTIONS
from hf_diorama.worlds.scenes.fine_grained import INSECTS
from hf_diorama.worlds.scenes.fronts import DIRECTIONS, FRONTS, build_front
from hf_diorama.worlds.scenes.glyphs import GLYPHS
from hf_diorama.worlds.scenes.localization import AREAS
from hf_diorama.worlds.scenes.palette import srgb_to_lab
from hf_diorama.worlds.scenes.picture import Picture
from hf_diorama.worlds.scenes.scene import PLACES
from hf_diorama.worlds.scenes.spatial import ALIGNED, APART, RELATIONS
from hf_diorama.worlds.scenes.texture import TEXTURE_CLASSES

ABILITY_TOPICS = (
    *("localization", "counting", "spatial", "orientation", "color", "texture", "emotion", "depth"),
    *("fine_grained", "recognition", "scene", "action", "ocr"),
)


def render(topic, index, image_size=64, split="test", **options):
    return dio.render("scenes", index, image_size=image_size, split=split, topic=topic, **options)


def rows(topic, n, image_size=64, **options):
    return [render(topic, index, image_size, **options) for index in range(n)]


def entries(row):
    """Annotated things with the label that each has on the mask."""
    named = row["figures"] + row["objects"] + row["texts"] + row["faces"]
    return list(enumerate(named, start=1))


def test_all_topics_are_there():
    assert set(ABILITY_TOPICS) <= set(TOPICS)


def test_a_texture_is_all_of_the_picture_and_a_place_has_no_things():
    texture, place = render("texture", 0, 48), render("scene", 0, 48)
    assert texture["objects"][0]["bbox"] == [0, 0, 48, 48]
    assert (np.asarray(texture["mask"]) == 1).all()
    assert entries(place) == []
    assert not np.asarray(place["mask"]).any()


@pytest.mark.parametrize("topic", [topic for topic in ABILITY_TOPICS if topic not in ("texture", "scene")])
def test_boxes_are_the_extents_of_the_mask(topic):
    for row in rows(topic, 25):
        mask = np.asarray(row["mask"])
        for label, entry in entries(row):
            ys, xs = np.nonzero(mask == label)
            if len(ys):  # a thing at 60 metres may be smaller than a pixel
                assert entry["bbox"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            else:
                assert topic == "depth"
        assert 1 <= len(np.unique(mask)) - 1 <= len(entries(row)) or topic == "depth"


@pytest.mark.parametrize("topic", ABILITY_TOPICS)
def test_rows_survive_datasets(topic):
    ds = dio.load("scenes", split="test", n=3, image_size=48, topic=topic)
    for row, direct in zip(ds, rows(topic, 3, 48), strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(direct["image"]))
        assert [item["category"] for item in row["objects"]] == [item["category"] for item in direct["objects"]]
        assert row["topic"] == topic
        assert row["states"] == direct["states"]


# First eight digits of the sha256 of the annotations of rows 0 to 4: a change means a new world version.
GOLDEN = {
    "localization": "3990bfd7",
    "counting": "8dac43b0",
    "spatial": "4e0f262d",
    "orientation": "f3b8c5f6",
    "color": "72b77987",
    "texture": "5c150ce5",
    "emotion": "0a645b34",
    "depth": "56ec3912",
    "fine_grained": "f31d51e1",
    "recognition": "d4873662",
    "scene": "8372a24e",
    "action": "e9b47fc7",
    "ocr": "49f28bc0",
}


def digest(topic):
    """Of annotations, and of pixels but for text, which follows the FreeType inside Pillow."""
    sha = hashlib.sha256()
    for row in rows(topic, 5):
        named = {key: value for key, value in row.items() if key not in ("image", "mask", "key", "texts", "levels")}
        words = [text["string"] for text in row["texts"]]
        sha.update(json.dumps([named, words], sort_keys=True).encode())
        if topic != "ocr":
            sha.update(np.asarray(row["image"]).tobytes() + np.asarray(row["mask"]).tobytes())
    return sha.hexdigest()[:8]


@pytest.mark.parametrize("topic", ABILITY_TOPICS)
def test_rows_are_pinned(topic):
    assert digest(topic) == GOLDEN[topic]


def test_mixed_draws_every_topic_and_names_it():
    drawn = [row["topic"] for row in rows("mixed", 150, 32)]
    assert set(ABILITY_TOPICS) <= set(drawn)
    index = drawn.index("counting")
    counted = render("counting", index, 32)
    assert np.array_equal(np.asarray(render("mixed", index, 32)["image"]), np.asarray(counted["image"]))


def test_options_of_topic_objects_are_refused_elsewhere():
    with pytest.raises(ValueError, match="`num_objects` and `pinned` are for topic 'objects'"):
        render("counting", 0, num_objects=3)


# Annotations, one topic after the other.

OF_ONE_COLOR = ("localization", "counting", "spatial", "orientation", "depth", "recognition", "action")


@pytest.mark.parametrize("topic", [*OF_ONE_COLOR, "spatial_pair", "quantity"])
def test_most_of_a_thing_has_the_annotated_color(topic):
    # "colour inside the mask equals the annotated Lab within 1": things of these topics have one paint.
    checked = 0
    for row in rows(topic, 15, 128):
        mask = np.asarray(row["mask"])
        for label, item in enumerate(row["objects"], start=1 + len(row["figures"])):
            inside = Counter(map(tuple, np.asarray(row["image"])[mask == label].tolist()))
            if inside.total() < 60:
                continue
            assert math.dist(srgb_to_lab(inside.most_common(1)[0][0]), item["color_lab"]) < 1
            checked += 1
    assert checked >= 10


def test_localization_target_is_the_only_one_of_its_category_and_sizes_are_even():
    areas = []
    for row in rows("localization", 300, 32):
        categories = [item["category"] for item in row["objects"]]
        assert len(set(categories)) == len(categories) > 1
        x0, y0, x1, y1 = row["objects"][0]["bbox"]
        areas.append((x1 - x0) * (y1 - y0) / 32**2)
    small = np.mean(np.asarray(areas) < AREAS[0][1])
    assert 0.2 < small < 0.5  # a quarter of the circles, and outlines that do not fill the square around theirs
    assert max(areas) > 0.35


def test_localization_target_is_not_the_largest_more_often_than_others():
    def area(item):
        return (item["bbox"][2] - item["bbox"][0]) * (item["bbox"][3] - item["bbox"][1])

    pairs = [row["objects"] for row in rows("localization", 300, 32) if len(row["objects"]) == 2]
    share = np.mean([area(a) >= area(b) for a, b in pairs])
    assert share < 0.75  # the other one makes room


def test_counting_shows_each_thing_and_ink_tells_nothing():
    counts, ink = [], []
    for row in rows("counting", 300):
        mask = np.asarray(row["mask"])
        assert len(np.unique(mask)) - 1 == len(row["objects"])
        target = row["objects"][0]["category"]
        counts.append(sum(item["category"] == target for item in row["objects"]))
        ink.append((mask > 0).mean())
    assert set(counts) >= set(range(1, 11))
    assert max(counts) == 30
    bins = np.histogram(counts, [1, 6, 11, 21, 31])[0] / len(counts)
    assert (np.abs(bins - 0.25) < 0.1).all()
    assert abs(np.corrcoef(counts, ink)[0, 1]) < 0.2


def test_spatial_relation_follows_from_the_centres():
    seen = set()
    for row in rows("spatial", 200, 96):
        (ax, ay), (bx, by) = (item["position"] for item in row["objects"][:2])
        signs = tuple(0 if abs(d) <= ALIGNED else int(np.sign(d)) for d in (ax - bx, ay - by))
        assert all(abs(d) <= ALIGNED or abs(d) >= APART for d in (ax - bx, ay - by))
        assert RELATIONS[row["states"][0]] == signs
        seen.add(row["states"][0])
    assert seen == set(RELATIONS)


@pytest.mark.parametrize("kind", FRONTS)
def test_azimuth_turns_a_front_clockwise_from_up(kind):
    def paint(degrees):
        picture = Picture(np.zeros((121, 121, 3), np.uint8))
        picture.paint(build_front(kind, (255, 255, 255), (90, 90, 90)), (60.5, 60.5), 50, degrees, 1)
        return picture.mask(1), np.asarray(picture.image)[:, :, 0].astype(int)

    (mask, pixels), (turned, _) = paint(0), paint(90)
    assert (np.rot90(mask, -1) != turned).mean() < 0.01
    # It is not its own picture after a half turn: outline, or lamps and screen of a car, tell front from back.
    assert (abs(np.rot90(pixels, 2) - pixels) > 30).mean() > 0.05


def test_orientation_names_the_nearest_direction():
    for row in rows("orientation", 100, 32):
        facing = DIRECTIONS.index(row["states"][0])
        off = (row["objects"][0]["azimuth"] - 45 * facing + 180) % 360 - 180
        assert abs(off) <= 8


def test_color_is_the_mean_of_the_pixels_in_the_box():
    for row in rows("color", 60):
        (item,) = row["objects"]
        x0, y0, x1, y1 = item["bbox"]
        mean = np.asarray(row["image"])[y0:y1, x0:x1].reshape(-1, 3).mean(axis=0)
        assert np.abs(mean - item["color_srgb"]).max() <= 0.5
        assert math.dist(srgb_to_lab(tuple(mean)), item["color_lab"]) < 1


def test_colors_fill_the_gamut_evenly_in_lightness():
    lightness = [row["objects"][0]["color_lab"][0] for row in rows("color", 300, 32)]
    assert 50 < np.mean(lightness) < 65  # the sRGB gamut is widest there
    assert min(lightness) < 25
    assert max(lightness) > 88


def test_distance_follows_from_size_and_foot():
    checked = 0
    for row in rows("depth", 60, 512):
        for item in row["objects"]:
            x, raised, z = item["position"]
            assert item["distance"] == z
            column, foot = CAMERA.project(x, z, raised)
            x0, y0, x1, y1 = item["bbox"]
            assert y1 / 512 == pytest.approx(foot, abs=2 / 512)
            assert (x0 + x1) / 1024 == pytest.approx(column, abs=2 / 512)
            assert z == pytest.approx(CAMERA.focal * HEIGHTS[item["category"]] / ((y1 - y0) / 512), rel=4 / (y1 - y0))
            checked += 1
        assert ("raised" in row["states"]) == any(item["position"][1] > 0 for item in row["objects"])
    assert checked == 120


def test_neither_size_nor_height_on_the_picture_tells_which_is_closer():
    taller, lower = [], []
    for row in rows("depth", 400, 32):
        near, far = sorted(row["objects"][:2], key=lambda item: item["distance"])
        looks = [CAMERA.focal * HEIGHTS[item["category"]] / item["distance"] for item in (near, far)]
        assert (looks[0] > looks[1]) == (HEIGHTS[near["category"]] > HEIGHTS[far["category"]])
        taller.append(looks[0] > looks[1])
        if "raised" in row["states"]:
            feet = [
                CAMERA.project(item["position"][0], item["distance"], item["position"][1])[1] for item in (near, far)
            ]
            lower.append(feet[0] > feet[1])
    assert abs(np.mean(taller) - 0.5) < 3 * 0.5 / math.sqrt(len(taller))
    assert abs(np.mean(lower) - 0.5) < 3 * 0.5 / math.sqrt(len(lower))


@pytest.mark.parametrize("topic", ["spatial", "color", "emotion", "depth", "recognition", "ocr"])
def test_boxes_leave_what_they_mark_untouched(topic):
    for index in range(10):
        with_boxes, without = (render(topic, index, 96, boxes=boxes) for boxes in (True, False))
        a, b = np.asarray(with_boxes["image"]).astype(int), np.asarray(without["image"])
        changed = (a != b).any(axis=2)
        assert changed.any()
        entry = (with_boxes["texts"] + with_boxes["faces"] + with_boxes["objects"])[0]
        x0, y0, x1, y1 = entry["bbox"]
        assert not changed[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1].any()  # a pixel stays free around it
        assert (a[changed] == (255, 0, 0)).all(axis=1).any()


def test_emotion_of_a_face_is_in_its_muscles():
    for row in rows("emotion", 80, 32):
        for face in row["faces"]:
            prototype = EMOTIONS[face["emotion"]]
            assert abs(face["smile"] - prototype.smile) <= 0.12
            assert abs(face["brow"] - prototype.brow) <= 0.12
        assert len({face["emotion"] for face in row["faces"]}) == len(row["faces"])


def test_texts_have_two_to_ten_characters_and_are_drawn_on_their_plate():
    lengths = set()
    for row in rows("ocr", 120, 96):
        for text in row["texts"]:
            lengths.add(len(text["string"]))
            x0, y0, x1, y1 = text["bbox"]
            assert x1 - x0 >= 3
            assert y1 - y0 >= 3
    assert lengths == set(range(2, 11))


# Shortcuts: what a linear reader of colour statistics, of place and of ink makes of each label.

LABELS = {
    "spatial": (lambda row: row["states"][0], tuple(RELATIONS)),
    "orientation": (lambda row: row["states"][0], DIRECTIONS),
    "texture": (lambda row: row["objects"][0]["texture"], tuple(TEXTURE_CLASSES)),
    "emotion": (lambda row: row["faces"][0]["emotion"], tuple(EMOTIONS)),
    "fine_grained": (lambda row: row["objects"][0]["subcategory"], INSECTS),
    "recognition": (lambda row: row["objects"][0]["category"], GLYPHS),
    "scene": (lambda row: row["scene_type"], tuple(PLACES)),
    "action": (lambda row: row["figures"][0]["action"], tuple(ACTIONS)),
    "depth": (lambda row: row["objects"][0]["distance"] < row["objects"][1]["distance"], (False, True)),
}


def shortcut_features(row):
    """What can be known without knowing any form: mean colour, where the middle of brightness is, and ink."""
    pixels = np.asarray(row["image"]).astype(float) / 255
    grey = pixels.mean(axis=2)
    weight = grey / grey.sum()
    ys, xs = np.mgrid[: len(grey), : len(grey)] / len(grey)
    return [*pixels.mean(axis=(0, 1)), (weight * xs).sum(), (weight * ys).sum(), (np.asarray(row["mask"]) > 0).mean()]


@pytest.mark.parametrize("topic", LABELS)
def test_color_place_and_ink_tell_no_class(topic):
    label_of, classes = LABELS[topic]
    n, half = 360, 240
    drawn = rows(topic, n, 32)
    x = np.asarray([shortcut_features(row) for row in drawn])
    x = (x - x[:half].mean(axis=0)) / (x[:half].std(axis=0) + 1e-9)
    x = np.hstack([x, x**2, np.ones((n, 1))])
    y = np.asarray([classes.index(label_of(row)) for row in drawn])
    weights = np.linalg.solve(
        x[:half].T @ x[:half] + 10 * np.eye(x.shape[1]), x[:half].T @ np.eye(len(classes))[y[:half]]
    )
    correct = ((x[half:] @ weights).argmax(axis=1) == y[half:]).mean()
    chance = np.bincount(y[half:], minlength=len(classes)).max() / (n - half)
    bound = chance + 3 * math.sqrt(chance * (1 - chance) / (n - half))
    # By design a place's layout moves its middle of brightness a little: sky above, things below.
    assert correct <= bound + (0.10 if topic == "scene" else 0.0), (correct, bound)
    assert set(y) == set(range(len(classes)))


def test_background_color_tells_nothing_about_the_asked_color():
    asked = np.asarray([row["objects"][0]["color_lab"] for row in rows("color", 400, 32)])
    around = np.asarray(
        [
            np.asarray(row["image"])[np.asarray(row["mask"]) == 0].mean(axis=0)
            for row in rows("color", 400, 32, boxes=False)
        ]
    )
    for a in asked.T:
        for b in around.T:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15  # n = 400: 3 standard deviations


def test_categories_do_not_tell_which_is_closer():
    near, tall_is_close = {kind: [] for kind in HEIGHTS}, []
    for row in rows("depth", 600, 32):
        for item in row["objects"][:2]:
            near[item["category"]].append(math.log(item["distance"]))
        tall, short = sorted(row["objects"][:2], key=lambda item: -HEIGHTS[item["category"]])
        tall_is_close.append(tall["distance"] < short["distance"])
    # Standard deviations within a category are 0.8, of its mean here 0.06.
    means = [np.mean(values) for values in near.values()]
    assert max(means) - min(means) < 0.5
    assert abs(np.mean(tall_is_close) - 0.5) < 3 * 0.5 / math.sqrt(len(tall_is_close))
