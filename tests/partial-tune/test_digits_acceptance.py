"""The experiment on real digits in small: what the paper finds has to be found, over three seeds."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partial_tune import interpolate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks-hf"


@pytest.mark.slow
def test_fine_tuning_collapses_absent_digits_and_one_number_restores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    case: Any = importlib.import_module("cases.partial_tune_digits")
    seeds = [case.run_seed(case.build_digits(seed), lambda a, b: interpolate(a, b, 0.5)) for seed in range(3)]

    def mean(method: str, column: str) -> float:
        return float(np.mean([seed[method][column] for seed in seeds]))

    assert mean("fine-tuned", "U/Y") <= mean("source", "U/Y") - 0.08
    assert mean("fine-tuned", "U/U") >= mean("source", "U/U") + 0.08
    assert mean("fine-tuned + ALG", "U/Y") >= mean("fine-tuned", "U/Y") + 0.20
    assert mean("fine-tuned + ALG", "Y/Y") >= mean("fine-tuned", "Y/Y") + 0.08
    assert mean("fine-tuned + ratio-PCV", "Y/Y") >= mean("fine-tuned + ALG", "Y/Y") - 0.01
    assert mean("LOLSGD", "U/Y") >= mean("fine-tuned", "U/Y") + 0.05
