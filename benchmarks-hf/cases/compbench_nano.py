"""llava-nano on mini-CompBench (held out) in both image orders, runners without a model, audits of planted leaks.

Seeds 1000 to 1004 of hf-diorama's held-out split, 60 pairs of each kind from each: nobody looked at them while
llava-nano was trained. Options are scored by log-probability: llava-nano knows 82 words and its replies rarely name an
option. `presence` are the pairs of kind existence that ask for an object in words it was taught ("which image shows
the red star?"); other questions have words that it does not know. The first row names the weights. Rows with one
`seed` are for the spread, `all` pools the seeds. `low` and `high` are Wilson intervals of `pair_accuracy`, those of
`bias` come from the standard error over groups.

A vision-language model of the user is asked the same questions, with its own chat template.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoProcessor

import hf_diorama
from given import DEVICE, Given
from hf_compbench import Scores, audit_pairs, load_compbench, score, wilson_interval
from hf_compbench.balance import balance_sides, rebalance_in_file_order, swap_row
from hf_compbench.intervals import Z95, clustered_standard_error
from hf_compbench.runners import HeuristicRunner, TransformersRunner, run_model

NEEDS = ("vlm",)
NUM_PAIRS = 60
SEEDS = (1000, 1001, 1002, 1003, 1004)
NAMES = ("accuracy", "accuracy_first", "consistency", "bias", "side_gap", "debiased_accuracy", "chance", "coverage")
Responses = list[dict[str, Any]]


def measure(rows: datasets.Dataset, responses: Responses, **about: Any) -> dict[str, Any]:
    scores = score(rows, responses, num_bootstrap=100)
    (column,) = scores.columns.values()
    n = int(column["n"])
    low, high = wilson_interval(column["pair_accuracy"] * n, n)
    acc = {"accuracy_low": column["low"], "accuracy_high": column["high"]}
    pair = {"pair_accuracy": column["pair_accuracy"], "low": low, "high": high}
    numbers = {name: column[name] for name in NAMES if name in column}
    return {**about, "n": n, **numbers, **acc, **pair, **measure_bias(rows, scores)}


def measure_bias(rows: datasets.Dataset, scores: Scores) -> dict[str, float]:
    """The interval of the side bias: its value for each pair is the share of answers Left minus that of gold Left."""
    leans, groups = [], []
    for row in rows.select_columns(["id", "options", "group_id"]):
        if not {"Left", "Right"} <= set(row["options"]):
            return {}
        answers, options = scores.answers[row["id"]], row["options"]
        left = options.index("Left")
        gold = 0.5 if options[answers["gold"]] in ("Left", "Right") else 0.0
        leans.append(((answers["first"] == left) + (answers["second"] == left)) / 2 - gold)
        groups.append(row["group_id"])
    mean, error = float(np.mean(leans)), clustered_standard_error(np.array(leans), groups)
    return {"bias_low": mean - Z95 * error, "bias_high": mean + Z95 * error}


def split_kinds(ds: datasets.Dataset) -> dict[str, datasets.Dataset]:
    name_of = ds.features["relativity"].int2str
    labels = [
        "presence" if subtype == "presence" else name_of(code)
        for subtype, code in zip(ds["subtype"], ds["relativity"], strict=True)
    ]
    return {kind: ds.select([i for i, label in enumerate(labels) if label == kind]) for kind in dict.fromkeys(labels)}


def plain_rows(ds: datasets.Dataset) -> list[dict[str, Any]]:
    name_of = {name: ds.features[name].int2str for name in ("relativity", "source")}
    rows = ds.remove_columns(["image_1", "image_2", "composite"])
    return [{**row, **{name: to_name(row[name]) for name, to_name in name_of.items()}} for row in rows]


def audit_rows(ds: datasets.Dataset) -> list[dict[str, Any]]:
    """The state pairs as mined, with sides rebalanced in file order, and with a test split that knows its images."""
    rows = plain_rows(ds)
    winners_first = [row if row["answer_text"] == "Left" else swap_row(row) for row in rows]
    planted = rebalance_in_file_order(sorted(winners_first, key=lambda row: row["question"]))
    half = balance_sides(rows, seed=1)
    seen = [{**row, "id": f"{row['id']}-again", "question": row["question"] + " Look again."} for row in half]
    audits = {"as mined": audit_pairs(rows), "rebalanced in file order": audit_pairs(planted)}
    audits["images of the training split"] = audit_pairs(half, seen)
    found = []
    for name, report in audits.items():
        worst = {check.name: check for check in report.checks}
        found.append(
            {
                "runner": "audit",
                "kind": name,
                "n": len(rows),
                "passed": report.passed,
                **{
                    key.replace(" ", "_"): worst[key].value
                    for key in ("question prior", "image prior", "side balance")
                },
                "limit": worst["question prior"].limit,
                "failed": [check.name for check in report.failures],
            }
        )
    return found


def ask_nano(part: datasets.Dataset, nano: TransformersRunner) -> dict[str, Responses]:
    """The responses of every runner to the questions of one kind and seed."""
    options: dict[str, Any] = {"prompt": "nano", "mode": "logprob"}
    found = {"llava-nano": run_model(part, nano, **options)}
    found["llava-nano, blank images"] = run_model(part, nano, shown="blank", **options)
    rules = ("left", "random", "sharper", "brighter")
    return found | {rule: run_model(part, HeuristicRunner(rule)) for rule in rules}


def ask_all(
    name: str, ask: Callable[[datasets.Dataset], dict[str, Responses]], *, quick: bool
) -> tuple[list[dict[str, Any]], dict[str, datasets.Dataset]]:
    """Rows of the runner `name` for each seed and of all runners over all seeds; and the pairs of each kind."""
    rows: list[dict[str, Any]] = []
    pooled: dict[str, tuple[list[datasets.Dataset], dict[str, Responses]]] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        ds = load_compbench("mini", "heldout", num_pairs=8 if quick else NUM_PAIRS, image_size=64, seed=seed)
        for kind, part in split_kinds(ds).items():
            parts, everything = pooled.setdefault(kind, ([], {}))
            parts.append(part)
            for runner, responses in ask(part).items():
                everything.setdefault(runner, []).extend(responses)
            own = everything[name][-2 * len(part) :]
            rows.append(measure(part, own, runner=name, kind=kind, seed=seed))
    wholes = {kind: datasets.concatenate_datasets(parts) for kind, (parts, _) in pooled.items()}
    for kind, (_, everything) in pooled.items():
        rows += [
            measure(wholes[kind], responses, runner=runner, kind=kind, seed="all")
            for runner, responses in everything.items()
        ]
    return rows, wholes


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    path = hf_diorama.model_path("llava-nano")
    weights = hashlib.sha256((Path(path) / "model.safetensors").read_bytes()).hexdigest()[:16]
    nano = TransformersRunner.from_pretrained(path, chat_template="plain")
    rows, pairs = ask_all("llava-nano", partial(ask_nano, nano=nano), quick=quick)
    rows = [{"runner": "llava-nano", "kind": "weights", "sha256": weights}, *rows, *audit_rows(pairs["state"])]
    audits = {row["kind"]: row for row in rows if row["runner"] == "audit"}
    if not quick:
        assert audits["as mined"]["passed"]
        assert not audits["rebalanced in file order"]["passed"]
    return rows


def run_given(given: Given, *, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    template = getattr(AutoProcessor.from_pretrained(given.vlm), "chat_template", None)
    options = {"device": DEVICE, "dtype": "auto", **({} if template else {"chat_template": "plain"})}
    runner = TransformersRunner.from_pretrained(given.vlm, **options)
    rows, _ = ask_all(given.vlm, lambda part: {given.vlm: run_model(part, runner, mode="logprob")}, quick=quick)
    return rows
