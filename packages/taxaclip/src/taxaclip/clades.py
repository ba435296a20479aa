"""Clades by name: from names of any ranks to intervals of the sorted taxa, and the groups inside intervals."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from taxaclip.taxonomy import RANKS

Within = str | Sequence[str] | Mapping[str, str | Sequence[str]]
Pair = tuple[str | None, str]
Interval = tuple[int, int]
Offsets = dict[str, torch.Tensor]


def find_intervals(table: pa.Table, offsets: Offsets, within: Within | None) -> list[Interval]:
    """Returns the row intervals of some clades, sorted and disjoint; the whole table for None.

    Args:
        table (`pyarrow.Table`): a dictionary-encoded column for each rank, sorted by path.
        offsets (`dict`): where the groups of each rank begin, as of `rank_offsets`.
        within (`str`, sequence of `str`, or mapping from rank to names): clades of any ranks, by name.

    Raises:
        ValueError: for an unknown name, with close ones, or a name of several clades, with their paths.
    """
    if within is None:
        return [(0, len(table))]
    intervals = sorted(_find_all(table, offsets, read_pairs(within)))
    merged = intervals[:1]
    for low, high in intervals[1:]:
        if low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def read_pairs(within: Within) -> tuple[Pair, ...]:
    """Returns the names with their ranks, None where no rank is given.

    Args:
        within (`str`, sequence of `str`, or mapping from rank to names): clades of any ranks, by name.

    Raises:
        ValueError: for an unknown rank, or no name at all.
    """
    if isinstance(within, str):
        return ((None, within),)
    if not isinstance(within, Mapping):
        pairs: list[Pair] = [(None, name) for name in within]
    elif unknown := sorted(set(within) - set(RANKS)):
        raise ValueError(f"Unknown ranks {unknown} in `within`; choose from {list(RANKS)}.")
    else:
        pairs = [
            (rank, name) for rank, names in within.items() for name in ([names] if isinstance(names, str) else names)
        ]
    if not pairs:
        raise ValueError("Expected at least one clade in `within`, got none; None means all taxa.")
    return tuple(dict.fromkeys(pairs))


def _find_all(table: pa.Table, offsets: Offsets, pairs: Sequence[Pair]) -> list[Interval]:
    """The interval of each name, by one pass over each rank."""
    found: dict[Pair, set[Interval]] = {pair: set() for pair in pairs}
    for rank in RANKS:
        asked = [pair for pair in pairs if pair[0] in (None, rank)]
        column, starts = table[rank].combine_chunks(), offsets[rank].numpy()
        codes = _find_codes(column.dictionary, [name for _, name in asked])
        pair_of = {code: pair for code, pair in zip(codes, asked, strict=True) if code is not None}
        group_codes = column.indices.to_numpy()[starts[:-1]]
        for group in np.flatnonzero(np.isin(group_codes, list(pair_of))):
            found[pair_of[group_codes[group]]].add((int(starts[group]), int(starts[group + 1])))
    for (rank_or_none, name), intervals in found.items():
        _check_found(table, name, rank_or_none, sorted(intervals))
    return [interval for intervals in found.values() for interval in intervals]


def _find_codes(dictionary: pa.Array, names: Sequence[str]) -> list[int | None]:
    if len(names) > 16:  # a table of all names pays for more of them only
        codes: list[int | None] = pc.index_in(pa.array(names), value_set=dictionary).to_pylist()
        return codes
    places = [pc.index(dictionary, name).as_py() for name in names]
    return [None if place < 0 else place for place in places]


def _check_found(table: pa.Table, name: str, rank: str | None, found: Sequence[Interval]) -> None:
    if not found:
        known = {value for at in RANKS[:-1] for value in table[at].combine_chunks().dictionary.to_pylist()}
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"Unknown clade {name!r}{f' at rank {rank}' if rank else ''}; close names: {close or 'none'}."
        )
    if len(found) > 1:
        paths = ["/".join(filter(None, (table[at][low].as_py() for at in RANKS))) for low, _ in found[:4]]
        raise ValueError(f"{name!r} names {len(found)} clades ({'; '.join(paths)}); give its rank, or a clade within.")


def active_groups(offsets: Offsets, intervals: Sequence[Interval]) -> tuple[Offsets, Offsets]:
    """Returns where groups begin among the rows of these intervals, and a row of the table in each group.

    Args:
        offsets (`dict`): where the groups of each rank begin, as of `rank_offsets`.
        intervals (sequence of pairs of `int`): sorted and disjoint.
    """
    if list(intervals) == [(0, int(offsets[RANKS[0]][-1]))]:
        return offsets, {rank: starts[:-1] for rank, starts in offsets.items()}
    begins_of, first_rows = {}, {}
    for rank in RANKS:
        starts = offsets[rank]
        parts, rows, seen, last = [], [], 0, -1
        for low, high in intervals:
            group = torch.arange(
                int(torch.searchsorted(starts, low, right=True)) - 1, int(torch.searchsorted(starts, high))
            )
            begins = starts[group].clamp(min=low)
            fresh = group > last  # the first group may have begun in an earlier interval
            parts.append(begins[fresh] - low + seen)
            rows.append(begins[fresh])
            seen, last = seen + high - low, int(group[-1])
        begins_of[rank] = torch.cat([*parts, torch.tensor([seen])])
        first_rows[rank] = torch.cat(rows)
    return begins_of, first_rows
