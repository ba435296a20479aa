"""What this package knows about models: where blocks, norms, patches, classifiers, names and texts are.

Everything is found by inspection, and nothing else in the package looks for a part of a model by name.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from finer_cam.layout import Patches

VISION_TOWERS = ("vision_model", "vision_tower")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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
        if type(child).__name__.lower().endswith(("layernorm", "rmsnorm")):  # no batch norm of a convolutional block
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


def find_patches(model: nn.Module) -> Patches:
    """Returns the size of a patch and the number of register tokens.

    The size is that of the first convolution whose stride is its kernel, else the configured one.
    """
    _, root = _vision_tower(model)
    configs = [getattr(module, "config", None) for module in root.modules()]
    registers = max(int(getattr(config, "num_register_tokens", 0) or 0) for config in configs)
    for module in root.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.stride[0] > 1:
            return Patches((module.stride[0], module.stride[1]), registers)
    for config in configs:
        if isinstance(size := getattr(config, "patch_size", None), int):
            return Patches((size, size), registers)
    return Patches(None, registers)


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


def find_class_names(model: nn.Module) -> dict[int, str]:
    """Returns the names of classes by their ids, from `model.config.id2label`."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {int(index): str(name) for index, name in id2label.items()}


def find_placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Returns where a model takes its images, and in which dtype: those of its first weight that is not on disk."""
    for weight in model.parameters():
        if weight.is_floating_point() and not weight.is_meta:
            return weight.device, weight.dtype
    return torch.device("cpu"), torch.float32


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled in place, so that hooks inside it may not run."""
    return module._compiled_call_impl is not None or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")


def takes_pixel_values(model: nn.Module) -> bool:
    """Whether images are given to the model as `pixel_values=`, and not as its first argument."""
    parameters = inspect.signature(model.forward).parameters.values()
    has_others = any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return any(one.name == "pixel_values" for one in parameters) or (takes_any and not has_others)


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
    items = [*output[:index], tensor, *output[index + 1 :]]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)  # a namedtuple, or a tuple


def read_logits(output: Any) -> Tensor:
    """Returns the class scores `(batch_size, num_classes)` of a model's output; see [`as_two_classes`].

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
    return as_two_classes(logits)


def as_two_classes(logits: Tensor) -> Tensor:
    """Returns logits as they are, but a single one `(B, 1)` as those of classes 0 and 1."""
    return torch.cat([-logits / 2, logits / 2], dim=1) if logits.shape[1] == 1 else logits


def has_texts(model: nn.Module) -> bool:
    """Whether this is an image-text model such as CLIP."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def image_embeds(model: Any, pixel_values: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Returns the image embeddings of an image-text model, `(B, D)`, as it gives them."""
    return _embeds(model.get_image_features(pixel_values=pixel_values, **kwargs))


def text_embeds(model: Any, inputs: Any) -> Tensor:
    """Returns the text embeddings of an image-text model, `(num_texts, D)`, as it gives them."""
    return _embeds(model.get_text_features(**inputs))


def _embeds(features: Any) -> Tensor:
    """Returns the embeddings; newer versions wrap them."""
    embeds: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embeds


def text_padding(model: nn.Module) -> bool | str:
    """Returns how a tokenizer must pad: SigLIP was trained on texts padded to their full length."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", ""))
    return "max_length" if model_type.startswith("siglip") else True


def scale_cosines(model: nn.Module, cosines: Tensor) -> Tensor:
    """Returns the logits that an image-text model makes of cosines, float32."""
    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    if not isinstance(scale, Tensor):
        return cosines
    logits = cosines * scale.detach().float().exp()
    return logits + bias.detach().float() if isinstance(bias, Tensor) else logits
