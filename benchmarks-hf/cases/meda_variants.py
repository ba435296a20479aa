"""Exact match of llava-nano by option: what each option of `meda` and of `balanced` is worth, one at a time.

Questions of the kind of `meda_quality`, and others than its own: what is chosen from these is tested there. In both
modes, question-aware and question-agnostic. `over_meda` and `over_balanced` are paired differences on the same
questions, with 95 percent intervals.
"""

from typing import Any

from cases.meda_quality import NUM_QUESTIONS, collect, ramp, tabulate

SEED = 2_002
KEEP_RATIOS = (0.2, 0.1)
BASES = ("meda", "balanced")
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "meda": {
        "temperature 4": {"temperature": 4.0},
        "normalized entropy": {"normalize": True},
        "equal layers": {"allocation": "uniform"},
        "no text prior": {"text_policy": "none"},
        "query window": {"score": "window"},
        "half recent": {"recent_fraction": 0.5},
        "no text prior, every image": {"text_policy": "none", "per_image": True},
    },
    "balanced": {
        "entropy": {"allocation": "entropy"},
        "entropy, temperature 4": {"allocation": "entropy", "temperature": 4.0},
        "normalized entropy": {"allocation": "entropy", "normalize": True},
        "depth ramp": {"allocation": ramp},
        "text prior": {"text_policy": "bias"},
        "query window": {"score": "window"},
        "mean": {"score": "mean"},
        "quarter recent": {"recent_fraction": 0.25},
        "3/4 recent": {"recent_fraction": 0.75},
        "images as they come": {"per_image": False},  # this is h2o
    },
}
POLICIES: dict[str, dict[str, Any]] = {
    "full cache": {"preset": "none"},
    **{preset: {"preset": preset} for preset in OPTIONS},
    **{
        f"{preset}, {name}": {"preset": preset, **options}
        for preset, some in OPTIONS.items()
        for name, options in some.items()
    },
}


def run(*, quick: bool) -> list[dict[str, Any]]:
    ratios = KEEP_RATIOS[:1] if quick else KEEP_RATIOS
    return tabulate(*collect(5 if quick else NUM_QUESTIONS, POLICIES, ratios, seed=SEED), BASES)
