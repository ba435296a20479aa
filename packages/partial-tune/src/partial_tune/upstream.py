"""What this package assumes about models of transformers, peft; `tests/partial-tune/test_upstream.py` watches it."""

import copy
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
Change = Callable[[Tensor, int], Tensor]  # (logits, dimension of the classes) -> logits


def get_base_model(model: nn.Module) -> nn.Module:
    """Returns the model inside the wrapper of peft, torch.compile or a parallel trainer, or the model itself."""
    while True:
        if callable(unwrap := getattr(model, "get_base_model", None)):  # peft
            model = unwrap()
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif type(model).__name__ in PARALLEL and isinstance(model.module, nn.Module):
            model = model.module
        else:
            return model


def is_sharded() -> bool:
    """Returns whether accelerate trains with FSDP or DeepSpeed: then no process has the whole model."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    kind = PartialState().distributed_type
    return kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def change_logits(output: Any, change: Change, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns a model's output with its logits changed and nothing else; a loss in it stays as it was computed.

    Logits are a tensor; the entry `logits` of a `ModelOutput` or dictionary; `logits_per_image` (classes in columns)
    and `logits_per_text` (classes in rows) of CLIP; or of a tuple the second entry if there are labels, else the
    first.

    Raises:
        TypeError: if there are no logits in the output.
    """
    if isinstance(output, Tensor):
        return change(output, -1)
    if isinstance(output, MutableMapping):
        dims = {"logits": -1, "logits_per_image": 1, "logits_per_text": 0}
        if not (found := [key for key in dims if isinstance(output.get(key), Tensor)]):
            raise TypeError(f"Expected logits in the output of {type(model).__name__}, got {list(output)}.")
        changed = copy.copy(output)
        for key in found:
            changed[key] = change(output[key], dims[key])
        return changed
    if isinstance(output, tuple):
        position = int(_has_labels(model, args, kwargs))
        if position < len(output) and isinstance(output[position], Tensor):
            return (*output[:position], change(output[position], -1), *output[position + 1 :])
    raise TypeError(
        f"Expected a tensor, a tuple or an output with logits of {type(model).__name__}, got {type(output).__name__}."
    )


def _has_labels(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    return {**bound, **bound.get("kwargs", {})}.get("labels") is not None


def get_logits(output: Any) -> Tensor:
    """Returns the logits of an output that was computed without labels, classes in columns."""
    found: list[Tensor] = []

    def keep(logits: Tensor, dim: int) -> Tensor:
        found.append(logits)
        return logits

    change_logits(output, keep, nn.Identity(), (), {})
    return found[0]


def find_head(model: nn.Module, num_classes: int) -> nn.Linear:
    """Returns the linear layer whose outputs are the logits.

    It is the one linear layer with `num_classes` outputs outside of the backbone (`base_model_prefix`). Of peft's
    copies of a layer it is the one in use; low-rank factors are no heads.

    Raises:
        ValueError: if there is none, or more than one.
    """
    model = get_base_model(model)
    prefix = getattr(model, "base_model_prefix", "") or ""
    backbone = getattr(model, prefix, None) if prefix else None
    inside = set(map(id, backbone.modules())) if isinstance(backbone, nn.Module) and backbone is not model else set()
    heads = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == num_classes
        and id(module) not in inside
        and _is_in_use(model, name)
    }
    if len(heads) != 1:
        raise ValueError(
            f"Expected one linear layer with {num_classes} outputs as the head of {type(model).__name__}, found "
            f"{', '.join(heads) or 'none'}; use `attach`, which needs no head."
        )
    return next(iter(heads.values()))


def _is_in_use(model: nn.Module, name: str) -> bool:
    """Whether a layer is what runs: no low-rank factor, no copy that peft keeps beside it."""
    parts = name.split(".")
    if "original_module" in parts or any(part.startswith("lora_") for part in parts):
        return False
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        active = getattr(model.get_submodule(".".join(parts[:at])), "active_adapters", None)
        return active is None or parts[at + 1] in active
    return True


def read_id2label(model: nn.Module) -> dict[int, str] | None:
    """Returns the class names of a model's config, or None if it has no config with classes."""
    config = getattr(get_base_model(model), "config", None)
    labels = getattr(config, "id2label", None)
    return dict(labels) if labels else None


def move_to(value: Any, device: torch.device) -> Any:
    """Returns tensors, and mappings and sequences of them, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move_to(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_to(item, device) for item in value)
    return value
