import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from taxaclip.functional import greedy_path, group_sums, rank_offsets, rank_sums, top_k
from taxaclip.taxonomy import RANKS, TaxonPath, sort_taxa

GOLDEN = Path(__file__).parent / "golden"
Names = tuple[str, ...]


def dictionary_sums(probs: torch.Tensor, names: list[Names]) -> dict[str, list[dict[Names, float]]]:
    """The sums by a dictionary over path prefixes, one taxon at a time."""
    sums: dict[str, list[dict[Names, float]]] = {}
    for depth, rank in enumerate(RANKS, start=1):
        sums[rank] = []
        for row in probs.tolist():
            table: dict[Names, float] = defaultdict(float)
            for prob, path in zip(row, names, strict=True):
                table[path[:depth]] += prob
            sums[rank].append(dict(table))
    return sums


def as_dictionaries(
    sums: dict[str, torch.Tensor], offsets: dict[str, torch.Tensor], names: list[Names]
) -> dict[str, list[dict[Names, float]]]:
    return {
        rank: [
            {names[start][:depth]: value for start, value in zip(offsets[rank][:-1].tolist(), row, strict=True)}
            for row in sums[rank].tolist()
        ]
        for depth, rank in enumerate(RANKS, start=1)
    }


def test_sums_of_all_ranks_are_the_golden_ones() -> None:
    golden = json.loads((GOLDEN / "rank_aggregation.json").read_text())
    tensors = load_file(GOLDEN / "rank_aggregation.safetensors")
    taxa = [TaxonPath(tuple(names)) for names in golden["taxa"]]
    order = sort_taxa(taxa)
    names = [taxa[i].names for i in order]
    offsets = rank_offsets(names)
    assert {rank: len(starts) - 1 for rank, starts in offsets.items()} == golden["n_groups"]
    probs = (golden["logit_scale"] * tensors["image"] @ tensors["text"].T).softmax(dim=1)
    torch.testing.assert_close(probs, tensors["probs"], rtol=0, atol=1e-12)
    actual = as_dictionaries(rank_sums(probs[:, order], offsets), offsets, names)
    for rank in RANKS:
        for row, expected in zip(actual[rank], golden["sums"][rank], strict=True):
            found = {"|".join(path): value for path, value in row.items()}
            assert {key: found[key] for key in expected} == pytest.approx(expected, abs=2e-12)


name = st.sampled_from(["", "a", "b"])
paths = st.lists(st.tuples(*[name] * 6, st.sampled_from("xyz")), min_size=1, max_size=40)


@given(paths, st.integers(0, 2**32))
def test_sums_equal_a_dictionary_and_parents_their_children(drawn: list[Names], seed: int) -> None:
    names = sorted(drawn)
    logits = torch.randn(3, len(names), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    probs = logits.softmax(dim=1)
    offsets = rank_offsets(names)
    sums = rank_sums(probs, offsets)
    expected = dictionary_sums(probs, names)
    actual = as_dictionaries(sums, offsets, names)
    for rank in RANKS:
        torch.testing.assert_close(sums[rank].sum(dim=1), torch.ones(3, dtype=torch.double))
        for got, wanted in zip(actual[rank], expected[rank], strict=True):
            assert got == pytest.approx(wanted, abs=1e-12)
        torch.testing.assert_close(group_sums(probs, offsets[rank]), sums[rank])


@given(paths, st.integers(0, 2**32))
def test_greedy_path_is_consistent_and_never_grows_likelier(drawn: list[Names], seed: int) -> None:
    names = sorted(drawn)
    probs = torch.rand(4, len(names), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    offsets = rank_offsets(names)
    sums = rank_sums(probs / probs.sum(dim=1, keepdim=True), offsets)
    for image, path in enumerate(greedy_path(sums, offsets).tolist()):
        prefix: Names = ()
        before = 1.0 + 1e-9
        for depth, (rank, group) in enumerate(zip(RANKS, path, strict=True), start=1):
            chosen = names[int(offsets[rank][group])][:depth]
            assert chosen[:-1] == prefix
            children = {
                names[int(start)][:depth]: float(value)
                for start, value in zip(offsets[rank][:-1], sums[rank][image], strict=True)
                if names[int(start)][: depth - 1] == prefix
            }
            assert children[chosen] == max(children.values()) <= before
            prefix, before = chosen, children[chosen] + 1e-9


def test_genera_of_one_name_in_two_families_stay_apart() -> None:
    names = [("A", "", "", "", family, "Oenanthe", "x") for family in ("Apiaceae", "Muscicapidae")]
    assert rank_offsets(names)["genus"].tolist() == [0, 1, 2]


def test_unsorted_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="sort_taxa"):
        rank_offsets([("B", *[""] * 6), ("A", *[""] * 6)])


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(1, 14))
def test_top_k_is_the_sorted_beginning_with_ties_by_number(values: list[float], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda number: (-values[number], number))[:k]
    assert top_k(torch.tensor(values), k).tolist() == expected
