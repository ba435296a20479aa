"""Questions about several images: one right answer each, recomputed here from the contents in another way."""

import re
from collections import Counter, defaultdict

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.questions import (
    KINDS,
    MAX_COUNT,
    MAX_IMAGES,
    Content,
    ask,
    build_prompt,
    draw_contents,
    multi_image_questions,
)
from hf_diorama.worlds.scenes import COLORS, SHAPES

LABELS = ("cat", "dog", "ship")


def draw_questions(n, num_images=(1, 8), kinds=KINDS):
    """Questions with their contents, without rendering."""
    for i in range(n):
        draws = Draws("test_questions", i)
        question = None
        while question is None:
            count = draws.integer(num_images[0], num_images[1] + 1)
            contents = draw_contents(draws, count, LABELS)
            question = ask(contents, kinds[i % len(kinds)], draws)
        yield contents, question


def answers_of(contents, question):
    """All answers that are right, read off the words of the question."""
    if match := re.fullmatch(r"what color is the object in image (\d+)\?", question):
        return {f"it is {color}" for color, _ in contents[int(match[1]) - 1].objects}
    if match := re.fullmatch(r"what shape is the object in image (\d+)\?", question):
        return {f"it is a {shape}" for _, shape in contents[int(match[1]) - 1].objects}
    if match := re.fullmatch(r"what is on the (left|right) in image (\d+)\?", question):
        objects = contents[int(match[2]) - 1].objects
        assert len(objects) == 2
        return {"the {} {}".format(*objects[0 if match[1] == "left" else -1])}
    if match := re.fullmatch(r"which image shows the (\w+) (\w+)\?", question):
        wanted = (match[1], match[2])
        return {f"image {i}" for i, content in enumerate(contents, start=1) if wanted in content.objects}
    if match := re.fullmatch(r"how many images show any (\w+)( object)?\?", question):
        words = [{word for item in content.objects for word in item} for content in contents]
        return {f"i count {sum(match[1] in seen for seen in words)}"}
    if match := re.fullmatch(r"list the (colors|shapes) in order\.", question):
        attribute = ("colors", "shapes").index(match[1])
        parts = [" ".join(item[attribute] for item in c.objects) if c.objects else "photo" for c in contents]
        return {"in order " + " then ".join(parts)}
    if match := re.fullmatch(r"what (color|shape) is in both image (\d+) and image (\d+)\?", question):
        attribute = ("color", "shape").index(match[1])
        first, second = (
            [item[attribute] for item in contents[int(number) - 1].objects] for number in match.groups()[1:]
        )
        assert len(set(first)) == len(set(second)) == 2, "one of the images gives the answer away"
        shown = f"image {match[2]} {' '.join(first)} image {match[3]} {' '.join(second)}"
        return {f"{shown} both {value}" for value in first if value in second}
    match = re.fullmatch(r"what is the class of the photo in image (\d+)\?", question)
    return {f"the class is {contents[int(match[1]) - 1].photo}"}


def test_every_question_has_exactly_one_right_answer():
    for contents, question in draw_questions(1600):
        assert answers_of(contents, question.question) == {question.answer}


def test_no_answer_begins_with_the_word_that_matters():
    # The first answer token comes from the prefill: it must be the same whatever the images show.
    first_words = defaultdict(set)
    for _, question in draw_questions(800):
        first_words[question.kind].add(question.answer.split()[0])
        assert len(question.answer.split()) > 1
    assert all(len(words) == 1 for words in first_words.values())


@pytest.mark.parametrize(
    ("kind", "word", "num_answers"),
    [
        ("color", "", 11),
        ("shape", "", 8),
        ("side", "", 88),
        ("which", "", 4),
        ("count", "", 5),
        ("photo", "", 3),
        ("compare", "what color", 11),
        ("compare", "what shape", 8),
    ],
)
def test_answers_are_balanced(kind, word, num_answers):
    # Four images, 1,500 questions; chi-square stays within four standard deviations of its mean.
    asked = (question for _, question in _plain_questions(kind, 1500))
    seen = Counter(question.answer.split(" both ")[-1] for question in asked if word in question.question)
    assert len(seen) == num_answers
    expected = seen.total() / num_answers
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi2 < num_answers - 1 + 4 * (2 * (num_answers - 1)) ** 0.5


def _plain_questions(kind, n, num_images=4):
    """The generator's own way: the answer's draws stay, the contents are drawn until they fit."""
    for i in range(n):
        attempt, question = 0, None
        while question is None:
            contents = draw_contents(Draws("balance", kind, i, attempt), num_images, LABELS)
            question = ask(contents, kind, Draws("balance", kind, i))
            attempt += 1
        yield contents, question


@pytest.mark.parametrize("kind", ["color", "shape", "side", "which", "count", "compare"])
def test_a_reader_of_the_text_alone_is_at_chance(kind):
    # The best constant answer for each exact wording, learned from one half, asked of the other.
    questions = [question for _, question in _plain_questions(kind, 2000)]
    votes = defaultdict(Counter)
    for question in questions[:1000]:
        votes[question.question][question.answer] += 1
        votes[""][question.answer] += 1
    hits = 0
    for question in questions[1000:]:
        guess = (votes.get(question.question) or votes[""]).most_common(1)[0][0]
        hits += guess == question.answer
    chance = float(np.mean([question.chance for question in questions]))
    assert hits / 1000 < chance + 4 * (chance * (1 - chance) / 1000) ** 0.5


def test_count_never_exceeds_the_largest_count():
    counts = {int(q.answer.split()[-1]) for _, q in draw_questions(300, (8, 8), ("count",))}
    assert counts == set(range(MAX_COUNT + 1))


def test_images_show_what_the_contents_say():
    photo = Image.new("RGB", (32, 32), (1, 2, 3))
    rows = list(multi_image_questions(16, num_images=3, photos=[photo], photo_labels=["cat"], image_size=48))
    assert [row["kind"] for row in rows] == list(KINDS) * 2
    for row in rows:
        assert len(row["images"]) == len(row["contents"]) == row["num_images"] == 3
        assert answers_of(row["contents"], row["question"]) == {row["answer"]}
        for image, content in zip(row["images"], row["contents"], strict=True):
            assert image.size == (48, 48)
            assert (content.photo == "cat") == (np.asarray(image) == (1, 2, 3)).all()
        if row["image_index"] is not None and row["kind"] != "which":
            assert f"image {row['image_index'] + 1}" in row["question"]


def test_rows_do_not_depend_on_how_many_are_asked():
    few, many = list(multi_image_questions(3, seed=5)), list(multi_image_questions(9, seed=5))
    for a, b in zip(few, many, strict=False):
        assert (a["question"], a["answer"], a["contents"]) == (b["question"], b["answer"], b["contents"])
        assert [x.tobytes() for x in a["images"]] == [x.tobytes() for x in b["images"]]
    other = next(multi_image_questions(1, seed=5, split="heldout"))
    assert other["contents"] != few[0]["contents"]


def test_first_question_is_pinned():
    row = next(multi_image_questions(1, split="test", num_images=2, kinds=["which"]))
    assert (row["question"], row["answer"]) == ("which image shows the red square?", "image 2")
    row = next(multi_image_questions(1, split="test", num_images=2, kinds=["compare"]))
    assert (row["question"], row["answer"]) == (
        "what shape is in both image 1 and image 2?",
        "image 1 ring circle image 2 circle triangle both circle",
    )


def test_dataset_gives_photos_and_names():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))})
    images = [Image.new("RGB", (32, 32), (i, i, i)) for i in range(6)]
    photos = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}, features=features)
    row = next(multi_image_questions(1, kinds=["photo"], num_images=4, photos=photos))
    assert row["answer"].removeprefix("the class is ") in LABELS
    assert row["chance"] == pytest.approx(1 / 3)


def test_one_image_is_asked_nothing_that_needs_two():
    rows = list(multi_image_questions(12, num_images=(1, 1), image_size=32))
    assert {row["kind"] for row in rows} == {"color", "shape", "side", "count", "list"}
    assert all(len(row["images"]) == 1 for row in rows)


def test_numbers_of_numpy_are_numbers():
    ours, theirs = (
        next(multi_image_questions(kind(1), seed=kind(3), num_images=(kind(2), kind(3)), image_size=kind(32)))
        for kind in (int, np.int64)
    )
    assert ours["question"] == theirs["question"]
    assert [image.tobytes() for image in ours["images"]] == [image.tobytes() for image in theirs["images"]]


def test_empty_range_of_draws_is_refused():
    with pytest.raises(ValueError, match=r"got \[2, 2\)"):
        Draws("empty").integer(2, 2)


def test_prompt_numbers_the_images_from_one():
    assert build_prompt(2, "list the colors in order.", "<img>") == (
        "image 1 <img> image 2 <img> question list the colors in order. answer"
    )


PHOTO = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "`n` must be a whole number from 1, got 0"),
        ({"split": "dev"}, "`split` must be one of train, validation, test, heldout, got 'dev'"),
        ({"num_images": 17}, rf"within 1\.\.{MAX_IMAGES}.*got 17"),
        ({"num_images": (4, 2)}, r"within 1\.\.16; got \(4, 2\)"),
        ({"num_images": (1, 2, 3)}, r"within 1\.\.16; got \(1, 2, 3\)"),
        ({"num_images": 2.0}, r"within 1\.\.16; got 2\.0"),
        ({"image_size": 16}, "`image_size` must be a whole number from 32 to 512, got 16"),
        ({"image_size": 64.5}, "`image_size` must be a whole number from 32 to 512, got 64.5"),
        ({"n": 2.5}, "`n` must be a whole number from 1, got 2.5"),
        ({"seed": "one"}, "`seed` must be a whole number, got 'one'"),
        ({"kinds": "color"}, "`kinds` must be a list"),
        ({"kinds": ["which"], "num_images": (1, 1)}, "'which' need more than one image"),
        ({"kinds": ["compare"], "num_images": 1}, "'compare' need more than one image"),
        ({"kinds": ["weight"]}, r"Unknown kind 'weight'.*'color'"),
        ({"kinds": []}, "`kinds` is empty"),
        ({"kinds": ["photo"]}, "'photo' need photos with labels"),
        ({"kinds": ["which"], "num_images": 1}, "'which' need more than one image"),
        ({"photos": []}, "`photos` is empty"),
        ({"photo_labels": ["cat"]}, "`photo_labels` needs `photos`"),
        ({"photos": [PHOTO], "photo_labels": ["cat", "dog"]}, "each of the 1 photos, got 2"),
        ({"photos": datasets.Dataset.from_dict({"img": [1]})}, r"columns 'image' and 'label', got \['img'\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_give_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        multi_image_questions(**{"n": 1, **arguments})


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"Unknown kind 'smell'.*'color'"):
        ask([Content(objects=(("red", "star"),))], "smell", Draws(0))


def test_words_of_answers_are_those_of_the_world():
    words = {word for _, question in draw_questions(500, kinds=("side",)) for word in question.answer.split()}
    assert words == {"the", *COLORS, *SHAPES}
