"""Prompts, layouts, and the composite of the paper."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from hf_compbench.prompting import LAYOUTS, PROMPTS, build_messages, load_prompt, stitch
from hf_compbench.sources import SOURCE_NAMES

ROW = {"source": "vaw", "question": "Which cup is fuller?", "options": ["Left", "Right"]}
DIFF = {"source": "spot_the_diff", "question": "What differs?", "options": ["None", "car", "red hat"]}
IMAGES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_every_prompt_words_every_source(name, source):
    prompt = load_prompt(name)
    text = prompt.build_text({**DIFF, "source": source})
    assert "{" not in text
    assert len(prompt.digest) == 16
    assert all(prompt.scored_text({**DIFF, "source": source}, option) for option in DIFF["options"])


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_paper_prompts_score_words_that_they_allow(source):
    """The instruction of each source names what may be answered; log-probabilities are of these very words."""
    prompt = load_prompt("paper-v1")
    options = {"vqav2": ["Left", "Right", "Same"], "soccernet": ["Left", "Right", "None"]}.get(
        source, ["Left", "Right"]
    )
    row = {**ROW, "source": source, "options": options, "question": "Which? Options: Left, Right."}
    text = prompt.build_text(row)
    for option in options:
        assert re.search(rf"(?<!\w){prompt.scored_text(row, option)}(?!\w)", text)
    ordinal = {"mit_states", "fashionpedia", "vaw", "cub_200_2011", "nyu_depth_v2"}
    assert prompt.scored_text(row, "Left") == ("First" if source in ordinal else "Left")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_v2_says_which_picture_is_which_in_every_layout(layout):
    parts = build_messages(load_prompt("v2"), ROW, IMAGES, layout)[0]["content"]
    text = " ".join(part.get("text", "") for part in parts)
    assert text.count("Image 1") == text.count("Image 2") == 2  # once for the picture, once as an option


def test_wordings():
    assert load_prompt("paper-v1").build_text(ROW).startswith("Which cup is fuller? If the first image is correct")
    assert load_prompt("paper-v1").scored_text(ROW, "Right") == "Second"
    assert "Options: None,car,red hat." in load_prompt("paper-v1").build_text(DIFF)
    assert "A. car\nB. red hat\nC. None" in load_prompt("v2").build_text(DIFF, shift=1)
    assert load_prompt("v2").scored_text(DIFF, "None", shift=1) == "C"
    assert load_prompt("nano").build_text(ROW) == "question which cup is fuller? answer"


def test_braces_in_a_question_are_text():
    assert "{letter_options}" in load_prompt("v2").build_text({**ROW, "question": "Why {letter_options}?"})


def kinds(messages):
    return [part["type"] if part["type"] == "image" else part["text"][:7] for part in messages[0]["content"]]


def test_layouts():
    prompt = load_prompt("v2")
    assert kinds(build_messages(prompt, ROW, IMAGES, "interleaved")) == [
        "Image 1",
        "image",
        "Image 2",
        "image",
        "Which c",
    ]
    assert kinds(build_messages(prompt, ROW, IMAGES, "images_first")) == ["image", "image", "Image 1"]
    assert kinds(build_messages(prompt, ROW, IMAGES, "text_first")) == ["Image 1", "image", "image"]
    assert kinds(build_messages(prompt, ROW, IMAGES, "composite")) == ["image", "Image 1"]
    assert kinds(build_messages(prompt, ROW, IMAGES[:1], "interleaved")) == ["image", "Image 1"]
    first = build_messages(prompt, ROW, IMAGES, "interleaved")[0]["content"]
    assert [part["image"] for part in first if part["type"] == "image"] == IMAGES


def test_composite_has_the_paper_s_bar():
    picture = np.asarray(stitch(Image.new("RGB", (20, 10), "red"), Image.new("RGB", (30, 30), "blue")))
    assert picture.shape == (20, 40 + 10 + 20, 3)  # both are scaled to the mean height, 20
    assert (picture[:, :40] == (255, 0, 0)).all()
    assert (picture[:, 40] == 0).all()
    assert (picture[:, 41:49] == 255).all()
    assert (picture[:, 49] == 0).all()
    assert (picture[:, 50:] == (0, 0, 255)).all()


def test_own_prompts_and_bad_ones(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"id": "mine", "labels": ["", ""], "default": {"text": "{question}!"}}))
    assert load_prompt(path).build_text(ROW) == "Which cup is fuller?!"
    path.write_text(json.dumps({"id": "mine"}))
    with pytest.raises(ValueError, match="to hold `id`, two `labels`"):
        load_prompt(path)
    with pytest.raises(ValueError, match=r"paper-v1, v2, nano.*got 'v3'"):
        load_prompt("v3")
    with pytest.raises(ValueError, match="interleaved, images_first, text_first, composite, got 'grid'"):
        build_messages(load_prompt("v2"), ROW, IMAGES, "grid")
