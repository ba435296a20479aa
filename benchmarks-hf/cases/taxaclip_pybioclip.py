"""The five likeliest genera of embedded images: TaxonClassifier against the package pybioclip, in one process.

Both get the same embeddings of eight images and of the taxa, and give rows with names and scores. pybioclip's own
methods `create_probabilities` and `format_grouped_probs` run on an object that was made without its weights, which
come from the Hub. Embeddings are random, at the scale of CLIP's logits.

pybioclip and open_clip import torchvision, of which nothing is used here. pybioclip takes part if FOVEA_PYBIOCLIP
names a folder made by
    pip install --no-deps --target DIR pybioclip==2.1.6 open-clip-torch==3.3.0 prettytable wcwidth ftfy
and modules that do nothing stand in for torchvision.
"""

import os
import sys
from types import ModuleType
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

import harness
from taxaclip import TaxonClassifier, TaxonIndex, TaxonPath

FOLDER = os.environ.get("FOVEA_PYBIOCLIP")
IMAGES, DIM, SCALE = 8, 256, 100.0
STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
             "torchvision.ops.misc")  # fmt: skip

UNUSED: dict[str, Any] = {"__init__": lambda self, *args, **options: None, "BICUBIC": None, "BILINEAR": None}


class StandIn(ModuleType):
    """A module that has every name: a module of `STAND_INS`, or a class that does nothing."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), dict(UNUSED))


def load_pybioclip() -> tuple[Any, Any]:
    """The classifier of pybioclip and its rank genus, with `StandIn` for torchvision while they are imported."""
    hidden = {name: sys.modules.get(name) for name in STAND_INS}
    sys.modules |= {name: StandIn(name) for name in STAND_INS}
    sys.path.append(str(FOLDER))
    from bioclip import Rank, TreeOfLifeClassifier

    sys.path.remove(str(FOLDER))
    for name, module in hidden.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module
    return TreeOfLifeClassifier, Rank.GENUS


def build_peer(names: list[tuple[str, ...]], embeddings: torch.Tensor) -> Any:
    """pybioclip's classifier of these taxa, without a model that embeds images."""
    classifier_class, genus = load_pybioclip()
    classifier = classifier_class.__new__(classifier_class)
    torch.nn.Module.__init__(classifier)
    classifier.model = torch.nn.Module()
    classifier.model.logit_scale = torch.tensor(SCALE).log()
    classifier.txt_embeddings = torch.nn.functional.normalize(embeddings, dim=1).T.contiguous()
    classifier.txt_names = [(taxon, "") for taxon in names]
    classifier._subset_txt_embeddings = classifier._subset_txt_names = None
    classifier.genus = genus
    return classifier


def setup(num_taxa: int) -> dict[str, Any]:
    torch.manual_seed(0)
    names = [("A", "B", "C", f"o{n % 97}", f"f{n % 397}", f"g{n % 1999}", f"{n}") for n in range(num_taxa)]
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=DIM)).eval()
    embeddings = torch.randn(num_taxa, DIM)
    index = TaxonIndex([TaxonPath(taxon) for taxon in names], embeddings, logit_scale=SCALE, dtype="float32")
    images = torch.nn.functional.normalize(torch.randn(IMAGES, DIM), dim=1)
    return {"ours": TaxonClassifier(model, None, index), "peer": build_peer(names, embeddings), "images": images}


def ours(inputs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return inputs["ours"].rows(inputs["images"], rank="genus", top_k=5)


@torch.no_grad()
def peer(inputs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    classifier = inputs["peer"]
    probs = classifier.create_probabilities(inputs["images"], classifier.get_txt_embeddings())
    return [classifier.format_grouped_probs("image", row, classifier.genus, k=5) for row in probs]


def check(inputs: dict[str, Any]) -> None:
    for found, expected in zip(ours(inputs), peer(inputs), strict=True):
        assert [row["genus"] for row in found] == [row["genus"] for row in expected], "other genera"
        scores = [torch.tensor([row["score"] for row in rows]) for rows in (found, expected)]
        assert torch.allclose(*scores, atol=1e-5), "other scores"


TIMING = harness.Timing(
    sizes=[{"num_taxa": number} for number in (1_000, 10_000, 50_000, 200_000)],
    setup=setup,
    check=check,
    ours=ours,
    peer=peer,
    items=IMAGES,
    unit="images",
)


def run(*, quick: bool) -> list[dict[str, Any]]:
    if FOLDER is None:
        return [{"skipped": "FOVEA_PYBIOCLIP names no folder with pybioclip"}]
    return harness.run_timing(TIMING, quick=quick)


PLOT = {"x": "num_taxa", "y": "ratio", "low": "ratio_q1", "high": "ratio_q3"}
