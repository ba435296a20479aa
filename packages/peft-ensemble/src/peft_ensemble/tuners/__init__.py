"""The visual PEFT methods, one module each. Importing this registers them with peft."""

from ..registration import register
from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .bitfit import BitFitConfig, BitFitModel
from .convpass import ConvPassConfig, ConvPassModel
from .difffit import DiffFitConfig, DiffFitModel
from .fact import FacTConfig, FacTModel
from .houlsby import HoulsbyConfig, HoulsbyModel, PfeifferConfig, PfeifferModel
from .repadapter import RepAdapterConfig, RepAdapterModel
from .shared_lora import SharedLoraConfig, SharedLoraModel
from .ssf import SSFConfig, SSFModel
from .vpt import VPTConfig, VPTModel

__all__ = [
    "AdaptFormerConfig", "BitFitConfig", "ConvPassConfig", "DiffFitConfig", "FacTConfig", "HoulsbyConfig",
    "PfeifferConfig", "RepAdapterConfig", "SSFConfig", "SharedLoraConfig", "VPTConfig",
]  # fmt: skip

for _config, _model in (
    (AdaptFormerConfig, AdaptFormerModel),
    (BitFitConfig, BitFitModel),
    (ConvPassConfig, ConvPassModel),
    (DiffFitConfig, DiffFitModel),
    (FacTConfig, FacTModel),
    (HoulsbyConfig, HoulsbyModel),
    (PfeifferConfig, PfeifferModel),
    (RepAdapterConfig, RepAdapterModel),
    (SSFConfig, SSFModel),
    (SharedLoraConfig, SharedLoraModel),
    (VPTConfig, VPTModel),
):
    register(_config.name, _config, _model)
