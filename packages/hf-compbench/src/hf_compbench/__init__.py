"""MLLM-CompBench: which of two images has more of it."""

from hf_compbench.extraction import Extraction, extract_answer
from hf_compbench.intervals import wilson_interval
from hf_compbench.metric_paths import metric_path
from hf_compbench.scoring import Scores, compare, score

__version__ = "0.1.0"

__all__ = ["Extraction", "Scores", "compare", "extract_answer", "metric_path", "score", "wilson_interval"]
