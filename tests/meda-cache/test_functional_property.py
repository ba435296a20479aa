"""The formulas against slow loops, and what must hold for any input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meda_cache import (
    allocate_budgets,
    attention_entropy,
    cross_modal_entropy,
    key_mass,
    merge_tokens,
    select_tokens,
)
from meda_cache.ops.statistics import _torch

SEEDS = st.integers(0, 2**31)


def make_states(seed: int, heads: int, groups: int, length: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(heads * groups, length, dim, generator=generator)
    return queries, torch.randn(heads, length, dim, generator=generator)


def slow_cross_modal_entropy(
    queries: torch.Tensor, keys: torch.Tensor, visual: list[bool], per_head: bool, causal: bool, normalize: bool
) -> float:
    """The paper's formula, one row and one head at a time, in float64."""
    groups = queries.shape[0] // keys.shape[0]
    total = 0.0
    for from_visual in (False, True):
        entropies = []
        for i in range(len(visual)):
            columns = [j for j in range(len(visual)) if visual[j] != from_visual and (j <= i or not causal)]
            if visual[i] != from_visual or not columns:
                continue
            rows = []
            for head in range(queries.shape[0]):
                scores = [
                    float(queries[head, i].double() @ keys[head // groups, j].double()) / math.sqrt(keys.shape[-1])
                    for j in columns
                ]
                peak = max(scores)
                weights = [math.exp(score - peak) for score in scores]
                rows.append([weight / sum(weights) for weight in weights])
            if not per_head:
                rows = [[sum(column) / len(rows) for column in zip(*rows, strict=True)]]
            entropy = sum(-p * math.log(p) for row in rows for p in row if p > 0) / len(rows)
            entropies.append(entropy / max(math.log(len(columns)), math.log(2)) if normalize else entropy)
        total += sum(entropies) / max(len(entropies), 1)
    return total


@given(
    seed=SEEDS,
    heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 7]),
    dim=st.sampled_from([1, 3, 8]),
    visual=st.lists(st.booleans(), min_size=2, max_size=17).filter(lambda mask: len(set(mask)) == 2),
    per_head=st.booleans(),
    causal=st.booleans(),
    normalize=st.booleans(),
)
def test_cross_modal_entropy_equals_loops(
    seed: int, heads: int, groups: int, dim: int, visual: list[bool], per_head: bool, causal: bool, normalize: bool
) -> None:
    queries, keys = make_states(seed, heads, groups, len(visual), dim)
    entropy = cross_modal_entropy(
        queries,
        keys,
        torch.tensor(visual),
        head_reduction="mean_entropy" if per_head else "mean_attention",
        causal=causal,
        normalize=normalize,
    )
    expected = slow_cross_modal_entropy(queries, keys, visual, per_head, causal, normalize)
    assert entropy.item() == pytest.approx(expected, abs=1e-5)
    num_visual = sum(visual)
    bound = 2.0 if normalize else math.log(num_visual) + math.log(len(visual) - num_visual)
    assert -1e-6 <= entropy.item() <= bound + 1e-5


@given(seed=SEEDS, heads=st.integers(1, 3), groups=st.sampled_from([1, 2, 7]), length=st.integers(1, 33))
def test_statistics_do_not_depend_on_the_tile(seed: int, heads: int, groups: int, length: int) -> None:
    queries, keys = make_states(seed, heads, groups, length, 8)
    dense = torch.einsum("hgid,hjd->hgij", queries.reshape(heads, groups, length, 8), keys).double() / math.sqrt(8)
    dense = dense.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf).softmax(dim=-1)
    entropy = torch.special.entr(dense.mean(dim=(0, 1))).sum(dim=-1).mean()
    whole = _torch.TILE_ELEMENTS
    try:
        for _torch.TILE_ELEMENTS in (1, 100, whole):
            mass = key_mass(queries, keys)
            torch.testing.assert_close(mass.double(), dense.sum(dim=(1, 2)), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(attention_entropy(queries, keys).double(), entropy, atol=1e-5, rtol=1e-5)
    finally:
        _torch.TILE_ELEMENTS = whole
    torch.testing.assert_close(mass.sum(dim=-1), torch.full((heads,), float(length * groups)), rtol=1e-5, atol=1e-5)


@given(
    entropy=st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    seq_len=st.integers(1, 3000),
    ratio=st.floats(0.001, 1),
    shift=st.floats(-5, 5),
    minimum=st.integers(0, 5),
)
def test_budgets_add_up_and_follow_the_entropy(
    entropy: list[float], seq_len: int, ratio: float, shift: float, minimum: int
) -> None:
    minimum = min(minimum, seq_len)
    values = torch.tensor(entropy, dtype=torch.float64)
    total = math.floor(ratio * len(entropy) * seq_len + 0.5)
    budgets = allocate_budgets(values.softmax(dim=0), total, minimum=minimum, maximum=seq_len)
    assert sum(budgets) == max(total, minimum * len(entropy))
    assert all(minimum <= budget <= seq_len for budget in budgets)
    for i, j in zip(values.argsort()[:-1].tolist(), values.argsort()[1:].tolist(), strict=True):
        is_tie = abs(entropy[i] - entropy[j]) < 1e-9  # the remainder of a tie goes to the lower layer
        assert budgets[i] <= budgets[j] + is_tie
    shifted = allocate_budgets((values + shift).softmax(dim=0), total, minimum=minimum, maximum=seq_len)
    assert all(abs(a - b) <= 1 for a, b in zip(budgets, shifted, strict=True))


def test_budgets_of_equal_layers_are_equal_and_full_ratio_keeps_all() -> None:
    assert allocate_budgets(torch.ones(4), 20, maximum=9) == [5, 5, 5, 5]
    assert allocate_budgets(torch.tensor([0.9, 0.05, 0.05]), 21, maximum=7) == [7, 7, 7]
    assert allocate_budgets(torch.tensor([1.0, 0.0, 0.0]), 12, maximum=10) == [10, 1, 1]
    assert allocate_budgets(torch.tensor([5.0]), 3, maximum=7) == [3]


@given(
    seed=SEEDS,
    heads=st.integers(1, 3),
    visual=st.lists(st.booleans(), min_size=1, max_size=20),
    data=st.data(),
    text_first=st.booleans(),
)
def test_selection_keeps_what_the_rule_says(
    seed: int, heads: int, visual: list[bool], data: st.DataObject, text_first: bool
) -> None:
    length = len(visual)
    budget = data.draw(st.integers(0, length))
    num_recent = data.draw(st.integers(0, budget))
    num_sinks = data.draw(st.integers(0, budget - num_recent))
    scores = torch.randint(0, 5, (heads, length), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    kept = select_tokens(
        scores,
        torch.tensor(visual),
        num_recent=num_recent,
        num_important=budget - num_recent - num_sinks,
        text_policy="bias" if text_first else "none",
        num_sinks=num_sinks,
    )
    for head in range(heads):
        forced = [i for i in range(length) if i < num_sinks or i >= length - num_recent]
        others = sorted(
            (i for i in range(length) if i not in forced),
            key=lambda i: (visual[i] if text_first else 0, -float(scores[head, i]), i),
        )
        assert kept[head].tolist() == sorted(forced + others[: budget - len(forced)])


@given(seed=SEEDS, heads=st.integers(1, 3), length=st.integers(1, 24), dim=st.integers(1, 5), data=st.data())
def test_merge_equals_loops(seed: int, heads: int, length: int, dim: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, length))
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, heads, length, dim, generator=generator)
    kept = torch.stack([torch.randperm(length, generator=generator)[:num_kept].sort().values for _ in range(heads)])
    merged_keys, merged_values = merge_tokens(keys, values, kept)
    for head in range(heads):
        groups: dict[int, list[int]] = {position: [position] for position in kept[head].tolist()}
        for token in set(range(length)) - set(groups):
            cosines = {
                p: torch.cosine_similarity(keys[head, token].double(), keys[head, p].double(), 0) for p in groups
            }
            groups[max(cosines, key=lambda p: float(cosines[p]))].append(token)
        for slot, members in enumerate(groups.values()):
            torch.testing.assert_close(merged_keys[head, slot], keys[head, members].mean(dim=0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                merged_values[head, slot], values[head, members].mean(dim=0), atol=1e-5, rtol=1e-5
            )
            if len(members) == 1:
                assert torch.equal(merged_keys[head, slot], keys[head, members[0]])


def test_merging_duplicates_changes_nothing() -> None:
    keys = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1)
    kept = torch.tensor([[0, 1, 2], [0, 1, 2]])
    merged_keys, merged_values = merge_tokens(keys, keys * 2, kept)
    torch.testing.assert_close(merged_keys, keys[:, :3])
    torch.testing.assert_close(merged_values, keys[:, :3] * 2)


def test_statistics_are_finite_in_half_precision() -> None:
    queries, keys = make_states(0, 2, 2, 40, 16)
    visual = torch.arange(40) % 3 == 0
    for dtype in (torch.float16, torch.bfloat16):
        entropy = cross_modal_entropy((queries * 60).to(dtype), (keys * 60).to(dtype), visual)
        assert torch.isfinite(entropy)
        assert torch.isfinite(key_mass((queries * 60).to(dtype), (keys * 60).to(dtype))).all()
