"""What the visual PEFT methods have in common: how they find their place, switch, cast, merge and interpolate."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import nn

from ..cards import add_import
from ..registration import add_peft_type
from ..structure import Block, VisionStructure, find_structure

NewValues = list[tuple[nn.Module, str, torch.Tensor]]


@dataclass
class VisualConfig(PeftConfig):
    """The options that all visual methods share.

    Args:
        target_modules: names of the modules to adapt. By default they are found in the model by its structure.
        exclude_modules: names of modules to leave alone.
        modules_to_save: modules that are trained and saved whole. By default the classifier, because a new one would
            otherwise stay random and frozen.
        blocks: numbers of the blocks to adapt, from 0; all by default. With a first block above 0 the patch embedding
            is left alone, so that all before that block is the frozen backbone.
    """

    name: ClassVar[str]

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    blocks: list[int] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = add_peft_type(self.name)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, and into the model card beside it that readers import this package first."""
        super().save_pretrained(save_directory, **kwargs)
        add_import(Path(save_directory))


@dataclass
class ScaledConfig(VisualConfig):
    """The options of methods that add a scaled update of low rank.

    Args:
        scale: factor of the update.
        dropout: rate inside the update, in [0, 1).
    """

    width: ClassVar[str] = "bottleneck"  # the field with the width or rank of the update

    scale: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.width, getattr(self, self.width))
        check_rate("dropout", self.dropout)


def check_size(name: str, value: int) -> None:
    """Raise unless a size is a positive integer."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_rate(name: str, value: float) -> None:
    """Raise unless a dropout rate is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


class VisualLayer(nn.Module, BaseTunerLayer):
    """A module of the model with the weights of any number of adapters.

    A method says how to make its weights (`_add_weights`), how to use them (`forward`), where they do nothing
    (`_identity_values`), and, where that is possible, what the parameters of the model become when an adapter is
    merged (`_merged_values`).
    """

    why_not_mergeable: ClassVar[str | None] = None

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._before_merge: list[tuple[nn.Module, str, torch.Tensor | None]] = []

    def _add_weights(self, adapter_name: str, config: Any) -> None:
        """Make the weights of a new adapter."""
        raise NotImplementedError

    def _merged_values(self, adapter_name: str) -> NewValues:
        """The parameters of the model with one adapter merged: module, parameter name, new value."""
        raise NotImplementedError(self.why_not_mergeable)

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """The weights along which the adapter fades out, each with its value where it does nothing."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter to this layer."""
        self._add_weights(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapters_in_use(self, *weights: nn.ModuleDict | nn.ParameterDict) -> list[str]:
        """The adapters that act in a forward, in order: active, with weights here, neither merged nor disabled."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if any(name in part for part in weights)]

    def forward_base(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the wrapped module; merged adapters are taken out first if adapters are disabled."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return self.base_layer(*args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the parameters of the model. `unmerge` puts the original parameters back, bit for bit."""
        for name in check_adapters_to_merge(self, adapter_names):
            values = self._merged_values(name)
            if safe_merge and (bad := [key for _, key, value in values if not torch.isfinite(value).all()]):
                raise ValueError(f"expected finite parameters after merging adapter {name!r}, but {bad} are not")
            for module, key, value in values:
                old = getattr(module, key)
                self._before_merge.append((module, key, None if old is None else old.data.clone()))
                if old is None:
                    setattr(module, key, nn.Parameter(value, requires_grad=False))
                else:
                    old.data = value.to(old.dtype)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the parameters that were there before the merge."""
        while self._before_merge:
            module, key, value = self._before_merge.pop()
            if value is None:
                setattr(module, key, None)
            else:
                getattr(module, key).data = value
        self.merged_adapters.clear()

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> Any:
        parameter = next(base_layer.parameters(), None)
        return (None, None) if parameter is None else (parameter.device, parameter.dtype)


class VisualTuner(BaseTuner):
    """Puts the layers of a method where the structure of the model says.

    A method says which modules it wraps (`_target_names`) and with what (`_create_layer`).
    """

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft declares it so)
    tuner_layer_cls: type[VisualLayer]
    structure: VisionStructure

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        """The modules to wrap, given the blocks to adapt."""
        raise NotImplementedError

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        """A layer, without adapters, around a module."""
        raise NotImplementedError

    def chosen_blocks(self, config: Any) -> list[Block]:
        """The blocks that the config names."""
        blocks = self.structure.blocks
        if config.blocks is None:
            return list(blocks)
        if bad := [number for number in config.blocks if not 0 <= number < len(blocks)] or (not config.blocks):
            raise ValueError(f"blocks must be numbers from 0 to {len(blocks) - 1}, got {config.blocks}: {bad}")
        return [blocks[number] for number in sorted(set(config.blocks))]

    def adapts_patches(self, config: Any) -> bool:
        """Whether the patch embedding is adapted: not with a late first block."""
        return config.blocks is None or 0 in config.blocks

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        self.structure = find_structure(self.model)
        blocks = self.chosen_blocks(peft_config)
        if peft_config.target_modules is None:
            peft_config.target_modules = set(self._target_names(peft_config, blocks))
        if peft_config.modules_to_save is None and self.structure.head:
            peft_config.modules_to_save = [self.structure.head]
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not isinstance(target, VisualLayer):
            layer = self._create_layer(peft_config, target, current_key)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        self._add_adapter(target, adapter_name, peft_config)

    def _add_adapter(self, layer: VisualLayer, adapter_name: str, config: Any) -> None:
        """Add an adapter to one of the layers."""
        layer.update_layer(adapter_name, config)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The key of a parameter in a file: without the adapter's name, also if the adapter has several layers."""
        inside = re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}\.(?=\w+\.\w+$)", r"\1.", key)
        return inside if inside != key else super()._remove_adapter_name_from_key(key, adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put one module in the place of another, also in a ModuleList."""
        parent._modules[child_name] = new_module

    def _check_merge_allowed(self) -> None:
        if reason := self.tuner_layer_cls.why_not_mergeable:
            raise NotImplementedError(reason)
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]

    def _check_one_head(self, adapter_names: list[str] | None) -> None:
        """Raise if adapters are to be merged whose heads cannot be: peft would take that of the active adapter."""
        configs: dict[str, Any] = self.peft_config
        has_heads = any(configs[name].modules_to_save for name in adapter_names or [])
        if has_heads and adapter_names != self.active_adapters:
            raise ValueError(
                f"each of {adapter_names} has a head of its own; merge one of them, and make it the active adapter "
                "with `set_adapter` before"
            )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Fold the adapters into the model, in place; `unmerge_adapter` undoes it."""
        self._check_merge_allowed()
        self._check_one_head(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> Any:
        """The plain model with the adapters folded in."""
        self._check_one_head(adapter_names)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"expected no adapter_names, got {kwargs['adapter_names']}: {type(self).__name__} takes one adapter "
                "for the whole batch; call `set_adapter`"
            )
        yield


def project(layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """A linear layer of an adapter on input of any precision: computed in the layer's."""
    return layer(hidden_states.to(layer.weight.dtype))  # type: ignore[no-any-return]


def num_features(module: nn.Module) -> int:
    """Size of the output of a Linear, Conv2d or norm."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return int(module.weight.shape[-1])  # type: ignore[index]
