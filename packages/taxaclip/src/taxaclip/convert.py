"""Files: open_clip checkpoints become folders of transformers, and back."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from taxaclip import open_clip
from taxaclip.cards import write_model_card
from taxaclip.provenance import hash_file

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
REPLAY_FILE = "replay_projection.safetensors"
RECORD = "conversion.json"

_RESAMPLE = {"bicubic": 3, "bilinear": 2, "nearest": 0}


@contextmanager
def _whole_folder(dst: Path) -> Iterator[Path]:
    """A folder beside `dst` that becomes `dst` when all of it is written."""
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise FileExistsError(f"Expected a new or empty folder to write to, got {dst}; remove it or name another.")
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{dst.name}-", dir=dst.parent))
    try:
        yield partial
        if dst.exists():
            dst.rmdir()
        partial.chmod(0o755)
        partial.rename(dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_weights(src: Path) -> Path:
    """Returns the file with the weights of an open_clip checkpoint.

    Args:
        src (`Path`): the file itself, or a folder with `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`.

    Raises:
        FileNotFoundError: if there is none.
    """
    if src.is_file():
        return src
    for name in WEIGHTS:
        if (src / name).is_file():
            return src / name
    raise FileNotFoundError(
        f"Expected an open_clip checkpoint: a file, or a folder with {' or '.join(WEIGHTS)}; got {src}."
    )


def read_weights(path: Path) -> open_clip.StateDict:
    """Returns the tensors of a checkpoint under open_clip's plain names. Nothing but tensors is unpickled.

    Args:
        path (`Path`): a safetensors file, or a PyTorch file with a state dict or a training checkpoint.

    Raises:
        ValueError: if the file holds no state dict.
    """
    if path.suffix == ".safetensors":
        return open_clip.clean_names(load_file(path))
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    state_dict = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(
            f"Expected a state dict, or a training checkpoint with `state_dict`, in {path}; found no tensor."
        )
    return open_clip.clean_names(tensors)


def read_options(src: Path, state_dict: open_clip.StateDict) -> dict[str, Any]:
    """Returns `model_cfg` and `preprocess_cfg`, from the file beside the weights or inferred from their shapes.

    Args:
        src (`Path`): folder of the checkpoint.
        state_dict (`dict`): its tensors.
    """
    if (src / CONFIG).is_file():
        options: dict[str, Any] = json.loads((src / CONFIG).read_text(encoding="utf-8"))
        return {"model_cfg": {}, "preprocess_cfg": {}, **options}
    return {"model_cfg": open_clip.infer_options(state_dict), "preprocess_cfg": {}}


def build_image_processor(options: dict[str, Any], image_size: int) -> CLIPImageProcessorPil:
    """Returns the image processor that does what `preprocess_cfg` says: shorter side and centre crop, or squash.

    Args:
        options (`dict`): `preprocess_cfg` of open_clip; what it does not say is open_clip's default.
        image_size (`int`): height and width of the model's input, in pixels.

    Raises:
        UnsupportedArchitecture: for another resize mode or interpolation.
    """
    mode, interpolation = options.get("resize_mode", "shortest"), options.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in _RESAMPLE:
        raise open_clip.UnsupportedArchitecture(
            f"Expected resize_mode 'shortest' or 'squash' and an interpolation of {sorted(_RESAMPLE)}, "
            f"got {mode!r} and {interpolation!r}."
        )
    square = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=_RESAMPLE[interpolation],
        **({"image_mean": options["mean"]} if "mean" in options else {}),
        **({"image_std": options["std"]} if "std" in options else {}),
    )


def open_clip_to_hf(
    src: str | Path,
    dst: str | Path,
    *,
    hidden_act: str | None = None,
    dtype: torch.dtype | None = None,
    keep_replay: bool = False,
) -> Path:
    """Writes an open_clip checkpoint as a folder that `CLIPModel.from_pretrained` loads, and returns the folder.

    The folder holds the model (safetensors), the image processor, the tokenizer's files if `src` has them, a model
    card, and `conversion.json` with the hash of the source. It is written whole or not at all.

    Args:
        src (`str` or `Path`): folder or file of the checkpoint; without `open_clip_config.json` beside it the
            architecture is inferred, with attention heads 64 wide.
        dst (`str` or `Path`): new folder.
        hidden_act (`str`, *optional*): `"gelu"` or `"quick_gelu"` instead of what the configuration says. BioCLIP (1)
            was trained with quick GELU and is published, and was evaluated, with GELU.
        dtype (`torch.dtype`, *optional*): of the written weights; that of the source by default.
        keep_replay (`bool`, defaults to `False`): whether to write the projection of the replay data, which only
            training needs, to `replay_projection.safetensors`.

    Raises:
        FileNotFoundError: if `src` holds no checkpoint.
        FileExistsError: if `dst` is not empty.
        UnsupportedArchitecture: if `CLIPModel` cannot compute this model.

    Example:

    ```python
    >>> from taxaclip import open_clip_to_hf
    >>> open_clip_to_hf("nowhere", "converted")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected an open_clip checkpoint: a file, or a folder with open_clip_model.safetensors or ...

    ```
    """
    weights, dst = find_weights(Path(src)), Path(dst)
    source = read_weights(weights)
    options = read_options(weights.parent, source)
    config = open_clip.build_config(options["model_cfg"], hidden_act)
    tensors = open_clip.to_hf(source)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    replay = tensors.pop(open_clip.REPLAY, None)
    config.dtype = tensors["visual_projection.weight"].dtype
    with torch.device("meta"):
        model = CLIPModel(config)
    _load(model, tensors)
    with _whole_folder(dst) as folder:
        model.save_pretrained(folder)
        build_image_processor(
            options["preprocess_cfg"], options["model_cfg"]["vision_cfg"]["image_size"]
        ).save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (weights.parent / name).is_file():
                shutil.copyfile(weights.parent / name, folder / name)
        if keep_replay and replay is not None:
            save_file({open_clip.REPLAY: replay}, folder / REPLAY_FILE)
        record = {"source": weights.name, "sha256": hash_file(weights), "source_dtypes": dtypes, **options}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_model_card(folder, config, f"Converted by taxaclip from `{weights.name}` of open_clip ({RECORD}).")
    return dst


def _load(model: CLIPModel, tensors: open_clip.StateDict) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - tensors.keys())
    wrong = [name for name in tensors if name in expected and tensors[name].shape != expected[name]]
    extra = sorted(tensors.keys() - expected.keys())
    if missing or wrong or extra:
        raise open_clip.UnsupportedArchitecture(
            "The checkpoint does not fit its configuration: "
            f"missing {missing[:4]}, unexpected {extra[:4]}, of another shape {wrong[:4]}."
        )
    model.load_state_dict(tensors, assign=True, strict=True)


def hf_to_open_clip(src: str | Path, dst: str | Path) -> Path:
    """Writes a folder of `CLIPModel` as an open_clip checkpoint, bit for bit, and returns the new folder.

    Args:
        src (`str` or `Path`): folder that `CLIPModel.from_pretrained` loads; `replay_projection.safetensors` in it
            becomes `visual.continual_proj`.
        dst (`str` or `Path`): new folder for `open_clip_model.safetensors` and `open_clip_config.json`.

    Raises:
        FileNotFoundError: if `src` is no such folder.
        FileExistsError: if `dst` is not empty.
        UnsupportedArchitecture: if open_clip cannot compute this model.

    Example:

    ```python
    >>> from taxaclip import hf_to_open_clip
    >>> hf_to_open_clip("nowhere", "converted")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected a folder with the config.json of a CLIPModel, got nowhere.

    ```
    """
    src = Path(src)
    if not is_hf_folder(src):
        raise FileNotFoundError(f"Expected a folder with the config.json of a CLIPModel, got {src}.")
    model = CLIPModel.from_pretrained(src, dtype="auto")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    if (src / REPLAY_FILE).is_file():
        tensors |= load_file(src / REPLAY_FILE)
    options = {"model_cfg": open_clip.describe(model.config), "preprocess_cfg": _describe_processor(src)}
    with _whole_folder(Path(dst)) as folder:
        converted = {name: tensor.contiguous() for name, tensor in open_clip.to_open_clip(tensors).items()}
        save_file(converted, folder / WEIGHTS[0])
        (folder / CONFIG).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (src / name).is_file():
                shutil.copyfile(src / name, folder / name)
        about = "Converted by taxaclip from a CLIPModel of transformers."
        write_model_card(folder, model.config, about, library="open_clip")
    return Path(dst)


def _describe_processor(src: Path) -> dict[str, Any]:
    """Returns `preprocess_cfg` of open_clip for the image processor of a folder."""
    processor = CLIPImageProcessorPil.from_pretrained(src)
    names = {value: name for name, value in _RESAMPLE.items()}
    return {
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": names[int(processor.resample)],
        "resize_mode": "shortest" if processor.do_center_crop else "squash",
    }


def is_hf_folder(folder: Path) -> bool:
    """Returns whether the folder holds a CLIP model of transformers.

    Args:
        folder (`Path`): the folder.
    """
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "clip"


def from_pretrained(
    repo_or_path: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None, **model_options: Any
) -> tuple[CLIPModel, CLIPProcessor]:
    """Returns a stock `CLIPModel` and its processor: BioCLIP 1, 2, 2.5, or another CLIP of open_clip or transformers.

    An open_clip checkpoint is converted once, into the cache of Hugging Face, under the hash of its weights.

    Args:
        repo_or_path (`str` or `Path`): id of a Hub repository, folder, or file of weights.
        revision (`str`, *optional*): revision of the repository.
        tokenizer (`str` or `Path`, *optional*): id or folder of a CLIP tokenizer, for a checkpoint without one.
        model_options: for `CLIPModel.from_pretrained`, such as `dtype` and `device_map`.

    Raises:
        FileNotFoundError: if there is no model, or no tokenizer and none was named.
        UnsupportedArchitecture: if `CLIPModel` cannot compute this model.

    Example:

    ```python
    >>> import taxaclip
    >>> taxaclip.from_pretrained("./nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected an open_clip checkpoint: a file, or a folder with open_clip_model.safetensors or ...

    ```
    """
    path = _fetch(repo_or_path, revision)
    folder = path if is_hf_folder(path) else _convert_once(path)
    model = CLIPModel.from_pretrained(folder, **model_options)
    if tokenizer is None and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"Expected tokenizer.json, or vocab.json and merges.txt, beside the weights in {path}; pass "
            'tokenizer="openai/clip-vit-base-patch32" (the vocabulary of BioCLIP) or a folder.'
        )
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(folder),
        tokenizer=CLIPTokenizer.from_pretrained(folder if tokenizer is None else tokenizer),
    )
    return model, processor


def _fetch(repo_or_path: str | Path, revision: str | None) -> Path:
    path = Path(repo_or_path)
    is_id = str(repo_or_path).count("/") == 1 and not str(repo_or_path).startswith((".", "/", "~"))
    if path.exists() or not is_id:
        return path
    patterns = [CONFIG, *WEIGHTS, *TOKENIZER_FILES, "config.json", "preprocessor_config.json", "model*.safetensors*"]
    return Path(huggingface_hub.snapshot_download(str(repo_or_path), revision=revision, allow_patterns=patterns))


def _convert_once(src: Path) -> Path:
    weights = find_weights(src)
    key = hashlib.sha256(hash_file(weights).encode())
    for name in (CONFIG, *TOKENIZER_FILES):
        if (weights.parent / name).is_file():
            key.update((weights.parent / name).read_bytes())
    folder = Path(os.environ.get("TAXACLIP_CACHE", Path(HF_HOME) / "taxaclip")) / key.hexdigest()[:32]
    try:
        return folder if folder.exists() else open_clip_to_hf(src, folder)
    except OSError:
        if is_hf_folder(folder):  # of another process, which was first
            return folder
        raise
