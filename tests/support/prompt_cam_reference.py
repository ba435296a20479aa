"""Prompt-CAM written down slowly from the paper (arXiv 2501.09333, section 3): float64, one image, one head at a time.

Weights have the names of timm's ViT. It shares no code with the package and is the oracle of its tests.
"""

import math
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass
class Result:
    """Class scores (C,) and the attention of the class prompts in the last layer, (heads, C, tokens)."""

    scores: torch.Tensor
    attention: torch.Tensor


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * weight + bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def embed(weights: Tensors, image: torch.Tensor, patch: int) -> torch.Tensor:
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    tokens = [weights["cls_token"][0, 0]]
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            pixels = image[:, top : top + patch, left : left + patch].flatten()
            tokens.append(kernel @ pixels + weights["patch_embed.proj.bias"])
    return torch.stack(tokens) + weights["pos_embed"][0]


def block(
    weights: Tensors, z: torch.Tensor, num_heads: int, blurred: dict[tuple[int, int], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer; `blurred` replaces the attention of a (head, row) by another row."""
    x = norm(z, weights["norm1.weight"], weights["norm1.bias"])
    q, k, v = (x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]).chunk(3, dim=-1)
    width = q.shape[1] // num_heads
    maps, heads = [], []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for row in range(len(z)):
            scores = torch.stack([q[row, part] @ k[column, part] for column in range(len(z))]) / math.sqrt(width)
            rows.append(blurred.get((head, row), torch.softmax(scores, dim=0)))
        maps.append(torch.stack(rows))
        heads.append(maps[-1] @ v[:, part])
    z = z + torch.cat(heads, dim=1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]
    x = norm(z, weights["norm2.weight"], weights["norm2.bias"])
    x = gelu(x @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"])
    return z + x @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"], torch.stack(maps)


def run(
    weights: Tensors,
    prompts: dict[int, torch.Tensor],
    image: torch.Tensor,
    *,
    num_layers: int,
    num_heads: int,
    patch: int,
    blur: str = "patches",
    blurred_heads: tuple[int, ...] = (),
    blurred_class: int = 0,
) -> Result:
    """Scores of one image. `prompts`: what enters each layer; the last to enter are the class prompts."""
    weights = {name: value.double() for name, value in weights.items()}
    z = embed(weights, image.double(), patch)
    num_image_tokens = len(z)
    insert = max(prompts)
    num_classes = len(prompts[insert])
    attention = torch.empty(0)
    for index in range(num_layers):
        if index in prompts:
            z = torch.cat([prompts[index].double(), z[-num_image_tokens:]])
        own = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{index}.")
        }
        even = torch.zeros(len(z)).double()
        if blur == "patches":
            even[-(num_image_tokens - 1) :] = 1 / (num_image_tokens - 1)
        else:
            even[:] = 1 / len(z)
        rows = {(head, blurred_class): even for head in blurred_heads} if index == num_layers - 1 else {}
        z, attention = block(own, z, num_heads, rows)
    z = norm(z[:num_classes], weights["norm.weight"], weights["norm.bias"])
    scores = torch.stack([weights["head.weight"][0] @ token + weights["head.bias"][0] for token in z])
    return Result(scores, attention[:, :num_classes])
