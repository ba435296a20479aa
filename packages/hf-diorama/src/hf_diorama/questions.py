"""Questions about several images at once, with one right answer each.

An image shows one or two objects of world `scenes`, or is a plain photo of a known class. No answer begins with the
word that matters: a decoder has to produce that word from its cache, not from the prefill.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import datasets

from hf_diorama.arguments import check_bounds, check_integer, check_size, check_split
from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes import COLORS, SCENES, SHAPES
from hf_diorama.worlds.scenes.surfaces import fit_photo

MAX_IMAGES = 16
MAX_COUNT = 4
PHOTO_RATIO = 0.25  # share of plain photos among the images, where photos are given


class Content(NamedTuple):
    """What one image shows: one or two objects from left to right as (color, shape), or a photo of a class."""

    objects: tuple[tuple[str, str], ...] = ()
    photo: str | None = None


class Question(NamedTuple):
    """A question with its only right answer.

    `image_index` counts from 0 and is None where several images are asked about; `chance` is the probability that the
    best guess without seeing an image matches the answer exactly.
    """

    question: str
    answer: str
    kind: str
    image_index: int | None
    chance: float


def draw_contents(draws: Draws, num_images: int, photo_labels: Sequence[str] = ()) -> list[Content]:
    """Returns what the images of one context show.

    A context has a palette of its own, of random size, so that images often share a color or a shape.

    Args:
        draws (`Draws`): where the random choices come from.
        num_images (`int`): number of images.
        photo_labels (sequence of `str`): classes of photos; none means no photos.
    """
    colors = draws.sample(tuple(COLORS), draws.integer(2, len(COLORS) + 1))
    shapes = draws.sample(SHAPES, draws.integer(2, len(SHAPES) + 1))
    contents = []
    for _ in range(num_images):
        if photo_labels and draws.chance(PHOTO_RATIO):
            contents.append(Content(photo=draws.choice(photo_labels)))
        else:
            objects = [(draws.choice(colors), draws.choice(shapes)) for _ in range(draws.integer(1, 3))]
            contents.append(Content(objects=tuple(objects)))
    return contents


def _indices(contents: Sequence[Content], num_objects: int) -> list[int]:
    return [i for i, content in enumerate(contents) if len(content.objects) == num_objects]


def _ask_color(contents: Sequence[Content], draws: Draws) -> Question | None:
    if not (indices := _indices(contents, 1)):
        return None
    index = draws.choice(indices)
    answer = f"it is {contents[index].objects[0][0]}"
    return Question(f"what color is the object in image {index + 1}?", answer, "color", index, 1 / len(COLORS))


def _ask_shape(contents: Sequence[Content], draws: Draws) -> Question | None:
    if not (indices := _indices(contents, 1)):
        return None
    index = draws.choice(indices)
    answer = f"it is a {contents[index].objects[0][1]}"
    return Question(f"what shape is the object in image {index + 1}?", answer, "shape", index, 1 / len(SHAPES))


def _ask_side(contents: Sequence[Content], draws: Draws) -> Question | None:
    if not (indices := _indices(contents, 2)):
        return None
    index, side = draws.choice(indices), draws.integer(0, 2)
    color, shape = contents[index].objects[side]
    question = f"what is on the {('left', 'right')[side]} in image {index + 1}?"
    return Question(question, f"the {color} {shape}", "side", index, 1 / (len(COLORS) * len(SHAPES)))


def _ask_which(contents: Sequence[Content], draws: Draws) -> Question | None:
    candidates = [i for i, content in enumerate(contents) if content.objects]
    if len(contents) < 2 or not candidates:
        return None
    index = draws.choice(candidates)
    color, shape = wanted = draws.choice(contents[index].objects)
    if sum(wanted in content.objects for content in contents) > 1:
        return None
    question = f"which image shows the {color} {shape}?"
    return Question(question, f"image {index + 1}", "which", index, 1 / len(contents))


def _ask_count(contents: Sequence[Content], draws: Draws) -> Question | None:
    count = draws.integer(0, min(len(contents), MAX_COUNT) + 1)
    attribute = draws.integer(0, 2)
    seen = Counter(value for content in contents for value in {item[attribute] for item in content.objects})
    candidates = [value for value in (tuple(COLORS), SHAPES)[attribute] if seen[value] == count]
    if not candidates:
        return None
    wanted = draws.choice(candidates) + (" object", "")[attribute]
    chance = 1 / (min(len(contents), MAX_COUNT) + 1)
    return Question(f"how many images show any {wanted}?", f"i count {count}", "count", None, chance)


def _ask_list(contents: Sequence[Content], draws: Draws) -> Question | None:
    num_objects = sum(len(content.objects) for content in contents)
    if not num_objects:
        return None
    attribute = draws.integer(0, 2)
    items = [" ".join(item[attribute] for item in content.objects) or "photo" for content in contents]
    chance = (1 / len(COLORS), 1 / len(SHAPES))[attribute] ** num_objects
    question = f"list the {('colors', 'shapes')[attribute]} in order."
    return Question(question, "in order " + " then ".join(items), "list", None, chance)


def _ask_photo(contents: Sequence[Content], draws: Draws) -> Question | None:
    indices = [i for i, content in enumerate(contents) if content.photo is not None]
    if not indices:
        return None
    index = draws.choice(indices)
    question = f"what is the class of the photo in image {index + 1}?"
    return Question(question, f"the class is {contents[index].photo}", "photo", index, 0.0)


def _ask_compare(contents: Sequence[Content], draws: Draws) -> Question | None:
    attribute = draws.integer(0, 2)
    values = [{item[attribute] for item in content.objects} for content in contents]
    candidates = [i for i, value in enumerate(values) if len(value) == 2]  # one image alone leaves two answers
    pairs = [(i, j) for i, j in combinations(candidates, 2) if len(values[i] & values[j]) == 1]
    if not pairs:
        return None
    pair = draws.choice(pairs)
    (shared,) = values[pair[0]] & values[pair[1]]
    names = [f"image {i + 1}" for i in pair]
    question = f"what {('color', 'shape')[attribute]} is in both {names[0]} and {names[1]}?"
    shown = [" ".join(item[attribute] for item in contents[i].objects) for i in pair]
    answer = f"{names[0]} {shown[0]} {names[1]} {shown[1]} both {shared}"
    size = (len(COLORS), len(SHAPES))[attribute]
    return Question(question, answer, "compare", None, 1 / (4 * size * (size - 1) * (size - 2)))


_ASK: dict[str, Callable[[Sequence[Content], Draws], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "side": _ask_side,
    "which": _ask_which,
    "count": _ask_count,
    "list": _ask_list,
    "photo": _ask_photo,
    "compare": _ask_compare,
}
KINDS = tuple(_ASK)
"""Kinds of questions; `photo` needs photos with labels, the kinds of `NEED_TWO` at least two images."""
NEED_TWO = ("which", "compare")


def ask(contents: Sequence[Content], kind: str, draws: Draws) -> Question | None:
    """Returns a question of the kind about the images, or None where the draw has no single right answer.

    Ask again, or ask about other images, where None comes back: answers are balanced over the questions that exist.

    Args:
        contents (sequence of `Content`): what the images show.
        kind (`str`): one of `KINDS`.
        draws (`Draws`): where the random choices come from.

    Example:

    ```python
    >>> from hf_diorama.draws import Draws
    >>> from hf_diorama.questions import Content, ask
    >>> ask([Content(objects=(("red", "star"),))], "color", Draws(0)).answer
    'it is red'

    ```
    """
    if kind not in _ASK:
        raise ValueError(f"Unknown kind {kind!r} of question; choose from {list(KINDS)}.")
    return _ASK[kind](contents, draws)


def build_turn(question: str) -> str:
    """Returns one turn of the prompt, up to where the answer begins."""
    return f"question {question} answer"


def build_prompt(num_images: int, question: str, image_token: str = "<image>") -> str:
    """Returns the prompt: every image after its number, then the question.

    Args:
        num_images (`int`): number of images.
        question (`str`): the question.
        image_token (`str`, defaults to `"<image>"`): placeholder that the processor replaces by an image.

    Example:

    ```python
    >>> from hf_diorama.questions import build_prompt
    >>> build_prompt(2, "which image shows the red star?")
    'image 1 <image> image 2 <image> question which image shows the red star? answer'

    ```
    """
    images = " ".join(f"image {i + 1} {image_token}" for i in range(num_images))
    return f"{images} {build_turn(question)}"


def _photo_names(photos: Sequence[Any] | datasets.Dataset | None, photo_labels: Sequence[str] | None) -> list[str]:
    """Returns the class name of each photo, or nothing where the classes are unknown."""
    if photos is None:
        if photo_labels is not None:
            raise ValueError("`photo_labels` needs `photos`; pass the photos that the labels belong to.")
        return []
    if photo_labels is None:
        if not isinstance(photos, datasets.Dataset):
            return []
        missing = {"image", "label"} - set(photos.column_names)
        if missing:
            raise ValueError(
                f"`photos` must have the columns 'image' and 'label', got {photos.column_names}; rename the columns."
            )
        feature = photos.features["label"]
        to_name = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        return [to_name(label) for label in photos["label"]]
    if len(photo_labels) != len(photos):
        raise ValueError(f"`photo_labels` must name each of the {len(photos)} photos, got {len(photo_labels)} names.")
    return list(photo_labels)


def _choose_kinds(kinds: Sequence[str] | None, possible: list[str]) -> list[str]:
    """Returns the kinds to ask in turn, all that are possible by default."""
    if kinds is None:
        return possible
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        raise ValueError(f"`kinds` must be a list of kinds, got {kinds!r}; choose from {possible}.")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"Unknown kind {kind!r} of question; choose from {list(KINDS)}.")
        if kind not in possible:
            need = "photos with labels" if kind == "photo" else "more than one image"
            raise ValueError(f"Questions of kind {kind!r} need {need}; choose from {possible}.")
    if not kinds:
        raise ValueError(f"`kinds` is empty; choose from {possible}, or pass None for all of them.")
    return list(kinds)


def multi_image_questions(
    n: int,
    *,
    split: str = "train",
    seed: int = 0,
    num_images: int | tuple[int, int] = (1, 8),
    kinds: Sequence[str] | None = None,
    photos: Sequence[Any] | datasets.Dataset | None = None,
    photo_labels: Sequence[str] | None = None,
    image_size: int = 64,
) -> Iterator[dict[str, Any]]:
    """Yields questions about freshly rendered images, row i depending on nothing but the arguments and i.

    Args:
        n (`int`): number of questions.
        split (`str`, defaults to `"train"`): one of `"train"`, `"validation"`, `"test"`, `"heldout"`.
        seed (`int`, defaults to 0): seed within the split.
        num_images (`int` or `tuple[int, int]`, defaults to `(1, 8)`): number of images, or its smallest and largest.
        kinds (sequence of `str`, *optional*): kinds of questions, in turn; all that can be asked by default.
        photos (`datasets.Dataset` or sequence of `PIL.Image.Image`, *optional*):
            Photos: half of the objects stand on one, and a quarter of the images are one without objects if the
            classes are known. A dataset has the columns `image` and `label`.
        photo_labels (sequence of `str`, *optional*): class name of each photo, where `photos` is not a dataset.
        image_size (`int`, defaults to 64): height and width of the images in pixels.

    Yields:
        `dict`: `images` (list of `PIL.Image.Image`), `question`, `answer`, `kind`, `image_index` (from 0; None where
        the question is about several images), `num_images`, `chance` and `contents` (list of `Content`).

    Raises:
        ValueError: at the call, for an unknown split or kind, a number out of range, or labels that do not fit the
            photos.

    Example:

    ```python
    >>> from hf_diorama.questions import multi_image_questions
    >>> row = next(multi_image_questions(1, num_images=3, kinds=["which"]))
    >>> row["question"], row["answer"]
    ('which image shows the red ring?', 'image 2')

    ```
    """
    names = _photo_names(photos, photo_labels)
    n, seed = check_integer("n", n, 1), check_integer("seed", seed)
    check_split(split)
    image_size = check_size(image_size)
    bounds = check_bounds("num_images", num_images, MAX_IMAGES)
    if photos is not None and len(photos) == 0:
        raise ValueError("`photos` is empty; pass at least one photo, or None for rendered backgrounds only.")
    possible = [kind for kind in KINDS if (kind != "photo" or names) and (kind not in NEED_TWO or bounds[1] > 1)]
    kinds = _choose_kinds(kinds, possible)
    by_name: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        by_name.setdefault(name, []).append(position)
    return (_row(i, kinds[i % len(kinds)], bounds, split, seed, photos, by_name, image_size) for i in range(n))


def _row(
    index: int,
    kind: str,
    num_images: tuple[int, int],
    split: str,
    seed: int,
    photos: Any,
    by_name: dict[str, list[int]],
    image_size: int,
) -> dict[str, Any]:
    draws = Draws("questions", 1, split, seed, index)
    count = draws.integer(max(num_images[0], 2 if kind in NEED_TWO else 1), num_images[1] + 1)
    # The answer to a count is drawn by the first word of the stream `ask`: images are drawn until they fit it.
    labels = sorted(by_name)
    attempt, question = 0, None
    while question is None:
        contents = draw_contents(Draws("contents", split, seed, index, attempt), count, labels)
        question = ask(contents, kind, Draws("ask", split, seed, index))
        attempt += 1
    images = []
    for position, content in enumerate(contents):
        if content.photo is None:
            key = RowKey(
                world="scenes", version=SCENES.version, split=split, seed=seed, index=index * MAX_IMAGES + position
            )
            images.append(SCENES.render(key, image_size, pinned=content.objects, photos=photos)["image"])
        else:
            images.append(fit_photo(photos[draws.choice(by_name[content.photo])], image_size))
    chance = 1 / len(labels) if kind == "photo" else question.chance
    return {**question._asdict(), "chance": chance, "num_images": count, "images": images, "contents": contents}
