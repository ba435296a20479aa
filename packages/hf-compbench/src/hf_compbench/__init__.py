"""MLLM-CompBench: which of two images has more of it."""

from hf_compbench.audit import AuditReport, audit_pairs
from hf_compbench.building import build_compbench
from hf_compbench.comparison import compare
from hf_compbench.extraction import Extraction, extract_answer
from hf_compbench.images import resolve_images
from hf_compbench.intervals import wilson_interval
from hf_compbench.loading import load_compbench
from hf_compbench.metric_paths import metric_path
from hf_compbench.mining import PairRule, mine_pairs
from hf_compbench.predictions import read_predictions
from hf_compbench.report import build_report, save_report
from hf_compbench.scores import Scores
from hf_compbench.scoring import score

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "Extraction",
    "PairRule",
    "Scores",
    "audit_pairs",
    "build_compbench",
    "build_report",
    "compare",
    "extract_answer",
    "load_compbench",
    "metric_path",
    "mine_pairs",
    "read_predictions",
    "resolve_images",
    "save_report",
    "score",
    "wilson_interval",
]
