import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

from support.taxa import TAXA
from taxaclip import TaxonIndex, texts, writing
from taxaclip.parts import Parts
from taxaclip.provenance import hash_model
from taxaclip.writing import write_embeddings

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [GOLDEN / f"img_{number}.png" for number in range(4)]


def stop_after(calls: int, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[int]:
    """Lets a function run so many times, then raises; returns the list of its calls."""
    function, seen = getattr(module, name), []

    def counted(*args: object) -> object:
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(1)
        return function(*args)

    monkeypatch.setattr(module, name, counted)
    return seen


def read_whole(path: Path) -> tuple[dict[str, str], list[list[float]]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), file.get_tensor("embeddings").tolist()


def test_stopped_embedding_computes_no_batch_twice(
    clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    images = [*IMAGES, tmp_path / "bad.png"]
    write_embeddings(tmp_path / "whole.safetensors", *clip, images, 1)
    with monkeypatch.context() as patch:
        stop_after(2, patch, writing, "embed_images")
        with pytest.raises(KeyboardInterrupt):
            write_embeddings(tmp_path / "out.safetensors", *clip, images, 1)
    seen = stop_after(100, monkeypatch, writing, "embed_images")
    write_embeddings(tmp_path / "out.safetensors", *clip, images, 1)
    assert len(seen) == 3  # of five batches
    assert read_whole(tmp_path / "out.safetensors") == read_whole(tmp_path / "whole.safetensors")
    assert not list(tmp_path.glob(".*"))


def test_a_model_has_one_hash_wherever_it_is(clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path) -> None:
    for name in "ab":
        clip[0].save_pretrained(tmp_path / name)
    copies = [CLIPModel.from_pretrained(tmp_path / name) for name in "ab"]
    assert hash_model(copies[0]) == hash_model(copies[1])
    copies[1].logit_scale.data += 1
    assert hash_model(copies[0]) != hash_model(copies[1])
    copies[0].config.vision_config.hidden_act = "quick_gelu"
    assert hash_model(copies[0]) != hash_model(clip[0])


def test_stopped_index_goes_on(
    clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TaxonIndex.build(*clip, TAXA, batch_size=1)
    with monkeypatch.context() as patch:
        stop_after(4, patch, texts, "embed_texts")
        with pytest.raises(KeyboardInterrupt):
            TaxonIndex.build(*clip, TAXA, batch_size=1, parts_dir=tmp_path / "parts")
    seen = stop_after(100, monkeypatch, texts, "embed_texts")
    index = TaxonIndex.build(*clip, TAXA, batch_size=1, parts_dir=tmp_path / "parts")
    assert len(seen) == len(TAXA) - 4
    assert torch.equal(index.embeddings, whole.embeddings)
    assert not (tmp_path / "parts").exists()


def test_parts_of_another_job_are_not_used(tmp_path: Path) -> None:
    one = Parts(tmp_path / "parts", ["model a"])
    assert one.get(0, lambda: (torch.zeros(2), {"names": "x"})).tolist() == [0, 0]
    assert Parts(tmp_path / "parts", ["model a"]).get(0, lambda: (torch.ones(2), {})).tolist() == [0, 0]
    assert one.texts(0) == {"names": "x"}
    assert Parts(tmp_path / "parts", ["model b"]).get(0, lambda: (torch.ones(2), {})).tolist() == [1, 1]


def test_a_folder_of_other_things_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="name another"):
        Parts(tmp_path, ["job"])
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_another_processor_is_another_job(
    clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = clip
    other = CLIPProcessor(copy.deepcopy(processor.image_processor), processor.tokenizer)
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    with monkeypatch.context() as patch:
        stop_after(1, patch, writing, "embed_images")
        with pytest.raises(KeyboardInterrupt):
            write_embeddings(tmp_path / "e.safetensors", model, processor, IMAGES, 2)
    write_embeddings(tmp_path / "e.safetensors", model, other, IMAGES, 2)
    write_embeddings(tmp_path / "whole.safetensors", model, other, IMAGES, 2)
    assert read_whole(tmp_path / "e.safetensors") == read_whole(tmp_path / "whole.safetensors")


def test_batches_hold_an_image_at_least(clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        write_embeddings(tmp_path / "e.safetensors", *clip, IMAGES, 0)


def test_texts_that_lose_their_end_are_counted(
    clip: tuple[CLIPModel, CLIPProcessor], caplog: pytest.LogCaptureFixture
) -> None:
    texts.embed_texts(*clip, ["a bee", "a " * 100, "b " * 100])
    assert "2 of 3 texts have more than" in caplog.text
