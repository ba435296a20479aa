"""The nano models that ship with the package."""

import json
from pathlib import Path

import pytest

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import build_tree


def test_models_are_listed_with_folders() -> None:
    assert "vit-nano" in dio.list_models()
    for name in dio.list_models():
        assert (Path(dio.model_path(name)) / "model.safetensors").is_file()


def test_unknown_model_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="vit-nano"):
        dio.model_path("vit-giant")


def test_weights_fit_the_wheel() -> None:
    sizes = [path.stat().st_size for path in Path(dio.model_path("vit-nano")).parent.rglob("*") if path.is_file()]
    assert max(sizes) <= 10 * 2**20
    assert sum(sizes) <= 40 * 2**20


def test_every_model_has_a_card() -> None:
    for name in dio.list_models():
        card = Path(dio.model_path(name)) / "README.md"
        assert card.is_file(), name
        assert card.read_text(encoding="utf-8").startswith("---\n")


@pytest.mark.parametrize("name", ["vit-nano", "convnet-nano"])
def test_classifiers_know_the_species_by_name(name: str) -> None:
    config = json.loads((Path(dio.model_path(name)) / "config.json").read_text(encoding="utf-8"))
    names = dio.load("creatures", n=1, image_size=32).features["species"].names
    assert [config["id2label"][str(i)] for i in range(96)] == names


@pytest.mark.parametrize(("name", "lowest"), [("vit-nano", 0.85), ("convnet-nano", 0.95)])
def test_classifiers_tell_held_out_species(name: str, lowest: float) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = dio.model_path(name)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    model = transformers.AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    ds = dio.load("creatures", "heldout", n=200, image_size=64)
    with torch.inference_mode():
        logits = model(**processor(ds["image"][:], return_tensors="pt")).logits
    assert (logits.argmax(1) == torch.tensor(ds["species"])).float().mean() >= lowest


def test_clip_names_held_out_species_and_genera_by_their_texts() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = dio.model_path("clip-nano")
    processor = transformers.AutoProcessor.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    assert type(model) is transformers.CLIPModel
    tree = build_tree()
    texts = [f"a photo of {' '.join(species.ranks)}." for species in tree]
    ds = dio.load("creatures", "heldout", n=200, image_size=64)
    inputs = processor(text=texts, images=ds["image"][:], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**inputs).logits_per_image.argmax(1)
    truth = torch.tensor(ds["species"])
    assert (found == truth).float().mean() >= 0.85
    assert (found // 4 == truth // 4).float().mean() >= 0.98  # four species a genus, in the order of the tree
