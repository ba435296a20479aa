"""Sides that tell nothing: for each question text half of the answers on either side, drawn by a hash."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_compbench.functional import build_swap_map
from hf_compbench.groups import hash_unit
from hf_compbench.sources import SIDES

_PAIRED = (("image_1", "image_2"), ("image_1_key", "image_2_key"))


def swap_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with its images exchanged and the answer that goes with it; its `id` stays."""
    swapped = dict(row)
    for a, b in _PAIRED:
        if a in row and b in row:
            swapped[a], swapped[b] = row[b], row[a]
    if row["answer"] >= 0:
        swapped["answer"] = build_swap_map(row["options"])[row["answer"]]
        swapped["answer_text"] = row["options"][swapped["answer"]]
    return swapped


def balance_sides(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns the rows in their order, for each question as many with the answer Left as Right.

    Which ones is drawn by a hash of seed and id, so that it depends neither on the order of the rows nor on how they
    came. Of a question with an odd number one is left over; those take sides in turn. Rows whose answer is no side
    stay, and so do composites: the two images of one picture cannot be exchanged.
    """
    by_question: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row["answer"] >= 0 and row["options"][row["answer"]] in SIDES and row.get("image_2_key") != "":
            by_question.setdefault(row["question"], []).append(place)

    def draw(places: list[int]) -> list[int]:
        return sorted(places, key=lambda place: hash_unit(seed, "side", rows[place]["id"]))

    wanted: dict[int, str] = {}
    left_over = []
    for places in by_question.values():
        order = draw(places)
        if len(order) % 2:
            left_over.append(order.pop())
        wanted |= {place: SIDES[rank % 2] for rank, place in enumerate(order)}
    start = int(2 * hash_unit(seed, "odd"))
    wanted |= {place: SIDES[(rank + start) % 2] for rank, place in enumerate(draw(left_over))}
    return [
        swap_row(row) if place in wanted and row["options"][row["answer"]] != wanted[place] else dict(row)
        for place, row in enumerate(rows)
    ]


def rebalance_in_file_order(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows rebalanced as the authors' scripts did: in file order, the surplus of a side is swapped.

    Overall both sides are as frequent, but what comes first keeps its side, so that a question may have one side only.
    It is here to show what the audit refuses; use [`balance_sides`].
    """
    left = len(rows) // 2
    quota = {SIDES[0]: left, SIDES[1]: len(rows) - left}
    done = dict.fromkeys(SIDES, 0)
    rebalanced = []
    for row in rows:
        kept = dict(row) if done[row["answer_text"]] < quota[row["answer_text"]] else swap_row(row)
        done[kept["answer_text"]] += 1
        rebalanced.append(kept)
    return rebalanced
