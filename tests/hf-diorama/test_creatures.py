"""Spec section 2 (world `creatures`) and the part of section 7 that speaks of it."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import hf_diorama as dio
from hf_diorama.draws import Draws
from hf_diorama.worlds import RowKey
from hf_diorama.worlds.creatures.anatomy import PARTS
from hf_diorama.worlds.creatures.canvas import Canvas
from hf_diorama.worlds.creatures.habitats import paint_habitat
from hf_diorama.worlds.creatures.rendering import _light, creature_features, render_creature
from hf_diorama.worlds.creatures.taxonomy import (
    BEAK_LENGTHS,
    BRANCHING,
    HABITATS,
    NICHES,
    RANKS,
    TRAITS,
    build_tree,
)

TREE = build_tree()


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return [dio.render("creatures", index, seed=5) for index in range(400)]


def key(index: int) -> RowKey:
    return RowKey(world="creatures", version=1, split="test", seed=0, index=index)


# The tree


def test_tree_has_sizes_of_the_spec() -> None:
    counts = [len({species.ranks[: depth + 1] for species in TREE}) for depth in range(len(RANKS))]
    assert counts == [1, 1, 3, 6, 12, 24, 96]


def test_names_are_unique_and_look_latin() -> None:
    assert len({species.name for species in TREE}) == 96
    assert len({species.common_name for species in TREE}) == 96
    for species in TREE:
        genus, epithet = species.name.split(" ")
        assert genus.istitle()
        assert epithet.islower()
        assert species.ranks[4].endswith("idae")


@pytest.mark.parametrize("branching", [BRANCHING, (1, 1, 1, 1, 8), (2, 3, 2, 4, 6), (6, 1, 6, 8, 8), (1, 1, 1, 1, 1)])
def test_sisters_differ_in_exactly_one_part(branching: tuple[int, ...]) -> None:
    tree, size = build_tree(branching), branching[-1]
    for start in range(0, len(tree), size):
        genus = range(start, start + size)
        for first, second in combinations(genus, 2):
            parts = dio.discriminating_parts(first, second, branching=branching)
            is_sister = second == first + 1 and (first - start) % 2 == 0
            assert len(parts) == 1 if is_sister else len(parts) >= 1


def test_appearance_follows_the_tree() -> None:
    decided = {3: ("plan",), 4: ("pattern", "tail", "proportions"), 5: ("color", "accents", "body_size")}
    for depth, attributes in decided.items():
        for attribute in attributes:
            looks: dict[tuple[str, ...], set[Any]] = {}
            for species in TREE:
                looks.setdefault(species.ranks[: depth + 1], set()).add(getattr(species, attribute))
            assert all(len(values) == 1 for values in looks.values()), attribute


def test_every_species_looks_different() -> None:
    looks = {(s.plan, s.pattern, s.color, s.traits, s.niche) for s in TREE}
    assert len(looks) == 96


def test_niche_is_shared_across_distant_branches() -> None:
    for niche in NICHES:
        holders = [species for species in TREE if species.niche == niche]
        assert len(holders) == 24
        assert {species.ranks[3] for species in holders} == {species.ranks[3] for species in TREE}


def test_captions_hold_the_five_text_types() -> None:
    captions = TREE[7].captions()
    ranks = " ".join(TREE[7].ranks)
    assert captions == {
        "common": TREE[7].common_name,
        "scientific": TREE[7].name,
        "taxonomic": ranks,
        "scientific_common": f"{TREE[7].name} with common name {TREE[7].common_name}",
        "taxonomic_common": f"{ranks} with common name {TREE[7].common_name}",
    }


@pytest.mark.parametrize(
    ("branching", "message"),
    [
        ((3, 2, 2, 2), "five whole numbers"),
        ((4, 2, 2, 2, 4), "6 orders in all"),
        ((3, 2, 2, 9, 4), "1 to 8 genera"),
        ((3, 2, 2, 2, 0), "1 to 8 species"),
        ((3, 2, 2, 2.0, 4), "whole"),
    ],
)
def test_branching_out_of_range_is_refused(branching: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dio.load("creatures", n=1, branching=branching)


def test_other_tree_renders() -> None:
    row = dio.render("creatures", 3, branching=(1, 2, 1, 1, 2))
    assert 0 <= row["species"] < 4


# Rows


def test_row_matches_features(rows: list[dict[str, Any]]) -> None:
    assert set(rows[0]) == {*creature_features(), "key"}


def test_row_names_its_species(rows: list[dict[str, Any]]) -> None:
    for row in rows[:50]:
        species = TREE[row["species"]]
        assert row["label"] == row["species"]
        assert tuple(row[rank] for rank in RANKS) == species.ranks
        assert row["captions"]["scientific"] == species.name


def test_bbox_and_area_are_those_of_the_mask(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        labels = np.asarray(row["part_masks"])
        assert [part["name"] for part in row["parts"]] == list(PARTS)
        for number, part in enumerate(row["parts"], start=1):
            ys, xs = np.nonzero(labels == number)
            assert part["area"] == len(ys)
            assert part["visible"] == (len(ys) > 0)
            assert part["bbox"] == ([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [])


def test_crest_is_invisible_only_where_absent_or_covered(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        absent = TREE[row["species"]].traits[TRAITS.index("crest")] == "none"
        crest = row["parts"][PARTS.index("crest")]
        if absent:
            assert not crest["visible"]
        elif not row["occluded"]:
            assert crest["visible"]


def test_discriminating_parts_are_large_enough_at_64_pixels(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["occluded"]:
            continue
        for part in dio.discriminating_parts(row["species"], row["species"] ^ 1):
            area = row["parts"][PARTS.index(part)]["area"]
            other = dio.counterfactual(row, part, row["species"] ^ 1)["parts"][PARTS.index(part)]["area"]
            assert max(area, other) >= 12, (part, row["key"])


def test_variation_within_a_species(rows: list[dict[str, Any]]) -> None:
    n = len(rows)
    assert abs(sum(row["sex"] for row in rows) / n - 0.5) < 0.1
    assert abs(sum(row["life_stage"] for row in rows) / n - 0.75) < 0.09
    assert abs(sum(row["occluded"] for row in rows) / n - 0.1) < 0.06
    assert abs(sum(row["pose"]["facing"] == "left" for row in rows) / n - 0.5) < 0.1
    angles = [row["pose"]["rotation"] for row in rows]
    assert -25 <= min(angles) < -20
    assert 20 < max(angles) <= 25


def test_facing_says_where_the_beak_is(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        beak, tail = (row["parts"][PARTS.index(name)]["bbox"] for name in ("beak", "tail"))
        if beak and tail and not row["occluded"]:
            assert (beak[0] + beak[2] > tail[0] + tail[2]) == (row["pose"]["facing"] == "right")


def test_beak_length_follows_niche(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        expected = BEAK_LENGTHS[NICHES[row["niche"]]]
        assert 0.92 * expected <= row["beak_length"] <= 1.08 * expected


def test_females_are_duller(rows: list[dict[str, Any]]) -> None:
    spread: dict[int, list[float]] = {0: [], 1: []}
    for row in rows:
        pixels = np.asarray(row["image"]).astype(float)[np.asarray(row["part_masks"]) == PARTS.index("head") + 1]
        color = np.median(pixels, axis=0)
        spread[row["sex"]].append(float(color.max() - color.min()))
    assert np.mean(spread[0]) < 0.9 * np.mean(spread[1])


def test_background_is_that_of_its_seed_and_habitat(rows: list[dict[str, Any]]) -> None:
    assert len({row["background"] for row in rows}) == len(rows)
    for row in rows[:40]:
        if row["occluded"]:
            continue
        canvas = Canvas(64)
        paint_habitat(canvas, list(HABITATS.values())[row["habitat"]], Draws("habitat", row["background"]))
        name = RowKey(**{field: row["key"][field] for field in ("world", "version", "split", "seed", "index")})
        expected = _light(canvas.finish()[0], name.draws("light"))
        empty = np.asarray(row["part_masks"]) == 0
        np.testing.assert_array_equal(np.asarray(row["image"])[empty], expected[empty])


# Shortcuts


def sample(count: int, **options: Any) -> list[dict[str, Any]]:
    return [render_creature(key(index), 32, **options) for index in range(count)]


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
def test_habitat_follows_niche_as_often_as_asked(bias: float) -> None:
    preferred = [list(HABITATS.values()).index(HABITATS[niche]) for niche in NICHES]
    drawn = sample(600, habitat_bias=bias)
    share = np.mean([row["habitat"] == preferred[row["niche"]] for row in drawn])
    expected = bias + (1 - bias) / 4
    assert abs(share - expected) <= 4 * (expected * (1 - expected) / 600) ** 0.5


def test_species_are_uniform_without_long_tail() -> None:
    counts = Counter(key(index).draws("species").integer(0, 96) for index in range(9_600))
    chi2 = sum((counts[number] - 100) ** 2 / 100 for number in range(96))
    assert chi2 < 143  # 99.9 percent point of 95 degrees of freedom


def test_long_tail_makes_few_species_common() -> None:
    counts = sorted(Counter(row["species"] for row in sample(800, long_tail=1.0)).values(), reverse=True)
    assert counts[0] > 100  # 800 / H(96) = 155 expected
    assert len(counts) < 96


def test_nuisances_do_not_tell_the_species() -> None:
    """All but the species' own looks is drawn apart from it: another tree gives the same scene around the creature."""
    same = ("background", "sex", "life_stage", "pose", "occluded")
    for index in range(30):
        ours, theirs = (render_creature(key(index), 32, habitat_bias=0.0, branching=b) for b in (BRANCHING, (1,) * 5))
        assert {name: ours[name] for name in (*same, "habitat")} == {name: theirs[name] for name in (*same, "habitat")}


@pytest.fixture(scope="module")
def unbiased() -> list[dict[str, Any]]:
    return [dio.render("creatures", index, seed=9, image_size=32, habitat_bias=0.0) for index in range(900)]


def test_background_alone_is_at_chance(unbiased: list[dict[str, Any]]) -> None:
    """The nearest mean border colour of an order's images finds the order no better than guessing among six."""
    corners = np.array(
        [np.asarray(row["image"])[[0, 0, -1, -1], [0, -1, 0, -1]].ravel() for row in unbiased], dtype=float
    )
    orders = np.array([row["species"] // 16 for row in unbiased])
    train, test = slice(0, 600), slice(600, None)
    means = np.stack([corners[train][orders[train] == order].mean(0) for order in range(6)])
    guesses = ((corners[test][:, None] - means) ** 2).sum(2).argmin(1)
    assert abs((guesses == orders[test]).mean() - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 300) ** 0.5


def test_a_reader_of_the_text_alone_is_at_chance(unbiased: list[dict[str, Any]]) -> None:
    """Neither the words of a row beside those of its species nor its place in the split tell the order."""
    words = [
        (row["sex"], row["life_stage"], row["pose"]["facing"], row["habitat"], row["occluded"]) for row in unbiased
    ]
    orders = [row["species"] // 16 for row in unbiased]
    before = [(order,) for order in orders[-1:] + orders[:-1]]
    for seen in (words, before):
        votes: dict[Any, Counter[int]] = {}
        for word, order in zip(seen[:600], orders[:600], strict=True):
            votes.setdefault(word, Counter())[order] += 1
        hits = [
            votes.get(word, Counter({0: 1})).most_common(1)[0][0] == order
            for word, order in zip(seen[600:], orders[600:], strict=True)
        ]
        assert abs(np.mean(hits) - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 300) ** 0.5


def test_ink_does_not_tell_sisters(unbiased: list[dict[str, Any]]) -> None:
    ink = np.array([(np.asarray(row["part_masks"]) > 0).mean() for row in unbiased])
    assert ink.std() > 0.02
    second = np.array([row["species"] % 2 for row in unbiased])
    # The nearest mean amount of ink of first and second sisters, from two thirds, on the rest.
    border = (ink[:600][second[:600] == 0].mean() + ink[:600][second[:600] == 1].mean()) / 2
    sign = ink[:600][second[:600] == 1].mean() > border
    hits = ((ink[600:] > border) == sign) == second[600:]
    assert abs(hits.mean() - 0.5) < 4 * (0.25 / 300) ** 0.5


# Counterfactuals


@pytest.mark.parametrize("part", TRAITS)
@pytest.mark.parametrize("size", [64, 100])
def test_counterfactual_changes_only_pixels_of_the_part_and_the_part_is_whole(part: str, size: int) -> None:
    changed = 0
    for index in range(12):
        row = dio.render("creatures", index, seed=2, image_size=size)
        donor = (row["species"] + 41) % 96
        edited = dio.counterfactual(row, part, donor)
        name = RowKey(**{field: row["key"][field] for field in ("world", "version", "split", "seed", "index")})
        painted = render_creature(name, size, graft=(part, donor))  # all of the creature anew, the part of the donor
        number = PARTS.index(part) + 1
        old, new, whole = (np.asarray(one["part_masks"]) for one in (row, edited, painted))
        mask = (old == number) | (new == number)
        before, after = np.asarray(row["image"]), np.asarray(edited["image"])
        np.testing.assert_array_equal(before[~mask], after[~mask])
        np.testing.assert_array_equal(old[~mask], new[~mask])
        np.testing.assert_array_equal(new == number, whole == number)
        np.testing.assert_array_equal(after[mask], np.asarray(painted["image"])[mask])
        # Nothing of the new part is missing, and nothing of the old one left, but for pixels on borders of parts.
        assert (after != np.asarray(painted["image"])).any(axis=2).mean() < 0.005
        changed += not np.array_equal(before, after)
    assert changed >= 6


def test_counterfactual_to_the_sister_is_how_the_sister_is_painted() -> None:
    """Re-painting the whole creature as its sister gives the same picture, but for shared pixels on part borders."""
    for index in range(24):
        row = dio.render("creatures", index, seed=3, image_size=96)
        sister = row["species"] ^ 1
        (part,) = dio.discriminating_parts(row["species"], sister)
        edited = dio.counterfactual(row, part, sister)
        name = RowKey(**{field: row["key"][field] for field in ("world", "version", "split", "seed", "index")})
        painted = render_creature(name, 96, graft=(part, sister))
        difference = (np.asarray(edited["image"]) != np.asarray(painted["image"])).any(2)
        assert difference.mean() < 0.003


def test_counterfactual_with_own_species_changes_nothing() -> None:
    row = dio.render("creatures", 4)
    assert dio.counterfactual(row, "beak", row["species"])["image"] == row["image"]


def test_counterfactual_keeps_what_it_says(rows: list[dict[str, Any]]) -> None:
    edited = dio.counterfactual(rows[1], "legs", "Bandus tostensis")
    changed = {name for name in rows[1] if edited[name] != rows[1][name]}
    assert changed <= {"image", "part_masks", "parts"}


def test_counterfactual_of_a_loaded_row_keeps_the_beak_unless_it_changes_it() -> None:
    row = dio.load("creatures", n=2, image_size=32)[1]
    donor = next(number for number, species in enumerate(TREE) if NICHES.index(species.niche) != row["niche"])
    assert dio.counterfactual(row, "legs", donor)["beak_length"] == row["beak_length"]
    assert dio.counterfactual(row, "beak", donor)["beak_length"] != pytest.approx(row["beak_length"], rel=0.01)


def test_counterfactual_of_a_loaded_row_with_options() -> None:
    ds = dio.load("creatures", n=2, image_size=32, branching=(1, 1, 1, 1, 4), habitat_bias=1.0)
    edited = dio.counterfactual(ds[1], "crest", 2)
    assert edited["image"].size == (32, 32)


def test_counterfactual_refuses_altered_images(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="as this version of the world renders it"):
        dio.counterfactual(dio.shift(rows[0], "poster"), "beak", 1)


@pytest.mark.parametrize(
    ("part", "species", "message"),
    [("nose", 1, "legs, wing_patch"), ("beak", "Felis catus", "Bandus tostensis"), ("beak", 96, "0 to 95")],
)
def test_counterfactual_lists_the_choices(
    rows: list[dict[str, Any]], part: str, species: str | int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dio.counterfactual(rows[0], part, species)


def test_counterfactual_refuses_rows_of_other_worlds() -> None:
    with pytest.raises(ValueError, match="'creatures'"):
        dio.counterfactual(dio.render("scenes", 0, image_size=64), "beak", 1)


@pytest.mark.parametrize("row_key", [{}, {"world": "creatures"}, None, "creatures"])
def test_counterfactual_refuses_rows_without_a_whole_key(rows: list[dict[str, Any]], row_key: Any) -> None:
    with pytest.raises(ValueError, match="with its column `key`"):
        dio.counterfactual({**rows[0], "key": row_key}, "beak", 1)


def test_discriminating_parts_of_distant_species_are_all() -> None:
    assert dio.discriminating_parts(0, 95) == list(PARTS)
    assert dio.discriminating_parts(5, 5) == []
    assert dio.discriminating_parts(TREE[2].name, 3) == dio.discriminating_parts(3, TREE[2].name)
