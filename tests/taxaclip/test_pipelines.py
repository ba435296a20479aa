import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import is_torchvision_available

from support.taxa import TAXA
from taxaclip import TaxonClassifier, TaxonIndex, register_pipeline

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [str(GOLDEN / f"img_{number}.png") for number in range(4)]
TASK = "taxon-classification"


@pytest.fixture
def index(clip: tuple[CLIPModel, CLIPProcessor]) -> TaxonIndex:
    register_pipeline()
    embeds = torch.randn(len(TAXA), 24, generator=torch.Generator().manual_seed(3))
    return TaxonIndex(TAXA, embeds, logit_scale=10.0, dtype="float32")


def assert_same_rows(found: list[list[dict]], expected: list[list[dict]]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        right = [{name: value for name, value in row.items() if name != "file_name"} for row in right]
        assert [row["species"] for row in left] == [row["species"] for row in right]
        assert [row.keys() for row in left] == [row.keys() for row in right]
        assert [row["score"] for row in left] == pytest.approx([row["score"] for row in right], abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_are_those_of_the_classifier(
    clip: tuple[CLIPModel, CLIPProcessor], index: TaxonIndex, batch_size: int
) -> None:
    model, processor = clip
    classify = pipeline(TASK, model, image_processor=processor.image_processor, index=index, batch_size=batch_size)
    options = {"rank": "genus", "top_k": 2, "within": "Animalia"}
    expected = list(TaxonClassifier(model, processor, index).predict(IMAGES, **options))
    assert_same_rows(classify(IMAGES, **options), expected)
    pictures = Dataset.from_dict({"image": [Image.open(path) for path in IMAGES]})
    assert_same_rows(list(classify(KeyDataset(pictures, "image"), **options)), expected)
    assert_same_rows([classify(IMAGES[1], **options)], expected[1:2])


def test_model_and_index_are_loaded_from_folders(
    clip: tuple[CLIPModel, CLIPProcessor], index: TaxonIndex, tmp_path: Path
) -> None:
    model, processor = clip
    model.save_pretrained(tmp_path / "model")
    processor.image_processor.save_pretrained(tmp_path / "model")
    index.save_pretrained(tmp_path / "index")
    classify = pipeline(TASK, str(tmp_path / "model"), index=tmp_path / "index", rank="auto", min_confidence=0.0)
    assert type(classify.model) is CLIPModel
    expected = list(TaxonClassifier(model, processor, index).predict(IMAGES, rank="auto", min_confidence=0.0))
    assert_same_rows(classify(IMAGES), expected)


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision, which only the oldest versions have")
def test_torchvision_does_not_resize(clip: tuple[CLIPModel, CLIPProcessor], index: TaxonIndex, tmp_path: Path) -> None:
    model, processor = clip
    model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    ours = pipeline(TASK, str(tmp_path), index=index).image_processor
    with Image.open(IMAGES[2]) as image:
        exact, found, other = (
            each(image, return_tensors="pt")["pixel_values"] for each in (processor.image_processor, ours, theirs)
        )
    assert not torch.equal(other, exact)
    assert torch.equal(found, exact)


def test_wrong_options_are_refused(clip: tuple[CLIPModel, CLIPProcessor], index: TaxonIndex) -> None:
    model, processor = clip
    classify = pipeline(TASK, model, image_processor=processor.image_processor, index=index)
    with pytest.raises(ValueError, match="auto"):
        classify(IMAGES[0], rank="tribe")
    with pytest.raises(TypeError, match="min_confidence"):
        classify(IMAGES[0], threshold=0.5)
    small = TaxonIndex(TAXA, torch.ones(6, 5), logit_scale=1.0)
    with pytest.raises(ValueError, match=r"TaxonIndex\.build"):
        pipeline(TASK, model, image_processor=processor.image_processor, index=small)


def test_registering_twice_changes_nothing() -> None:
    register_pipeline()
    before = PIPELINE_REGISTRY.supported_tasks[TASK]
    register_pipeline()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is before


@pytest.mark.slow
def test_importing_registers_nothing() -> None:
    code = (
        "import taxaclip, transformers.pipelines as p; print('taxon-classification' in p.PIPELINE_REGISTRY.to_dict())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
