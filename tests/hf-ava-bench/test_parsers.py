"""Parsers: what is understood, and that nothing makes them raise."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ava_bench.parsers import parse_box, parse_number, parse_rgb
from hf_ava_bench.resolvers import resolve_closer, resolve_direction, resolve_option


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6", 6),
        ("There are 6 birds.", 6),
        ("1,200", 1200),
        ("1,234,567", 1234567),
        ("3.5e2", 350),
        (".5", 0.5),
        ("twelve", 12),
        ("twenty-one", 21),
        ("Ninety nine red balloons", 99),
        ("a dozen", 12),
        ("one hundred", 100),
        ("none", 0),
        ("There are no cars", 0),
        ("5-7", 6),
        ("5 to 7", 6),
        ("between 10 and 20 people", 15),
        ("I see 2 rows, so the answer is 14", 14),
        ("2 apples and 13 pears", 2),
        ("answer: 9 (not 8)", 9),
        ("-3", 0),
        ("\u2212 3", 0),
        ("4.25 meters", 4.25),
        ("\uff11\uff12", 12),  # full width
        ("many", None),
        ("I have no idea how many", None),
        ("", None),
        (None, None),
        ("1e999", None),
        ("9" * 400, None),
    ],
    ids=lambda value: str(value)[:25],
)
def test_numbers(text, value):
    parsed = parse_number(text)
    assert (parsed.value and parsed.value[0]) == (pytest.approx(value) if value is not None else None)


def test_numbers_say_what_was_repaired_and_out_of_range():
    assert not parse_number("6").repaired
    assert parse_number("5-7").repaired
    assert parse_number("2 apples and 13 pears").repaired
    assert parse_number("-3").out_of_range
    assert not parse_number("none").repaired


@pytest.mark.parametrize(
    ("text", "meters"),
    [
        ("18 meters", 18),
        ("18m", 18),
        ("250 cm", 2.5),
        ("1.2 km", 1200),
        ("10 feet", 3.048),
        ("3 to 5 m", 4),
        ("7", 7),
        ("900 mm", 0.9),
        ("2 miles", 3218.688),
    ],
)
def test_lengths_are_converted(text, meters):
    assert parse_number(text, meters=True).value[0] == pytest.approx(meters)
    assert parse_number("250 cm").value == (250.0,)  # counts have no unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("(0.1,0.2),(0.3,0.4)", None),
        ("<box>(10,20),(30,40)</box>", (10, 20, 30, 40)),
        ('{"bbox_2d": [12, 34, 56, 78], "label": "cat"}', (12, 34, 56, 78)),
        ("x1=1, y1=2, x2=3, y2=4", (1, 2, 3, 4)),
        ("x1=1, x2=3, y1=2, y2=4", (1, 2, 3, 4)),  # by name, not by place
        ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4}', (1, 2, 3, 4)),
        ("{'ymin': 0.2, 'xmin': 0.1, 'ymax': 0.4, 'xmax': 0.3}", (0.1, 0.2, 0.3, 0.4)),
        ("[1e-05, 0.2, 0.3, 4.5e-1]", (1e-05, 0.2, 0.3, 0.45)),
        ("<loc0000><loc0512><loc1023><loc0768>", (0.5, 0, 0.75, 1023 / 1024)),
        ("the 2 cats are at [1, 2, 3, 4]", (1, 2, 3, 4)),
        ("0.1-0.4 and 0.2-0.5", (0.1, 0.4, 0.2, 0.5)),  # hyphens are no minus signs
        ("[-0.1, 0.2, 0.3, 0.4]", (-0.1, 0.2, 0.3, 0.4)),
        ("[1, 2, 3]", None),
        ("no box", None),
        (None, None),
    ],
    ids=str,
)
def test_boxes(text, value):
    parsed = parse_box(text)
    if text == "(0.1,0.2),(0.3,0.4)":
        assert parsed.value == (0.1, 0.2, 0.3, 0.4)
        assert parsed.repaired
    else:
        assert parsed.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[35, 56, 77]", (35, 56, 77)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ("232 9 10", (232, 9, 10)),
        ("#0f0", (0, 255, 0)),
        ("#C0FFEE.", (192, 255, 238)),
        ("It is navy.", (0, 0, 128)),
        ("The color in the red box is navy", (0, 0, 128)),
        ("light blue", (173, 216, 230)),
        ("lightgoldenrodyellow", (250, 250, 210)),
        ("[0.2, 0.4, 1.0]", (51, 102, 255)),
        ("[1, 0, 1]", (1, 0, 1)),  # no fraction: 8-bit values
        ("300, -5, 10", (255, 0, 10)),
        ("two numbers 1 2", None),
        ("", None),
    ],
    ids=str,
)
def test_colors(text, value):
    assert parse_rgb(text).value == (None if value is None else pytest.approx(value))


anything = st.one_of(
    st.text(max_size=300),
    st.text("0123456789.,-+e[](){}<>#/ \t\n", max_size=300),
    st.lists(
        st.sampled_from("0 1. .5 - e9 , [ ] ( twenty one hundred a is : x1= <loc01> #ab rgb( left or".split()),
        max_size=60,
    ).map(" ".join),
)


@given(anything)
@settings(max_examples=300)
def test_no_text_makes_a_parser_raise(text):
    for parsed in (parse_number(text), parse_number(text, meters=True), parse_box(text), parse_rgb(text)):
        assert parsed.value is None or all(math.isfinite(value) for value in parsed.value)
    number, color = parse_number(text), parse_rgb(text)
    assert number.value is None or number.value[0] >= 0
    assert color.value is None or all(0 <= value <= 255 for value in color.value)
    resolve_option(text, ["left", "left below", "3. dog"])
    resolve_direction(text)
    resolve_closer(text, f"Which is closer, the {text} (red box) or the cat (blue box)?")


@pytest.mark.parametrize("pattern", ["9", "1,", "a ", "-", "((", "twenty ", "0.", "\U0001f600", "to 5 ", "1 - "])
def test_long_texts_are_read_in_no_time(pattern):
    text = pattern * (10_000 // len(pattern))
    for found, size in ((parse_number(text), 1), (parse_box(text), 4), (parse_rgb(text), 3)):
        assert found.value is None or len(found.value) == size
    assert resolve_option(text, ["left", "right"]).value in (None, "left")  # "1 - 1 - ..." counts from 1
    assert resolve_closer(text, text).value is None


@given(st.integers(0, 10**6))
def test_written_counts_are_read_back(count):
    assert parse_number(f"{count:,}").value == parse_number(str(count)).value == (float(count),)


@given(st.floats(0.01, 1000, allow_nan=False))
def test_written_depths_are_read_back(depth):
    assert parse_number(f"{depth!r} meters", meters=True).value == (depth,)


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=4, max_size=4))
def test_lists_of_python_are_read_back(box):
    assert parse_box(str(box)).value == tuple(box)


@given(st.lists(st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 4)), min_size=4, max_size=4))
def test_written_boxes_are_read_back(box):
    text = "[" + ", ".join(f"{value:.4f}" for value in box) + "]"
    assert parse_box(text).value == pytest.approx(tuple(box))
    assert not parse_box(text).repaired


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_written_colors_are_read_back(rgb):
    assert parse_rgb(str(list(rgb))).value == parse_rgb("#{:02x}{:02x}{:02x}".format(*rgb)).value == rgb
