"""Key mass and row entropies: torch and Triton against float64."""

import math
from typing import Any

import pytest
import torch

from meda_cache.ops.statistics import _torch, attention_statistics, reference
from support.kernel_cases import DEVICES, DTYPES, INTERPRETED, compare, require_triton

pytestmark = INTERPRETED

# (key heads, groups, rows, keys, head_dim): one token, no rows, odd sizes, several tiles, odd head_dim, GQA 1/2/4/7
SHAPES = {
    "one-token": (1, 1, 1, 1, 16),
    "no-rows": (1, 2, 0, 9, 16),
    "odd": (2, 2, 28, 75, 32),
    "two-tiles": (1, 1, 66, 70, 16),
    "many-groups": (1, 7, 5, 9, 16),
    "odd-dim": (2, 4, 17, 33, 24),
}
MASKS = ["all", "causal", "own", "nothing-seen"]


def build(shape: tuple[int, ...], mask: str, dtype: torch.dtype, device: str) -> tuple[Any, Any, dict[str, Any]]:
    heads, groups, rows, keys, dim = shape
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, heads * groups, dim, generator=generator).to(device, dtype).transpose(0, 1)
    states = torch.randn(heads, keys, dim, generator=generator).to(device, dtype)
    masks: dict[str, Any] = {"query_positions": None, "key_positions": None, "visible": None}
    if mask == "causal":  # the rows and the keys of two modalities: any ascending positions
        positions = torch.randperm(2 * keys, generator=generator)[:keys].sort().values
        masks["key_positions"] = positions.to(device)
        masks["query_positions"] = (positions[keys - rows :] if rows <= keys else positions).to(device)
    elif mask == "own":
        masks["visible"] = (torch.rand(rows, keys, generator=generator) > 0.5).to(device)
    elif mask == "nothing-seen":
        masks["visible"] = torch.zeros(rows, keys, dtype=torch.bool, device=device)
        masks["visible"][rows // 2 :, : keys // 2] = True
    return queries, states, masks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_statistics_equal_the_reference(shape: tuple[int, ...], mask: str, backend: Any, device: str) -> None:
    if backend == "triton":
        require_triton()
    queries, keys, masks = build(shape, mask, torch.float32, device)
    for head_reduction in ("mean_attention", "mean_entropy", None):
        ours = attention_statistics(queries, keys, head_reduction=head_reduction, backend=backend, **masks)
        expected = reference.compute_statistics(
            queries,
            keys,
            scaling=keys.shape[-1] ** -0.5,
            with_mass=True,
            head_reduction=head_reduction,
            **masks,
        )
        assert ours.key_mass is not None
        expected_mass, expected_entropy = (None if t is None else t.nan_to_num() for t in expected)
        compare("key_mass", ours.key_mass, expected_mass, torch.float32)  # type: ignore[arg-type]
        if expected_entropy is not None:
            compare("row_entropy", ours.row_entropy, expected_entropy, torch.float32)  # type: ignore[arg-type]
        seen = int((ours.num_visible > 0).sum())
        assert float(ours.key_mass.sum()) == pytest.approx(seen * queries.shape[0], rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision(backend: Any, device: str) -> None:
    if backend == "triton":
        require_triton()
    queries, keys, masks = build(SHAPES["odd"], "causal", torch.bfloat16, device)
    ours = attention_statistics(queries, keys, head_reduction="mean_entropy", backend=backend, **masks)
    expected = reference.compute_statistics(
        queries, keys, scaling=32**-0.5, with_mass=True, head_reduction="mean_entropy", **masks
    )
    for name, one, other in zip(("key_mass", "row_entropy"), (ours.key_mass, ours.row_entropy), expected, strict=True):
        compare(name, one, other, DTYPES["bf16"])  # type: ignore[arg-type]


def test_a_given_lse_saves_a_pass_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_triton()
    from meda_cache.ops.statistics import _triton

    queries, keys, masks = build(SHAPES["odd"], "all", torch.float32, "cpu")
    lse = (queries @ keys.repeat_interleave(2, dim=0).transpose(1, 2) * 32**-0.5).logsumexp(dim=-1)
    options: dict[str, Any] = {"head_reduction": "mean_attention", "backend": "triton", **masks}
    without = attention_statistics(queries, keys, **options)
    monkeypatch.setattr(_triton, "row_lse_fwd_kernel", None)
    with_lse = attention_statistics(queries, keys, lse=lse, **options)
    torch.testing.assert_close(with_lse.key_mass, without.key_mass, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(with_lse.row_entropy, without.row_entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("row_blocks", "key_blocks"), [(1, 1), (1, 125), (7, 125), (119, 7), (125, 125), (300, 3)])
def test_few_rows_are_split_over_keys_until_the_gpu_is_busy(row_blocks: int, key_blocks: int) -> None:
    require_triton()
    from meda_cache.ops._triton import NUM_PROGRAMS
    from meda_cache.ops.statistics._triton import split_keys

    splits = math.ceil(key_blocks / split_keys(row_blocks, key_blocks))
    assert splits <= key_blocks
    assert row_blocks * splits <= max(NUM_PROGRAMS, row_blocks)
    assert splits == key_blocks or row_blocks * splits >= NUM_PROGRAMS / 2 or row_blocks > NUM_PROGRAMS / 2


@pytest.mark.parametrize("mask", MASKS)
def test_splits_of_the_keys_add_up(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program for all keys, and one for each block of them: the last one short, some of them unseen."""
    require_triton()
    from meda_cache.ops.statistics import _triton

    queries, keys, masks = build((1, 2, 5, 200, 16), mask, torch.float32, "cpu")
    expected = reference.compute_statistics(
        queries, keys, scaling=0.25, with_mass=False, head_reduction="mean_attention", **masks
    )[1]
    for blocks in (1, 3, 4):
        monkeypatch.setattr(_triton, "split_keys", lambda row_blocks, key_blocks, blocks=blocks: blocks)
        ours = attention_statistics(
            queries, keys, with_mass=False, head_reduction="mean_attention", backend="triton", **masks
        )
        compare("row_entropy", ours.row_entropy, expected.nan_to_num(), torch.float32)  # type: ignore[arg-type, union-attr]


def test_mass_adds_up_over_rows_and_follows_a_permutation_of_keys() -> None:
    queries, keys, _ = build(SHAPES["odd"], "all", torch.float32, "cpu")
    whole = attention_statistics(queries, keys).key_mass
    parts = [attention_statistics(queries[:, rows], keys).key_mass for rows in (slice(0, 11), slice(11, None))]
    torch.testing.assert_close(parts[0] + parts[1], whole)  # type: ignore[operator]
    order = torch.randperm(75)
    torch.testing.assert_close(attention_statistics(queries, keys[:, order]).key_mass, whole[:, order])  # type: ignore[index]


def test_tile_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, masks = build(SHAPES["two-tiles"], "causal", torch.float32, "cpu")
    whole = attention_statistics(queries, keys, head_reduction="mean_attention", **masks)
    monkeypatch.setattr(_torch, "TILE_ELEMENTS", 100)
    tiled = attention_statistics(queries, keys, head_reduction="mean_attention", **masks)
    torch.testing.assert_close(tiled.key_mass, whole.key_mass)
    torch.testing.assert_close(tiled.row_entropy, whole.row_entropy)
