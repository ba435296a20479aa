"""A head without a language model on the same tokens: what the tower knows, whatever a connector makes of it."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from hf_ava_bench.abilities import Ability, find_ability
from hf_ava_bench.functional import srgb_to_lab
from hf_ava_bench.resolvers import normalize
from hf_ava_bench.scoring import Score, compute_score


class AttentiveProbe(nn.Module):
    """Learned queries that attend to the tokens, and a linear layer on what they gather.

    Args:
        width (`int`): width of the tokens.
        num_outputs (`int`): number of outputs.
        num_queries (`int`, defaults to 4): number of queries.
        hidden_size (`int`, defaults to 64): width inside.

    Example:

    ```python
    >>> import torch
    >>> from hf_ava_bench.runner.probe import AttentiveProbe
    >>> AttentiveProbe(8, 3)(torch.randn(2, 16, 8)).shape
    torch.Size([2, 3])

    ```
    """

    def __init__(self, width: int, num_outputs: int, num_queries: int = 4, hidden_size: int = 64):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size))
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size) / hidden_size**0.5)
        self.attention = nn.MultiheadAttention(hidden_size, 4, batch_first=True)
        self.output = nn.Linear(num_queries * hidden_size, num_outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns outputs `(batch_size, num_outputs)` of tokens `(batch_size, num_tokens, width)`."""
        inner = self.project(tokens)
        gathered, _ = self.attention(self.queries.expand(len(tokens), -1, -1), inner, inner, need_weights=False)
        outputs: torch.Tensor = self.output(gathered.flatten(1))
        return outputs


class _Target:
    """What the probe is trained on for a form of answer, and how its outputs become text again."""

    def __init__(self, ability: Ability, table: datasets.Dataset):
        if ability.answer == "text":
            raise ValueError("A probe cannot write text: there is none for `ocr`.")
        self.kind = ability.answer
        structs = list(table["answer_struct"])
        if self.kind == "class":
            self.classes = sorted({normalize(answer) for answer in table["answer"]})
            self.num_outputs = len(self.classes)
            return
        values = self._values(structs)
        self.mean, self.std = values.mean(axis=0), values.std(axis=0) + 1e-6
        self.num_outputs = values.shape[1]

    def _values(self, structs: Sequence[dict[str, Any]]) -> Any:
        if self.kind == "number":  # in logarithms: errors are relative
            return np.log([[max(struct["number"], 0.5)] for struct in structs])
        if self.kind == "rgb":
            return srgb_to_lab(np.array([struct["rgb"] for struct in structs], dtype=float))
        return np.array([struct["box"] for struct in structs])

    def encode(self, table: datasets.Dataset) -> torch.Tensor:
        if self.kind == "class":
            return torch.tensor([self.classes.index(normalize(answer)) for answer in table["answer"]])
        values = self._values(list(table["answer_struct"]))
        return torch.from_numpy((values - self.mean) / self.std).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.kind == "class":
            return nn.functional.cross_entropy(outputs, targets)
        return nn.functional.smooth_l1_loss(outputs, targets, beta=0.2)

    def decode(self, outputs: torch.Tensor, options: Sequence[Sequence[str]]) -> list[str]:
        if self.kind == "class":
            return [self._pick(row, names) for row, names in zip(outputs, options, strict=True)]
        values = outputs.double().numpy() * self.std + self.mean
        if self.kind == "number":
            return [f"{float(np.exp(value[0])):.6f}" for value in values]
        if self.kind == "rgb":
            return [str([round(float(channel), 3) for channel in _lab_to_srgb(value)]) for value in values]
        return [str([round(float(side), 5) for side in np.clip(value, 0, 1)]) for value in values]

    def _pick(self, outputs: torch.Tensor, options: Sequence[str]) -> str:
        """The likeliest class, among the options of the item where it has some."""
        allowed = {normalize(option) for option in options} & set(self.classes) or set(self.classes)
        return max(allowed, key=lambda name: (float(outputs[self.classes.index(name)]), name))


def _lab_to_srgb(lab: Any) -> Any:
    """Returns 8-bit sRGB in [0, 255] of a CIELAB colour; the inverse of [`functional.srgb_to_lab`]."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.95047, 1.0, 1.08883])
    inverse = np.array(
        [
            [3.2404542, -1.5371385, -0.4985314],
            [-0.9692660, 1.8760108, 0.0415560],
            [0.0556434, -0.2040259, 1.0572252],
        ]
    )
    linear = np.clip(inverse @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def score_probe(
    ability: str,
    train: datasets.Dataset,
    test: datasets.Dataset,
    train_tokens: torch.Tensor,
    test_tokens: torch.Tensor,
    *,
    steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Score:
    """Returns the score of an attentive probe trained on the tokens of an ability's train items.

    Its difference to the score through a language model is the connector gap. The probe has no way to read a question,
    so it is fair where the image alone tells what is asked: not for `counting`, `localization` and `rel_depth` with
    several kinds of things in view.

    Args:
        ability (`str`): any but `ocr`.
        train, test (`datasets.Dataset`): items, see [`load_ability`].
        train_tokens, test_tokens (`torch.Tensor`): their tokens, see `hf_ava_bench.runner.features`.
        steps (`int`, defaults to 400): training steps.
        batch_size (`int`, defaults to 64): items in a step.
        learning_rate (`float`, defaults to 2e-3): peak of the cosine schedule.
        seed (`int`, defaults to 0): seed of weights and batches.

    Example:

    ```python
    >>> from hf_ava_bench import load_ability
    >>> from hf_ava_bench.runner.encoders import KnownEncoder
    >>> from hf_ava_bench.runner.features import compute_features
    >>> from hf_ava_bench.runner.probe import score_probe
    >>> train, test = (load_ability("color", "mini", split, n=16, image_size=32) for split in ("train", "test"))
    >>> tokens = [compute_features(table, KnownEncoder("patch-colour"), progress=False) for table in (train, test)]
    >>> score_probe("color", train, test, *tokens, steps=2).metric
    'ciede2000'

    ```
    """
    known = find_ability(ability)
    target = _Target(known, train)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(train_tokens.shape[2], target.num_outputs)
    tokens, goals = train_tokens.float(), target.encode(train)
    center, spread = tokens.mean(dim=(0, 1)), tokens.std(dim=(0, 1)) + 1e-6
    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (batch_size,), generator=generator)
        loss = target.loss(probe((tokens[rows] - center) / spread), goals[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        outputs = torch.cat([probe((part.float() - center) / spread) for part in test_tokens.split(256)])
    options = list(test["options"])
    return compute_score(
        ability,
        target.decode(outputs, options),
        list(test["answer"]),
        questions=list(test["question"]),
        options=options if all(options) else None,
        **({"coords": "unit"} if known.answer == "box" else {}),  # type: ignore[arg-type]
    )
