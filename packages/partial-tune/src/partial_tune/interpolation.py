"""Weights between the source and the fine-tuned model: [`interpolate`]."""

import copy
from typing import Any

import torch
from torch import nn

from partial_tune.attachment import check_uncalibrated
from partial_tune.lolsgd import lora_pairs


def interpolate(source: nn.Module, tuned: nn.Module, alpha: float) -> nn.Module:
    """Returns a new model with the weights (1 - alpha) source + alpha tuned.

    As WiSE-FT. For two models with the same LoRA adapters see `interpolate_adapter`, which is exact and needs no copy.
    Floating-point parameters and buffers are mixed, BatchNorm's statistics among them; integer buffers are the tuned
    ones.

    Args:
        source (`nn.Module`): the model before fine-tuning.
        tuned (`nn.Module`): the same model after it.
        alpha (`float`): 0 is the source model, 1 the tuned one.

    Raises:
        ValueError: if the models have other names or shapes, one is calibrated, or `alpha` is not in [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import interpolate
    >>> source, tuned = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> middle = interpolate(source, tuned, 0.5)
    >>> torch.allclose(middle.weight, (source.weight + tuned.weight) / 2)
    True

    ```
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected `alpha` in [0, 1], got {alpha}.")
    for model in (source, tuned):
        check_uncalibrated(model)
    old, new = source.state_dict(), tuned.state_dict()
    if different := sorted(
        name
        for name in old.keys() | new.keys()
        if name not in old or name not in new or old[name].shape != new[name].shape
    ):
        raise ValueError(
            f"Expected two models with the same weights, but {different[:3]} differ; merge adapters first "
            "(`merge_and_unload`), and keep the head's number of labels."
        )
    mixed = {
        name: torch.lerp(old[name].to(value.device).double(), value.double(), alpha).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in new.items()
    }
    model = copy.deepcopy(tuned)
    model.load_state_dict(mixed)
    return model


def interpolate_adapter(model: nn.Module, alpha: float) -> None:
    """Scales the active LoRA adapters in place by `alpha`: exactly the interpolation between base and tuned weights.

    Trained copies of whole layers (`modules_to_save`, such as the head) are mixed with the layers they replace, their
    floating-point buffers too. Call it once: a second call scales again.

    Args:
        model (`PeftModel`): with LoRA adapters on linear or convolutional layers, without DoRA and trained biases.
        alpha (`float`): 0 is the base model, 1 leaves the model as it is.

    Raises:
        ValueError: if there is no LoRA adapter or one of another kind, the model is calibrated, or `alpha` is not in
            [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from peft import LoraConfig, get_peft_model
    >>> from partial_tune import interpolate_adapter
    >>> base = torch.nn.Sequential(torch.nn.Linear(2, 2))
    >>> model = get_peft_model(base, LoraConfig(target_modules=["0"], init_lora_weights=False))
    >>> x = torch.ones(1, 2)
    >>> tuned = model(x)
    >>> with model.disable_adapter():
    ...     plain = model(x)
    >>> interpolate_adapter(model, 0.25)
    >>> torch.allclose(model(x), 0.75 * plain + 0.25 * tuned, atol=1e-6)
    True

    ```
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected `alpha` in [0, 1], got {alpha}.")
    pairs = lora_pairs(model)
    if not pairs:
        raise ValueError(f"Expected a model with LoRA adapters, got {type(model).__name__}; use `interpolate`.")
    check_uncalibrated(model)
    check_plain_lora(model)
    with torch.no_grad():
        for _, up in pairs.values():
            up.mul_(alpha)
        for module in model.modules():
            copies, original = getattr(module, "modules_to_save", None), getattr(module, "original_module", None)
            adapters: Any = getattr(module, "active_adapters", ())
            if isinstance(copies, nn.ModuleDict) and isinstance(original, nn.Module):
                for adapter in adapters:
                    base = original.state_dict()
                    for name, tuned in copies[adapter].state_dict().items():
                        if tuned.is_floating_point():
                            tuned.copy_(torch.lerp(base[name], tuned, alpha))


def check_plain_lora(model: nn.Module) -> None:
    """Raises if scaling B does not scale what an adapter adds: DoRA, adapted embeddings, trained biases."""
    config: Any = getattr(model, "peft_config", {})
    for name, module in model.named_modules():
        magnitudes, embeddings = getattr(module, "lora_magnitude_vector", ()), getattr(module, "lora_embedding_A", ())
        if len(magnitudes) or len(embeddings):
            raise ValueError(
                f"Expected plain LoRA, got DoRA or an adapted embedding in {name!r}; merge, then `interpolate`."
            )
    if any(getattr(one, "bias", "none") != "none" for one in config.values()):
        raise ValueError('Expected LoRA with bias="none", got trained biases; merge, then use `interpolate`.')
