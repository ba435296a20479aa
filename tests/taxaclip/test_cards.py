"""Cards are read as the Hub reads them: metadata that it knows, and a `base_model` only if it is on the Hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel, CLIPTokenizer
from transformers.pipelines import SUPPORTED_TASKS

import taxaclip
from support.taxa import TAXA
from support.taxa_streams import build_model, build_processor, train, write_parquet
from taxaclip import TaxonIndex
from taxaclip.cards import build_index_card, write_model_card
from taxaclip.streams import ImageTextStream
from taxaclip.training import ContrastiveArguments, ContrastiveTrainer

GOLDEN = Path(__file__).parent / "golden"
NAMES = [
    ("imageomics/bioclip-2", "imageomics/bioclip-2"),
    ("/home/me/my: clip", None),
    (str(GOLDEN), None),
    ("", None),
    ("a: [b", None),
]


def read_card(folder: Path) -> ModelCard:
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.pipeline_tag in (None, *SUPPORTED_TASKS)
    return card


@pytest.mark.parametrize(("name", "base_model"), NAMES)
def test_models_are_named_if_they_are_on_the_hub(name: str, base_model: str | None, tmp_path: Path) -> None:
    config = build_model().config
    config._name_or_path = name
    write_model_card(tmp_path, config, "About.")
    data = read_card(tmp_path).data
    assert (data.library_name, data.base_model) == ("transformers", base_model)
    text = build_index_card(TaxonIndex(TAXA, torch.eye(6), logit_scale=1.0).table, torch.eye(6), {"model": name})
    assert DatasetCard(text).data.task_categories == ["zero-shot-image-classification"]
    assert (f"Model: `{name}`." in text) == ("Model:" in text) == (base_model is not None)


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    write_model_card(tmp_path, build_model().config, "About.")
    build_model(replay=True).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_converted_models_have_cards_that_say_how_to_load_them(
    converted: dict[str, Path], tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    card = read_card(converted["tiny_gelu"])
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    assert "Images of 32 pixels, embeddings of 24 numbers." in card.text
    code = card.text.split("```")[1].removeprefix("python")
    tokenizer.save_pretrained(tmp_path)
    call = f'"{converted["tiny_gelu"]}", tokenizer="{tmp_path}"'
    names: dict[str, Any] = {}
    exec(code.replace('"this folder or repository"', call), names)
    assert type(names["model"]) is CLIPModel
    back = taxaclip.hf_to_open_clip(converted["tiny_gelu"], tmp_path / "back")
    assert read_card(back).data.library_name == "open_clip"


def test_an_index_has_a_card_and_its_replacement_a_new_one(tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        TaxonIndex(TAXA, torch.eye(6), logit_scale=1.0, dtype=dtype).save_pretrained(tmp_path / "index")
        card = DatasetCard((tmp_path / "index" / "README.md").read_text(encoding="utf-8"))
        assert card.data.pretty_name == "Taxon index"
        assert f"Text embeddings of 6 taxa, 6 numbers each ({dtype})" in card.text
    assert len(TaxonIndex.from_pretrained(tmp_path / "index")) == 6


def test_checkpoints_have_cards(tmp_path: Path) -> None:
    for text in ("taxa", "captions"):
        write_parquet(tmp_path, text=text)
    trainer = train(tmp_path, 2)
    assert "replay_projection.safetensors" in read_card(tmp_path / "out" / "checkpoint-2").text
    trainer.create_model_card()
    assert read_card(tmp_path / "out").data.base_model is None


def test_adapters_of_a_local_model_do_not_name_it(tmp_path: Path) -> None:
    build_model().save_pretrained(tmp_path / "base")
    model = get_peft_model(CLIPModel.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["q_proj"]))
    args = ContrastiveArguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to=[])
    stream = ImageTextStream(write_parquet(tmp_path / "data", 1))
    trainer = ContrastiveTrainer(model, args, build_processor(), stream)
    trainer.save_model()
    for _ in range(2):
        data = read_card(tmp_path / "out").data
        assert (data.library_name, data.base_model) == ("peft", None)
        trainer.create_model_card()
