"""Images a second from files to the five likeliest taxa: TaxonClassifier against a plain loop at the same batch size.

The loop is what one would write by hand with transformers: open, process, embed, one matrix product, softmax, names.
Both classify the same 24 JPEG files of 320 x 240 pixels by 10,000 taxa, with a CLIP of random weights, 224 pixels and
patches of 32. Ours also turns photos upright, survives bad files, and sums all seven ranks: here is what that costs.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from harness import Timing
from taxaclip import TaxonClassifier, TaxonIndex, TaxonPath

IMAGES, TAXA, DIM = 24, 10_000, 256
FOLDER = tempfile.TemporaryDirectory()


def setup(batch_size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    tower = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    config = CLIPConfig(text_config=tower, vision_config={**tower, "patch_size": 32}, projection_dim=DIM)
    model = CLIPModel(config).eval()
    processor = CLIPProcessor(CLIPImageProcessorPil(), CLIPTokenizer())
    generator = np.random.default_rng(0)
    paths = [str(Path(FOLDER.name) / f"{number}.jpg") for number in range(IMAGES)]
    for path in paths:
        small = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(path)
    taxa = [TaxonPath(("A", "B", "C", f"o{n % 97}", f"f{n % 397}", f"g{n % 1999}", f"{n}")) for n in range(TAXA)]
    index = TaxonIndex(taxa, torch.randn(TAXA, DIM), logit_scale=100.0, dtype="float32")
    names = [index.names(row) for row in range(TAXA)]
    classifier = TaxonClassifier(model, processor, index)
    return {"classifier": classifier, "names": names, "paths": paths, "batch_size": batch_size}


def ours(inputs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return list(inputs["classifier"].predict(inputs["paths"], batch_size=inputs["batch_size"]))


@torch.no_grad()
def peer(inputs: dict[str, Any]) -> list[list[tuple[tuple[str, ...], float]]]:
    classifier, size, results = inputs["classifier"], inputs["batch_size"], []
    model, matrix = classifier.model, classifier.index.embeddings.T
    for at in range(0, IMAGES, size):
        images = [Image.open(path).convert("RGB") for path in inputs["paths"][at : at + size]]
        pixels = classifier.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        embeds = model.visual_projection(model.vision_model(pixels).pooler_output)
        probs = (100.0 * torch.nn.functional.normalize(embeds, dim=1) @ matrix).softmax(dim=1)
        values, rows = probs.topk(5)
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            results.append([(inputs["names"][r], v) for r, v in zip(row, value, strict=True)])
    return results


def check(inputs: dict[str, Any]) -> None:
    for found, expected in zip(ours(inputs), peer(inputs), strict=True):
        assert [row["species_epithet"] for row in found] == [names[-1] for names, _ in expected], "other taxa"
        assert np.allclose([row["score"] for row in found], [p for _, p in expected], atol=1e-5), "other scores"


CASE = Timing(
    sizes=[{"batch_size": size} for size in (1, 4, 12, 24)],
    setup=setup,
    check=check,
    ours=ours,
    peer=peer,
    items=IMAGES,
    unit="images",
)
PLOT = {"x": "batch_size", "y": "ratio", "low": "ratio_q1", "high": "ratio_q3"}
