import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from support.taxa import TAXA
from taxaclip import RANKS, LabelClassifier, TaxonClassifier, TaxonIndex
from taxaclip.images import read_image

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [GOLDEN / f"img_{number}.png" for number in range(4)]


@pytest.fixture(scope="module")
def classifier(clip: tuple[CLIPModel, CLIPProcessor]) -> TaxonClassifier:
    model, processor = clip
    embeds = torch.randn(len(TAXA), 24, generator=torch.Generator().manual_seed(3))
    return TaxonClassifier(model, processor, TaxonIndex(TAXA, embeds, logit_scale=10.0, dtype="float32"))


def test_scores_are_the_softmax_of_the_model_s_own_cosines(classifier: TaxonClassifier) -> None:
    with Image.open(IMAGES[0]) as image:
        pixels = classifier.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embed = classifier.model.visual_projection(classifier.model.vision_model(pixels).pooler_output)
    unit = torch.nn.functional.normalize(embed, dim=1)
    probs = (10.0 * unit @ classifier.index.embeddings.T).softmax(dim=1)[0]
    (rows,) = classifier.predict(IMAGES[:1], top_k=10)
    assert [row["score"] for row in rows] == pytest.approx(probs.sort(descending=True).values.tolist(), abs=1e-6)
    best = classifier.index.names(int(probs.argmax()))
    assert (rows[0]["genus"], rows[0]["species_epithet"]) == best[-2:]
    assert rows[0]["species"] == " ".join(best[-2:])
    assert rows[0]["max_cosine"] == pytest.approx(float((unit @ classifier.index.embeddings.T).max()), abs=1e-6)


@pytest.mark.parametrize("rank", RANKS)
def test_rows_end_at_their_rank_and_scores_sum_to_one(classifier: TaxonClassifier, rank: str) -> None:
    for rows in classifier.predict(IMAGES, rank=rank, top_k=10):
        assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-5)
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        for row in rows:
            below = RANKS[RANKS.index(rank) + 1 : -1]
            assert not any(row[name] for name in below)
            assert bool(row["species"]) is bool(row["common_name"] or row["species_epithet"]) is (rank == "species")


def test_batches_change_nothing_and_order_is_kept(classifier: TaxonClassifier) -> None:
    one = list(classifier.predict(IMAGES, batch_size=1))
    four = list(classifier.predict(iter(IMAGES), batch_size=4))
    assert [rows[0]["file_name"] for rows in one] == [str(path) for path in IMAGES]
    for left, right in zip(one, four, strict=True):
        assert [row["species"] for row in left] == [row["species"] for row in right]
        assert [row["score"] for row in left] == pytest.approx([row["score"] for row in right], abs=1e-6)


def test_auto_descends_as_far_as_it_is_certain(classifier: TaxonClassifier) -> None:
    depth = {}
    for least in (0.0, 0.5, 0.9, 1.0):
        (rows,) = classifier.predict(IMAGES[:1], rank="auto", min_confidence=least)
        assert all(row["score"] >= least for row in rows)
        depth[least] = RANKS.index(rows[0]["rank"]) if rows else -1
    assert depth[0.0] == len(RANKS) - 1
    assert sorted(depth.values(), reverse=True) == list(depth.values())


def test_auto_passes_through_unknown_names(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    model, processor = clip
    goldfish = TAXA[2]
    bare = TaxonIndex([goldfish], torch.ones(1, 24), logit_scale=1.0)
    (rows,) = TaxonClassifier(model, processor, bare).predict(IMAGES[:1], rank="auto")
    assert (rows[0]["rank"], rows[0]["class"], rows[0]["common_name"]) == ("species", "", "goldfish")


def test_within_chooses_among_its_taxa_only(classifier: TaxonClassifier) -> None:
    for rows in classifier.predict(IMAGES, within="Plantae", top_k=10):
        assert {row["kingdom"] for row in rows} == {"Plantae"}
        assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-5)


def test_a_bad_image_is_a_row_and_not_the_end(classifier: TaxonClassifier, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(IMAGES[0].read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    names = [tmp_path / "broken.png", IMAGES[0], tmp_path / "text.jpg", tmp_path / "gone.png"]
    results = list(classifier.predict(names, batch_size=2))
    assert [set(rows[0]) == {"file_name", "error"} for rows in results] == [True, False, True, True]
    assert "broken.png" in results[0][0]["file_name"]


def test_no_kind_of_bad_file_is_the_end(
    classifier: TaxonClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "chunk.png")
    data = bytearray((tmp_path / "chunk.png").read_bytes())
    second = data.find(b"IDAT", data.find(b"IDAT") + 4)
    data[second : second + 4] = b"\x01\x02\x03\x04"  # PIL raises SyntaxError
    (tmp_path / "chunk.png").write_bytes(data)
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    Image.new("L", (500, 500)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # and DecompressionBombError for twice as many
    names = [tmp_path / name for name in ("chunk.png", "float.tiff", "large.png")]
    results = list(classifier.predict([*names, IMAGES[0]], batch_size=2))
    assert ["error" in rows[0] for rows in results] == [True, True, True, False]
    assert "no known range" in results[1][0]["error"]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_a_pixel_become_eight(suffix: str, tmp_path: Path) -> None:
    values = (np.arange(64 * 64) * 16).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = np.asarray(read_image(tmp_path / f"deep.{suffix}"))
    assert np.array_equal(found, (values // 256)[:, :, None].repeat(3, 2))
    assert read_image(Image.fromarray(np.full((2, 2), 200, np.int32))).getpixel((0, 0)) == (200, 200, 200)


def test_folders_data_sets_and_streams_are_read(classifier: TaxonClassifier) -> None:
    expected = list(classifier.predict(IMAGES))
    rows = Dataset.from_dict({"image": [str(path) for path in IMAGES], "file_name": [str(path) for path in IMAGES]})
    rows = rows.cast_column("image", ImageFeature())
    raw = [path.read_bytes() for path in IMAGES]
    for images in (
        [GOLDEN],
        rows,
        rows.to_iterable_dataset(),
        rows.cast_column("image", ImageFeature(decode=False)),
        raw,
    ):
        found = list(classifier.predict(images, batch_size=3))
        assert [len(rows) for rows in found] == [len(rows) for rows in expected]
        for left, right in zip(found, expected, strict=True):
            assert [row["score"] for row in left] == pytest.approx([row["score"] for row in right], abs=1e-6)
            assert left[0]["file_name"] in (right[0]["file_name"], "")
        assert images is raw or found[0][0]["file_name"] == expected[0][0]["file_name"]


def test_files_are_decoded_one_batch_ahead_and_no_more(classifier: TaxonClassifier) -> None:
    taken: list[Path] = []

    def stream() -> Iterator[Path]:
        for number in range(20):
            taken.append(IMAGES[number % 4])
            yield taken[-1]

    results = classifier.predict(stream(), batch_size=2)
    next(results)
    assert len(taken) == 4
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("taxaclip-decode")]


def test_one_picture_may_come_often(classifier: TaxonClassifier) -> None:
    picture = Image.open(IMAGES[0])
    results = list(classifier.predict([picture] * 20, batch_size=5))
    assert len({rows[0]["score"] for rows in results}) == 1


@pytest.mark.parametrize("image", [str(IMAGES[0]), IMAGES[0], Image.new("RGB", (9, 9)), {"image": b""}])
def test_one_image_is_no_list_of_images(
    classifier: TaxonClassifier, clip: tuple[CLIPModel, CLIPProcessor], image: Any
) -> None:
    for either in (classifier, LabelClassifier(*clip, ["bee"])):
        with pytest.raises(TypeError, match=r"write \[image\]"):
            either.predict(image)


def test_what_is_no_image_at_all_is_an_error(classifier: TaxonClassifier) -> None:
    for image, message in (({"picture": "a.png"}, "column 'image'"), (7, "got int")):
        with pytest.raises(TypeError, match=message):
            list(classifier.predict([image]))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_read(classifier: TaxonClassifier, mode: str) -> None:
    (rows,) = classifier.predict([Image.new(mode, (20, 30))])
    assert "error" not in rows[0]


def test_photos_are_turned_upright(classifier: TaxonClassifier, tmp_path: Path) -> None:
    with Image.open(IMAGES[0]) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_270)
        exif = Image.Exif()
        exif[0x0112] = 8  # to be turned by 90 degrees
        turned.save(tmp_path / "turned.png", exif=exif)
    shutil.copy(IMAGES[0], tmp_path / "upright.png")
    left, right = classifier.predict([tmp_path / "turned.png", tmp_path / "upright.png"], batch_size=1)
    assert [row["score"] for row in left] == pytest.approx([row["score"] for row in right], abs=1e-6)


def test_wrong_arguments_are_refused_before_any_image(classifier: TaxonClassifier) -> None:
    for options, message in (
        ({"rank": "tribe"}, "auto"),
        ({"within": "Nowhere"}, "Unknown clade"),
        ({"top_k": 0}, "top_k"),
        ({"min_confidence": 1.5}, "min_confidence"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.predict(IMAGES, **options)
    with pytest.raises(ValueError, match=r"TaxonIndex\.build"):
        TaxonClassifier(classifier.model, classifier.processor, TaxonIndex(TAXA, torch.ones(6, 5), logit_scale=1.0))
