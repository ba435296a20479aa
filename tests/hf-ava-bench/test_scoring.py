"""Scores: means over references, what is charged, what is counted, bins, and one clear error for bad input."""

import math

import numpy as np
import pytest

from hf_ava_bench import ABILITIES, compute_score, find_ability
from hf_ava_bench.functional import ciede2000, srgb_to_lab


def test_all_spellings_of_an_ability_are_known():
    for spelling in ("Scene_Classification", "scene_cls", "SCENE", "scene classification"):
        assert find_ability(spelling).id == "scene"
    assert find_ability("spatial_bbox").id == "spatial"
    assert len(ABILITIES) == 14
    with pytest.raises(ValueError, match=r"abs_depth, action.*got 'depth'"):
        find_ability("depth")


def test_counts_are_charged_for_what_cannot_be_read():
    score = compute_score("counting", ["5", "many", None, "12"], ["4", "7", "3", "12"])
    assert score.value == pytest.approx((0.25 + 1 + 1 + 0) / 4)
    assert (score.n, score.n_unparsable, score.n_missing, score.coverage) == (4, 1, 1, 0.5)
    skipped = compute_score("counting", ["5", "many", None, "12"], ["4", "7", "3", "12"], unparsable="skip")
    assert skipped.value == pytest.approx(0.125)
    assert skipped.n == 4
    assert [math.isnan(value) for value in skipped.values] == [False, True, True, False]
    with pytest.raises(ValueError, match="No answer can be read from 'many' at position 1"):
        compute_score("counting", ["5", "many"], ["4", "7"], unparsable="raise")


def test_counting_figures_by_hand():
    score = compute_score("counting", ["6", "8", "30", "0"], ["5", "10", "20", "0"])
    assert score.figures["mae"] == pytest.approx((1 + 2 + 10 + 0) / 4)
    assert score.figures["rmse"] == pytest.approx(math.sqrt((1 + 4 + 100 + 0) / 4))
    assert score.figures["rmse_gt"] == pytest.approx(math.sqrt((1 / 5 + 4 / 10 + 100 / 20 + 0) / 4))
    assert score.figures["exact_accuracy"] == 0.25
    assert score.figures["n_zero_gt"] == 1
    assert list(score.bins) == ["0_5", "5_10", "10_20"]
    low, high = score.bins["0_5"], score.bins["10_20"]
    assert (low["n"], low["mae_gt"], low["mae"], low["exact_accuracy"]) == (2, pytest.approx(0.1), 0.5, 0.5)
    assert (high["n"], high["mae_gt"], high["mae"], high["rmse"]) == (1, 0.5, 10, 10)
    assert high["rmse_gt"] == pytest.approx(math.sqrt(5))
    assert compute_score("counting", ["1000"], ["4"], clip_rel=2.0).value == 2


def test_depth_figures_by_hand():
    score = compute_score("abs_depth", ["12 m", "250 cm", "8"], ["10 meters", "2.0 meters", "4 meters"])
    assert score.value == pytest.approx((0.2 + 0.25 + 1) / 3)
    assert score.figures["delta1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"Depths must be positive, got the reference 0\.0 at position 1"):
        compute_score("abs_depth", ["1", "1"], ["2", "0"])


def test_boxes_have_one_unit_for_a_run():
    unit, permille = "[0.1, 0.1, 0.5, 0.5]", "[100, 100, 500, 500]"
    truth = [unit, unit]
    assert compute_score("localization", [unit, unit], truth).figures["coords"] == "unit"
    assert compute_score("localization", [permille, permille], truth).value == pytest.approx(1)
    # One answer in thousandths among shares is a wrong answer, not another unit; its run is in thousandths.
    mixed = compute_score("localization", [unit, permille], truth)
    assert mixed.figures["coords"] == "permille"
    assert mixed.value < 1
    pixels = compute_score(
        "localization", ["[200, 100, 1000, 500]"] * 2, truth, coords="pixel", image_sizes=[(2000, 1000)] * 2
    )
    assert pixels.value == pytest.approx(1)
    with pytest.raises(ValueError, match="Boxes are in pixels"):
        compute_score("localization", ["[200, 100, 1200, 500]"] * 2, truth)


def test_boxes_outside_are_clipped_and_counted_and_none_is_minus_one():
    score = compute_score("localization", ["[-0.2, 0, 1.2, 1]", "nowhere"], ["[0, 0, 1, 1]", "[0, 0, 1, 1]"])
    assert score.value == pytest.approx((1 - 1) / 2)
    assert score.n_out_of_range == 1
    assert list(score.bins) == ["0.5_1"]
    assert (score.bins["0.5_1"]["n"], score.bins["0.5_1"]["giou"]) == (2, pytest.approx(0))


def test_unreadable_colors_are_charged_the_farthest_corner():
    score = compute_score("color", ["no idea"], ["[255, 255, 255]"])
    corners = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    farthest = max(float(ciede2000(srgb_to_lab(corner), srgb_to_lab((255, 255, 255)))) for corner in corners)
    assert score.value == pytest.approx(farthest)
    close = compute_score("color", ["[35, 56, 77]", "[35, 56, 77]"], ["[35, 56, 77]", "[40, 50, 80]"])
    assert close.value == pytest.approx(7.147693 / 2, abs=1e-6)
    assert close.figures["share_below_2.3"] == 0.5


def test_texts_take_the_best_of_several_references():
    score = compute_score("ocr", ["OBERON\n", "xyz", None], ["oberon", ["abc", "xya"], ""])
    assert score.value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert score.figures["exact_match"] == pytest.approx(1 / 3)
    assert list(score.bins) == ["1_5", "6_10"]


def test_classes_have_one_rule():
    options = [["cat", "dog", "bird"]] * 5
    score = compute_score(
        "recognition", ["A dog.", "2", "cat or dog", "fox", "bird"], ["dog"] * 4 + ["bird"], options=options
    )
    assert score.value == pytest.approx(3 / 5)
    assert score.n_unparsable == 2
    assert score.figures["balanced_accuracy"] == pytest.approx((2 / 4 + 1) / 2)
    assert score.figures["chance"] == pytest.approx(1 / 3)
    assert score.figures["majority"] == pytest.approx(4 / 5)


def test_classes_without_options_are_compared_as_texts():
    score = compute_score(
        "fine_grained", ["hygrocybe miniata", "12. Sooty Albatross"], ["Hygrocybe Miniata", "Laysan Albatross"]
    )
    assert score.values == (1, 0)


def test_spatial_compares_axes():
    score = compute_score(
        "spatial", ["below left", "Left Below", "7", "above"], ["left below", "left above", "left below", "below"]
    )
    assert score.values == (1, 0, 0, 0)
    assert score.n_unparsable == 1
    assert score.figures["horizontal_accuracy"] == pytest.approx(3 / 4)
    assert score.figures["vertical_accuracy"] == pytest.approx(1 / 4)


def test_orientation_has_a_confusion_matrix():
    score = compute_score("orientation", ["facing left", "right", "it faces up"], ["left", "left", "up"])
    assert score.values == (1, 0, 1)
    assert score.figures["confusion"] == {"above": {"above": 1}, "left": {"left": 1, "right": 1}}


@pytest.mark.parametrize("ability", ["orientation", "spatial"])
def test_a_wrong_direction_is_no_repaired_one(ability):
    score = compute_score(ability, ["right", "up", "it is to the left", "lower-left"], ["left", "up", "left", "left"])
    assert score.n_repaired == 1  # a sentence around it


def test_relative_depth_that_names_neither_thing_is_no_answer():
    question = "Which is closer, the car (red box) or the tree (blue box)?"
    score = compute_score("rel_depth", ["red or blue", "the house", "car"], ["car"] * 3, questions=[question] * 3)
    assert (score.n_unparsable, score.value) == (2, pytest.approx(1 / 3))
    unasked = compute_score("rel_depth", ["the house", "car", ""], ["car"] * 3)
    assert (unasked.n_unparsable, unasked.value) == (1, pytest.approx(1 / 3))


def test_means_of_each_source_and_results_without_nan():
    score = compute_score("counting", ["5", "8", "many"], ["4", "4", "4"], sources=["LVIS", "CARPK", "LVIS"])
    assert score.sources == {"CARPK": {"n": 1, "mae_gt": 1.0}, "LVIS": {"n": 2, "mae_gt": 0.625}}
    nothing = compute_score("counting", ["many"], ["4"], unparsable="skip")
    assert math.isnan(nothing.value)
    assert nothing.to_dict(values=True)["value"] is None
    assert nothing.to_dict(values=True)["values"] == [None]


def test_relative_depth_reads_the_question():
    question = "Which is closer, the car (red box) or the tree (blue box)?"
    score = compute_score(
        "rel_depth", ["the car", "red", "B", "tree"], ["car", "car", "tree", "car"], questions=[question] * 4
    )
    assert score.values == (1, 1, 1, 0)


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_perfect_model_is_perfect_and_a_silent_one_is_not_better(ability):
    truth = {
        "number": ["3", "8", "21"],
        "box": ["[0.1, 0.1, 0.4, 0.6]", "[0.5, 0.5, 0.9, 0.9]", "[0, 0, 1, 1]"],
        "rgb": ["[1, 2, 3]", "[200, 10, 30]", "[128, 128, 128]"],
        "text": ["oberon", "a1", "hello world"],
        "class": ["left", "right", "above"],
    }[ABILITIES[ability].answer]
    perfect = compute_score(ability, truth, truth)
    assert perfect.value == pytest.approx(ABILITIES[ability].perfect)
    assert perfect.coverage == 1
    silent = compute_score(ability, [None] * 3, truth)
    assert silent.coverage == 0
    assert (silent.value < perfect.value) == ABILITIES[ability].higher_is_better
    half = compute_score(ability, [truth[0], None, None], truth)
    assert np.sign(half.value - silent.value) == (1 if ABILITIES[ability].higher_is_better else -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": [], "references": []}, "at least one reference"),
        ({"predictions": ["1"], "references": ["1", "2"]}, "Expected 2 predictions"),
        ({"predictions": ["1"], "references": ["x"]}, "Expected a number in every reference, got 'x' at position 0"),
        ({"predictions": ["1"], "references": ["1"], "unparsable": "drop"}, "worst, skip, raise, got 'drop'"),
        ({"predictions": ["1"], "references": ["1"], "boundary": "open"}, "strict or inclusive"),
        ({"predictions": ["1"], "references": ["1"], "prefer": "both"}, "text or index"),
        ({"predictions": ["1"], "references": ["1"], "parity": "ava-2025"}, "'ava-2026' or None"),
        ({"predictions": ["1"], "references": ["1"], "clip_rel": 0}, "`clip_rel` must be positive"),
        ({"predictions": ["1"], "references": ["1"], "sources": []}, "Expected 1 sources"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_gives_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_score("counting", **arguments)


def test_typed_predictions_are_refused():
    with pytest.raises(TypeError, match=r"got 5 at position 0; pass str"):
        compute_score("counting", [5], ["5"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": "5", "references": ["5"]}, "Expected a list of texts as `predictions`"),
        ({"predictions": ["5"], "references": [5]}, "as every reference, got 5 at position 0"),
        ({"predictions": ["5"], "references": [[]]}, r"as every reference, got \[\] at position 0"),
        ({"predictions": ["5"], "references": ["5"], "options": ["5"]}, "as the options of an item, got '5'"),
    ],
    ids=range(4),
)
def test_wrong_types_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        compute_score("counting", **arguments)
