"""The metrics' mathematics against published values, closed forms and invariances (spec sections 4 and 13.1)."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_ava_bench.functional import anls, box_iou, ciede2000, levenshtein, relative_error, srgb_to_lab

SHARMA = np.array(json.loads((Path(__file__).parent / "golden" / "sharma_2005.json").read_text()))


def test_ciede2000_gives_the_34_published_pairs():
    assert len(SHARMA) == 34
    difference = ciede2000(SHARMA[:, :3], SHARMA[:, 3:6])
    np.testing.assert_allclose(difference, SHARMA[:, 6], atol=1e-4)
    np.testing.assert_allclose(ciede2000(SHARMA[:, 3:6], SHARMA[:, :3]), SHARMA[:, 6], atol=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((255, 0, 0), (0, 255, 0), 86.608237),
        ((0, 0, 0), (255, 255, 255), 100.000004),
        ((128, 128, 128), (120, 130, 140), 6.058499),
        ((35, 56, 77), (40, 50, 80), 7.147693),
        ((0, 0, 255), (255, 255, 0), 103.426979),
        ((10, 200, 30), (0, 0, 0), 65.634848),
    ],
    ids=str,
)
def test_ciede2000_of_srgb_colors(a, b, expected):
    assert ciede2000(srgb_to_lab(a), srgb_to_lab(b)) == pytest.approx(expected, abs=1e-6)


def test_largest_difference_on_a_grid_of_the_cube():
    grid = srgb_to_lab(np.stack(np.meshgrid(*[(0, 127.5, 255)] * 3), axis=-1).reshape(-1, 3))
    assert ciede2000(grid[:, None], grid[None]).max() == pytest.approx(112.6, abs=0.1)


channels = st.tuples(*[st.integers(0, 255)] * 3)


@given(channels, channels)
def test_ciede2000_is_symmetric_and_zero_for_equal_colors(a, b):
    lab = srgb_to_lab([a, b])
    forward, backward = ciede2000(lab[0], lab[1]), ciede2000(lab[1], lab[0])
    assert forward == pytest.approx(backward, abs=1e-9)
    assert 0 <= forward < 120
    assert ciede2000(lab[0], lab[0]) == 0


@pytest.mark.parametrize(
    ("box", "reference", "iou", "giou"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1, 1),
        ((0, 0, 2, 1), (1, 0, 3, 1), 1 / 3, 1 / 3),  # the hull is the union
        ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
        ((0, 0, 1, 1), (1, 1, 2, 2), 0, -0.5),
        ((1, 1, 0, 0), (0, 0, 1, 1), 1, 1),  # corners in any order
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0, 0),  # points: no union, no hull
        ((0, 0, 0, 0), (1, 1, 1, 1), 0, -1),
    ],
    ids=str,
)
def test_giou_closed_forms(box, reference, iou, giou):
    found = box_iou([box], [reference])
    assert found[0] == pytest.approx(iou)
    assert found[1] == pytest.approx(giou)


def test_whole_image_for_a_centred_box_of_a_tenth_of_its_area():
    half = np.sqrt(0.1) / 2
    box = [0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half]
    assert box_iou([[0, 0, 1, 1]], [box])[1] == pytest.approx(0.1)


corner = st.floats(0, 1, allow_nan=False)
boxes = st.tuples(corner, corner, corner, corner)


@given(boxes, boxes, st.floats(-3, 3), st.floats(0.1, 5))
def test_giou_is_symmetric_bounded_and_does_not_see_shift_and_scale(a, b, shift, scale):
    value = box_iou([a], [b])[1][0]
    assert -1 <= value <= 1
    assert box_iou([b], [a])[1][0] == value
    # Boxes of no area to speak of lose their digits when they are moved.
    if all(abs(box[0] - box[2]) * abs(box[1] - box[3]) > 1e-3 for box in (a, b)):
        moved = [[[scale * x + shift for x in box]] for box in (a, b)]
        assert box_iou(*moved)[1][0] == pytest.approx(value, abs=1e-6)


def brute_levenshtein(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        brute_levenshtein(a[1:], b) + 1,
        brute_levenshtein(a, b[1:]) + 1,
        brute_levenshtein(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("ab", max_size=5), st.text("abc", max_size=5))
def test_levenshtein_equals_its_definition(a, b):
    assert levenshtein(a, b) == brute_levenshtein(a, b)


def test_anls_boundary_and_empty_texts():
    assert anls("ab", ["ac"]) == 0  # exactly one half
    assert anls("ab", ["ac"], inclusive=True) == 0.5
    assert anls("", [""]) == 1
    assert anls("", ["a"]) == anls("a", [""]) == 0
    assert anls("abcd", ["abcx"]) == 0.75
    assert anls("abcd", ["zzzz", "abcd"]) == 1


@given(st.text(max_size=12), st.text(max_size=12))
def test_anls_is_symmetric_and_in_range(a, b):
    assert anls(a, [b]) == anls(b, [a])
    assert anls(a, [b]) == 0 or 0.5 < anls(a, [b]) <= 1
    assert anls(a, [a]) == 1


def test_relative_error_of_zero_divides_by_one():
    assert relative_error([3, 3, 0], [0, 2, 5]).tolist() == [3, 0.5, 1]
