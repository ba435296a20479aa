"""Where questions meet models: the run, its crash-safe store, and who answers."""

from hf_compbench.runners.heuristics import HEURISTICS, HeuristicRunner
from hf_compbench.runners.run import run_model
from hf_compbench.runners.store import ResponseStore, read_responses
from hf_compbench.runners.transformers_runner import TransformersRunner

__all__ = ["HEURISTICS", "HeuristicRunner", "ResponseStore", "TransformersRunner", "read_responses", "run_model"]
