import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import taxaclip
from taxaclip import UnsupportedArchitecture, cli, convert, open_clip

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("tiny_gelu", "tiny_quickgelu")


def golden_weights(kind: str = "tiny_gelu") -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / kind / "open_clip_model.safetensors")


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], options: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / convert.WEIGHTS[0])
    if options is not None:
        (folder / convert.CONFIG).write_text(json.dumps(options))
    return folder


def golden_options(**changes: dict[str, Any]) -> dict[str, Any]:
    options = json.loads((GOLDEN / "tiny_gelu" / convert.CONFIG).read_text())
    for section, values in changes.items():
        part = options["model_cfg"] if section == "model_cfg" else options["model_cfg"][section]
        part.update(values)
    return options


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_logits_are_those_of_open_clip(kind: str, attn: str, converted: dict[str, Path]) -> None:
    expected = load_file(GOLDEN / kind / "expected.safetensors")
    model = CLIPModel.from_pretrained(converted[kind], attn_implementation=attn).eval()
    with torch.no_grad():
        pooled = model.vision_model(expected["pixel_values"]).pooler_output
        text = model.text_projection(model.text_model(expected["input_ids"]).pooler_output)
        out = model(input_ids=expected["input_ids"], pixel_values=expected["pixel_values"], return_loss=True)
    replay = load_file(converted[kind] / convert.REPLAY_FILE)[open_clip.REPLAY]
    for name, actual in {
        "pooled_image": pooled,
        "image_features": model.visual_projection(pooled),
        "continual_features": pooled @ replay.T,
        "text_features": text,
    }.items():
        atol = 1e-6 * float(expected[name].abs().max())
        torch.testing.assert_close(actual, expected[name], rtol=0, atol=atol, msg=name)
    atol = {"sdpa": 2e-6, "eager": 5e-5}[attn]  # cosines times 40; the goldens were made with fused attention
    torch.testing.assert_close(out.logits_per_image, expected["logits_per_image"], rtol=0, atol=atol)
    torch.testing.assert_close(out.loss, expected["clip_loss"][0], rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_exact(kind: str, converted: dict[str, Path], tmp_path: Path) -> None:
    back = taxaclip.hf_to_open_clip(converted[kind], tmp_path / "back")
    before, after = golden_weights(kind), load_file(back / convert.WEIGHTS[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    before_options = json.loads((GOLDEN / kind / convert.CONFIG).read_text())
    after_options = json.loads((back / convert.CONFIG).read_text())
    assert after_options["preprocess_cfg"] == before_options["preprocess_cfg"]
    for section in ("vision_cfg", "text_cfg"):
        assert after_options["model_cfg"][section].items() >= before_options["model_cfg"][section].items()
    again = taxaclip.open_clip_to_hf(back, tmp_path / "again")
    assert CLIPModel.from_pretrained(again).config.to_dict() | {"_name_or_path": ""} == CLIPModel.from_pretrained(
        converted[kind]
    ).config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("name", ["plain", "module", "compiled", "custom text", "vector scale", "buffers"])
def test_names_of_wrappers_and_buffers_are_understood(name: str) -> None:
    plain = golden_weights()
    text_keys = [key for key in plain if not key.startswith("visual.") and key != "logit_scale"]
    variants = {
        "plain": plain,
        "module": {f"module.{key}": value for key, value in plain.items()},
        "compiled": {f"module._orig_mod.{key}": value for key, value in plain.items()},
        "custom text": {(f"text.{key}" if key in text_keys else key): value for key, value in plain.items()},
        "vector scale": {**plain, "logit_scale": plain["logit_scale"].reshape(1)},
        "buffers": {**plain, "attn_mask": torch.ones(2, 2), "text.position_ids": torch.arange(3)},
    }
    cleaned = open_clip.clean_names(variants[name])
    assert cleaned.keys() == plain.keys()
    assert cleaned["logit_scale"].shape == ()


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_pytorch_files_load_without_unpickling_more_than_tensors(suffix: str, tmp_path: Path) -> None:
    wrapped = {"bin": golden_weights(), "pt": {"epoch": 3, "state_dict": golden_weights()}}[suffix[1:]]
    torch.save(wrapped, tmp_path / f"weights{suffix}")
    assert convert.read_weights(tmp_path / f"weights{suffix}").keys() == golden_weights().keys()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": golden_weights(), "code": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        convert.read_weights(tmp_path / "evil.pt")


def test_architecture_is_inferred_from_shapes() -> None:
    options = open_clip.infer_options(golden_weights())
    expected = golden_options()["model_cfg"]
    for name in ("image_size", "layers", "width", "patch_size"):
        assert options["vision_cfg"][name] == expected["vision_cfg"][name]
    for name in ("context_length", "vocab_size", "width", "layers"):
        assert options["text_cfg"][name] == expected["text_cfg"][name]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("vision_cfg", "ls_init_value", 1e-5),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d"),
        ("vision_cfg", "final_ln_after_pool", True),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_224"),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "proj_bias", True),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("vision_cfg", "something_new", 1),
    ],
)
def test_unsupported_options_are_refused_by_name(section: str, name: str, value: object) -> None:
    with pytest.raises(UnsupportedArchitecture, match=name):
        open_clip.build_config(golden_options(**{section: {name: value}})["model_cfg"])


def test_what_tells_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"lacks visual\.conv1\.weight"):
        taxaclip.open_clip_to_hf(checkpoint(tmp_path / "other", {"weight": torch.ones(2)}), tmp_path / "dst")
    with pytest.raises(UnsupportedArchitecture, match="text_cfg"):
        open_clip.build_config({"embed_dim": 8, "vision_cfg": {}})
    with pytest.raises(UnsupportedArchitecture, match="square"):
        open_clip.build_config(golden_options(vision_cfg={"image_size": [32, 64]})["model_cfg"])
    with pytest.raises(ValueError, match="hidden_act"):
        open_clip.build_config(golden_options()["model_cfg"], hidden_act="relu")


def test_resnet_and_siglip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="ResNet"):
        open_clip.build_config(golden_options(vision_cfg={"layers": [3, 4, 6, 3]})["model_cfg"])
    with pytest.raises(UnsupportedArchitecture, match="SigLIP"):
        open_clip.clean_names({**golden_weights(), "logit_bias": torch.zeros(())})


@pytest.mark.parametrize("change", ["unknown", "missing", "shape"])
def test_weights_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    tensors = golden_weights()
    if change == "unknown":
        tensors["visual.transformer.resblocks.0.ls_1.gamma"] = torch.ones(48)
    elif change == "missing":
        del tensors["ln_final.bias"]
    else:
        tensors["visual.proj"] = torch.zeros(48, 25)
    src = checkpoint(tmp_path / "src", tensors, golden_options())
    expected = {"unknown": "ls_1", "missing": "final_layer_norm", "shape": "visual_projection"}[change]
    with pytest.raises(UnsupportedArchitecture, match=expected):
        taxaclip.open_clip_to_hf(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_dtype_activation_and_replay_are_options(tmp_path: Path) -> None:
    src = GOLDEN / "tiny_gelu"
    dst = taxaclip.open_clip_to_hf(src, tmp_path / "dst", dtype=torch.bfloat16, hidden_act="quick_gelu")
    model = CLIPModel.from_pretrained(dst, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "quick_gelu"
    assert not (dst / convert.REPLAY_FILE).exists()
    record = json.loads((dst / convert.RECORD).read_text())
    assert len(record["sha256"]) == 64
    assert record["source_dtypes"] == ["float32"]


def test_end_token_is_never_the_legacy_two(converted: dict[str, Path]) -> None:
    text = CLIPModel.from_pretrained(converted["tiny_gelu"]).config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (598, 599)


def preprocess_as_open_clip(image: Image.Image, mode: str) -> torch.Tensor:
    """What open_clip's transform does with a PIL image: 64 pixels, by the Pillow that is installed."""
    width, height = image.size
    if mode == "squash":
        image = image.resize((64, 64), Image.Resampling.BICUBIC)
    else:
        short = min(width, height)
        width, height = int(64 * width / short), int(64 * height / short)
        left, top = round((width - 64) / 2), round((height - 64) / 2)
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 64, top + 64))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.from_numpy(np.array(image)) / 255 - mean) / std).permute(2, 0, 1)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_preprocessing_is_open_clip_s(mode: str, number: int) -> None:
    processor = convert.build_image_processor({"resize_mode": mode}, 64)
    golden = load_file(GOLDEN / "preprocess.safetensors")[f"{mode}64_{number}"]
    with Image.open(GOLDEN / f"img_{number}.png") as image:
        actual = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(actual, preprocess_as_open_clip(image, mode), rtol=0, atol=1e-6)
    # Pillow 13, which made the golden data, rounds to another grey level here and there than Pillow before it.
    is_new = int(PIL.__version__.partition(".")[0]) >= 13
    torch.testing.assert_close(actual, golden, rtol=0, atol=1e-6 if is_new else 1.01 / 255 / 0.26)


def test_processors_resize_by_pil_whether_torchvision_is_there_or_not(
    converted: dict[str, Path], tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    folder, options = converted["tiny_gelu"], json.loads((GOLDEN / "tiny_gelu" / convert.CONFIG).read_text())
    _, processor = taxaclip.from_pretrained(folder, tokenizer=tmp_path)
    built = convert.build_image_processor(options["preprocess_cfg"], 32)
    assert type(processor.image_processor) is type(built) is CLIPImageProcessorPil
    with Image.open(GOLDEN / "img_2.png") as image:
        pixels = [each(image, return_tensors="pt")["pixel_values"] for each in (processor.image_processor, built)]
    assert torch.equal(*pixels)


def test_other_preprocessing_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="longest"):
        convert.build_image_processor({"resize_mode": "longest"}, 64)


def convert_twice(src: Path, dst: Path) -> Path:
    taxaclip.open_clip_to_hf(src, dst)
    return taxaclip.open_clip_to_hf(src, dst)


def test_from_pretrained_converts_once_and_returns_stock_objects(
    tmp_path: Path, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = tmp_path / "src"
    shutil.copytree(GOLDEN / "tiny_gelu", src)
    monkeypatch.setattr(convert, "HF_HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        taxaclip.from_pretrained(src)
    tokenizer.save_pretrained(src)
    model, processor = taxaclip.from_pretrained(src)
    folders = set((tmp_path / "home" / "taxaclip").iterdir())
    again, _ = taxaclip.from_pretrained(src / convert.WEIGHTS[0])
    assert set((tmp_path / "home" / "taxaclip").iterdir()) == folders
    assert type(model) is CLIPModel
    with monkeypatch.context() as patch:  # another process that converts the same was faster
        patch.setattr(convert, "open_clip_to_hf", lambda src, dst: convert_twice(src, dst))
        patch.setattr(convert, "HF_HOME", str(tmp_path / "other home"))
        taxaclip.from_pretrained(src)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert processor(text=["a b"], return_tensors="pt")["input_ids"][0, -1] == 599


def test_from_pretrained_takes_folders_of_transformers(
    converted: dict[str, Path], tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    model, _ = taxaclip.from_pretrained(converted["tiny_gelu"], tokenizer=tmp_path, dtype=torch.float16)
    assert model.dtype == torch.float16


def test_command_line_converts_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(GOLDEN / "tiny_gelu"), str(tmp_path / "hf"), "--keep-replay"]) == 0
    assert cli.main(["convert", str(tmp_path / "hf"), str(tmp_path / "back"), "--reverse"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "hf"), str(tmp_path / "back")]
    assert load_file(tmp_path / "back" / convert.WEIGHTS[0]).keys() == golden_weights().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "dst"], "Expected an open_clip checkpoint"),
        (["nowhere", "dst", "--reverse"], "Expected a folder with the config.json of a CLIPModel"),
        ([str(GOLDEN / "tiny_gelu"), str(GOLDEN)], "Expected a new or empty folder"),
        (["a", "b", "--reverse", "--dtype", "fp16"], "do not go with --reverse"),
    ],
    ids=["no checkpoint", "no model", "full folder", "reverse and dtype"],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
