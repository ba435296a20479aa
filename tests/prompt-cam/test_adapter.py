"""Adapter folders: small, bit-exact, whole or not there; released checkpoints: read and never executed."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from torch.testing import assert_close
from transformers import AutoModel

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, get_prompt_cam_model
from prompt_cam.adapter import save_adapter
from prompt_cam.cards import build_card
from support.tiny_vits import build_inputs, build_vit

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = PromptCAMConfig(num_classes=2, id2label={0: "finch", 1: "heron"})
    return get_prompt_cam_model(build_vit("vit"), config).eval()


def test_round_trip_is_bit_exact(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PromptCAMForImageClassification.from_pretrained(tmp_path / "adapter", build_vit("vit"))
    inputs = build_inputs("vit")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.prompt_config == model.prompt_config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_backbone_is_found_by_its_name(tmp_path: Path) -> None:
    build_vit("vit").save_pretrained(tmp_path / "backbone")
    backbone = type(build_vit("vit")).from_pretrained(tmp_path / "backbone")
    model = get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=3)).eval()
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "backbone")
    loaded = PromptCAMForImageClassification.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    inputs = build_inputs("vit")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_adapter_is_small(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    num_numbers = 3 * 2 * 32 + 32 + 1
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * num_numbers + 1_000


@pytest.mark.parametrize("has_card", [False, True])
def test_push_to_hub_uploads_the_adapter_folder(
    model: Any, monkeypatch: pytest.MonkeyPatch, *, has_card: bool
) -> None:
    """The upload itself is huggingface_hub's; what it is handed are our files, and a card that is there stays."""
    sent: dict[str, Any] = {}

    def upload_folder(
        self: Any, *, repo_id: str, folder_path: str, ignore_patterns: list[str] | None, **kwargs: Any
    ) -> str:
        names = {path.name for path in Path(folder_path).iterdir()}
        sent[repo_id] = sorted(names - set(ignore_patterns or []))
        return "https://commit"

    def create_repo(self: Any, repo_id: str, **kwargs: Any) -> Any:
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, name: has_card and name == "README.md")
    assert model.push_to_hub("adapter") == "https://commit"
    card = [] if has_card else ["README.md"]
    assert sent == {"me/adapter": [*card, "adapter_config.json", "adapter_model.safetensors"]}


@pytest.mark.parametrize(
    ("backbone", "base_model"),
    [("facebook/dino-vitb16", "facebook/dino-vitb16"), ("/home/me/my backbone", None), (None, None)],
)
def test_card_names_backbones_of_the_hub_alone(backbone: str | None, base_model: str | None) -> None:
    card = build_card(PromptCAMConfig(num_classes=3, base_model_name_or_path=backbone))
    assert ModelCard(card).data.base_model == base_model


def test_card_says_how_to_load_and_is_not_overwritten(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    found = ModelCard(card.read_text(encoding="utf-8"))
    assert (found.data.library_name, found.data.pipeline_tag) == ("prompt-cam", "image-classification")
    assert "PromptCAMForImageClassification.from_pretrained" in found.text
    card.write_text("mine", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") == "mine"


def test_missing_and_damaged_files_are_named(model: Any, tmp_path: Path) -> None:
    load = PromptCAMForImageClassification.from_pretrained
    with pytest.raises(FileNotFoundError, match="folder or a Hub id"):
        load(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        load(tmp_path / "empty")
    model.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        load(tmp_path / "cut", build_vit("vit"))
    model.save_pretrained(tmp_path / "odd")
    (tmp_path / "odd" / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not the configuration"):
        load(tmp_path / "odd", build_vit("vit"))
    (tmp_path / "odd" / "adapter_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="not the configuration"):
        load(tmp_path / "odd", build_vit("vit"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_adapter_of_another_backbone_is_refused(model: Any, tmp_path: Path, golden_vit: Any) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"head\.weight \(1, 48\), got \(1, 32\)"):
        PromptCAMForImageClassification.from_pretrained(tmp_path, golden_vit)
    with pytest.raises(ValueError, match="does not name its backbone"):
        PromptCAMForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="for loading a backbone"):
        PromptCAMForImageClassification.from_pretrained(tmp_path, build_vit("vit"), dtype=torch.float16)


@pytest.mark.parametrize("nested", [True, False])
def test_released_checkpoint(
    timm_weights: Tensors, golden: Tensors, golden_vit: Any, tmp_path: Path, nested: bool
) -> None:
    torch.save({"model_state_dict": timm_weights} if nested else timm_weights, tmp_path / "model.pt")
    names = {index: f"class {index}" for index in range(9)}
    model = PromptCAMForImageClassification.from_released(tmp_path / "model.pt", golden_vit, id2label=names)
    assert_close(model(golden["pixel_values"]).logits, golden["logits"], atol=1e-5, rtol=0)
    assert model.prompt_config.id2label == names
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 8_000


class Payload:
    """What a hostile file would run on loading."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_checkpoint_with_code_is_not_run(tmp_path: Path, golden_vit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": Payload()}, "model.pt")
    with pytest.raises(ValueError, match="tensors only"):
        PromptCAMForImageClassification.from_released("model.pt", golden_vit)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"head.weight": torch.zeros(1, 48)}, r"vpt\.prompt_embeddings"),
        (
            {"vpt.prompt_embeddings": torch.zeros(3, 9, 48), "head.weight": torch.zeros(9, 48), "head.bias": 0},
            "one shared vector",
        ),
        ([1, 2], "are missing"),
    ],
)
def test_other_checkpoints_are_named(content: Any, message: str, golden_vit: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        PromptCAMForImageClassification.from_released(tmp_path / "model.pt", golden_vit)


def test_damaged_checkpoints_are_named(timm_weights: Tensors, golden_vit: Any, tmp_path: Path) -> None:
    torch.save(timm_weights, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-100])
    (tmp_path / "empty.pt").touch()
    for name in ("cut.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name} is damaged or no checkpoint"):
            PromptCAMForImageClassification.from_released(tmp_path / name, golden_vit)


def test_backbone_is_asked_for_with_the_token_of_the_adapter(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(model.prompt_config, base_model_name_or_path="me/vit", revision="v2")
    save_adapter(tmp_path, config, model.state_dict())
    asked: dict[str, Any] = {}

    def from_pretrained(name: str, **kwargs: Any) -> Any:
        asked.update(name=name, **kwargs)
        return build_vit("vit")

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    PromptCAMForImageClassification.from_pretrained(tmp_path, token="secret", cache_dir="cache", revision="v1")
    assert asked == {"name": "me/vit", "revision": "v2", "token": "secret", "cache_dir": "cache"}


def test_unknown_options_are_named(timm_weights: Tensors, golden_vit: Any, tmp_path: Path) -> None:
    torch.save(timm_weights, tmp_path / "model.pt")
    with pytest.raises(TypeError, match="variation"):
        PromptCAMForImageClassification.from_released(tmp_path / "model.pt", golden_vit, variation="deep")
