"""Frozen vision towers: which tokens are patches, in one frame for all of them."""

import copy
import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import nn


@runtime_checkable
class Tower(Protocol):
    """What turns images into tokens. `key` names everything that can change them."""

    name: str
    key: str

    def encode(self, images: Sequence[Image.Image], answers: Sequence[str]) -> torch.Tensor:
        """Returns tokens `(batch_size, num_tokens, width)`, float32. Only an oracle looks at the answers."""


class TokenLayout(NamedTuple):
    """How many tokens come before the patches, and the grid of the patches."""

    num_prefix: int
    height: int
    width: int


_PREFIX_NAMES = (
    "cls_token",
    "class_embedding",
    "class_token",
    "distillation_token",
    "cls_register_token",
    "register_tokens",
)


def count_prefix_tokens(model: nn.Module) -> int:
    """Returns the number of class and register tokens among the parameters of the embeddings of a tower."""
    count = 0
    for name, parameter in model.named_parameters():
        path, _, last = name.rpartition(".")
        # A pooling head may have a class token of its own, which is no part of the sequence.
        if last in _PREFIX_NAMES and (not path or "embed" in path):
            count += parameter.shape[-2] if parameter.ndim >= 2 else 1
    return count


def find_layout(model: nn.Module, num_tokens: int, image_size: tuple[int, int]) -> TokenLayout:
    """Returns the layout of a sequence of tokens, and raises if its parts do not add up.

    The grid follows from the patch size, the tokens before it from the parameters of the model; a wrong guess would
    drop a patch, or pass a register off as one.

    Args:
        model (`torch.nn.Module`): the tower, with a `config` that has `patch_size`.
        num_tokens (`int`): length of its sequence.
        image_size (`tuple[int, int]`): height and width of the pixel values.

    Raises:
        ValueError: if tokens before the patches and the grid do not make `num_tokens`.
    """
    patch = getattr(model.config, "patch_size", None)
    if patch is None:
        raise ValueError(f"{type(model).__name__} has no `patch_size` in its config; pass `layout`.")
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch[-2:]
    height, width = image_size[0] // patch_height, image_size[1] // patch_width
    prefix = count_prefix_tokens(model)
    if num_tokens != prefix + height * width:
        raise ValueError(
            f"{type(model).__name__} gives {num_tokens} tokens, which are not {prefix} class and register tokens and "
            f"a grid of {height} x {width}; pass `layout=TokenLayout(...)`."
        )
    return TokenLayout(prefix, height, width)


class VisionTower:
    """A vision model of transformers as a frozen source of patch tokens.

    Images are squashed to a square: boxes and answers refer to the whole image, so no tower crops it.

    Args:
        model (`str` or `transformers.PreTrainedModel`): a model id or folder, or a vision model.
        layer (`int`, defaults to -2): which of the hidden states to take, as the paper does.
        image_size (`int`, *optional*): side of the square; that of the config if not given.
        token_budget (`int`, *optional*):
            A square number; the grid is pooled to that many tokens, so that all towers cost the same.
        layout (`TokenLayout`, *optional*): where the tokens cannot be told apart by the config.
        mean, std (sequence of `float`, defaults to 0.5): normalisation of the channels in [0, 1].
        revision (`str`, *optional*): commit of a model id.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTModel
    >>> from hf_ava_bench.runner.towers import VisionTower
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=32, patch_size=8)
    >>> tower = VisionTower(ViTModel(config, add_pooling_layer=False))
    >>> from PIL import Image
    >>> tower.encode([Image.new("RGB", (40, 30))], [""]).shape, tower.layout
    (torch.Size([1, 16, 16]), TokenLayout(num_prefix=1, height=4, width=4))

    ```
    """

    def __init__(
        self,
        model: Any,
        *,
        layer: int = -2,
        image_size: int | None = None,
        token_budget: int | None = None,
        layout: TokenLayout | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        revision: str | None = None,
    ):
        self.name = find_name(model)
        if isinstance(model, str):
            model, mean, std = _load(model, revision, mean, std)
        if hasattr(model, "vision_model"):  # a model of two modalities
            model = model.vision_model
        self.model = model.eval().requires_grad_(False)
        self.layer, self.token_budget, self.layout = layer, token_budget, layout
        self.image_size = image_size or _find_image_size(self.model)
        self._mean, self._std = (torch.tensor(list(value)).view(1, 3, 1, 1) for value in (mean, std))
        settings = [self.model.config.to_diff_dict(), layer, self.image_size, token_budget, list(mean), list(std)]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().to(torch.float32).cpu().numpy().tobytes())
        self.key = digest.hexdigest()

    def randomize(self, seed: int = 0) -> "VisionTower":
        """Returns a tower of the same architecture and settings with new weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(copy.deepcopy(self.model.config))
        tower = VisionTower(
            model,
            layer=self.layer,
            image_size=self.image_size,
            token_budget=self.token_budget,
            layout=self.layout,
            mean=self._mean.flatten().tolist(),
            std=self._std.flatten().tolist(),
        )
        tower.model.to(next(self.model.parameters()).device)
        tower.name = f"{self.name}, random"
        return tower

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Returns pixel values `(batch_size, 3, image_size, image_size)`."""
        size = (self.image_size, self.image_size)
        arrays = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._std

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image], answers: Sequence[str]) -> torch.Tensor:
        """Returns patch tokens `(batch_size, num_tokens, width)`, float32."""
        return self.features(self.preprocess(images))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the patch tokens of pixel values; differentiable."""
        parameter = next(self.model.parameters())
        inputs = _build_inputs(self.model, pixel_values.to(parameter.device, parameter.dtype))
        output = self.model(**inputs, output_hidden_states=True)
        if not getattr(output, "hidden_states", None):
            raise ValueError(f"Expected hidden states from {type(self.model).__name__}, got none.")
        hidden = _find_map(output, self.layer, self.model.config)
        if hidden.ndim == 4:  # (batch, height, width, channels)
            layout = TokenLayout(0, hidden.shape[1], hidden.shape[2])
            hidden = hidden.flatten(1, 2)
        else:
            layout = self.layout or find_layout(
                self.model, hidden.shape[1], (pixel_values.shape[-2], pixel_values.shape[-1])
            )
        self.layout = layout
        patches = hidden[:, layout.num_prefix :]
        return pool_tokens(patches, layout, self.token_budget).float().cpu()


def _find_image_size(model: nn.Module) -> int:
    """Returns the side of the images that a tower was made for."""
    config: Any = model.config
    size = getattr(config, "image_size", None)
    if size is None and hasattr(config, "num_patches"):  # SigLIP 2 of any resolution has a grid of positions
        size = round(config.num_patches**0.5) * config.patch_size
    if size is None:
        raise ValueError(f"{type(model).__name__} has no `image_size` in its config; pass `image_size`.")
    return int(size if isinstance(size, int) else size[0])


def _build_inputs(model: nn.Module, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the arguments of a tower for pixel values `(batch_size, 3, height, width)`."""
    names = inspect.signature(model.forward).parameters
    patch: Any = getattr(model.config, "patch_size", None)
    if "noise" in names and isinstance(patch, int):  # ViT-MAE sorts patches by it, and by chance without it
        num_patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
        noise = torch.arange(num_patches, device=pixel_values.device, dtype=torch.float32)
        return {"pixel_values": pixel_values, "noise": noise.expand(len(pixel_values), -1)}
    if "spatial_shapes" not in names:
        return {"pixel_values": pixel_values}
    patches = pixel_values.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, height, width, patch, patch)
    height, width = patches.shape[2:4]
    shapes = torch.tensor([[height, width]] * len(patches), device=pixel_values.device)
    return {
        "pixel_values": patches.permute(0, 2, 3, 4, 5, 1).reshape(len(patches), height * width, -1),
        "pixel_attention_mask": torch.ones(len(patches), height * width, device=pixel_values.device),
        "spatial_shapes": shapes,
    }


def _find_map(output: Any, layer: int, config: Any) -> torch.Tensor:
    """Returns the hidden state of a layer: a sequence, or a map `(batch, height, width, channels)` where it is one.

    Models of several stages, as Hiera, have their tokens in another order than the image has them, and a map beside.
    """
    hidden: torch.Tensor = output.hidden_states[layer]
    maps = getattr(output, "reshaped_hidden_states", None)
    found = hidden if maps is None else maps[layer]
    if found.ndim != 4:
        return found
    width = getattr(config, "hidden_size", None) if maps is None else hidden.shape[-1]
    if width is None:  # images are square, and so are their maps
        width = found.shape[1] if found.shape[2] == found.shape[3] != found.shape[1] else found.shape[3]
    return found if found.shape[-1] == width else found.permute(0, 2, 3, 1)


def pool_tokens(patches: torch.Tensor, layout: TokenLayout, budget: int | None) -> torch.Tensor:
    """Returns the grid pooled by areas to `budget` tokens, or as it is where it has no more than that."""
    if budget is None or layout.height * layout.width <= budget:
        return patches
    side = round(budget**0.5)
    if side * side != budget:
        raise ValueError(f"`token_budget` must be a square number, got {budget}.")
    grid = patches.transpose(1, 2).unflatten(2, (layout.height, layout.width))
    return nn.functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)


def find_name(model: Any) -> str:
    """Returns the id or the last folder that a model comes from, or its class."""
    source = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    return (Path(source).name if Path(source).is_dir() else source) or type(model).__name__


def _load(name: str, revision: str | None, mean: Any, std: Any) -> tuple[Any, Any, Any]:
    """Returns the model of an id or folder and the normalisation that its processor has."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # layers that a checkpoint lacks, as a pooler, are the same each time, and so is the key
        model = AutoModel.from_pretrained(name, revision=revision, dtype=torch.float32)
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0  # a masked autoencoder hides no patch here
    settings = _read_processor(name, revision)
    return model, settings.get("image_mean", mean), settings.get("image_std", std)


def _read_processor(name: str, revision: str | None) -> dict[str, Any]:
    """Returns the settings of an image processor: only its normalisation is used, so no class is made of them."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return {}
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))
