"""Finer-CAM for any vision model of transformers: what tells this class from its look-alikes."""

from finer_cam.cam import FinerCAM
from finer_cam.explaining import Explanation, explain
from finer_cam.faithfulness import Faithfulness, compute_faithfulness
from finer_cam.functional import combine, normalize_maps, upsample_maps
from finer_cam.measures import area_under_curve, energy_in_region, pointing_game, relative_drop
from finer_cam.metrics import metric_path
from finer_cam.output import FinerCAMOutput
from finer_cam.references import reference_weights, select_references
from finer_cam.zero_shot import ZeroShotFinerCAM

__all__ = [
    "Explanation",
    "Faithfulness",
    "FinerCAM",
    "FinerCAMOutput",
    "ZeroShotFinerCAM",
    "__version__",
    "area_under_curve",
    "combine",
    "compute_faithfulness",
    "energy_in_region",
    "explain",
    "metric_path",
    "normalize_maps",
    "pointing_game",
    "reference_weights",
    "relative_drop",
    "select_references",
    "upsample_maps",
]

__version__ = "0.1.0"
