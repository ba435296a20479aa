"""Training material of llava-nano: contexts of some images of the pool, each with short dialogues about them."""

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from llava_nano_data import NAMES
from transformers import PreTrainedTokenizerFast

from hf_diorama.draws import Draws
from hf_diorama.questions import Content, Question, ask, build_turn, draw_contents

KIND_WEIGHTS = {"color": 1, "shape": 2, "side": 3, "which": 4, "count": 8, "list": 5, "photo": 3, "compare": 8}
TURN_KINDS = [kind for kind, weight in KIND_WEIGHTS.items() for _ in range(weight)]
NOTHING = (-1, 0)


class Turn(NamedTuple):
    """Tokens of a question and its answer, and for each what it should look at and know.

    `image` and `place` name an object (0: the whole image, 1: left, 2: right), `votes` has a bit for every image that
    a count counts, `hint` is the token of the answer that a word of the question can know already; -1 for nothing.
    """

    ids: list[int]
    is_answer: list[bool]
    image: list[int]
    place: list[int]
    votes: list[int]
    hint: list[int]


class Batch(NamedTuple):
    """Rows of the pool (B, K), and the dialogues: (B, G, L) tensors with the fields of `Turn`."""

    rows: torch.Tensor
    ids: torch.Tensor
    is_answer: torch.Tensor
    image: torch.Tensor
    place: torch.Tensor
    votes: torch.Tensor
    hint: torch.Tensor


def index_pool(pool: dict[str, np.ndarray], photo_labels: list[str]) -> dict[Content, list[int]]:
    """Returns the images of the pool that show a content."""
    index: dict[Content, list[int]] = defaultdict(list)
    columns = (pool[name].tolist() for name in ("color", "category", "num_objects", "photo"))
    for i, (colors, shapes, num_objects, photo) in enumerate(zip(*columns, strict=True)):
        pairs = list(zip(colors, shapes, strict=True))[:num_objects]
        objects = tuple((NAMES["color"][color], NAMES["category"][shape]) for color, shape in pairs)
        index[Content(objects, None if num_objects else photo_labels[photo])].append(i)
    return index


def seen_words(contents: list[Content], question: Question) -> list[tuple[int, int]]:
    """Returns image and place behind each word of the answer, `NOTHING` where there is none."""
    words, index = question.answer.split(), question.image_index
    sources = [NOTHING] * len(words)
    if question.kind in ("color", "shape"):
        sources[-1] = (index, 1)
    elif question.kind == "photo":
        sources[-1] = (index, 0)
    elif question.kind == "side":
        sources[1:] = [(index, 1 if "left" in question.question else 2)] * 2
    elif question.kind == "compare":  # image 2 red blue image 5 green red both red
        for number in (1, 5):
            sources[number + 1 : number + 3] = [(int(words[number]) - 1, place) for place in (1, 2)]
    elif question.kind == "list":
        items = [(i, place) for i, x in enumerate(contents) for place in range(1, len(x.objects) + 1) or (0,)]
        named = iter(items)
        sources = [NOTHING if word in ("in", "order", "then") else next(named) for word in words]
    return sources


class Sequences:
    """Draws batches about the images of a pool."""

    def __init__(self, index: dict[Content, list[int]], tokenizer: PreTrainedTokenizerFast, labels: list[str]):
        self.index, self.labels, self.eos = index, labels, tokenizer.eos_token_id
        self.encode: Callable[[str], list[int]] = lru_cache(100_000)(
            lambda text: tokenizer.backend_tokenizer.encode(text).ids
        )

    def encode_turn(self, contents: list[Content], question: Question) -> Turn:
        """Returns the tokens of a turn, whose answer ends with the end token, and what they look at.

        The token before a word of the answer looks at what that word names. Where the question names it, the name
        looks: "star" in "the red star" at the star, "red" in "any red object" at the images that it counts.
        """
        turn, answer = self.encode(build_turn(question.question)), [*self.encode(question.answer), self.eos]
        sources = [NOTHING] * (len(turn) - 1) + seen_words(contents, question) + [NOTHING] * 2
        votes, hint = [-1] * len(sources), [-1] * len(sources)
        words = question.question.rstrip("?").split()
        if question.kind == "which":
            objects = contents[question.image_index].objects
            sources[len(words)] = (question.image_index, objects.index((words[-2], words[-1])) + 1)
            hint[len(words)] = answer[-2]
        if question.kind == "count":
            voters = [i for i, content in enumerate(contents) if any(words[5] in item for item in content.objects)]
            votes[6] = sum(1 << i for i in voters)  # the word "question" comes first
            hint[6] = answer[-2]
        is_answer = [False] * len(turn) + [True] * len(answer)
        images, places = [image for image, _ in sources], [place for _, place in sources]
        return Turn(turn + answer, is_answer, images, places, votes, hint)

    def _context(self, draws: Draws, num_images: int) -> list[Content]:
        while True:
            contents = draw_contents(draws, num_images, self.labels)
            if all(content in self.index for content in contents):
                return contents

    def draw(self, draws: Draws, num_images: int, batch_size: int, num_dialogues: int) -> Batch:
        """Returns a batch of contexts, each with as many dialogues of as many turns as fit the longest question."""
        length = max(32, 12 + 3 * num_images)
        rows = np.zeros((batch_size, num_images), np.int64)
        fields = np.zeros((6, batch_size, num_dialogues, length), np.int64)
        fields[[2, 4, 5]] = -1
        for b in range(batch_size):
            contents = self._context(draws, num_images)
            rows[b] = [draws.choice(self.index[content]) for content in contents]
            dialogue, used = 0, 0
            while dialogue < num_dialogues:
                question = ask(contents, draws.choice(TURN_KINDS), draws)
                if question is None:
                    continue
                turn = self.encode_turn(contents, question)
                size = len(turn.ids)
                if used + size > length:
                    dialogue, used = dialogue + 1, 0
                if dialogue < num_dialogues:
                    fields[:, b, dialogue, used : used + size] = turn
                    used += size
        ids, is_answer, *rest = map(torch.from_numpy, fields)
        return Batch(torch.from_numpy(rows), ids, is_answer.bool(), *rest)
