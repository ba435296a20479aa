"""Says which claims of the ten papers hold on the nano models, from the result files: one table, one JSON file.

    python benchmarks-hf/claims.py                 from the results that are there
    python benchmarks-hf/claims.py --run           after running every case that a claim reads (hours)

A claim compares two numbers that were measured on the same images, questions or seeds. It holds if the whole 95
percent interval of their difference is on its side, does not hold here if the whole interval is on the other, and is
open here otherwise. The table goes into the root README between its two marks.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
MARKS = ("<!-- claims: made by benchmarks-hf/claims.py -->", "<!-- end of claims -->")
Row = dict[str, Any]
CASES = (  # in the order in which they read each other's results
    "meda_quality",
    "meda_decode",
    "finer_cam_planted",
    "finer_cam_masking",
    "prompt_cam_traits",
    "compbench_nano",
    "peft_ensemble_digits",
    "partial_tune_digits",
    "partial_tune_creatures",
    "partial_tune_photos",
    "partial_tune_claims",
    "taxaclip_creatures",
    "taxaclip_replay",
)
REPLAY = "replay keeps objects, second projection"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim: what the paper says, and how much larger here is what should be larger."""

    system: str
    claim: str
    here: str  # what the difference is of
    gain: float
    low: float
    high: float
    unit: str
    differs: str
    case: str
    paper: str = "-"  # the paper's number where it is verified

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference lies on the side of the claim."""
        if self.low > 0:
            return "holds"
        return "does not hold here" if self.high < 0 else "open here"


def read_rows(case: str) -> list[Row]:
    """The rows of a result file, or an error that says how to make it."""
    path = HERE / "results" / f"{case}.json"
    if not path.exists():
        raise ValueError(f"expected {path}; make it with `nox -s bench -- {case}`")
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def find(rows: list[Row], **keys: object) -> Row:
    """The one row with these values."""
    found = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
    if len(found) != 1:
        raise ValueError(f"expected one row with {keys}, got {len(found)}")
    return found[0]


def difference(row: Row, key: str, scale: float = 1.0) -> dict[str, float]:
    """A difference that a case has computed, with its interval."""
    return {"gain": scale * row[key], "low": scale * row[f"{key}_low"], "high": scale * row[f"{key}_high"]}


def paired(more: str, less: str) -> dict[str, float]:
    """The difference of two shares of right answers to the same questions, in points, with a normal interval."""
    gains = 100 * (np.array(list(more), float) - np.array(list(less), float))
    half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
    return {"gain": gains.mean(), "low": gains.mean() - half, "high": gains.mean() + half}


def meda() -> list[Claim]:
    """Layers by entropy, merging, and what decoding gains."""
    right = {
        row["policy"]: row["samples"]["right"]
        for row in read_rows("meda_quality")
        if row["mode"] == "question-aware" and row["keep_ratio"] == 0.2
    }
    quality: dict[str, Any] = {
        "system": "MEDA",
        "here": "exact match at keep ratio 0.2",
        "unit": "points",
        "differs": "llava-nano, 500 questions over 4 to 16 rendered images",
        "case": "meda_quality",
    }
    decode = find(read_rows("meda_decode"), context=8192, keep_ratio=0.2)
    faster = {"gain": decode["speedup"] - 1, "low": decode["speedup_q1"] - 1, "high": decode["speedup_q3"] - 1}
    return [
        Claim(claim="layers by entropy beat equal layers", **quality, **paired(right["meda"], right["uniform"])),
        Claim(claim="merging beats eviction", **quality, **paired(right["meda"], right["meda, no merging"])),
        Claim(
            system="MEDA",
            claim="decoding gets faster",
            here="speed over `DynamicCache` less 1, 8,192 tokens, keep ratio 0.2; quartiles",
            unit="x",
            differs="random weights, one CPU thread",
            case="meda_decode",
            **faster,
        ),
    ]


def finer_cam() -> list[Claim]:
    """Energy in the discriminating part, and masking, with the sibling as reference."""
    claims = []
    for model in ("vit-nano", "convnet-nano"):
        common: dict[str, Any] = {"system": "Finer-CAM", "differs": f"{model}, Grad-CAM, gamma 0.6, 300 creatures"}
        keys = {"model": model, "method": "gradcam", "gamma": 0.6}
        energy = difference(find(read_rows("finer_cam_planted"), **keys), "energy_gain", 100)
        drop = difference(find(read_rows("finer_cam_masking"), **keys), "relative_drop_5_gain")
        claims += [
            Claim(
                claim="more energy lies on the part that tells siblings apart",
                here="energy in that part",
                unit="points",
                case="finer_cam_planted",
                **common,
                **energy,
            ),
            Claim(
                claim="masking the top 5 percent drops the class more than its sibling",
                here="relative drop at 5 percent",
                unit="",
                case="finer_cam_masking",
                **common,
                **drop,
            ),
        ]
    return claims


def prompt_cam() -> list[Claim]:
    """Heads on traits, erasing a trait, insertion: against Grad-CAM on a linear probe of the same backbone."""
    rows = [row for row in read_rows("prompt_cam_traits") if row["backbone"] == "vit-nano"]
    ours, probe, model = (
        find(rows, kind=kind) for kind in ("prompt-cam, top head", "grad-cam on the probe", "prompt-cam")
    )
    common: dict[str, Any] = {
        "system": "Prompt-CAM",
        "unit": "points",
        "differs": "vit-nano, 300 creatures",
        "case": "prompt_cam_traits",
    }
    flips = difference(model, "flip_if_erased", 100)
    more_than_half = {key: value - 50 for key, value in flips.items()}
    return [
        Claim(
            claim="the top head lies on the trait more than Grad-CAM",
            here="attention on its trait",
            **common,
            **apart(ours, probe, "on_its_trait"),
        ),
        Claim(
            claim="erasing the trait flips the prediction",
            here="flips, less half of the images",
            **common,
            **more_than_half,
        ),
        Claim(
            claim="insertion beats Grad-CAM",
            here="area under insertion",
            **common,
            **apart(ours, probe, "insertion"),
        ),
    ]


def apart(more: Row, less: Row, key: str) -> dict[str, float]:
    """The difference of two means in points, with the interval of independent samples: wider than a paired one."""
    gain = 100 * (more[key] - less[key])
    half = 100 * np.hypot(*[(row[f"{key}_high"] - row[f"{key}_low"]) / 2 for row in (more, less)])
    return {"gain": gain, "low": gain - half, "high": gain + half}


def compbench() -> list[Claim]:
    """Accuracy over the relations, and the bias that one order hides."""
    rows = [row for row in read_rows("compbench_nano") if row["runner"] == "llava-nano" and row.get("seed") == "all"]
    rows = [row for row in rows if row["chance"] == 0.5]
    best, worst = (pick(rows, key=lambda row: row["accuracy"]) for pick in (max, min))
    biased = max(rows, key=lambda row: abs(row["bias"]))
    bias = sorted(abs(100 * biased[key]) for key in ("bias_low", "bias_high"))
    common: dict[str, Any] = {
        "system": "CompBench",
        "unit": "points",
        "differs": "llava-nano, mini-CompBench, five held-out seeds",
        "case": "compbench_nano",
    }
    return [
        Claim(
            claim="accuracy is uneven over the relations",
            paper="41.9 to 92.2 (GPT-4V)",
            here=f"{best['kind']} over {worst['kind']}",
            **common,
            **apart(best, worst, "accuracy"),
        ),
        Claim(
            claim="position bias is visible with swapped order",
            here=f"bias on {biased['kind']}, where one order has {100 * biased['accuracy_first']:.0f} % right",
            **common,
            gain=abs(100 * biased["bias"]),
            low=bias[0] if biased["bias_low"] * biased["bias_high"] > 0 else -bias[0],
            high=bias[1],
        ),
    ]


def partial_tune() -> list[Claim]:
    """What fine-tuning on some classes costs, and what brings the others back."""
    wanted = {
        "fine-tuning lowers absent accuracy": "Fine-tuning is fine",
        "absent features get better (NCM)": "Fine-tuning is fine",
        "ALG restores absent accuracy": "Fine-tuning is fine",
        "LOLSGD keeps absent accuracy better": "Holistic Transfer",
    }
    return [
        Claim(
            system=wanted[row["claim"]],
            claim=row["claim"],
            here="accuracy",
            unit="points",
            differs=f"{row['experiment']}, five seeds",
            case="partial_tune_claims",
            **{key: 100 * row[key] for key in ("gain", "low", "high")},
        )
        for row in read_rows("partial_tune_claims")
        if row["claim"] in wanted
    ]


def ensembles() -> list[Claim]:
    """Students of ensembles, and what methods share."""
    wanted = {
        "student of V-PET over labelled-only": ("V-PET", "the student beats labelled-only PEFT", 1),
        "student of V-PET over student of ST": ("V-PET", "an ensemble teaches better than one model", 1),
        "4 methods together over their mean": ("PETL study", "ensembles of methods gain", 1),
        "agreement: 4 methods minus 4 seeds": ("PETL study", "methods disagree more than seeds do", -1),
        "LoRA halfway minus tuned, shifted": ("PETL study", "weights between help under shift", 1),
    }
    rows = {row["what"]: row for row in read_rows("peft_ensemble_digits")}
    claims = []
    for what, (system, text, sign) in wanted.items():
        low, high = sorted(100 * sign * rows[what][key] for key in ("low", "high"))
        claims.append(
            Claim(
                system=system,
                claim=text,
                here="accuracy" if sign > 0 else "less agreement",
                unit="points",
                differs="digits, ten seeds",
                case="peft_ensemble_digits",
                gain=100 * sign * rows[what]["value"],
                low=low,
                high=high,
            )
        )
    return claims


def bioclip() -> list[Claim]:
    """Geometry that follows ecology, variation across it, and what hierarchical captions bring."""
    wanted = {
        "family: more right than with flat captions": ("points", 100.0),
        "niche beyond ancestry: above 0": ("", 1.0),
        "niche beyond ancestry: above flat captions": ("", 1.0),
        "sex: more orthogonal than by chance": ("", 1.0),
        "sex: more images, more orthogonal to species": ("", 1.0),
        "sex: more images, higher Fisher ratio": ("", 1.0),
    }
    rows = {row["claim"]: row for row in read_rows("taxaclip_creatures") if "claim" in row}
    kept = next(row for row in read_rows("taxaclip_replay") if row.get("claim") == REPLAY)
    replay = Claim(
        system="BioCLIP 2",
        claim="replay keeps general knowledge",
        here="accuracy on objects",
        unit="points",
        differs="CLIP of 64 pixels, 16,000 creatures, three seeds",
        case="taxaclip_replay",
        **{key: 100 * kept[name] for key, name in (("gain", "value"), ("low", "low"), ("high", "high"))},
    )
    return [replay] + [
        Claim(
            system="BioCLIP 2",
            claim=text,
            here="accuracy" if unit else "difference",
            unit=unit,
            differs="CLIP of 64 pixels, 64,000 creatures, three seeds",
            case="taxaclip_creatures",
            **{key: scale * rows[text][name] for key, name in (("gain", "value"), ("low", "low"), ("high", "high"))},
        )
        for text, (unit, scale) in wanted.items()
    ]


SYSTEMS: tuple[Callable[[], list[Claim]], ...] = (
    meda,
    finer_cam,
    prompt_cam,
    compbench,
    ensembles,
    partial_tune,
    bioclip,
)


def format_gain(claim: Claim) -> str:
    """The difference with its interval, its unit and the file that has it."""
    digits = 2 if claim.unit in ("", "x") else 1
    gain, low, high = (f"{value:+.{digits}f}" for value in (claim.gain, claim.low, claim.high))
    number = f"{gain} [{low}, {high}] {claim.unit}".strip()
    return f"[{number}](benchmarks-hf/results/{claim.case}.json)"


def format_table(claims: list[Claim]) -> str:
    """A Markdown table with one row for each claim, whatever number of experiments it was put to."""
    lines = ["| system | claim | paper | here: difference, 95 % interval | verdict |", "|-|-|-|-|-|"]
    for system, text in dict.fromkeys((claim.system, claim.claim) for claim in claims):
        group = [claim for claim in claims if (claim.system, claim.claim) == (system, text)]
        here = "; ".join(f"{format_gain(claim)} ({claim.differs})" for claim in group)
        verdicts = [claim.verdict for claim in group]
        verdict = verdicts[0] if len(set(verdicts)) == 1 else ", ".join(verdicts)
        lines.append(f"| {system} | {text} | {group[0].paper} | {group[0].here}: {here} | {verdict} |")
    return "\n".join(lines)


def replace_between_marks(text: str, table: str) -> str:
    """The README with this table between its marks."""
    start, end = (text.find(mark) for mark in MARKS)
    if not 0 <= start < end:
        raise ValueError(f"expected {MARKS[0]!r} before {MARKS[1]!r} in {README.name}")
    return f"{text[: start + len(MARKS[0])]}\n\n{table}\n\n{text[end:]}"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the cases first")
    args = parser.parse_args()
    try:
        if args.run:
            subprocess.run([sys.executable, str(HERE / "run.py"), *CASES], check=True)
        claims = [claim for system in SYSTEMS for claim in system()]
        table = format_table(claims)
        write(README, replace_between_marks(README.read_text(encoding="utf-8"), table))
    except ValueError as error:
        sys.exit(f"claims.py: {error}")
    rows = [asdict(claim) | {"verdict": claim.verdict} for claim in claims]
    write(HERE / "results" / "claims.json", json.dumps({"schema": 1, "claims": rows}, indent=1) + "\n")
    print(table)


if __name__ == "__main__":
    main()
