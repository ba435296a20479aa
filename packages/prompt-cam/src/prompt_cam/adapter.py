"""Adapter folders: prompts and head as safetensors, options as JSON; and the checkpoints that the authors released."""

import json
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prompt_cam.backbone import Backbone
from prompt_cam.cards import build_card
from prompt_cam.configuration_prompt_cam import PromptCAMConfig

CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "adapter_config.json", "adapter_model.safetensors", "README.md"


def save_adapter(folder: Path, config: PromptCAMConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Writes an adapter folder; each file is whole or not there, and a model card that is there stays."""
    if folder.is_file():
        raise ValueError(f"Expected a folder to save to, but {folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f".{WEIGHTS_NAME}.{os.getpid()}"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
    weights.replace(folder / WEIGHTS_NAME)
    texts = {CONFIG_NAME: json.dumps(config.to_dict(), indent=2) + "\n"}
    if not (folder / CARD_NAME).exists():
        texts[CARD_NAME] = build_card(config)
    for name, text in texts.items():
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)


def upload_adapter(
    repo_id: str,
    config: PromptCAMConfig,
    tensors: dict[str, torch.Tensor],
    *,
    private: bool | None,
    token: str | bool | None,
) -> str:
    """Uploads an adapter folder to the Hub and returns the address of the commit."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder), config, tensors)
        kept = [CARD_NAME] if api.file_exists(repo_id, CARD_NAME) else None
        message = "Upload Prompt-CAM adapter"
        return str(
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=kept)
        )


def load_adapter(name_or_path: str | os.PathLike[str], **hub: Any) -> tuple[PromptCAMConfig, dict[str, torch.Tensor]]:
    """Returns options and tensors of an adapter folder, or of a repository on the Hub.

    Raises:
        FileNotFoundError: if the folder lacks one of the two files.
        ValueError: if one of them is damaged, or is another kind of adapter.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        if str(name_or_path).count("/") != 1 or str(name_or_path).startswith((".", "/", "~")):
            raise FileNotFoundError(f"Expected a folder or a Hub id such as name/adapter, got {str(name_or_path)!r}.")
        folder = Path(snapshot_download(str(name_or_path), allow_patterns=[CONFIG_NAME, WEIGHTS_NAME], **hub))
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"Expected {CONFIG_NAME} and {WEIGHTS_NAME} in {folder}, but there is no {name}.")
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config = PromptCAMConfig.from_dict(values)
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG_NAME} is not the configuration of an adapter: {error}.") from None
    try:
        return config, load_file(folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_NAME} is damaged: {error}.") from None


def load_released_checkpoint(path: str | os.PathLike[str]) -> tuple[PromptCAMConfig, dict[str, torch.Tensor]]:
    """Returns options and tensors of a `model.pt` of the authors, whose backbone is left aside.

    The file is read by `torch.load(weights_only=True)`: nothing in it is executed. Its prompts are
    `vpt.prompt_embeddings` of shape `(num_layers, num_classes, hidden_size)`, the variant is `"deep"`.

    Args:
        path (`str`): the file; its content may lie under the key `model_state_dict`.

    Returns:
        `tuple[PromptCAMConfig, dict[str, torch.Tensor]]`: without names of classes and backbone, which it lacks.

    Raises:
        ValueError: if the file holds more than tensors, or no Prompt-CAM.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"Expected a file of tensors only; {path} holds other objects, which are not loaded."
        ) from None
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of torch: {error}.") from None
    content = content.get("model_state_dict", content) if isinstance(content, dict) else {}
    tensors = {name.removeprefix("module."): value for name, value in content.items()}
    names = ("vpt.prompt_embeddings", "head.weight", "head.bias")
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"Expected a released Prompt-CAM checkpoint with {', '.join(names)}; {missing} are missing.")
    prompts, head = tensors[names[0]], tensors[names[1]]
    if prompts.ndim != 3 or head.shape != (1, prompts.shape[2]):
        raise ValueError(
            f"Expected prompts (layers, classes, width) and one shared vector (1, width), got {tuple(prompts.shape)} "
            f"and {tuple(head.shape)}."
        )
    weights = {f"prompts.layer_{index}": prompt.clone() for index, prompt in enumerate(prompts)}
    weights |= {name: tensors[name] for name in names[1:]}
    return PromptCAMConfig(num_classes=prompts.shape[1]), weights


def check_fit(tensors: dict[str, torch.Tensor], config: PromptCAMConfig, backbone: Backbone) -> None:
    """Raises `ValueError` unless the tensors are those of a model with these options on this backbone."""
    width, counts = backbone.hidden_size, config.count_prompts(len(backbone.layers))
    wanted: dict[str, tuple[int, ...]] = {f"prompts.layer_{index}": (count, width) for index, count in counts.items()}
    wanted |= {"head.weight": (1, width), "head.bias": (1,)}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(got.keys() | wanted.keys()):
        if got.get(name) != wanted.get(name):
            raise ValueError(
                f"The adapter, made for {config.base_model_name_or_path or 'another backbone'}, does not fit a "
                f"{backbone.model.config.model_type} of {len(backbone.layers)} layers and width {width}: expected "
                f"{name} {wanted.get(name)}, got {got.get(name)}."
            )


def merge_options(config: PromptCAMConfig, options: dict[str, Any]) -> PromptCAMConfig:
    """Returns options with some replaced; `TypeError` names what is none."""
    unknown = sorted(set(options) - set(vars(config)))
    if unknown:
        raise TypeError(f"Expected options of PromptCAMConfig, got {unknown}.")
    return replace(config, **options)
