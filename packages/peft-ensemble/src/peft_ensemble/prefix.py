"""The blocks in front of the first adapter: frozen, so their output is computed once for all members that have them.

A member whose adapters start at block k (`blocks=[k, ...]`) trains nothing before it. For one view of one image those
blocks give the same tokens in every epoch and to every member of the backbone. `FrozenPrefix` computes them apart from
the rest of the model, `FeatureCache` keeps them, `PrefixCollator` hands them to the model in place of pixels.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .augmentation import augment, name_view, to_tensor
from .data import ViewCollator
from .structure import find_structure

Forward = Callable[..., Any]
RANDOM_POSITIONS = ("pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift")  # of DINOv3, in training


def count_frozen_blocks(model: Any) -> int:
    """How many blocks, from the first one on, an adapter leaves as they are, and all that is before them.

    Args:
        model: a `PeftModel`. A backbone that is random in training has no such blocks: one with dropout or drop-path
            of its own, or DINOv3, which moves the positions of patches.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from peft_ensemble import SSFConfig
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
    >>> count_frozen_blocks(get_peft_model(ViTForImageClassification(config), SSFConfig(blocks=[2])))
    2

    ```
    """
    base = model.get_base_model()
    if _is_random(base.config):
        return 0
    blocks = find_structure(base).blocks
    stack = blocks[0].block.rpartition(".")[0]
    count, is_before = len(blocks), True
    for name, module in base.named_modules():
        is_before = is_before and name != stack
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            if is_before:
                return 0
            if name.startswith(f"{stack}."):
                count = min(count, int(name[len(stack) + 1 :].partition(".")[0]))
    return count


def _is_random(config: Any) -> bool:
    """Whether two forwards in training differ."""
    values = getattr(config, "vision_config", config).to_dict()
    drops = any("drop" in key and isinstance(value, float) and value > 0 for key, value in values.items())
    return drops or any(values.get(name) for name in RANDOM_POSITIONS)


class FrozenPrefix:
    """The frozen blocks of a member, run apart from the rest.

    Args:
        model: a `PeftModel`.
        num_blocks: how many blocks, from the first one on; see `count_frozen_blocks`.
        image_shape: channels, height and width of the pixels that the features are of.
        autocast: the precision that the member is trained in, if it is not that of its weights.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from peft_ensemble import SSFConfig
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), SSFConfig(blocks=[2])).eval()
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> prefix = FrozenPrefix(model, num_blocks=2, image_shape=(3, 32, 32))
    >>> features = prefix.compute(pixel_values)
    >>> with prefix.skip():
    ...     logits = model(pixel_values=features).logits
    >>> torch.equal(logits, model(pixel_values=pixel_values).logits)
    True

    ```
    """

    def __init__(self, model: Any, num_blocks: int, image_shape: tuple[int, ...], autocast: torch.dtype | None = None):
        self.num_blocks = num_blocks
        self.image_shape = image_shape
        self.autocast = autocast
        self._base = model.get_base_model()
        structure = find_structure(self._base)
        self._blocks = [self._base.get_submodule(block.block) for block in structure.blocks]
        self._patches: Any = self._base.get_submodule(structure.patch_embedding)
        self._forwards: dict[nn.Module, Forward] = {
            module: module.forward for module in (self._base, self._patches, *self._blocks)
        }
        self._features: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._patches.weight.device
        return device

    @torch.no_grad()
    def compute(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tokens behind the frozen blocks, `(batch_size, seq_len, hidden_size)`. Also inside `skip`."""
        found: list[torch.Tensor] = []
        tail = self._blocks[self.num_blocks :]
        forwards = {**self._forwards, **dict.fromkeys(tail, _pass_on)}
        hook = self._blocks[self.num_blocks - 1].register_forward_hook(lambda module, args, out: found.append(out))
        try:
            with replaced(forwards), torch.autocast(self.device.type, self.autocast, self.autocast is not None):
                self._base(pixel_values=pixel_values.to(self.device))
        finally:
            hook.remove()
        return found[0]

    @contextmanager
    def skip(self) -> Iterator[None]:
        """The model takes the features of `compute` in the place of pixels, and does not run its frozen blocks.

        Its forward is replaced until then: one thread at a time may use the model.
        """
        first, *others = self._blocks[: self.num_blocks]
        forwards: dict[nn.Module, Forward] = {
            self._base: self._run_on_features,
            self._patches: self._make_empty_patches,
            first: lambda *args, **kwargs: self._features,
            **dict.fromkeys(others, _pass_on),
        }
        with replaced(forwards):
            yield

    def _run_on_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        # Embeddings and rotary positions read the shape of the pixels; what they make of them is not used.
        empty = pixel_values.new_zeros(()).expand(len(pixel_values), *self.image_shape)
        self._features = pixel_values
        try:
            return self._forwards[self._base](pixel_values=empty, **kwargs)
        finally:
            self._features = None

    def _make_empty_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        rows, columns = (
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(
                pixel_values.shape[-2:], self._patches.kernel_size, self._patches.stride, strict=True
            )
        )
        return pixel_values.new_zeros(()).expand(len(pixel_values), self._patches.out_channels, rows, columns)


def _pass_on(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Modules with other forwards; afterwards with those that they had."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, old in before.items():
            if old is None:
                del module.forward
            else:
                module.forward = old


class FeatureCache:
    """Features in memory, up to a limit; those that came first stay.

    Passes over data are cyclic: dropping the oldest would drop each entry right before it is asked for again.

    Args:
        max_bytes: the limit.

    Example:

    ```python
    >>> cache = FeatureCache(max_bytes=8)
    >>> [cache.get(key, lambda: torch.zeros(2)).shape for key in ("a", "b", "a")], len(cache)
    ([torch.Size([2]), torch.Size([2]), torch.Size([2])], 1)

    ```
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[Hashable, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What is kept under the key; computed, and kept if there is room, the first time."""
        if key in self._entries:
            return self._entries[key]
        value = compute()
        size = value.element_size() * value.nelement()
        if self._bytes + size <= self.max_bytes:
            self._bytes += size
            self._entries[key] = value
        return value


@dataclass
class PrefixCollator(ViewCollator):
    """A `ViewCollator` whose `pixel_values` are features of a `FrozenPrefix`, from a cache where they are there.

    Each image goes through the frozen blocks alone, so that its features are the same bits whatever else is in its
    batch: a resumed run, with an empty cache, sees those of an uninterrupted one.

    Args:
        images: the data set that the rows' ids are of; rows come without their image, which is read when it is needed.
        prefix: of the member that is trained.
        cache: for all members.
        source: what features depend on besides image and view: the backbone, for instance.
    """

    images: Dataset = field(kw_only=True)
    prefix: FrozenPrefix = field(kw_only=True)
    cache: FeatureCache = field(kw_only=True)
    source: tuple[Hashable, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        self._places = {value: place for place, value in enumerate(self.images["id"])}

    def read_images(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """The features of the views of all rows, `(views * rows, seq_len, hidden_size)`."""
        features = []
        for view in self.views:
            for row in rows:
                key = (self.seed, self.epoch, row["id"])
                name = (*self.source, self.prefix.num_blocks, row["id"], *name_view(view, key))
                features.append(self.cache.get(name, functools.partial(self._compute, row["id"], view, key)))
        return torch.stack(features)

    def _compute(self, name: str, view: Any, key: tuple[object, ...]) -> torch.Tensor:
        image = augment(to_tensor(self.images[self._places[name]]["image"]), view, key)
        pixel_values = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        return self.prefix.compute(pixel_values)[0].cpu()
