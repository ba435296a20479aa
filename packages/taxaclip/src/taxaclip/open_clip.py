"""The checkpoint layout of open_clip, and which tensor of transformers' `CLIPModel` each of its tensors is.

BioCLIP, BioCLIP 2 and BioCLIP 2.5 are published in this layout. Everything here is names, shapes and configurations;
`convert.py` reads and writes the files.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import CLIPConfig

StateDict = dict[str, torch.Tensor]

_RENAMED = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # so spelt in transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
REPLAY = "replay_projection.weight"
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "visual.continual_proj": REPLAY,
}
_TOWERS = {"": "text_model", "visual.": "vision_model"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)")
_IN_PROJECTION = re.compile(r"attn\.in_proj_(weight|bias)")
_HF_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")

_NO_WEIGHT = re.compile(r".*(attn_mask|position_ids)")
_PREFIXES = ("module.", "_orig_mod.")

# Options of open_clip's configuration -> the one value that `CLIPModel` computes.
_ONLY: dict[str, dict[str, Any]] = {
    "model_cfg": {"init_logit_bias": None, "nonscalar_logit_scale": False, "multimodal_cfg": None},
    "vision_cfg": {
        "ls_init_value": None,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "timm_model_name": None,
    },
    "text_cfg": {
        "ls_init_value": None,
        "pool_type": "argmax",
        "proj_type": "linear",
        "proj_bias": False,
        "embed_cls": False,
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "hf_model_name": None,
    },
}
# Options that are read, or that change nothing at inference.
_KNOWN = {
    "model_cfg": {
        "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "cast_dtype", "output_dict",
        "init_logit_scale",
    },
    "vision_cfg": {
        "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout", "output_tokens",
    },
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "output_tokens", "pad_id",
        "hf_tokenizer_name", "tokenizer_kwargs",
    },
}  # fmt: skip


class UnsupportedArchitecture(ValueError):
    """Raised for an open_clip model that `CLIPModel` cannot compute; the message names the option or the tensors.

    Example:

    ```python
    >>> from taxaclip import UnsupportedArchitecture
    >>> issubclass(UnsupportedArchitecture, ValueError)
    True

    ```
    """


def clean_names(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Returns the tensors under open_clip's plain names, without wrappers' prefixes, masks and position ids.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`): of a checkpoint, `CustomTextCLIP` (`text.` before the names of
            the text tower) and wrappers (`module.`, `_orig_mod.`) included.

    Raises:
        UnsupportedArchitecture: for a model with `logit_bias`, which is of SigLIP's kind.
    """
    cleaned: StateDict = {}
    for name, tensor in state_dict.items():
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        name = name.removeprefix("text.")
        if _NO_WEIGHT.fullmatch(name):
            continue
        if name == "logit_bias":
            raise UnsupportedArchitecture(
                "Expected a CLIP checkpoint, but it holds `logit_bias`: this is a SigLIP-type model, which "
                "transformers loads as SiglipModel."
            )
        cleaned[name] = tensor.reshape(()) if name == "logit_scale" else tensor
    return cleaned


def to_hf(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Returns the tensors under the names and in the shapes of `CLIPModel`, and the replay projection if there is one.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`): tensors under open_clip's plain names.

    Raises:
        UnsupportedArchitecture: if a tensor has no place in `CLIPModel`; all of them are listed.
    """
    converted: StateDict = {}
    unknown = []
    for name, tensor in state_dict.items():
        block = _BLOCK.fullmatch(name)
        if name in _RENAMED:
            converted[_RENAMED[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif block and (names := list(_block_names(*block.groups()))):
            parts = tensor.chunk(len(names))
            converted.update(zip(names, (part.contiguous() for part in parts), strict=True))
        else:
            unknown.append(name)
    if unknown:
        raise UnsupportedArchitecture(
            f"Expected the tensors of an open_clip CLIP with a plain ViT, got {len(unknown)} others: "
            f"{', '.join(sorted(unknown)[:8])}."
        )
    return converted


def _block_names(tower: str, layer: str, rest: str) -> Iterator[str]:
    prefix = f"{_TOWERS[tower]}.encoder.layers.{layer}"
    if joint := _IN_PROJECTION.fullmatch(rest):
        yield from (f"{prefix}.self_attn.{part}_proj.{joint[1]}" for part in "qkv")
    else:
        module, _, kind = rest.rpartition(".")
        if module in _IN_BLOCK and kind in ("weight", "bias"):
            yield f"{prefix}.{_IN_BLOCK[module]}.{kind}"


def to_open_clip(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Returns the tensors of a `CLIPModel` under open_clip's names: the exact inverse of `to_hf`.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`): of `CLIPModel`; `replay_projection.weight` may be among them.

    Raises:
        UnsupportedArchitecture: if a tensor has no place in open_clip's CLIP.
    """
    renamed = {new: old for old, new in _RENAMED.items()}
    transposed = {new: old for old, new in _TRANSPOSED.items()}
    in_block = {new: old for old, new in _IN_BLOCK.items()}
    towers = {new.removesuffix("_model"): old for old, new in _TOWERS.items()}
    converted: StateDict = {}
    for name, tensor in state_dict.items():
        block = _HF_BLOCK.fullmatch(name)
        if name in renamed:
            converted[renamed[name]] = tensor
        elif name in transposed:
            converted[transposed[name]] = tensor.T.contiguous()
        elif block and block[3] in in_block:
            converted[f"{towers[block[1]]}transformer.resblocks.{block[2]}.{in_block[block[3]]}.{block[4]}"] = tensor
        elif block and block[3] == "self_attn.q_proj":
            parts = [state_dict[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            converted[f"{towers[block[1]]}transformer.resblocks.{block[2]}.attn.in_proj_{block[4]}"] = torch.cat(parts)
        elif not (block and block[3] in ("self_attn.k_proj", "self_attn.v_proj")):
            raise UnsupportedArchitecture(f"Expected the tensors of a CLIPModel, got {name!r}.")
    return converted


def check_options(model_cfg: Mapping[str, Any]) -> None:
    """Raises for an option of open_clip's configuration that `CLIPModel` does not have, or one that is missing."""
    if missing := sorted({"embed_dim", "vision_cfg", "text_cfg"} - model_cfg.keys()):
        raise UnsupportedArchitecture(f"Expected {', '.join(missing)} in `model_cfg` of the open_clip configuration.")
    for section, options in (
        ("model_cfg", model_cfg),
        ("vision_cfg", model_cfg["vision_cfg"]),
        ("text_cfg", model_cfg["text_cfg"]),
    ):
        for name, value in options.items():
            if name in _KNOWN[section] or (name in _ONLY[section] and value == _ONLY[section][name]):
                continue
            raise UnsupportedArchitecture(
                f"CLIPModel has no counterpart for {name}={value!r} in `{section}` of the open_clip configuration."
            )
    if not isinstance(model_cfg["vision_cfg"]["layers"], int):
        raise UnsupportedArchitecture("Expected a ViT as vision tower, got a ResNet: `layers` is a list.")
    if not isinstance(model_cfg["vision_cfg"]["image_size"], int):
        raise UnsupportedArchitecture(
            f"Expected square images, one number of pixels, got image_size={model_cfg['vision_cfg']['image_size']!r}."
        )


def infer_options(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns open_clip's configuration as far as the shapes of the tensors tell it; heads are 64 wide.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`): tensors under open_clip's plain names.

    Raises:
        UnsupportedArchitecture: if a tensor that tells a size is missing.
    """
    told = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "positional_embedding")
    if missing := [name for name in (*told, "token_embedding.weight") if name not in state_dict]:
        raise UnsupportedArchitecture(
            f"Expected an open_clip CLIP with a plain ViT, but it lacks {', '.join(missing)}."
        )
    conv, text = state_dict["visual.conv1.weight"], state_dict["positional_embedding"]
    grid = math.isqrt(len(state_dict["visual.positional_embedding"]) - 1)

    def count_layers(tower: str) -> int:
        return len({match[2] for name in state_dict if (match := _BLOCK.fullmatch(name)) and match[1] == tower})

    return {
        "embed_dim": state_dict["visual.proj"].shape[1],
        "vision_cfg": {
            "image_size": grid * conv.shape[-1],
            "layers": count_layers("visual."),
            "width": conv.shape[0],
            "patch_size": conv.shape[-1],
        },
        "text_cfg": {
            "context_length": text.shape[0],
            "vocab_size": state_dict["token_embedding.weight"].shape[0],
            "width": text.shape[1],
            "heads": max(1, text.shape[1] // 64),
            "layers": count_layers(""),
        },
    }


def build_config(model_cfg: Mapping[str, Any], hidden_act: str | None = None) -> CLIPConfig:
    """Returns the configuration of the `CLIPModel` that computes what this open_clip model computes.

    Args:
        model_cfg (mapping): `model_cfg` of `open_clip_config.json`.
        hidden_act (`str`, *optional*): `"gelu"` or `"quick_gelu"`, instead of what the configuration says.

    Raises:
        UnsupportedArchitecture: for an option that `CLIPModel` does not have, by its name.
        ValueError: for another `hidden_act`.
    """
    if hidden_act not in (None, "gelu", "quick_gelu"):
        raise ValueError(f"Expected hidden_act 'gelu' or 'quick_gelu', got {hidden_act!r}.")
    check_options(model_cfg)
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    act = hidden_act or ("quick_gelu" if model_cfg.get("quick_gelu") else "gelu")
    shared = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": model_cfg["embed_dim"]}
    vocab_size = text["vocab_size"]
    return CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        vision_config={
            **shared,
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **shared,
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": vocab_size,
            # The last two ids, so that the end is also open_clip's argmax; the legacy value 2 would pool otherwise.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": 0,
        },
    )


def describe(config: CLIPConfig) -> dict[str, Any]:
    """Returns open_clip's `model_cfg` of a `CLIPModel`.

    Args:
        config (`CLIPConfig`): configuration of the model.

    Raises:
        UnsupportedArchitecture: for an activation other than `"gelu"` and `"quick_gelu"`.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"gelu"}, {"quick_gelu"}):
        raise UnsupportedArchitecture(
            f"open_clip has 'gelu' and 'quick_gelu' for both towers, got {vision.hidden_act!r} (vision) and "
            f"{text.hidden_act!r} (text)."
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }
