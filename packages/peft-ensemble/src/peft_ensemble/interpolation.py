"""Weight-space ensembles: between the pre-trained and the tuned model (WiSE-FT, arXiv 2109.01903; the PEFT study)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .tuners.base import VisualLayer

Path = list[tuple[nn.Parameter, torch.Tensor]]


@contextmanager
def interpolate(
    model: nn.Module, alpha: float, adapter: str = "default", head0: Mapping[str, torch.Tensor] | None = None
) -> Iterator[nn.Module]:
    """The model with its adapter at a fraction alpha: 0 is the pre-trained model, 1 the tuned one.

    Parameters that replace pre-trained ones (BitFit, DiffFit, LN-tuning, the head) go straight from one value to the
    other. What adds to the model (LoRA, FacT, RepAdapter, AdaptFormer, Houlsby, Pfeiffer, ConvPass) has its output
    scaled by alpha, through its last linear map; SSF goes from s = 1, t = 0. On leaving, the weights are as before,
    bit for bit.

    Args:
        model: a `PeftModel`, or a transformers model with an adapter, not merged.
        alpha: in [0, 1]; beyond is extrapolation and allowed.
        adapter: its name.
        head0: the state of the head at alpha 0, such as zero-shot text embeddings. By default the head that the model
            had before it was tuned.

    Raises:
        ValueError: for VPT, which has no such path (see `mix_outputs`), merged adapters, unknown methods or a wrong
            head.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from peft_ensemble import SSFConfig
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> base, pixel_values = ViTForImageClassification(config).eval(), torch.zeros(1, 3, 32, 32)
    >>> expected = base(pixel_values).logits
    >>> model = get_peft_model(base, SSFConfig())
    >>> with interpolate(model, alpha=0.0):
    ...     torch.equal(model(pixel_values).logits, expected)
    True

    ```
    """
    path = find_path(model, adapter, head0)
    before = [parameter.data for parameter, _ in path]
    try:
        for parameter, start in path:
            # Exact at both ends: 0 * finite is 0, and adding 0 changes nothing.
            parameter.data = (1 - alpha) * start.to(parameter.data) + alpha * parameter.data
        yield model
    finally:
        for (parameter, _), data in zip(path, before, strict=True):
            parameter.data = data


def find_path(model: nn.Module, adapter: str, head0: Mapping[str, torch.Tensor] | None = None) -> Path:
    """The tuned parameters, each with its value at alpha 0."""
    path: Path = []
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    holders = [layer for layer in layers if adapter in layer._get_available_adapters() or _shares(layer, adapter)]
    if not holders:
        raise ValueError(f"expected a model with an adapter {adapter!r}, found none; see `model.peft_config`")
    for layer in holders:
        if layer.merged:
            raise ValueError(f"adapter {adapter!r} is merged; call `model.unmerge_adapter()` first")
        path += _path_of(layer, adapter)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            path += _path_of_head(module, adapter, head0)
    return path


def _shares(layer: BaseTunerLayer, adapter: str) -> bool:
    return adapter in getattr(layer, "holders", {})


def _path_of(layer: BaseTunerLayer, adapter: str) -> Path:
    """The path of one layer: of our methods, of peft's LoRA, or of its LN-tuning."""
    if isinstance(layer, VisualLayer):
        return list(layer._identity_values(adapter))
    if isinstance(layer, LoraLayer) and adapter in layer.lora_B and not layer.use_dora.get(adapter, False):
        ups = [*layer.lora_B[adapter].parameters()]
        return [(parameter, torch.zeros_like(parameter)) for parameter in ups]
    if isinstance(layer, LNTuningLayer):
        tuned, base = layer.ln_tuning_layers[adapter], layer.get_base_layer()
        return [(value, base.get_parameter(name).data) for name, value in tuned.named_parameters()]
    raise ValueError(
        f"no path in weight space is known for {type(layer).__name__}; use a method of this package, LoRA or "
        "LN-tuning, or mix outputs with `mix_outputs`"
    )


def _path_of_head(wrapper: ModulesToSaveWrapper, adapter: str, head0: Mapping[str, torch.Tensor] | None) -> Path:
    """The path of a module that was trained whole."""
    tuned = dict(wrapper.modules_to_save[adapter].named_parameters())
    start: Mapping[str, torch.Tensor] = dict(wrapper.original_module.named_parameters()) if head0 is None else head0
    shapes = {name: tuple(value.shape) for name, value in tuned.items()}
    if shapes != (given := {name: tuple(value.shape) for name, value in start.items()}):
        raise ValueError(f"expected head0 with parameters {shapes}, got {given}")
    return [(value, start[name].detach()) for name, value in tuned.items()]


@torch.no_grad()
def mix_outputs(model: Any, alpha: float, **inputs: torch.Tensor) -> torch.Tensor:
    """The mean of the class probabilities of base and tuned model, (1 - alpha) to alpha: for VPT, which has no other
    path.

    Args:
        model: a `PeftModel` of an image classifier.
        alpha: share of the tuned model.
        inputs: of the model, such as `pixel_values`.

    Returns:
        Probabilities `(batch_size, num_classes)`.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from peft_ensemble import VPTConfig
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), VPTConfig()).eval()
    >>> mix_outputs(model, 0.5, pixel_values=torch.zeros(1, 3, 32, 32)).sum()
    tensor(1.)

    ```
    """
    tuned = model(**inputs).logits.softmax(dim=-1)
    with model.disable_adapter():
        base = model(**inputs).logits.softmax(dim=-1)
    return (1 - alpha) * base + alpha * tuned  # type: ignore[no-any-return]


def wise_curve(
    model: nn.Module,
    alphas: Sequence[float],
    eval_fn: Callable[[nn.Module], Mapping[str, float]],
    adapter: str = "default",
    head0: Mapping[str, torch.Tensor] | None = None,
) -> list[dict[str, float]]:
    """Evaluates the model along the path from the pre-trained to the tuned weights.

    Args:
        model: as for `interpolate`.
        alphas: where to evaluate. Choose one of them on validation images, not on the curve of the test images.
        eval_fn: returns named numbers, such as accuracy on the target and on a shifted domain.
        adapter, head0: as for `interpolate`.

    Returns:
        One row for each alpha: `alpha` and what `eval_fn` returned.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from peft_ensemble import BitFitConfig
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), BitFitConfig())
    >>> [row["alpha"] for row in wise_curve(model, [0.0, 0.5, 1.0], lambda model: {"accuracy": 0.5})]
    [0.0, 0.5, 1.0]

    ```
    """
    rows = []
    for alpha in alphas:
        with interpolate(model, alpha, adapter, head0):
            rows.append({"alpha": float(alpha), **eval_fn(model)})
    return rows
