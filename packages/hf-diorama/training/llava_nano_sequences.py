"""Training sequences of llava-nano: some images of the pool, then a dozen questions and answers about them."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from llava_nano_data import NAMES
from transformers import PreTrainedTokenizerFast

from hf_diorama.draws import Draws
from hf_diorama.questions import Content, ask, build_turn, draw_contents

KIND_WEIGHTS = {"color": 2, "shape": 2, "side": 3, "which": 6, "count": 6, "list": 3, "photo": 2}
TURN_KINDS = [kind for kind, weight in KIND_WEIGHTS.items() for _ in range(weight)]


class Sequence(NamedTuple):
    """Rows of the pool, token ids after the images, and which of the tokens belong to an answer."""

    rows: list[int]
    ids: list[int]
    is_answer: list[bool]


def index_pool(pool: dict[str, np.ndarray], photo_labels: list[str]) -> dict[Content, list[int]]:
    """Returns the images of the pool that show a content."""
    index: dict[Content, list[int]] = defaultdict(list)
    columns = (pool[name].tolist() for name in ("color", "category", "num_objects", "photo"))
    for i, (colors, shapes, num_objects, photo) in enumerate(zip(*columns, strict=True)):
        pairs = list(zip(colors, shapes, strict=True))[:num_objects]
        objects = tuple((NAMES["color"][color], NAMES["category"][shape]) for color, shape in pairs)
        index[Content(objects, None if num_objects else photo_labels[photo])].append(i)
    return index


class Sequences:
    """Draws sequences about the images of a pool."""

    def __init__(self, index: dict[Content, list[int]], tokenizer: PreTrainedTokenizerFast, labels: list[str]):
        self.index, self.labels, self.eos = index, labels, tokenizer.eos_token_id
        self.encode = lambda text: tokenizer.backend_tokenizer.encode(text).ids

    def encode_turn(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Returns the tokens of a prompt's turn and of its answer, which ends with the end token."""
        return self.encode(build_turn(question)), [*self.encode(answer), self.eos]

    def draw(self, draws: Draws, num_images: int, num_turns: int = 12) -> Sequence:
        """Returns a sequence about so many images."""
        contents = draw_contents(draws, num_images, self.labels)
        while any(content not in self.index for content in contents):
            contents = draw_contents(draws, num_images, self.labels)
        sequence = Sequence([], [], [])
        while num_turns:
            question = ask(contents, draws.choice(TURN_KINDS), draws)
            if question is not None:
                turn, answer = self.encode_turn(question.question, question.answer)
                sequence.ids.extend(turn + answer)
                sequence.is_answer.extend([False] * len(turn) + [True] * len(answer))
                num_turns -= 1
        sequence.rows.extend(draws.choice(self.index[content]) for content in contents)
        return sequence


def collate(texts: list[tuple[list[int], list[bool]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and answer mask, padded on the right, where causal attention makes padding harmless."""
    length = max(len(ids) for ids, _ in texts)
    ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in texts])
    return ids, torch.tensor([mask + [False] * (length - len(mask)) for _, mask in texts])
