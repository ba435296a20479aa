"""CLIP that knows the tree of life: BioCLIP in transformers, taxon indexes, every rank at once."""

from taxaclip.alignment import Alignment, TraitAlignment, taxonomy_alignment, trait_alignment
from taxaclip.classification import TaxonClassifier
from taxaclip.convert import from_pretrained, hf_to_open_clip, open_clip_to_hf
from taxaclip.distributed import cached_backward, distributed_contrastive_loss
from taxaclip.few_shot import FewShotClassifier
from taxaclip.geometry import VariationGeometry, variation_geometry
from taxaclip.images import embed_images
from taxaclip.index import RankScores, TaxonIndex
from taxaclip.labels import LabelClassifier
from taxaclip.losses import chunked_contrastive_loss, contrastive_loss, replay_loss
from taxaclip.modeling_replay import ReplayCLIPModel
from taxaclip.open_clip import UnsupportedArchitecture
from taxaclip.pipelines import register_pipeline
from taxaclip.rows import finished_names, write_rows
from taxaclip.taxonomy import RANKS, TaxonPath, normalise

__all__ = [
    "RANKS",
    "Alignment",
    "FewShotClassifier",
    "LabelClassifier",
    "RankScores",
    "ReplayCLIPModel",
    "TaxonClassifier",
    "TaxonIndex",
    "TaxonPath",
    "TraitAlignment",
    "UnsupportedArchitecture",
    "VariationGeometry",
    "__version__",
    "cached_backward",
    "chunked_contrastive_loss",
    "contrastive_loss",
    "distributed_contrastive_loss",
    "embed_images",
    "finished_names",
    "from_pretrained",
    "hf_to_open_clip",
    "normalise",
    "open_clip_to_hf",
    "register_pipeline",
    "replay_loss",
    "taxonomy_alignment",
    "trait_alignment",
    "variation_geometry",
    "write_rows",
]

__version__ = "0.1.0"
