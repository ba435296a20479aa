import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from support.taxa import TAXA
from taxaclip import RANKS, TaxonIndex, TaxonPath
from taxaclip.texts import embed_texts

DIM = 24


def make_index(dtype: str = "float32") -> tuple[TaxonIndex, torch.Tensor]:
    embeds = torch.randn(len(TAXA), DIM, generator=torch.Generator().manual_seed(0))
    return TaxonIndex(TAXA, embeds, logit_scale=20.0, dtype=dtype), embeds


def plain_sums(embeds: torch.Tensor, image: torch.Tensor, rank: str, chosen: list[int]) -> list[dict[tuple, float]]:
    """Softmax over the chosen taxa, and a dictionary over path prefixes."""
    unit = torch.nn.functional.normalize(embeds[chosen], dim=1)
    probs = (20.0 * torch.nn.functional.normalize(image, dim=1) @ unit.T).softmax(dim=1)
    sums: list[dict[tuple, float]] = []
    for row in probs.tolist():
        sums.append({})
        for taxon, prob in zip(chosen, row, strict=True):
            key = TAXA[taxon].names[: RANKS.index(rank) + 1]
            sums[-1][key] = sums[-1].get(key, 0.0) + prob
    return sums


def index_sums(index: TaxonIndex, image: torch.Tensor, rank: str, within: object = None) -> list[dict[tuple, float]]:
    scores = index.score(image, within)
    keys = [index.names(row)[: RANKS.index(rank) + 1] for row in scores.first_rows[rank]]
    assert len(set(keys)) == len(keys)
    return [dict(zip(keys, row, strict=True)) for row in scores.probs[rank].tolist()]


WITHIN = [
    (None, [0, 1, 2, 3, 4, 5]),
    ("Chordata", [0, 1, 2, 3]),
    (["Ursidae", "Plantae"], [0, 1, 4, 5]),
    ({"family": ["Ursidae", "Cyprinidae"], "species": "annua"}, [0, 1, 2, 5]),
    (["Animalia", "Ursidae"], [0, 1, 2, 3]),
    (["Cyprinidae", "Muscicapidae"], [2, 3]),
]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("within", "chosen"), WITHIN, ids=[str(within) for within, _ in WITHIN])
def test_scores_are_those_of_a_dictionary_over_the_chosen_taxa(rank: str, within: object, chosen: list[int]) -> None:
    index, embeds = make_index()
    image = torch.randn(3, DIM)
    for got, wanted in zip(
        index_sums(index, image, rank, within), plain_sums(embeds, image, rank, chosen), strict=True
    ):
        assert got == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-7), ("float16", 4e-4), ("int8", 8e-3)])
def test_stored_precision_bounds_the_error_of_cosines(dtype: str, bound: float) -> None:
    embeds = torch.nn.functional.normalize(torch.randn(200, 768), dim=1)
    taxa = [TaxonPath(("A", "", "", "", "", "B", f"{number:03d}")) for number in range(200)]
    index = TaxonIndex(taxa, embeds, logit_scale=1.0, dtype=dtype)
    image = torch.nn.functional.normalize(torch.randn(8, 768), dim=1)
    error = (index._cosines(image, 0, 200) - image @ embeds.T).abs().max()
    assert error <= bound
    assert index.embeddings.element_size() == {"float32": 4, "float16": 2, "int8": 1}[dtype]


def test_rescored_rows_have_the_cosines_of_float16() -> None:
    generator = torch.Generator().manual_seed(2)
    embeds, image = (torch.randn(size, 768, generator=generator) for size in (500, 4))
    taxa = [TaxonPath(("A", "", "", "", f"F{number % 7}", "B", f"{number:03d}")) for number in range(500)]
    rough, half, both = (
        TaxonIndex(taxa, embeds, logit_scale=50.0, dtype=dtype) for dtype in ("int8", "float16", "int8+float16")
    )
    for within in (None, ["F2", "F5"]):
        exact, coarse = half.score(image, within), rough.score(image, within)
        for count, other in ((500, exact), (0, coarse)):
            scores = both.score(image, within, rescore=count)
            for rank in RANKS:
                torch.testing.assert_close(scores.probs[rank], other.probs[rank], rtol=0, atol=1e-6)
        scores = both.score(image, within, rescore=20)
        torch.testing.assert_close(scores.max_cosine, exact.max_cosine, rtol=0, atol=1e-6)
        assert (coarse.max_cosine - exact.max_cosine).abs().max() > 1e-5
        # Ratios of probabilities of rescored rows are exact; only the tail's share of the sum is int8's.
        best = exact.probs["species"].topk(5).indices
        ratio, expected = (s.probs["species"].gather(1, best) for s in (scores, exact))
        torch.testing.assert_close(ratio / ratio[:, :1], expected / expected[:, :1], rtol=1e-4, atol=0)


def test_embeddings_of_images_must_be_finite() -> None:
    image = torch.ones(3, DIM)
    image[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        make_index()[0].score(image)


def test_no_clade_is_not_the_same_as_all() -> None:
    with pytest.raises(ValueError, match="None means all"):
        make_index()[0].find([])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int8+float16"])
def test_saved_index_scores_the_same_and_is_replaced_whole(dtype: str, tmp_path: Path) -> None:
    index, _ = make_index(dtype)
    for _ in range(2):
        folder = index.save_pretrained(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    again = TaxonIndex.from_pretrained(folder)
    image = torch.randn(2, DIM)
    for rank in RANKS:
        assert torch.equal(index.score(image, "Chordata").probs[rank], again.score(image, "Chordata").probs[rank])
    assert again.names(0) == index.names(0)
    assert again.common_name(0) == index.common_name(0)


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match="name another"):
        make_index()[0].save_pretrained(tmp_path)
    assert (tmp_path / "photo.jpg").read_text() == "mine"


def test_incomplete_folder_is_refused(tmp_path: Path) -> None:
    folder = make_index()[0].save_pretrained(tmp_path / "index")
    (folder / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta\.json"):
        TaxonIndex.from_pretrained(folder)


def test_files_of_two_indexes_are_refused(tmp_path: Path) -> None:
    index, _ = make_index()
    index.save_pretrained(tmp_path / "one")
    TaxonIndex(TAXA[:3], torch.ones(3, DIM), logit_scale=1.0).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "taxonomy.arrow", tmp_path / "one" / "taxonomy.arrow")
    with pytest.raises(ValueError, match="as many taxa"):
        TaxonIndex.from_pretrained(tmp_path / "one")


def test_unknown_and_ambiguous_clades_say_what_to_do() -> None:
    index, _ = make_index()
    with pytest.raises(ValueError, match="Ursidae"):
        index.find("Ursidea")
    with pytest.raises(ValueError, match=r"2 clades.*Muscicapidae.*Apiaceae"):
        index.find("Oenanthe")
    with pytest.raises(ValueError, match="tribe"):
        index.find({"tribe": "x"})
    with pytest.raises(ValueError, match="at rank order"):
        index.find({"order": "Ursidae"})


def test_zero_vectors_are_named() -> None:
    embeds = torch.ones(len(TAXA), DIM)
    embeds[2] = 0
    with pytest.raises(ValueError, match="Carassius auratus"):
        TaxonIndex(TAXA, embeds, logit_scale=1.0)
    embeds[2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        TaxonIndex(TAXA, embeds, logit_scale=1.0)


def test_published_arrays_are_imported_without_their_empty_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, embeds = make_index()
    array = torch.nn.functional.normalize(embeds, dim=1).T.numpy().copy()
    array[:, -1] = 0
    np.save(tmp_path / "txt.npy", array)
    entries = [[list(taxon.names), taxon.common_name] for taxon in TAXA]
    (tmp_path / "txt.json").write_text(json.dumps(entries))
    index = TaxonIndex.from_npy(tmp_path / "txt.npy", tmp_path / "txt.json", logit_scale=20.0, dtype="float32")
    assert len(index) == len(TAXA) - 1
    assert "Poa annua" in caplog.text
    image = torch.randn(1, DIM)
    assert index_sums(index, image, "genus")[0] == pytest.approx(
        plain_sums(embeds, image, "genus", [0, 1, 2, 3, 4])[0]
    )
    array[3, 1] = np.nan
    np.save(tmp_path / "txt.npy", array)
    with pytest.raises(ValueError, match=r"not finite .*Ursus maritimus"):
        TaxonIndex.from_npy(tmp_path / "txt.npy", tmp_path / "txt.json")
    (tmp_path / "txt.json").write_text(json.dumps(entries[:-1]))
    with pytest.raises(ValueError, match="transposed"):
        TaxonIndex.from_npy(tmp_path / "txt.npy", tmp_path / "txt.json")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    (tmp_path / "txt.json").write_text("[]")
    with pytest.raises(ValueError, match="Python objects"):
        TaxonIndex.from_npy(tmp_path / "evil.npy", tmp_path / "txt.json")


def test_built_index_holds_the_model_s_embeddings(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    model, processor = clip
    index = TaxonIndex.build(model, processor, [*TAXA, TAXA[0]], dtype="float32", batch_size=2)
    for row in range(len(index)):
        taxon = next(taxon for taxon in TAXA if taxon.names == index.names(row))
        expected = embed_texts(model, processor, [f"a photo of {taxon.describe('index')}."])[0]
        torch.testing.assert_close(index.embeddings[row], expected, rtol=0, atol=1e-5)
    assert index.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_several_templates_are_averaged(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    model, processor = clip
    templates = ["a {}.", "the {}!"]
    index = TaxonIndex.build(model, processor, TAXA[:1], templates=templates, dtype="float32")
    mean = embed_texts(model, processor, [template.format(TAXA[0].describe("index")) for template in templates]).mean(
        dim=0
    )
    torch.testing.assert_close(index.embeddings[0], mean / mean.norm(), rtol=0, atol=1e-5)
    for bad in ([], ["no place"]):
        with pytest.raises(ValueError, match="templates"):
            TaxonIndex.build(model, processor, TAXA, templates=bad)


def test_wrong_shapes_are_refused() -> None:
    index, embeds = make_index()
    with pytest.raises(ValueError, match=r"\(batch_size, 24\)"):
        index.score(torch.ones(1, 5))
    with pytest.raises(ValueError, match="one embedding"):
        TaxonIndex(TAXA[:-1], embeds, logit_scale=1.0)
    with pytest.raises(ValueError, match="int8"):
        TaxonIndex(TAXA, embeds, logit_scale=1.0, dtype="int4")
    for scale in (0.0, float("nan"), -4.6):
        with pytest.raises(ValueError, match="logit_scale"):
            TaxonIndex(TAXA, embeds, logit_scale=scale)
    with pytest.raises(ValueError, match="tribe"):
        list(index.clades("tribe"))


def test_no_taxa_and_no_batch_are_refused(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    for taxa, batch_size in (([], 1), (TAXA, 0)):
        with pytest.raises(ValueError, match="at least one name"):
            TaxonIndex.build(*clip, taxa, batch_size=batch_size)


def test_an_index_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = make_index()
    index.save_pretrained(tmp_path / "index")

    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("taxaclip.index_files.pa.ipc.new_file", fail)
    with pytest.raises(OSError, match="No space"):
        index.save_pretrained(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert len(TaxonIndex.from_pretrained(tmp_path / "index")) == len(TAXA)
