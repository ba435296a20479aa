from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip import LabelClassifier
from taxaclip.images import embed_images, read_batches, read_image
from taxaclip.texts import embed_texts

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [GOLDEN / f"img_{number}.png" for number in range(4)]
LABELS = ["a bee", "wasp, or hornet", "an ant"]


def plain_probs(clip: tuple[CLIPModel, CLIPProcessor]) -> torch.Tensor:
    model, processor = clip
    texts = embed_texts(model, processor, [f"a photo of {label}." for label in LABELS])
    images = embed_images(model, processor, [read_image(path) for path in IMAGES])
    return (model.logit_scale.exp() * images @ texts.T).softmax(dim=1).detach()


def test_scores_are_the_softmax_over_the_labels(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    results = list(LabelClassifier(*clip, LABELS).predict(IMAGES, batch_size=3))
    for path, rows, probs in zip(IMAGES, results, plain_probs(clip), strict=True):
        assert {row["classification"]: row["score"] for row in rows} == pytest.approx(
            dict(zip(LABELS, probs.tolist(), strict=True)), abs=1e-6
        )
        assert {row["file_name"] for row in rows} == {str(path)}
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


def test_bins_hold_the_sums_of_their_labels(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    bins = {"a bee": "flies", "wasp, or hornet": "flies", "an ant": "walks"}
    for rows, probs in zip(LabelClassifier(*clip, LABELS, bins=bins).predict(IMAGES), plain_probs(clip), strict=True):
        expected = {"flies": float(probs[0] + probs[1]), "walks": float(probs[2])}
        assert {row["classification"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-6)


def test_bad_images_keep_their_place(clip: tuple[CLIPModel, CLIPProcessor], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    results = list(LabelClassifier(*clip, LABELS).predict([tmp_path / "bad.png", IMAGES[0]], top_k=1))
    assert [len(rows) for rows in results] == [1, 1]
    assert "error" in results[0][0]
    assert "error" not in results[1][0]


def test_labels_need_bins_and_must_differ(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    with pytest.raises(ValueError, match="an ant"):
        LabelClassifier(*clip, LABELS, bins={"a bee": "x", "wasp, or hornet": "x", "an ant": ""})
    with pytest.raises(ValueError, match="none"):
        LabelClassifier(*clip, [])
    with pytest.raises(ValueError, match="the string 'bee'"):
        LabelClassifier(*clip, "bee")
    classifier = LabelClassifier(*clip, LABELS)
    with pytest.raises(ValueError, match="top_k"):
        classifier.predict(IMAGES, top_k=0)
    with pytest.raises(ValueError, match="top_k"):
        classifier.rows(torch.ones(1, 24), top_k=0)


def test_embeddings_may_have_any_length(clip: tuple[CLIPModel, CLIPProcessor]) -> None:
    classifier, embeds = LabelClassifier(*clip, LABELS), torch.randn(2, 24)
    for one, other in zip(classifier.rows(embeds), classifier.rows(7 * embeds), strict=True):
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], rel=1e-5)


def test_batch_size_is_checked() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        list(read_batches(IMAGES, 0))
