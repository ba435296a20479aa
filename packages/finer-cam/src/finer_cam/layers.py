"""What this package knows about models: where blocks, norms, patches and classifiers are, and how tokens lie.

Everything is found by inspection, and nothing else in the package looks into a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VISION_TOWERS = ("vision_model", "vision_tower")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
MAX_HALVINGS = 6  # of the patch grid in a hierarchical model


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside `torch.compile` and data parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, WRAPPERS):
            inner = model.module
        if inner is None:
            return model
        model = inner


def find_target_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Returns name and module of the layer to look at, by inspection.

    Transformers of equal blocks: the first norm of the last block, because patch tokens after the last block may have
    no gradient at all (the classifier reads the CLS token). Models in stages (ResNet, ConvNeXt, Swin): the last stage.

    Raises:
        ValueError: if there is no list of blocks or stages.
    """
    root_name, root = _vision_tower(model)
    lists = [(name, module) for name, module in root.named_modules() if _is_block_list(module)]
    outer = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if not outer:
        raise ValueError(
            "`target_layer='auto'` expects a model with a list of blocks or stages (an `nn.ModuleList` of one kind of "
            f"modules), found none in {type(model).__name__}; give `target_layer=` as a module or as one of its "
            f"names, for example one of {_suggestions(model)}."
        )
    name, blocks = max(outer, key=lambda item: sum(weight.numel() for weight in item[1].parameters()))
    names = [part for part in (root_name, name, str(len(blocks) - 1)) if part]
    block = blocks[-1]
    if any(_is_block_list(child) for child in block.children()):
        return ".".join(names), block
    for child_name, child in block.named_children():
        if "norm" in type(child).__name__.lower():
            return ".".join([*names, child_name]), child
    return ".".join(names), block


def get_target_layer(model: nn.Module, target_layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Returns name and module of a target layer given as `"auto"`, as a dotted name or as a module of the model."""
    if isinstance(target_layer, nn.Module):
        for name, module in model.named_modules():
            if module is target_layer:
                return name or "the model", module
        raise ValueError(
            f"`target_layer` must be a module of the model, got a {type(target_layer).__name__} that is no part of it."
        )
    if target_layer == "auto":
        return find_target_layer(model)
    try:
        return target_layer, model.get_submodule(target_layer)
    except AttributeError:
        raise ValueError(
            f"`target_layer` must be 'auto', a module or the name of one, got {target_layer!r}; names are those of "
            f"`model.named_modules()`, for example {_suggestions(model)}."
        ) from None


def suggest_target_layer(model: nn.Module, failed: str) -> str:
    """Returns in words which layer to use instead of one that failed."""
    try:
        name, _ = find_target_layer(model)
    except ValueError:
        name = failed
    return "an earlier layer" if name == failed else f"target_layer={name!r}"


def _vision_tower(model: nn.Module) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in VISION_TOWERS:
            return name, module
    return "", model


def _is_block_list(module: nn.Module) -> bool:
    """Whether this holds blocks of one class that have parts of their own."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
        return False
    children = list(module.children())
    has_parts = all(any(True for _ in child.children()) for child in children)
    return has_parts and len({type(child) for child in children}) == 1


def _suggestions(model: nn.Module) -> list[str]:
    """Returns names of the last modules that hold others, the likely target layers of a plain network."""
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.children())]
    return names[-4:] or [name for name, _ in model.named_modules() if name][-4:]


def find_patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Returns the size of a patch: of the first convolution whose stride is its kernel, else the configured one."""
    _, root = _vision_tower(model)
    for module in root.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.stride[0] > 1:
            return module.stride[0], module.stride[1]
    for module in root.modules():
        size = getattr(getattr(module, "config", None), "patch_size", None)
        if isinstance(size, int):
            return size, size
    return None


def count_registers(model: nn.Module) -> int:
    """Returns the number of register tokens that the configuration names."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return max((int(getattr(config, "num_register_tokens", 0) or 0) for config in configs), default=0)


@dataclass(frozen=True)
class ImageShape:
    """Size in pixels of each image of a batch, and the size of a patch where there is one.

    `num_registers` counts the register tokens of the configuration; `is_patchified` says that the model was given
    patches in rows (SigLIP2), whose images may differ in size.
    """

    sizes: tuple[tuple[int, int], ...]
    patch: tuple[int, int] | None
    num_registers: int = 0
    is_patchified: bool = False

    def grids(self) -> Iterator[tuple[int, int]]:
        """Yields the patch grid of the first image and what is left of it after each halving, rounded up."""
        if self.patch is not None:
            height, width = self.sizes[0][0] // self.patch[0], self.sizes[0][1] // self.patch[1]
            for _ in range(MAX_HALVINGS):
                yield height, width
                height, width = -(-height // 2), -(-width // 2)


def read_image_shape(model: nn.Module, pixel_values: Tensor, kwargs: dict[str, Any]) -> ImageShape:
    """Returns the sizes of the images of a call: from the pixels, or from `spatial_shapes` of patchified images.

    Raises:
        ValueError: if `pixel_values` is neither.
    """
    patch = find_patch_size(model)
    if pixel_values.ndim == 4:
        size = (pixel_values.shape[2], pixel_values.shape[3])
        return ImageShape((size,) * len(pixel_values), patch, count_registers(model))
    if pixel_values.ndim == 3 and "spatial_shapes" in kwargs and patch is not None:
        shapes = kwargs["spatial_shapes"].tolist()
        return ImageShape(tuple((h * patch[0], w * patch[1]) for h, w in shapes), patch, is_patchified=True)
    raise ValueError(
        "`pixel_values` must have the shape (batch_size, num_channels, height, width), or be patches of the shape "
        f"(batch_size, num_patches, patch_dim) together with `spatial_shapes`, got {tuple(pixel_values.shape)}."
    )


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes `(B, D, h, w)`: its kind, the grid of each image, and leading tokens to drop."""

    kind: str  # "nchw", "nhwc" or "tokens"
    grids: tuple[tuple[int, int], ...]
    num_prefix: int = 0

    @property
    def is_ragged(self) -> bool:
        """Whether images have grids of different sizes."""
        return len(set(self.grids)) > 1

    def to_grid(self, output: Tensor) -> Tensor:
        """Returns the output or its gradient as `(B, D, h, w)`; smaller grids are padded with zeros."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        height, width = self.grids[0]
        if not self.is_ragged:
            tokens = output[:, self.num_prefix : self.num_prefix + height * width]
            return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
        tallest, widest = max(h for h, _ in self.grids), max(w for _, w in self.grids)
        padded = output.new_zeros(len(output), output.shape[2], tallest, widest)
        for row, (height, width) in enumerate(self.grids):
            padded[row, :, :height, :width] = output[row, : height * width].T.unflatten(1, (height, width))
        return padded


def find_layout(output: Tensor, shape: ImageShape) -> Layout:
    """Returns the layout of a layer's output, by its shape against the patch grid.

    Raises:
        ValueError: if it is no map of the image.
    """
    batch_size = output.shape[0]
    grids = list(shape.grids())
    if output.ndim == 4:
        first, last = (output.shape[1], output.shape[2]), (output.shape[2], output.shape[3])
        is_nhwc = first in grids and last not in grids
        return Layout("nhwc" if is_nhwc else "nchw", ((first if is_nhwc else last),) * batch_size)
    if output.ndim != 3:
        raise ValueError(
            "the target layer must give maps (batch_size, channels, height, width) or tokens (batch_size, num_tokens, "
            f"channels), got an output of shape {tuple(output.shape)}; choose another `target_layer`."
        )
    if not grids:
        raise ValueError(
            f"the target layer gives {output.shape[1]} tokens, but the model has no patch size (no convolution whose "
            "stride is its kernel, no `config.patch_size`); choose a `target_layer` that gives (B, D, h, w) maps."
        )
    num_tokens = output.shape[1]
    if shape.patch is not None and shape.is_patchified:
        patch_height, patch_width = shape.patch
        return Layout("tokens", tuple((h // patch_height, w // patch_width) for h, w in shape.sizes))
    for height, width in grids:
        num_prefix = num_tokens - height * width
        if num_prefix == 0 or ((height, width) == grids[0] and 0 < num_prefix <= 2 + shape.num_registers):
            return Layout("tokens", ((height, width),) * batch_size, num_prefix)
    height, width = grids[0]
    raise ValueError(
        f"expected {height} x {width} patch tokens (image {shape.sizes[0][0]} x {shape.sizes[0][1]}, patch "
        f"{shape.patch}) after at most {2 + shape.num_registers} leading tokens, got {num_tokens} tokens, which "
        f"leaves {num_tokens - height * width}; choose a `target_layer` with one token for each patch."
    )


def classifier_weight(model: nn.Module, num_classes: int) -> Tensor:
    """Returns the weight `(num_classes, hidden_size)` of the last linear layer with one output for each class.

    Raises:
        ValueError: if there is none.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes and isinstance(module.weight, Tensor)
    ]
    if not found:
        raise ValueError(
            f"`references='weights'` needs a linear layer with {num_classes} outputs, {type(model).__name__} has none "
            "of them; give `references` as ids, a matrix or a function."
        )
    weight: Tensor = found[-1].weight
    return weight


def find_class_names(model: nn.Module) -> dict[str, int]:
    """Returns the ids of class names, from `model.config.id2label`."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(name): int(index) for index, name in id2label.items()}


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether a module of the model was compiled in place, so that hooks inside it may not run."""
    return any(
        module._compiled_call_impl is not None or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def first_tensor(output: Any) -> Tensor:
    """Returns the tensor of a layer's output, which may be a tuple or a `ModelOutput`.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(output, Tensor):
        return output
    candidates = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    for item in candidates:
        if isinstance(item, Tensor):
            return item
    raise ValueError(
        f"the target layer must give a tensor, got {type(output).__name__}; choose another `target_layer`."
    )


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Returns the output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, dict):
        name = next(key for key, item in output.items() if isinstance(item, Tensor))
        output[name] = tensor
        return output
    index = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
    return type(output)([*output[:index], tensor, *output[index + 1 :]])


def read_logits(output: Any) -> Tensor:
    """Returns the class scores `(batch_size, num_classes)` of a model's output.

    Raises:
        ValueError: if there are none.
    """
    logits = output
    if not isinstance(output, Tensor):
        named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
        logits = named if named is not None or isinstance(output, dict) else output[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ValueError(
            "expected a classifier whose output is a tensor or has `logits`, of shape (batch_size, num_classes), got "
            f"{got}; put a head on a backbone, and use `ZeroShotFinerCAM` for image-text models."
        )
    if not torch.isfinite(logits).all():
        raise ValueError("expected finite logits, got NaN or infinity; check the inputs and the dtype of the model.")
    return logits
