"""The claims of the ten papers, and where each of them stands in the rows of a case: one function for each case.

A claim compares two numbers that were measured on the same images, questions or seeds. It holds if the whole 95
percent interval of their difference is on its side, does not hold here if the whole interval is on the other, and is
open here otherwise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

Row = dict[str, Any]
PRETRAINED = ("vfm-nano-supervised", "vfm-nano-contrastive", "vfm-nano-masked")
TAU = {"gain": "tau_b", "low": "low", "high": "high"}
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


def meda_quality(rows: list[Row]) -> list[Claim]:
    """Layers by entropy, and merging."""
    right = {
        row["policy"]: row["samples"]["right"]
        for row in rows
        if row["mode"] == "question-aware" and row["keep_ratio"] == 0.2
    }
    common: dict[str, Any] = {
        "system": "MEDA",
        "here": "exact match at keep ratio 0.2",
        "unit": "points",
        "differs": f"llava-nano, {rows[0]['questions']} questions over 4 to 16 rendered images",
        "case": "meda_quality",
    }
    return [
        Claim(claim="layers by entropy beat equal layers", **common, **paired(right["meda"], right["uniform"])),
        Claim(claim="merging beats eviction", **common, **paired(right["meda"], right["meda, no merging"])),
    ]


def meda_decode(rows: list[Row]) -> list[Claim]:
    """What decoding gains at the longest context."""
    context = max(row["context"] for row in rows)
    decode = find(rows, context=context, keep_ratio=0.2)
    return [
        Claim(
            system="MEDA",
            claim="decoding gets faster",
            here=f"speed over `DynamicCache` less 1, {context:,} tokens, keep ratio 0.2; quartiles",
            unit="x",
            differs="random weights, one CPU thread",
            case="meda_decode",
            gain=decode["speedup"] - 1,
            low=decode["speedup_q1"] - 1,
            high=decode["speedup_q3"] - 1,
        )
    ]


def against_siblings(rows: list[Row], case: str, gain: str, scale: float, **about: str) -> list[Claim]:
    """What comparing with the sibling adds to Grad-CAM, for each model."""
    return [
        Claim(
            system="Finer-CAM",
            differs=f"{row['model']}, Grad-CAM, gamma 0.6, {row['images']} creatures",
            case=case,
            **about,
            **difference(row, gain, scale),
        )
        for row in rows
        if (row["method"], row["gamma"]) == ("gradcam", 0.6)
    ]


def finer_cam_planted(rows: list[Row]) -> list[Claim]:
    """Energy in the discriminating part."""
    claim = "more energy lies on the part that tells siblings apart"
    about = {"claim": claim, "here": "energy in that part", "unit": "points"}
    return against_siblings(rows, "finer_cam_planted", "energy_gain", 100, **about)


def finer_cam_masking(rows: list[Row]) -> list[Claim]:
    """Masking."""
    claim = "masking the top 5 percent drops the class more than its sibling"
    about = {"claim": claim, "here": "relative drop at 5 percent", "unit": ""}
    return against_siblings(rows, "finer_cam_masking", "relative_drop_5_gain", 1, **about)


def prompt_cam_traits(rows: list[Row]) -> list[Claim]:
    """Heads on traits, erasing a trait, insertion: against Grad-CAM on a linear probe of the same backbone."""
    rows = [row for row in rows if row["backbone"] == "vit-nano"]
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


def apart(more: Row, less: Row, key: str, prefix: str | None = None) -> dict[str, float]:
    """The difference of two means in points, with the interval of independent samples: wider than a paired one.

    The ends of their intervals are in the columns `prefix`low and `prefix`high, by default those of the key.
    """
    prefix = f"{key}_" if prefix is None else prefix
    gain = 100 * (more[key] - less[key])
    half = 100 * np.hypot(*[(row[f"{prefix}high"] - row[f"{prefix}low"]) / 2 for row in (more, less)])
    return {"gain": gain, "low": gain - half, "high": gain + half}


def ava_fingerprints(rows: list[Row]) -> list[Claim]:
    """Whether towers of different pre-training differ in some ability, and whether heads of two sizes agree."""
    common: dict[str, Any] = {"system": "AVA-Bench", "case": "ava_fingerprints"}
    items = "three abilities of mini-AVA"
    scores = [row for row in rows if row["row"] == "ability"]
    small, large = dict.fromkeys(row["head"] for row in scores)
    claims = [
        Claim(
            claim="towers of different pre-training have different abilities",
            here="largest gap between two of three towers in one ability, interval of all gaps at once (Bonferroni)",
            unit="points",
            differs=f"{head}, {items}",
            **common,
            **largest_gap([row for row in scores if row["head"] == head and row["tower"] in PRETRAINED]),
        )
        for head in (small, large)
    ]
    for row in rows:
        if row["row"] == "ranking" and row["ability"] == "mean rank":
            tau = {name: np.nan if row[key] is None else row[key] for name, key in TAU.items()}
            differs = f"{small} and {large}, {row['n']} towers, {items}"
            claim = "a small language model ranks towers as a larger one does"
            claims.append(
                Claim(claim=claim, here="tau-b of the two orders", unit="", differs=differs, **common, **tau)
            )
    seconds = {(row["head"], row["tower"], row["ability"]): row["train_cpu_s"] for row in scores}
    places = [place for head, *place in seconds if head == small]
    ratios = [seconds[large, tower, ability] / seconds[small, tower, ability] for tower, ability in places]
    low, middle, high = (float(value) - 1 for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    cost = Claim(
        claim="the small one is cheaper to train",
        here="CPU time of the larger over that of the smaller, less 1; quartiles over towers and abilities",
        unit="x",
        differs=f"{small} and {large}",
        gain=middle,
        low=low,
        high=high,
        **common,
    )
    return [*claims, cost]


def largest_gap(rows: list[Row]) -> dict[str, float]:
    """The largest distance, in points, between two scores of one ability; its interval holds for all pairs at once."""
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a["ability"] == b["ability"]]
    wider = norm.ppf(1 - 0.025 / len(pairs)) / norm.ppf(0.975)
    gaps = [apart(*sorted(pair, key=lambda row: -row["score"]), "score", "") for pair in pairs]
    widest = max(gaps, key=lambda gap: gap["gain"])
    half = wider * (widest["high"] - widest["gain"])
    return {"gain": widest["gain"], "low": widest["gain"] - half, "high": widest["gain"] + half}


def compbench_nano(rows: list[Row]) -> list[Claim]:
    """Accuracy over the relations, and the bias that one order hides."""
    runner = rows[0]["runner"]
    rows = [row for row in rows if row["runner"] == runner and row.get("seed") == "all" and row["chance"] == 0.5]
    best, worst = (pick(rows, key=lambda row: row["accuracy"]) for pick in (max, min))
    biased = max(rows, key=lambda row: abs(row["bias"]))
    bias = sorted(abs(100 * biased[key]) for key in ("bias_low", "bias_high"))
    common: dict[str, Any] = {
        "system": "CompBench",
        "unit": "points",
        "differs": f"{runner}, mini-CompBench, five held-out seeds",
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


def partial_tune_claims(rows: list[Row]) -> list[Claim]:
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
        for row in rows
        if row["claim"] in wanted
    ]


def few_shot(rows: list[Row], case: str, images: str) -> list[Claim]:
    """Students of ensembles, and what methods share."""
    wanted = {
        "student of V-PET over labelled-only": ("V-PET", "the student beats labelled-only PEFT", 1),
        "student of V-PET over student of ST": ("V-PET", "an ensemble teaches better than one model", 1),
        "4 methods together over their mean": ("PETL study", "ensembles of methods gain", 1),
        "agreement: 4 methods minus 4 seeds": ("PETL study", "methods disagree more than seeds do", -1),
        "LoRA halfway minus tuned, shifted": ("PETL study", "weights between help under shift", 1),
    }
    found = {row["what"]: row for row in rows}
    claims = []
    for what, (system, text, sign) in wanted.items():
        low, high = sorted(100 * sign * found[what][key] for key in ("low", "high"))
        claims.append(
            Claim(
                system=system,
                claim=text,
                here="accuracy" if sign > 0 else "less agreement",
                unit="points",
                differs=f"{images}, {found[what]['seeds']} seeds",
                case=case,
                gain=100 * sign * found[what]["value"],
                low=low,
                high=high,
            )
        )
    return claims


def peft_ensemble_digits(rows: list[Row]) -> list[Claim]:
    """On digits."""
    return few_shot(rows, "peft_ensemble_digits", "digits")


def peft_ensemble_creatures(rows: list[Row]) -> list[Claim]:
    """On creatures, of which one backbone knows the species."""
    return few_shot(rows, "peft_ensemble_creatures", "creatures")


def peft_ensemble_photos(rows: list[Row]) -> list[Claim]:
    """On photos."""
    return few_shot(rows, "peft_ensemble_photos", "CIFAR-10")


def taxaclip_replay(rows: list[Row]) -> list[Claim]:
    """General knowledge beside creatures."""
    row = find(rows, claim=REPLAY)
    return [
        Claim(
            system="BioCLIP 2",
            claim="replay keeps general knowledge",
            here="accuracy on objects",
            unit="points",
            differs="CLIP of 64 pixels, 16,000 creatures, three seeds",
            case="taxaclip_replay",
            gain=100 * row["value"],
            low=100 * row["low"],
            high=100 * row["high"],
        )
    ]


def taxaclip_creatures(rows: list[Row]) -> list[Claim]:
    """Geometry that follows ecology, variation across it, and what hierarchical captions bring."""
    wanted = {
        "family: more right than with flat captions": ("points", 100.0),
        "niche beyond ancestry: above 0": ("", 1.0),
        "niche beyond ancestry: above flat captions": ("", 1.0),
        "sex: more orthogonal than by chance": ("", 1.0),
        "sex: more images, more orthogonal to species": ("", 1.0),
        "sex: more images, higher Fisher ratio": ("", 1.0),
    }
    found = {row["claim"]: row for row in rows if "claim" in row}
    return [
        Claim(
            system="BioCLIP 2",
            claim=text,
            here="accuracy" if unit else "difference",
            unit=unit,
            differs="CLIP of 64 pixels, 64,000 creatures, three seeds",
            case="taxaclip_creatures",
            gain=scale * found[text]["value"],
            low=scale * found[text]["low"],
            high=scale * found[text]["high"],
        )
        for text, (unit, scale) in wanted.items()
    ]


CASES: dict[str, Callable[[list[Row]], list[Claim]]] = {
    make.__name__: make
    for make in (
        meda_quality,
        meda_decode,
        finer_cam_planted,
        finer_cam_masking,
        prompt_cam_traits,
        ava_fingerprints,
        compbench_nano,
        peft_ensemble_digits,
        peft_ensemble_creatures,
        peft_ensemble_photos,
        partial_tune_claims,
        taxaclip_replay,
        taxaclip_creatures,
    )
}
