"""Fourteen atomic visual abilities, one fingerprint for each vision model."""

from hf_ava_bench.abilities import ABILITIES, Ability, find_ability
from hf_ava_bench.benchmark import run_benchmark
from hf_ava_bench.build import build_dataset
from hf_ava_bench.comparison import RankingComparison, compare_rankings
from hf_ava_bench.data import load_ability
from hf_ava_bench.evaluation import list_metrics, metric_path
from hf_ava_bench.export import export_json, export_space
from hf_ava_bench.fingerprint import AbilityResult, Fingerprint
from hf_ava_bench.leaks import find_leaks
from hf_ava_bench.plots import plot_bins, plot_fingerprints, plot_rankings
from hf_ava_bench.ranking import TowerRanking, rank_towers, statistical_ranks
from hf_ava_bench.results import score_files, score_items
from hf_ava_bench.scoring import Score, compute_score
from hf_ava_bench.shortcuts import audit_shortcuts

__version__ = "0.1.0"

__all__ = [
    "ABILITIES",
    "Ability",
    "AbilityResult",
    "Fingerprint",
    "RankingComparison",
    "Score",
    "TowerRanking",
    "audit_shortcuts",
    "build_dataset",
    "compare_rankings",
    "compute_score",
    "export_json",
    "export_space",
    "find_ability",
    "find_leaks",
    "list_metrics",
    "load_ability",
    "metric_path",
    "plot_bins",
    "plot_fingerprints",
    "plot_rankings",
    "rank_towers",
    "run_benchmark",
    "score_files",
    "score_items",
    "statistical_ranks",
]
