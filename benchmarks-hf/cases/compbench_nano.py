"""llava-nano on mini-CompBench (held out) in both image orders, runners without a model, audits of planted leaks.

Options are scored by log-probability: llava-nano knows 80 words and its replies rarely name an option. `presence` are
the pairs of kind existence that ask for an object in words it was taught ("which image shows the red star?"); other
questions have words that it does not know. The first row names the weights. `low` and `high` are Wilson intervals of
`pair_accuracy`.
"""

import hashlib
from pathlib import Path
from typing import Any

import datasets

import hf_diorama
from hf_compbench import audit_pairs, load_compbench, score, wilson_interval
from hf_compbench.balance import balance_sides, rebalance_in_file_order, swap_row
from hf_compbench.runners import HeuristicRunner, TransformersRunner, run_model

NUM_PAIRS = 40
NAMES = ("accuracy", "accuracy_first", "consistency", "bias", "side_gap", "debiased_accuracy", "chance", "coverage")


def measure(rows: datasets.Dataset, responses: list[dict[str, Any]], runner: str, kind: str) -> dict[str, Any]:
    (column,) = score(rows, responses, bootstrap=100).columns.values()
    n = int(column["n"])
    low, high = wilson_interval(column["pair_accuracy"] * n, n)
    acc = {"accuracy_low": column["low"], "accuracy_high": column["high"]}
    pair = {"pair_accuracy": column["pair_accuracy"], "low": low, "high": high}
    return {
        "runner": runner,
        "kind": kind,
        "n": n,
        **{name: column[name] for name in NAMES if name in column},
        **acc,
        **pair,
    }


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


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    ds = load_compbench("mini", "heldout", num_pairs=8 if quick else NUM_PAIRS, image_size=64)
    path = hf_diorama.model_path("llava-nano")
    weights = hashlib.sha256((Path(path) / "model.safetensors").read_bytes()).hexdigest()[:16]
    nano = TransformersRunner.from_pretrained(path, chat_template="plain")
    rows: list[dict[str, Any]] = [{"runner": "llava-nano", "kind": "weights", "sha256": weights}]
    for kind, part in split_kinds(ds).items():
        own = run_model(part, nano, prompt="nano", mode="logprob")
        blank = run_model(part, nano, prompt="nano", mode="logprob", shown="blank")
        rows.append(measure(part, own, "llava-nano", kind))
        rows.append(measure(part, blank, "llava-nano, blank images", kind))
        for rule in ("left", "random", "sharper", "brighter"):
            rows.append(measure(part, run_model(part, HeuristicRunner(rule)), rule, kind))
    state = split_kinds(ds)["state"]
    rows += audit_rows(state)
    audits = {row["kind"]: row for row in rows if row["runner"] == "audit"}
    if not quick:
        assert audits["as mined"]["passed"]
        assert not audits["rebalanced in file order"]["passed"]
    return rows
