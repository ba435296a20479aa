"""Replies scored a second: reading, metrics of both image orders, 10,000 bootstrap samples over clusters.

The bar is 80,000 replies in 20 seconds on one core. Replies are the golden ones of the tests to two sides, in turn.
"""

from pathlib import Path
from typing import Any

from harness import Timing
from hf_compbench import score

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "hf-compbench" / "golden" / "replies.tsv"
SOURCES = ("celeba", "fer_2013", "nyu_depth_v2", "cub_200_2011")


def setup(replies: int) -> tuple[list[Any], list[Any]]:
    texts = []
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        name, _, _, reply = line.split("\t")
        if name == "LR":
            texts.append(reply.replace("\\n", "\n"))
    rows = [
        {
            "id": str(i),
            "relativity": "emotion",
            "source": SOURCES[i % len(SOURCES)],
            "question": "Which person smiles more?",
            "options": ["Left", "Right"],
            "answer": i % 2,
            "group_id": str(i // 3),
        }
        for i in range(replies // 2)
    ]
    responses = [
        {"id": row["id"], "order": order, "reply": texts[(2 * number + place) % len(texts)]}
        for number, row in enumerate(rows)
        for place, order in enumerate(("12", "21"))
    ]
    return rows, responses


def check(inputs: tuple[list[Any], list[Any]]) -> None:
    rows, responses = inputs
    right = [{**response, "reply": ""} for response in responses]
    for response in right:
        answer = rows[int(response["id"])]["answer"]
        response["reply"] = ("Left", "Right")[answer if response["order"] == "12" else 1 - answer]
    assert score(rows, right, num_bootstrap=10).macro == 1


CASE = Timing(
    sizes=[{"replies": 80_000, "bar": 4_000}],
    setup=setup,
    check=check,
    ours=lambda inputs: score(*inputs),
    items=80_000,
    unit="replies",
)
