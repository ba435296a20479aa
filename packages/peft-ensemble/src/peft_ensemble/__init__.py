"""Visual PEFT methods for Hugging Face peft, and ensembles of them. Importing registers the methods with peft."""

from .modeling_classifier import ClassTokenClassifier, load_classifier
from .structure import VisionStructure, find_structure
from .tuners import (
    AdaptFormerConfig,
    BitFitConfig,
    ConvPassConfig,
    DiffFitConfig,
    FacTConfig,
    HoulsbyConfig,
    PfeifferConfig,
    RepAdapterConfig,
    SharedLoraConfig,
    SSFConfig,
    VPTConfig,
)

__all__ = [
    "AdaptFormerConfig",
    "BitFitConfig",
    "ClassTokenClassifier",
    "ConvPassConfig",
    "DiffFitConfig",
    "FacTConfig",
    "HoulsbyConfig",
    "PfeifferConfig",
    "RepAdapterConfig",
    "SSFConfig",
    "SharedLoraConfig",
    "VPTConfig",
    "VisionStructure",
    "__version__",
    "find_structure",
    "load_classifier",
]

__version__ = "0.1.0"
