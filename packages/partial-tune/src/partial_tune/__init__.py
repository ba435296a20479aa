"""Fine-tune on some classes, keep them all: exact seen/absent metrics, one-number calibration, LOLSGD."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from partial_tune.accuracy import group_accuracies
from partial_tune.calibrator import LogitCalibrator
from partial_tune.diagnosis import Diagnosis, diagnose
from partial_tune.evaluation import SeenAbsentMetrics, metric_path
from partial_tune.gamma import GammaEstimate, average_logit_gap
from partial_tune.interpolation import interpolate, interpolate_adapter
from partial_tune.partition import ClassPartition
from partial_tune.plots import plot_sweep
from partial_tune.result import OperatingPoint, SweepResult
from partial_tune.sweep import SweepState, seen_absent_sweep

if TYPE_CHECKING:
    from partial_tune.arguments import PartialTuneArguments
    from partial_tune.callbacks import CalibrationCallback
    from partial_tune.trainer import PartialTuneTrainer

__version__ = "0.1.0"

__all__ = [
    "CalibrationCallback",
    "ClassPartition",
    "Diagnosis",
    "GammaEstimate",
    "LogitCalibrator",
    "OperatingPoint",
    "PartialTuneArguments",
    "PartialTuneTrainer",
    "SeenAbsentMetrics",
    "SweepResult",
    "SweepState",
    "average_logit_gap",
    "diagnose",
    "group_accuracies",
    "interpolate",
    "interpolate_adapter",
    "metric_path",
    "plot_sweep",
    "seen_absent_sweep",
]

# What needs transformers is imported when it is asked for: the metrics and the calibrator work without it.
_NEEDS_HF = {
    "CalibrationCallback": "partial_tune.callbacks",
    "PartialTuneArguments": "partial_tune.arguments",
    "PartialTuneTrainer": "partial_tune.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_HF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_NEEDS_HF[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "partial_tune":
            raise
        raise ImportError(f'`{name}` needs {missing}; install it with `pip install "partial-tune[hf]"`.') from error
