"""What tells two species apart, and pictures that differ in exactly that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.creatures.anatomy import PARTS
from hf_diorama.worlds.creatures.rendering import measure_parts, render_creature
from hf_diorama.worlds.creatures.taxonomy import BRANCHING, TRAITS, Species, build_tree

_KEY = {"image_size", "options", *(field.name for field in fields(RowKey))}


def discriminating_parts(
    species_a: str | int, species_b: str | int, *, branching: Sequence[int] = BRANCHING
) -> list[str]:
    """Returns the parts in which two species of `creatures` differ.

    Sister species differ in exactly one part. Species of different genera differ in colour, size or build, that is in
    every part.

    Args:
        species_a (`str` or `int`): scientific name or class label.
        species_b (`str` or `int`): scientific name or class label.
        branching (`Sequence[int]`): the tree, as given to `load`.

    Returns:
        `list[str]`: part names; empty for a species and itself.

    Raises:
        ValueError: if there is no such species.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> len(dio.discriminating_parts(0, 1))
    1

    ```
    """
    tree = build_tree(tuple(branching))
    first, second = (tree[_find_species(tree, species)] for species in (species_a, species_b))
    if first.ranks[:6] != second.ranks[:6]:
        return list(PARTS)
    return [part for part in TRAITS if first.look(part) != second.look(part)]


def counterfactual(row: Mapping[str, Any], part: str, species: str | int) -> dict[str, Any]:
    """Returns the same creature with one part as another species has it, and every other pixel as it was.

    Images agree outside the union of the part's masks in both rows. `image`, `part_masks` and `parts` (and
    `beak_length` for the beak) are those of the new picture; every other entry, the species among them, still speaks
    of the creature that was changed. If `discriminating_parts` between the two species is just `[part]`, the new
    picture shows `species` in all its parts.

    Args:
        row (`Mapping[str, Any]`): a row of `creatures` from `render`, `load` or `stream`, with the image unaltered.
        part (`str`): a trait part: legs, wing_patch, tail_spots, crest, beak or eye_ring.
        species (`str` or `int`): scientific name or class label of the species whose look the part takes.

    Returns:
        `dict[str, Any]`: a row like the given one.

    Raises:
        ValueError: if the row is not one of `creatures` as rendered by this version, or has no such part or species.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> row = dio.render("creatures", index=17)
    >>> sister = row["species"] ^ 1
    >>> edited = dio.counterfactual(row, dio.discriminating_parts(row["species"], sister)[0], sister)
    >>> edited["image"] == row["image"], edited["habitat"] == row["habitat"]
    (False, True)

    ```
    """
    if part not in TRAITS:
        raise ValueError(f"`part` must be one of {', '.join(TRAITS)}, got {part!r}.")
    key = row.get("key")
    if not isinstance(key, Mapping) or key.get("world") != "creatures" or not _KEY.issubset(key):
        raise ValueError("`row` must be a row of 'creatures' with its column `key`, as `render` and `load` return it.")
    options = json.loads(key["options"])
    name = RowKey(**{field.name: key[field.name] for field in fields(RowKey)})
    donor = _find_species(build_tree(tuple(options.get("branching", BRANCHING))), species)
    old = render_creature(name, key["image_size"], **options)
    image = np.asarray(row["image"])
    if not np.array_equal(image, np.asarray(old["image"])):
        raise ValueError(
            "`row` must hold the image as this version of the world renders it, got another image; "
            "change parts first and the domain, size or encoding after."
        )
    new = render_creature(name, key["image_size"], **options, graft=(part, donor))
    label = PARTS.index(part) + 1
    old_labels, new_labels = np.asarray(old["part_masks"]), np.asarray(new["part_masks"])
    # Where another part covers the same pixel in part, that part's label holds, and with it the old pixel.
    mask = (old_labels == label) | (new_labels == label)
    labels = np.where(mask, new_labels, old_labels)
    edited = {
        **row,
        "image": Image.fromarray(np.where(mask[:, :, None], np.asarray(new["image"]), image)),
        "part_masks": Image.fromarray(labels),
        "parts": measure_parts(labels),
    }
    return {**edited, "beak_length": new["beak_length"]} if part == "beak" else edited


def _find_species(tree: tuple[Species, ...], species: str | int) -> int:
    """Returns the class label of a species given by label or name."""
    if isinstance(species, (int, np.integer)) and not isinstance(species, bool) and 0 <= species < len(tree):
        return int(species)
    names = [leaf.name for leaf in tree]
    if isinstance(species, str) and species in names:
        return names.index(species)
    raise ValueError(f"Expected a species (0 to {len(tree) - 1}, or one of {', '.join(names)}), got {species!r}.")
