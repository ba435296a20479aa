"""Resolvers: which class an answer names."""

import pytest

from hf_ava_bench.resolvers import find_mentions, normalize, resolve_closer, resolve_direction, resolve_option


def test_normalize_drops_what_does_not_matter():
    assert normalize("  The  Laysan-Albatross!") == "laysan albatross"
    assert normalize("'A dog.'") == "dog"
    assert normalize("ﬁsh") == "fish"


OPTIONS = ["cat", "dog", "hot dog", "bird"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dog", "dog"),
        ("A dog.", "dog"),
        ("(b) dog", "dog"),
        ("2", "dog"),
        ("C", "hot dog"),
        ("It shows a hot dog", "hot dog"),  # the longer one hides the one inside
        ("a cat and a bird", None),
        ("dogs", None),
        ("9", None),
        ("", None),
        (None, None),
    ],
    ids=str,
)
def test_options(text, value):
    assert resolve_option(text, OPTIONS).value == value


def test_conflict_between_number_and_text_is_flagged():
    assert resolve_option("1. dog", OPTIONS) == ("dog", True)
    assert resolve_option("1. dog", OPTIONS, prefer="index") == ("cat", True)
    assert resolve_option("2. dog", OPTIONS) == ("dog", False)


def test_numbers_of_the_options_themselves_count():
    numbered = ["7. crawling", "90. bulldozing"]
    assert resolve_option("90", numbered).value == "90. bulldozing"
    assert resolve_option("bulldozing", numbered).value == "90. bulldozing"
    assert resolve_option("2", numbered).value is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("left below", "below left"),
        ("lower-left", "below left"),
        ("on top", "above"),
        ("underneath", "below"),
        ("It is to the left of the cup.", "left"),
        ("upwards", "above"),
        ("in front of", "front"),
        ("facing left", "leftwards"),
        ("back right", "right, to the rear"),
    ],
    ids=str,
)
def test_directions_that_mean_the_same(a, b):
    assert resolve_direction(a) == resolve_direction(b) is not None


def test_directions_against_each_other_or_none_are_no_answer():
    assert resolve_direction("left and right") is None
    assert resolve_direction("next to it") is None
    assert resolve_direction("left") != resolve_direction("right")


QUESTIONS = [
    "Which is closer, the car (red box) or the tree (blue box)?",
    "Which object is closer to the camera: the car in the red box or the tree in the blue box?",
    "Estimate which is closer: car (red) or tree (blue)?",
]


@pytest.mark.parametrize("question", QUESTIONS, ids=range(3))
def test_things_of_a_depth_question_are_found(question):
    assert find_mentions(question) == ["car", "tree"]
    for text, value in {"car": "car", "The tree.": "tree", "red": "car", "the blue one": "tree", "A": "car"}.items():
        assert resolve_closer(text, question).value == value
    assert resolve_closer("neither", question).value is None
    assert resolve_closer("red or blue", question).value is None
