from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from support.taxa import TAXA
from taxaclip import RANKS, LabelClassifier, TaxonIndex, from_pretrained
from taxaclip.compat import pybioclip
from taxaclip.compat.pybioclip import (
    CustomLabelsBinningClassifier,
    CustomLabelsClassifier,
    Rank,
    TreeOfLifeClassifier,
    squash_images,
)

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [str(GOLDEN / f"img_{number}.png") for number in range(4)]


@pytest.fixture(scope="module")
def folder(clip: tuple[CLIPModel, CLIPProcessor], tmp_path_factory: pytest.TempPathFactory) -> str:
    model, processor = clip
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    processor.tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def index() -> TaxonIndex:
    embeds = torch.randn(len(TAXA), 24, generator=torch.Generator().manual_seed(3))
    return TaxonIndex(TAXA, embeds, logit_scale=10.0, dtype="float32")


@pytest.mark.parametrize("rank", list(Rank))
def test_columns_and_sums_are_pybioclip_s(folder: str, index: TaxonIndex, rank: Rank) -> None:
    classifier = TreeOfLifeClassifier(model_str=folder, device="cpu", index=index)
    rows = classifier.predict(IMAGES, rank, k=3)
    columns = [*RANKS[: rank.value + 1]]
    if rank is Rank.SPECIES:
        columns = [*RANKS[:-1], "species_epithet", "species", "common_name"]
    assert {tuple(row) for row in rows} == {("file_name", *columns, "score")}
    embeds = classifier.create_image_features([Image.open(path) for path in IMAGES])
    probs = (10.0 * embeds @ index.embeddings.T).softmax(dim=1)
    for path, row in zip(IMAGES, probs.tolist(), strict=True):
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for taxon, prob in enumerate(row):
            sums[index.names(taxon)[: rank.value + 1]] += prob
        expected = sorted(sums.items(), key=lambda item: -item[1])[:3]
        found = [row for row in rows if row["file_name"] == path]
        assert [row["score"] for row in found] == pytest.approx([score for _, score in expected], abs=1e-6)
        last = "species_epithet" if rank is Rank.SPECIES else columns[-1]
        assert [row[last] for row in found] == [names[-1] for names, _ in expected]


def test_one_image_many_images_and_repeated_ones(folder: str, index: TaxonIndex) -> None:
    classifier = TreeOfLifeClassifier(model_str=f"hf-hub:{folder}", index=index)
    (one,) = classifier.predict(IMAGES[0], k=1)
    twice = classifier.predict([IMAGES[0], IMAGES[1], IMAGES[0]], k=1, batch_size=2)
    assert [row["file_name"] for row in twice] == [IMAGES[0], IMAGES[1], IMAGES[0]]
    assert twice[0]["score"] == pytest.approx(one["score"], abs=1e-6)
    (picture,) = classifier.predict(Image.open(IMAGES[0]), k=1)
    assert picture == {**one, "file_name": "0", "score": pytest.approx(one["score"], abs=1e-6)}
    assert classifier.predict([]) == []
    assert all(row["score"] >= 0.2 for row in classifier.predict(IMAGES, Rank.KINGDOM, min_prob=0.2))


def test_custom_labels_and_bins(folder: str, clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    labels = {"bee ": "flies", "wasp, or hornet": "flies", "ant": "walks"}
    expected = [
        row for rows in LabelClassifier(*clip, [name.strip() for name in labels]).predict(IMAGES) for row in rows
    ]
    found = CustomLabelsClassifier(list(labels), model_str=folder).predict(IMAGES)
    assert [list(row) for row in found] == [["file_name", "classification", "score"]] * 12
    assert [(r["file_name"], r["classification"]) for r in found] == [
        (r["file_name"], r["classification"]) for r in expected
    ]
    binned = CustomLabelsBinningClassifier(labels, model_str=folder).predict(IMAGES[0])
    assert sum(row["score"] for row in binned) == pytest.approx(1, abs=1e-6)
    flies = sum(row["score"] for row in found[:3] if row["classification"] != "ant")
    assert {row["classification"]: row["score"] for row in binned}["flies"] == pytest.approx(flies, abs=1e-6)
    assert len(CustomLabelsClassifier(list(labels), model_str=folder).predict(IMAGES, k=1)) == 4


def test_squash_is_bilinear_with_antialiasing(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    _, processor = clip
    values = np.arange(8, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2) * 10
    squashed = squash_images([Image.fromarray(values)], 4, processor)
    mean, std = (
        torch.tensor(v)[:, None] for v in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    # Halving by the triangle filter: weights 1/8, 3/8, 3/8, 1/8, less what hangs over the border.
    rows = [(3 * 0 + 3 * 10 + 20) / 7, (10 + 3 * 20 + 3 * 30 + 40) / 8, (30 + 3 * 40 + 3 * 50 + 60) / 8]
    expected = (torch.tensor([*rows, (50 + 3 * 60 + 3 * 70) / 7]) / 255 - mean) / std
    torch.testing.assert_close(squashed[0, :, 1], expected, rtol=0, atol=1e-5)


def test_squashing_is_for_the_models_that_pybioclip_squashes_for(folder: str, index: TaxonIndex) -> None:
    crop = TreeOfLifeClassifier(model_str=folder, index=index)
    squash = TreeOfLifeClassifier(model_str=folder, index=index, squash=True)
    assert not crop.squash
    image = Image.open(IMAGES[0])
    assert (crop.create_image_features([image]) - squash.create_image_features([image])).abs().max() > 1e-4


def test_only_models_with_published_embeddings_need_no_index(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="imageomics/bioclip, imageomics/bioclip-2"):
        TreeOfLifeClassifier(model_str=folder)
    asked: list[str] = []

    def download(repo: str, file: str, repo_type: str) -> str:
        asked.append(f"{repo_type} {repo} {file}")
        raise FileNotFoundError(repo)

    monkeypatch.setattr(pybioclip, "hf_hub_download", download)
    monkeypatch.setattr(
        pybioclip, "from_pretrained", lambda _, tokenizer: from_pretrained(folder, tokenizer=tokenizer)
    )
    with pytest.raises(FileNotFoundError, match="10M"):
        TreeOfLifeClassifier(model_str="hf-hub:imageomics/bioclip")
    assert asked == ["dataset imageomics/TreeOfLife-10M embeddings/txt_emb_species.npy"]
