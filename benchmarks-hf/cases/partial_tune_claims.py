"""Which claims of the two papers hold in the partial_tune experiments: paired differences over seeds, with intervals.

Reads results/partial_tune_digits.json, partial_tune_creatures.json and partial_tune_photos.json, made by the cases of
these names. A claim holds if the whole 95 percent interval is on its side, fails if it is on the other, and is open
otherwise.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cases.partial_tune_digits import NUM_SEEDS, T_975

RESULTS = Path(__file__).resolve().parents[1] / "results"
EXPERIMENTS = ("digits", "creatures", "photos")
FT, SOURCE, LOCAL = "fine-tuned", "source", "LOLSGD"
# claim, paper, (row, column) that should be larger, (row, column) that should be smaller
CLAIMS = (
    ("fine-tuning lowers absent accuracy", "FFC", (SOURCE, "U/Y"), (FT, "U/Y")),
    ("fine-tuning raises seen accuracy", "FFC", (FT, "S/Y"), (SOURCE, "S/Y")),
    ("accuracy within absent classes rises", "FFC", (FT, "U/U"), (SOURCE, "U/U")),
    ("absent features get better (NCM)", "FFC", (FT, "NCM U/Y"), (SOURCE, "NCM U/Y")),
    ("AUSUC rises", "FFC", (FT, "AUSUC"), (SOURCE, "AUSUC")),
    ("ALG restores absent accuracy", "FFC", ("fine-tuned + ALG", "U/Y"), (FT, "U/Y")),
    ("ALG raises overall accuracy", "FFC", ("fine-tuned + ALG", "Y/Y"), (FT, "Y/Y")),
    ("with ALG absent accuracy is above the source's", "FFC", ("fine-tuned + ALG", "U/Y"), (SOURCE, "U/Y")),
    ("the best offset is better than ALG", "FFC", ("fine-tuned + oracle gamma", "Y/Y"), ("fine-tuned + ALG", "Y/Y")),
    ("ratio-PCV is better than ALG", "ours", ("fine-tuned + ratio-PCV", "Y/Y"), ("fine-tuned + ALG", "Y/Y")),
    ("fine-tuning beats a frozen head in AUSUC", "FFC", (FT, "AUSUC"), ("frozen head", "AUSUC")),
    ("LOLSGD keeps absent accuracy better", "HT", (LOCAL, "U/Y"), (FT, "U/Y")),
    ("LOLSGD is better overall", "HT", (LOCAL, "Y/Y"), (FT, "Y/Y")),
    ("calibrated fine-tuning beats LOLSGD overall", "FFC", ("fine-tuned + ALG", "Y/Y"), (LOCAL, "Y/Y")),
    ("LOLSGD gains from calibration", "FFC", ("LOLSGD + ALG", "Y/Y"), (LOCAL, "Y/Y")),
)


def run(*, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for experiment in EXPERIMENTS:
        path = RESULTS / f"partial_tune_{experiment}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        seeds = {row["method"]: row["samples"] for row in result["rows"]}
        assert all(len(samples) == NUM_SEEDS for samples in seeds.values()), f"not {NUM_SEEDS} seeds in {path.name}"
        for claim, paper, (more, column), (less, other) in CLAIMS:
            pairs = zip(seeds[more], seeds[less], strict=True)
            gains = np.array([one[column] - two[other] for one, two in pairs])
            half = T_975 * gains.std(ddof=1) / np.sqrt(NUM_SEEDS)
            low, high = gains.mean() - half, gains.mean() + half
            rows.append(
                {
                    "experiment": experiment,
                    "claim": claim,
                    "paper": paper,
                    "gain": float(gains.mean()),
                    "low": float(low),
                    "high": float(high),
                    "verdict": "holds" if low > 0 else "does not hold here" if high < 0 else "open here",
                    "samples": gains.tolist(),
                }
            )
    assert rows, "no results: run the cases partial_tune_digits, partial_tune_creatures and partial_tune_photos first"
    return rows


PLOT = None
