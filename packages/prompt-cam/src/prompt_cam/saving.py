"""Adapter folders and repositories of a Prompt-CAM model; `adapter.py` knows the files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel

from prompt_cam.adapter import (
    check_fit,
    load_adapter,
    load_released_checkpoint,
    merge_options,
    save_adapter,
    upload_adapter,
)
from prompt_cam.backbone import Backbone, find_vision_model
from prompt_cam.configuration_prompt_cam import PromptCAMConfig

if TYPE_CHECKING:
    from prompt_cam.modeling_prompt_cam import PromptCAMForImageClassification


class SavingMixin:
    """The part of [`PromptCAMForImageClassification`] that writes and reads adapters."""

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str]) -> None:
        """Writes prompts and head (safetensors), the options (JSON), and a model card if there is none.

        Megabytes where the backbone has hundreds.

        Args:
            save_directory (`str`): the folder, made if it is not there.
        """
        save_adapter(Path(save_directory), self.prompt_config, self.state_dict())

    def push_to_hub(self: Any, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Uploads what [`save_pretrained`] writes to a repository on the Hub, made if it is not there.

        Args:
            repo_id (`str`): such as `name/adapter`.
            private (`bool`, *optional*): whether a new repository is private.
            token (`str`, *optional*): of your account; the stored one if not given.

        Returns:
            `str`: address of the commit
        """
        return upload_adapter(repo_id, self.prompt_config, self.state_dict(), private=private, token=token)

    @classmethod
    def from_pretrained(
        cls: Any,
        name_or_path: str | os.PathLike[str],
        backbone: nn.Module | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        **backbone_kwargs: Any,
    ) -> "PromptCAMForImageClassification":
        """Returns the model of an adapter folder or Hub repository, in evaluation mode, the backbone too.

        Args:
            name_or_path (`str`): folder that [`save_pretrained`] wrote, or Hub id.
            backbone (`PreTrainedModel`, *optional*): the backbone; loaded by the name in the options if not given.
            revision: of the adapter on the Hub; that of the backbone is in the options.
            token, cache_dir: for the adapter and the backbone on the Hub.
            **backbone_kwargs: for `AutoModel.from_pretrained`, such as `dtype` or `device_map`.

        Returns:
            [`PromptCAMForImageClassification`]

        Raises:
            FileNotFoundError: if there is no such folder, or a file is missing in it.
            ValueError: if a file is damaged, or the adapter does not fit the backbone.
        """
        config, tensors = load_adapter(name_or_path, revision=revision, token=token, cache_dir=cache_dir)
        if backbone is None:
            if config.base_model_name_or_path is None:
                raise ValueError("The adapter does not name its backbone: hand it over as `backbone`.")
            backbone = AutoModel.from_pretrained(
                config.base_model_name_or_path,
                revision=config.revision,
                token=token,
                cache_dir=cache_dir,
                **backbone_kwargs,
            )
        elif backbone_kwargs:
            raise TypeError(f"{sorted(backbone_kwargs)} are for loading a backbone, but one was given.")
        return _build(cls, config, tensors, backbone)

    @classmethod
    def from_released(
        cls: Any, path: str | os.PathLike[str], backbone: nn.Module, **options: Any
    ) -> "PromptCAMForImageClassification":
        """Returns the model of a checkpoint (`model.pt`) that the authors' code wrote, in evaluation mode.

        Args:
            path (`str`): the file; read without executing anything in it.
            backbone (`PreTrainedModel`): the vision transformer that it was trained on, in transformers' format.
            **options: of [`PromptCAMConfig`], such as `id2label`.

        Returns:
            [`PromptCAMForImageClassification`]; `save_pretrained` writes it as an adapter folder.

        Raises:
            ValueError: if the file is no such checkpoint, or does not fit the backbone.
        """
        config, tensors = load_released_checkpoint(path)
        return _build(cls, merge_options(config, options), tensors, backbone)


def _build(
    cls: Any, config: PromptCAMConfig, tensors: dict[str, torch.Tensor], backbone: nn.Module
) -> "PromptCAMForImageClassification":
    check_fit(tensors, config, Backbone(find_vision_model(backbone)))
    model: PromptCAMForImageClassification = cls(backbone, config)
    model.load_state_dict(tensors)
    return model.eval()
