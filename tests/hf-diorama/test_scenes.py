"""World `scenes`, topic `objects`: spec section 7, "annotation exactness" and "shortcut audits"."""

import hashlib
import math
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes import COLORS, SCENES, SHAPES, TEXTURES
from hf_diorama.worlds.scenes.palette import JITTER, draw_shade, shade_of, srgb_to_lab
from hf_diorama.worlds.scenes.shapes import draw_coverage, unit_area


def render(index, image_size=64, split="test", seed=0, **options):
    key = RowKey(world="scenes", version=SCENES.version, split=split, seed=seed, index=index)
    return SCENES.render(key, image_size, **options)


@pytest.fixture(scope="module")
def rows():
    return [render(i) for i in range(300)]


def digest(row):
    pixels = np.asarray(row["image"]).tobytes() + np.asarray(row["mask"]).tobytes()
    return hashlib.sha256(pixels).hexdigest()[:16]


def interior(row, label):
    """Pixels well inside an object: rims are blended, and so is what lies beside the tip of an object above."""
    mask = np.asarray(row["mask"])
    own, above = (Image.fromarray(np.uint8(pixels) * 255) for pixels in (mask == label, mask > label))
    inside = np.asarray(own.filter(ImageFilter.MinFilter(5))) > 0
    return inside & (np.asarray(above.filter(ImageFilter.MaxFilter(9))) == 0)


GOLDEN = {(0, 64): "187595c2c19ba75e", (7, 128): "54c80865ec95bb44", (11, 97): "0064733580a32d0a"}


@pytest.mark.parametrize(("index", "image_size"), GOLDEN)
def test_pixels_are_pinned(index, image_size):
    # A change of these bytes is a change of the world: bump SCENES.version and re-train nothing silently.
    assert digest(render(index, image_size)) == GOLDEN[index, image_size]


GOLDEN_PINNED = {
    (1, 0): "6f71da11f7651659",
    (1, 5): "1a7d80fb88a9eaaa",
    (2, 0): "b576e2dc6d9ec5a3",
    (2, 5): "d92ff1017031e2f8",
    (2, 45): "113ceb55843c0fe6",
}


def pin(count, first=0):
    colors = list(COLORS)
    return [(colors[(first + 3 * i) % len(colors)], SHAPES[(first + 5 * i) % len(SHAPES)]) for i in range(count)]


@pytest.mark.parametrize(("count", "index"), GOLDEN_PINNED)
def test_pixels_of_one_or_two_pinned_objects_are_pinned(count, index):
    # The images that llava-nano was trained and measured on.
    assert digest(render(index, pinned=pin(count, index))) == GOLDEN_PINNED[count, index]


def test_row_does_not_depend_on_order_or_on_other_rows():
    forward = [digest(render(i)) for i in range(8)]
    assert [digest(render(i)) for i in reversed(range(8))][::-1] == forward
    assert len(set(forward)) == 8


@pytest.mark.parametrize("other", [{"split": "train"}, {"seed": 1}, {"split": "heldout"}], ids=str)
def test_splits_and_seeds_share_no_image(other):
    assert {digest(render(i)) for i in range(30)}.isdisjoint(digest(render(i, **other)) for i in range(30))


def test_bbox_is_the_half_open_extent_of_the_mask_and_counts_equal_visible_instances(rows):
    for row in rows:
        mask = np.asarray(row["mask"])
        assert set(np.unique(mask)) - {0} == set(range(1, len(row["objects"]) + 1))
        for label, item in enumerate(row["objects"], start=1):
            ys, xs = np.nonzero(mask == label)
            assert item["bbox"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_color_inside_a_plain_object_is_the_annotated_lab(rows):
    # "colour inside the mask equals the annotated Lab within 1".
    checked = 0
    for row in rows:
        for label, item in enumerate(row["objects"], start=1):
            if item["texture"] == "plain":
                for rgb in np.unique(np.asarray(row["image"])[interior(row, label)], axis=0).tolist():
                    assert rgb == item["color_srgb"]
                    assert math.dist(srgb_to_lab(tuple(rgb)), item["color_lab"]) < 1
                    checked += 1
    assert checked > 100


def test_textured_object_shows_its_color_and_one_shade_of_it(rows):
    known = total = 0
    for row in rows:
        for label, item in enumerate(row["objects"], start=1):
            if item["texture"] != "plain":
                rgb = tuple(item["color_srgb"])
                pixels = np.asarray(row["image"])[interior(row, label)].tolist()
                known += sum(tuple(pixel) in (rgb, shade_of(rgb)) for pixel in pixels)
                total += len(pixels)
    assert total > 10_000
    assert known / total > 0.999  # the cleft of a heart may be narrower than a pixel


def test_occlusion_is_the_hidden_share_and_small(rows):
    occlusions = [item["occlusion"] for row in rows for item in row["objects"]]
    assert min(occlusions) == 0
    assert 0 < max(occlusions) < 0.5
    for row in rows:
        for label, item in enumerate(row["objects"], start=1):
            visible = int((np.asarray(row["mask"]) == label).sum())
            assert visible == pytest.approx(item["size"] ** 2 * (1 - item["occlusion"]))


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_area_agrees_with_the_drawn_pixels(shape):
    coverage = np.asarray(draw_coverage(shape, (200, 200), 180, 0, 400))
    assert coverage.sum() / 255 / 180**2 == pytest.approx(unit_area(shape), rel=0.02)


def test_lab_agrees_with_published_values():
    # ISO 11664-4 with D65 white; values of the sRGB primaries as in Lindbloom's calculator.
    for rgb, lab in {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
    }.items():
        assert srgb_to_lab(rgb) == pytest.approx(lab, abs=0.05)


def test_every_shade_is_nearest_to_its_own_name():
    for name, prototype in COLORS.items():
        for i in range(50):
            shade = draw_shade(Draws("shade", name, i), name)
            assert max(abs(a - b) for a, b in zip(shade, prototype, strict=True)) <= JITTER
            lab = srgb_to_lab(shade)
            assert min(COLORS, key=lambda other: math.dist(lab, srgb_to_lab(COLORS[other]))) == name


def correlation(x, y):
    return abs(np.corrcoef(np.asarray(x, float), np.asarray(y, float))[0, 1])


def test_ink_area_tells_neither_number_nor_shape(rows):
    # n = 300 scenes: an uncorrelated pair stays below 0.15 with probability 0.99.
    ink = [(np.asarray(row["mask"]) > 0).mean() for row in rows]
    assert correlation(ink, [len(row["objects"]) for row in rows]) < 0.15
    single = [render(i, num_objects=1)["objects"][0] for i in range(400)]
    size = np.asarray([item["size"] for item in single])
    for shape in SHAPES:
        assert correlation(size, [item["category"] == shape for item in single]) < 0.15


def test_position_and_palette_tell_no_label():
    items = [render(i, num_objects=1)["objects"][0] for i in range(600)]
    center = np.asarray([[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2] for b in (item["bbox"] for item in items)])
    for labels, choices in (("color_name", COLORS), ("texture", TEXTURES)):
        for choice in choices:
            is_it = [item[labels] == choice for item in items]
            assert correlation(center[:, 0], is_it) < 0.15
            assert correlation(center[:, 1], is_it) < 0.15
    pairs = Counter((item["category"], item["color_name"]) for item in items)
    expected = len(items) / (len(SHAPES) * len(COLORS))
    chi2 = sum((pairs[s, c] - expected) ** 2 / expected for s in SHAPES for c in COLORS)
    assert chi2 < 87 + 4 * math.sqrt(2 * 87)  # 88 cells, four standard deviations


def test_all_choices_appear(rows):
    items = [item for row in rows for item in row["objects"]]
    assert {item["category"] for item in items} == set(SHAPES)
    assert {item["color_name"] for item in items} == set(COLORS)
    assert {item["texture"] for item in items} == set(TEXTURES)
    assert {len(row["objects"]) for row in rows} == set(range(1, 10))
    assert {row["scene_type"] for row in rows} == {"plain", "gradient", "stripes", "noise"}


@pytest.mark.parametrize("count", range(1, 10))
def test_pinned_objects_stand_from_left_to_right(count):
    for i in range(12):
        row = render(i, pinned=pin(count, i))
        objects, mask = row["objects"], np.asarray(row["mask"])
        assert [(item["color_name"], item["category"]) for item in objects] == pin(count, i)
        centers = [(item["bbox"][0] + item["bbox"][2]) / 2 for item in objects]
        assert centers == sorted(centers)
        # The smallest of nine would cover 6 x 6 pixels if all had room at once; few lose much of that.
        assert min(item["size"] for item in objects) >= 5
        assert max(item["occlusion"] for item in objects) < 0.3
        assert set(np.unique(mask)) == set(range(count + 1))


def test_photos_become_backgrounds_of_any_size():
    photo = Image.new("RGB", (40, 30), (250, 10, 250))
    rows = [render(i, num_objects=1, photos=[photo], photo_ratio=1.0) for i in range(10)]
    for row in rows:
        assert row["scene_type"] == "photo"
        assert (np.asarray(row["image"])[np.asarray(row["mask"]) == 0] == (250, 10, 250)).all(axis=1).mean() > 0.9
    dataset = datasets.Dataset.from_dict({"image": [photo]}, features=datasets.Features({"image": datasets.Image()}))
    assert digest(render(0, num_objects=1, photos=dataset, photo_ratio=1.0)) == digest(rows[0])
    mixed = [render(i, photos=[photo])["scene_type"] == "photo" for i in range(200)]
    assert 70 < sum(mixed) < 130


def test_rows_round_trip_through_parquet(tmp_path, rows):
    features = SCENES.features()
    dataset = datasets.Dataset.from_list(rows[:5], features=features)
    dataset.to_parquet(tmp_path / "scenes.parquet")
    back = datasets.load_dataset("parquet", data_files=str(tmp_path / "scenes.parquet"), split="train")
    assert back.features == features
    for row, original in zip(back, rows, strict=False):
        assert digest(row) == digest(original)
        assert [item["bbox"] for item in row["objects"]] == [item["bbox"] for item in original["objects"]]
        assert [len(row[name]) for name in ("texts", "figures", "faces", "states", "quality")] == [0] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topic": "deep"}, r"Unknown topic 'deep'.*'objects'"),
        ({"num_objects": 10}, r"within 1\.\.9.*got 10"),
        ({"num_objects": (3, 2)}, r"within 1\.\.9.*got \(3, 2\)"),
        ({"num_objects": "many"}, r"`num_objects` must be"),
        ({"num_objects": 2.5}, r"`num_objects` must be.*got 2\.5"),
        ({"num_objects": None}, r"`num_objects` must be.*got None"),
        ({"num_objects": True}, r"`num_objects` must be.*got True"),
        ({"num_objects": (1, 2, 3)}, r"`num_objects` must be.*got \(1, 2, 3\)"),
        ({"pinned": 5}, r"`pinned` must be a list of \(color, category\) pairs, got 5"),
        ({"pinned": ["red star"]}, r"`pinned` must be a list of \(color, category\) pairs"),
        ({"photos": 7}, r"`photos` must be a sequence of images or a dataset, got int"),
        ({"photos": ["cat.png"], "photo_ratio": 1.0}, r"`photos` must hold PIL images, or rows.*got str"),
        ({"photos": [{"img": 1}], "photo_ratio": 1.0}, r"`photos` must hold PIL images, or rows.*got a row with img"),
        ({"photo_ratio": "x"}, r"`photo_ratio` must be in \[0, 1\], got 'x'"),
        ({"boxes": "no"}, r"`boxes` must be True or False, got 'no'"),
        ({"topic": "mixed", "pinned": [("red", "star")]}, r"for topic 'objects', got them with topic 'mixed'"),
        ({"pinned": []}, r"`pinned` must hold 1\.\.9"),
        ({"pinned": [("cyan", "star")]}, r"Unknown color 'cyan'.*'black'"),
        ({"pinned": [("red", "cube")]}, r"Unknown category 'cube'.*'circle'"),
        ({"photos": []}, r"`photos` is empty"),
        ({"photo_ratio": 2}, r"`photo_ratio` must be in \[0, 1\], got 2"),
    ],
    ids=str,
)
def test_bad_options_give_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        render(0, **options)
