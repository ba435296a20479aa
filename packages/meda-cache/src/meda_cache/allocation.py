"""How the budget of a prompt is divided over the layers, and what each layer then keeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meda_cache.compression import CompressionConfig
from meda_cache.functional.budgets import allocate_budgets
from meda_cache.layer import MedaLayer
from meda_cache.prompt import Prompt

PYRAMID_BETA = 20
"""PyramidKV's ratio of the mean budget to that of the last layer (arXiv 2406.02069, section 4.2)."""


@dataclass(frozen=True, kw_only=True)
class PromptBudgets:
    """The budgets of one prompt and where they come from: lists have an entry for each compressed layer."""

    entropy: list[float | None]
    entropy_kind: str | None
    weight: list[float]
    budget: list[int]
    requested: int
    merged: list[float]


def compress_layers(layers: Sequence[MedaLayer], prompt: Prompt, config: CompressionConfig) -> list[PromptBudgets]:
    """Divides the budget of every prompt over the layers, compresses them, and returns what each prompt was given."""
    entropies = [layer.complete(prompt) for layer in layers]
    kinds = [observer.entropy_kind for observer in layers[0].observers]
    entropy: list[list[float | None]] = [
        [None if (value := values[row]) is None else float(value) for values in entropies]
        for row in range(len(prompt))
    ]
    weights, budgets = [], []
    for row, num_tokens in enumerate(prompt.num_tokens):
        numbers = [float("nan") if value is None else value for value in entropy[row]]
        weights.append(weigh_layers(torch.tensor(numbers, dtype=torch.float64), config))
        num_slots, num_text = zip(*(layer.count_slots(row, prompt) for layer in layers), strict=True)
        budgets.append(allocate_prompt(weights[row], num_tokens, num_slots, num_text, config))
    by_layer = zip(*budgets, strict=True)
    merged = [layer.compress(prompt, of_layer) for layer, of_layer in zip(layers, by_layer, strict=True)]
    return [
        PromptBudgets(
            entropy=entropy[row],
            entropy_kind=kinds[row],
            weight=weights[row].tolist(),
            budget=budgets[row],
            requested=count_requested(config.keep_ratio, len(layers), prompt.num_tokens[row]),
            merged=[of_layer[row] for of_layer in merged],
        )
        for row in range(len(prompt))
    ]


def weigh_layers(entropy: Tensor, config: CompressionConfig) -> Tensor:
    """Returns the share of the budget that each layer asks for, adding up to 1, from entropies `(num_layers,)`."""
    num_layers = len(entropy)
    if callable(config.allocation):
        weights = config.allocation(entropy).to("cpu", torch.float64)
    elif config.allocation == "uniform":
        weights = torch.ones(num_layers, dtype=torch.float64)
    elif config.allocation == "pyramid":
        low = 1 / PYRAMID_BETA
        weights = torch.linspace(2 - low, low, num_layers, dtype=torch.float64)
    elif config.allocation == "entropy":
        weights = (entropy / config.temperature).softmax(dim=0)
    else:
        weights = torch.tensor(config.allocation, dtype=torch.float64)
    if weights.shape != entropy.shape:
        raise ValueError(
            f"Expected `allocation` to give one weight for each of the {num_layers} layers, got shape "
            f"{tuple(weights.shape)}."
        )
    return weights / weights.sum()


def count_requested(keep_ratio: float, num_layers: int, num_tokens: int) -> int:
    """Returns the tokens to keep over all layers of a prompt of `num_tokens` tokens, rounded half up."""
    return math.floor(keep_ratio * num_layers * num_tokens + 0.5)


def allocate_prompt(
    weights: Tensor, num_tokens: int, num_slots: Sequence[int], num_text: Sequence[int], config: CompressionConfig
) -> list[int]:
    """Returns the budget of every layer for a prompt of `num_tokens` tokens.

    Args:
        weights (`torch.Tensor` of shape `(num_layers,)`): share of each layer.
        num_tokens (`int`): tokens of the prompt, without padding.
        num_slots (sequence of `int`): what each layer still stores of it: all of it the first time.
        num_text (sequence of `int`): how much of that is text.
        config (`CompressionConfig`): options.
    """
    floor = max(config.min_tokens, config.num_sinks + 1)
    least = [
        min(max(floor, config.num_sinks + text if config.text_policy == "protect" else 0), slots)
        for slots, text in zip(num_slots, num_text, strict=True)
    ]
    total = count_requested(config.keep_ratio, len(num_slots), num_tokens)
    return allocate_budgets(weights, total, minimum=least, maximum=num_slots)
