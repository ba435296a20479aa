"""Asking members: one pass over the images for all members of a backbone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers.utils.logging import tqdm

from . import fitting
from .data import ViewCollator, with_arrays
from .members import MemberSpec
from .prefix import FrozenPrefix, count_frozen_blocks
from .structure import find_structure

Answer = dict[str, torch.Tensor]


def ask_members(
    specs: Sequence[MemberSpec], folders: Sequence[Path], label_names: Sequence[str], dataset: Dataset, tta: int = 1
) -> list[Answer]:
    """Logits and features of members, those of one backbone in one pass over the images; see `predict`.

    Args:
        specs: the members.
        folders: of their adapters.
        label_names: the classes.
        dataset: images, with ids.
        tta: number of passes; their views follow from the seed of each member.
    """
    together: dict[tuple[str, int], list[int]] = {}
    for place, spec in enumerate(specs):
        together.setdefault((spec.backbone, spec.seed if tta > 1 else 0), []).append(place)
    answers: dict[int, Answer] = {}
    for (backbone, seed), places in together.items():
        models = [fitting.load_member(specs[place], label_names, folders[place]) for place in places]
        share_weights(models)
        desc = f"{len(places)} x {Path(backbone).name}"
        said = predict(models, fitting.load_processor(specs[places[0]]), dataset, tta=tta, seed=seed, desc=desc)
        answers |= dict(zip(places, said, strict=True))
    return [answers[place] for place in range(len(specs))]


@torch.no_grad()
def predict(
    models: Sequence[Any],
    processor: Any,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    tta: int = 1,
    seed: int = 0,
    desc: str = "",
) -> list[Answer]:
    """Logits and features of all images, for each of some members of one backbone.

    An image is read and processed once for all of them, and goes once through the blocks that several leave frozen.

    Args:
        models: `PeftModel`s of one backbone, in evaluation mode.
        processor: the backbone's image processor.
        dataset: with columns `image` and `id`.
        tta: with 1, one clean pass; with more, the mean of the logits of so many weakly augmented passes.
        seed: of those passes.
        desc: of the progress bar; none without it.

    Returns:
        For each member `logits` `(N, C)` and `features` `(N, D)`, what its head reads, of the last pass, in float32.
    """
    dataset = with_arrays(dataset)
    members = [_Asked(model) for model in models]
    prefixes = Counter(member.num_frozen for member in members if member.num_frozen)
    steps = [(number, start) for number in range(tta) for start in range(0, len(dataset), batch_size)]
    try:
        for number, start in tqdm(steps, desc=desc, leave=False, disable=not desc):
            columns = dataset[start : start + batch_size]
            rows = [{"image": image, "id": name} for image, name in zip(columns["image"], columns["id"], strict=True)]
            collator = ViewCollator(processor, ("weak" if tta > 1 else "none",), seed=seed, epoch=number)
            pixel_values = collator(rows)["pixel_values"].to(members[0].device)
            features: dict[int, torch.Tensor] = {}
            for member in members:
                count = member.num_frozen if prefixes[member.num_frozen] > 1 else 0
                if count and count not in features:
                    features[count] = member.prefix(pixel_values).compute(pixel_values)
                member.ask(pixel_values, features.get(count), is_last=number == tta - 1)
    finally:
        for member in members:
            member.hook.remove()
    return [member.answer(tta) for member in members]


class _Asked:
    """A member, and what it has said so far."""

    def __init__(self, model: Any):
        self.model = model
        self.num_frozen = count_frozen_blocks(model)
        self.device = next(model.parameters()).device
        base = model.get_base_model()
        self.head: nn.Module = base.get_submodule(str(find_structure(base).head))
        self.hook = self.head.register_forward_pre_hook(self._read)
        self.logits: list[torch.Tensor] = []
        self.features: list[torch.Tensor] = []
        self._keeps_features = False
        self._prefixes: dict[tuple[int, ...], FrozenPrefix] = {}

    def _read(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self._keeps_features:
            self.features.append(args[0].float().cpu())

    def prefix(self, pixel_values: torch.Tensor) -> FrozenPrefix:
        """Its frozen blocks, for images of this size."""
        shape = tuple(pixel_values.shape[1:])
        if shape not in self._prefixes:
            self._prefixes[shape] = FrozenPrefix(self.model, self.num_frozen, shape)
        return self._prefixes[shape]

    def ask(self, pixel_values: torch.Tensor, features: torch.Tensor | None, is_last: bool) -> None:
        """One batch, from the features of the frozen blocks if there are some."""
        self._keeps_features = is_last
        if features is None:
            logits = self.model(pixel_values=pixel_values).logits
        else:
            with self.prefix(pixel_values).skip():
                logits = self.model(pixel_values=features).logits
        self._keeps_features = False
        self.logits.append(logits.float().cpu())

    def answer(self, tta: int) -> Answer:
        """The mean of the logits over passes, and the features."""
        if not self.logits:
            return {"logits": torch.zeros(0, self.model.get_base_model().num_labels), "features": torch.zeros(0, 1)}
        logits = torch.cat(self.logits).unflatten(0, (tta, -1)).mean(dim=0)
        return {"logits": logits, "features": torch.cat(self.features)}


def share_weights(models: Sequence[nn.Module]) -> None:
    """Let equal parameters of the same name be one: the backbone of several members is in memory once."""
    first: dict[str, nn.Parameter] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            known = first.setdefault(name, parameter)
            if known is not parameter and known.shape == parameter.shape and torch.equal(known, parameter):
                parameter.data = known.data
