"""CLIP that knows the tree of life: BioCLIP in transformers, taxon indexes, every rank at once."""

from taxaclip.classification import TaxonClassifier
from taxaclip.convert import from_pretrained, hf_to_open_clip, open_clip_to_hf
from taxaclip.geometry import VariationGeometry, variation_geometry
from taxaclip.index import RankScores, TaxonIndex
from taxaclip.losses import chunked_contrastive_loss, contrastive_loss, replay_loss
from taxaclip.open_clip import UnsupportedArchitecture
from taxaclip.taxonomy import RANKS, TaxonPath, normalise

__all__ = [
    "RANKS",
    "RankScores",
    "TaxonClassifier",
    "TaxonIndex",
    "TaxonPath",
    "UnsupportedArchitecture",
    "VariationGeometry",
    "__version__",
    "chunked_contrastive_loss",
    "contrastive_loss",
    "from_pretrained",
    "hf_to_open_clip",
    "normalise",
    "open_clip_to_hf",
    "replay_loss",
    "variation_geometry",
]

__version__ = "0.1.0"
