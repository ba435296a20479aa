"""Exact match of llava-nano on held-out multi-image questions, by cache policy and keep ratio.

Question-aware: the cache is compressed after it has read images and question; every policy keeps the question as far
as its budget goes. Question-agnostic: it is compressed after the images, and the question comes as a second turn.
Differences are paired over questions, with 95 percent intervals, against the policy with uniform layers.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import tqdm

import hf_diorama
from hf_diorama.questions import KINDS, build_prompt, build_turn
from meda_cache import MedaCache, attach

NUM_IMAGES = 8
NUM_QUESTIONS = 600
KEEP_RATIOS = (0.5, 0.2, 0.1, 0.05)
BATCH_SIZE = 25
MAX_NEW_TOKENS = 48
MODES = ("question-aware", "question-agnostic")
BASE = "uniform layers"

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sum_score(key_mass: torch.Tensor, visual_mask: torch.Tensor) -> torch.Tensor:
    return key_mass


GENERATOR = torch.Generator()  # seeded anew for every point


def random_score(key_mass: torch.Tensor, visual_mask: torch.Tensor) -> torch.Tensor:
    return torch.rand(key_mass.shape, generator=GENERATOR)


def stride_score(key_mass: torch.Tensor, visual_mask: torch.Tensor) -> torch.Tensor:
    """The same number of patches of every image, spread over it: multiples of the golden ratio are far apart."""
    starts = visual_mask & ~visual_mask.roll(1)
    number = torch.arange(len(visual_mask))
    within = number - torch.where(starts, number, 0).cummax(dim=0).values
    return -torch.frac(within * 0.6180339887).expand_as(key_mass)


def protect(score: Score, question_length: int, key_mass: torch.Tensor, visual_mask: torch.Tensor) -> torch.Tensor:
    """The score, with the question before everything else."""
    scores = score(key_mass, visual_mask).clone()
    scores[:, scores.shape[1] - question_length :] = torch.inf
    return scores


def ramp(low: float, high: float, entropy: torch.Tensor) -> torch.Tensor:
    return torch.linspace(low, high, len(entropy), dtype=torch.float64)


EVICTION = {"allocation": "uniform", "text_policy": "none", "merge": "none"}
POLICIES: dict[str, tuple[Score, dict[str, Any]]] = {
    "meda": (sum_score, {}),
    BASE: (sum_score, {"allocation": "uniform"}),
    "ramp down": (sum_score, {"allocation": partial(ramp, 1.5, 0.5)}),
    "ramp up": (sum_score, {"allocation": partial(ramp, 0.5, 1.5)}),
    "inverted entropy": (sum_score, {"allocation": lambda entropy: (-entropy).softmax(dim=0)}),
    "without merging": (sum_score, {"merge": "none"}),
    "value merge": (sum_score, {"merge": "value"}),
    "h2o": (sum_score, {**EVICTION, "recent_fraction": 0.5}),
    "streaming": (sum_score, {**EVICTION, "recent_fraction": 1.0, "num_sinks": 4}),
    "random": (random_score, {**EVICTION, "recent_fraction": 0.0}),
    "per-image stride": (stride_score, {**EVICTION, "text_policy": "bias", "recent_fraction": 0.0}),
}


def build_batches(processor: Any, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups rows whose questions have as many tokens, so that no prompt needs padding."""
    groups = defaultdict(list)
    for row in rows:
        turn = build_turn(row["question"])
        row["question_length"] = len(processor.tokenizer(turn, add_special_tokens=False)["input_ids"])
        groups[row["question_length"]].append(row)
    return [group[at : at + BATCH_SIZE] for group in groups.values() for at in range(0, len(group), BATCH_SIZE)]


@torch.no_grad()
def answer(
    model: Any, processor: Any, batch: list[dict[str, Any]], mode: str, policy: str, ratio: float
) -> list[bool]:
    """Whether each answer is exactly right."""
    score, options = POLICIES[policy]
    prompts = [build_prompt(row["num_images"], row["question"]) for row in batch]
    images = [image for row in batch for image in row["images"]]
    inputs = processor(images=images, text=prompts, return_tensors="pt")
    turns = processor.tokenizer([build_turn(row["question"]) for row in batch], return_tensors="pt")["input_ids"]
    assert torch.equal(turns, inputs["input_ids"][:, -turns.shape[1] :]), "the question is not the end of the prompt"
    length, question_length = inputs["input_ids"].shape[1], batch[0]["question_length"]
    protected = question_length if mode == "question-aware" else 0
    cache = MedaCache(model.config, keep_ratio=ratio, score=partial(protect, score, protected), **options)
    if mode == "question-agnostic":
        context = length - question_length
        masks = {name: inputs[name][:, :context] for name in ("input_ids", "attention_mask")}
        model(**masks, pixel_values=inputs.pop("pixel_values"), past_key_values=cache)
        cache.compress()
    output = model.generate(**inputs, past_key_values=cache, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = processor.batch_decode(output[:, length:], skip_special_tokens=True)
    return [text.strip() == row["answer"] for text, row in zip(texts, batch, strict=True)]


def summarise(right: np.ndarray, base: np.ndarray, kinds: np.ndarray, chance: np.ndarray) -> dict[str, Any]:
    difference = right.astype(float) - base
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "exact_match": right.mean(),
        "gain": difference.mean(),
        "gain_low": difference.mean() - half,
        "gain_high": difference.mean() + half,
        "chance": chance.mean(),
        "questions_per_kind": int(len(kinds) / len(set(kinds))),
        **{kind: right[kinds == kind].mean() for kind in KINDS if (kinds == kind).any()},
    }


def run(*, quick: bool) -> list[dict[str, Any]]:
    path = hf_diorama.model_path("llava-nano")
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    count = 30 if quick else NUM_QUESTIONS
    rows = list(hf_diorama.multi_image_questions(count, split="heldout", seed=1, num_images=NUM_IMAGES))
    batches = build_batches(processor, rows)
    ordered = [row for batch in batches for row in batch]
    kinds = np.array([row["kind"] for row in ordered])
    chance = np.array([row["chance"] for row in ordered])
    points = [(mode, BASE, 1.0) for mode in MODES]
    points += [(mode, policy, ratio) for mode in MODES for ratio in KEEP_RATIOS[1:2] if quick for policy in POLICIES]
    points += [(mode, policy, ratio) for mode in MODES for ratio in KEEP_RATIOS if not quick for policy in POLICIES]
    answers = {}
    with attach(model):
        for point in tqdm(points, desc="points"):
            mode, policy, ratio = point
            GENERATOR.manual_seed(0)
            answers[point] = np.array(
                [right for batch in batches for right in answer(model, processor, batch, mode, policy, ratio)]
            )
    return [
        {
            "mode": mode,
            "policy": "full cache" if ratio == 1 else policy,
            "keep_ratio": ratio,
            "questions": count,
            **summarise(answers[mode, policy, ratio], answers[mode, BASE, ratio], kinds, chance),
            "samples": {"right": answers[mode, policy, ratio].astype(int).tolist(), "kinds": kinds.tolist()},
        }
        for mode, policy, ratio in points
    ]


PLOT = {"x": "keep_ratio", "y": "exact_match", "line": "policy", "panel": "mode"}
