"""Log-probabilities of answer options: one prompt and its cache for all, against a full forward for each option.

llava-nano on mini-CompBench, one question at a time on one thread. Two images of 16 tokens each are a short prompt:
the gain grows with the prompt. Options have two tokens; for one token each, ours needs the prompt only.
"""

from functools import cache
from typing import Any

import torch

import hf_diorama
from harness import Timing
from hf_compbench import load_compbench
from hf_compbench.prompting import load_prompt
from hf_compbench.runners import TransformersRunner
from hf_compbench.runners.run import build_requests, list_places


@cache
def load() -> tuple[Any, Any]:
    runner = TransformersRunner.from_pretrained(hf_diorama.model_path("llava-nano"), chat_template="plain")
    rows = load_compbench("mini", "test", num_pairs=8, image_size=64, relativities=("state",))
    return runner, next(build_requests(rows, runner, load_prompt("nano"), list_places(rows, ["12"], 1)))


def setup(options: int) -> tuple[Any, Any]:
    runner, request = load()
    choices = [f"image {number + 1}" for number in range(options)]
    return runner, type(request)(**{**vars(request), "choices": choices})


def full_forwards(inputs: tuple[Any, Any]) -> list[float]:
    runner, request = inputs
    scores = []
    for text in request.choices:
        encoded = runner.encode([request.messages])
        tokens = runner.encode_option(text)
        ids = torch.cat([encoded["input_ids"], torch.tensor([tokens])], dim=1)
        with torch.inference_mode():
            logits = runner.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=encoded["pixel_values"]
            ).logits[0]
        logprobs = logits[-len(tokens) - 1 : -1].float().log_softmax(dim=-1)
        scores.append(sum(float(logprobs[place, token]) for place, token in enumerate(tokens)))
    return scores


def check(inputs: tuple[Any, Any]) -> None:
    runner, request = inputs
    ours, theirs = runner.score_options([request])[0], full_forwards(inputs)
    assert max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)) < 1e-5, (ours, theirs)


CASE = Timing(
    sizes=[{"options": 2}, {"options": 3}, {"options": 6}, {"options": 12}],
    setup=setup,
    check=check,
    ours=lambda inputs: inputs[0].score_options([inputs[1]]),
    peer=full_forwards,
    unit="questions",
)
