"""Visual PEFT methods for Hugging Face peft, and ensembles of them. Importing registers the methods with peft."""

from .aggregation import aggregate, dawid_skene
from .data import ViewCollator
from .diversity import DiversityReport, measure_diversity
from .ensemble import PeftEnsemble
from .interpolation import interpolate, mix_outputs, wise_curve
from .members import MemberSpec
from .modeling_classifier import ClassTokenClassifier, load_classifier
from .plots import plot_agreement, plot_selection, plot_wise
from .selection import Selection, UnsupervisedSelector
from .ssl_trainer import SSLTrainer
from .structure import VisionStructure, find_structure
from .trainer import SelfTrainingTrainer, soft_cross_entropy
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
    "DiversityReport",
    "FacTConfig",
    "HoulsbyConfig",
    "MemberSpec",
    "PeftEnsemble",
    "PfeifferConfig",
    "RepAdapterConfig",
    "SSFConfig",
    "SSLTrainer",
    "Selection",
    "SelfTrainingTrainer",
    "SharedLoraConfig",
    "UnsupervisedSelector",
    "VPTConfig",
    "ViewCollator",
    "VisionStructure",
    "__version__",
    "aggregate",
    "dawid_skene",
    "find_structure",
    "interpolate",
    "load_classifier",
    "measure_diversity",
    "mix_outputs",
    "plot_agreement",
    "plot_selection",
    "plot_wise",
    "soft_cross_entropy",
    "wise_curve",
]

__version__ = "0.1.0"
