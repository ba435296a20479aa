"""mini-AVA: the fourteen abilities in miniature, rendered offline by `hf-diorama`. Synthetic, and marked as such."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import datasets

from hf_ava_bench.abilities import find_ability
from hf_ava_bench.schema import FEATURES, build_struct

NAME = "mini-ava-synthetic"
SIZES: Mapping[str, int] = {"train": 2_000, "test": 500, "validation": 250}
"""Default number of items of each split."""

Row = Mapping[str, Any]


class Item(NamedTuple):
    """What is asked about one row of `scenes`: question, answer as text and as a value."""

    question: str
    answer: str
    value: Any


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "sh")) else "s")


def _abs_depth(row: Row) -> Item:
    thing = row["objects"][0]
    meters = round(thing["distance"], 1)
    return Item(f"How far is the {thing['category']} in the red box, in meters?", f"{meters} meters", meters)


def _counting(row: Row) -> Item:
    category = row["objects"][0]["category"]
    count = sum(thing["category"] == category for thing in row["objects"])
    return Item(f"How many {_plural(category)} are there?", str(count), float(count))


def _color(row: Row) -> Item:
    rgb = [int(channel) for channel in row["objects"][0]["color_srgb"]]
    return Item("What is the color in the red box, as [r, g, b]?", str(rgb), rgb)


def _localization(row: Row) -> Item:
    thing, size = row["objects"][0], row["key"]["image_size"]
    box = [round(value / size, 2) for value in thing["bbox"]]
    text = "[" + ", ".join(f"{value:.2f}" for value in box) + "]"
    return Item(f"Where is the {thing['category']}, as [x1, y1, x2, y2]?", text, box)


def _ocr(row: Row) -> Item:
    text = row["texts"][0]["string"]
    return Item("What is written in the red box?", text, text)


def _rel_depth(row: Row) -> Item:
    first, second = row["objects"][:2]
    closer = min(first, second, key=lambda thing: thing["distance"])["category"]
    question = f"Which is closer, the {first['category']} (red box) or the {second['category']} (blue box)?"
    return Item(question, closer, closer)


def _spatial(row: Row) -> Item:
    first, second = (thing["category"] for thing in row["objects"][:2])
    answer = row["states"][0]
    return Item(f"Where is the {first} (red box) relative to the {second} (blue box)?", answer, answer)


def _orientation(row: Row) -> Item:
    answer = row["states"][0]
    return Item(f"Which way does the {row['objects'][0]['category']} face?", answer, answer)


def _ask(question: str, read: Callable[[Row], str]) -> Callable[[Row], Item]:
    return lambda row: Item(question, read(row), read(row))


_ASK: Mapping[str, tuple[str, Callable[[Row], Item]]] = {
    "abs_depth": ("depth", _abs_depth),
    "action": ("action", _ask("What is the person doing?", lambda row: str(row["figures"][0]["action"]))),
    "color": ("color", _color),
    "counting": ("counting", _counting),
    "emotion": (
        "emotion",
        _ask("What does the face in the red box feel?", lambda row: str(row["faces"][0]["emotion"])),
    ),
    "fine_grained": (
        "fine_grained",
        _ask("Which species is this insect?", lambda row: str(row["objects"][0]["subcategory"])),
    ),
    "localization": ("localization", _localization),
    "ocr": ("ocr", _ocr),
    "orientation": ("orientation", _orientation),
    "recognition": (
        "recognition",
        _ask("What is in the red box?", lambda row: str(row["objects"][0]["category"])),
    ),
    "rel_depth": ("depth", _rel_depth),
    "scene": ("scene", _ask("What place is this?", lambda row: str(row["scene_type"]))),
    "spatial": ("spatial", _spatial),
    "texture": ("texture", _ask("What is the texture?", lambda row: str(row["objects"][0]["texture"]))),
}
"""Ability -> the topic of `scenes` that shows it, and what is asked about a row."""


def _options(ability: str, row: Row) -> list[str]:
    """Returns all answers that may be right, for abilities with a closed set."""
    if ability == "rel_depth":
        return [thing["category"] for thing in row["objects"][:2]]
    return list(_closed_sets().get(ability, ()))


@cache
def _closed_sets() -> Mapping[str, tuple[str, ...]]:
    from hf_diorama.worlds.scenes.faces import EMOTIONS
    from hf_diorama.worlds.scenes.figures import ACTIONS
    from hf_diorama.worlds.scenes.fine_grained import INSECTS
    from hf_diorama.worlds.scenes.fronts import DIRECTIONS
    from hf_diorama.worlds.scenes.glyphs import GLYPHS
    from hf_diorama.worlds.scenes.scene import PLACES
    from hf_diorama.worlds.scenes.spatial import RELATIONS
    from hf_diorama.worlds.scenes.texture import TEXTURE_CLASSES

    return {
        "action": tuple(ACTIONS),
        "emotion": tuple(EMOTIONS),
        "fine_grained": INSECTS,
        "orientation": DIRECTIONS,
        "recognition": GLYPHS,
        "scene": tuple(PLACES),
        "spatial": tuple(RELATIONS),
        "texture": tuple(TEXTURE_CLASSES),
    }


def ask(ability: str, row: Row) -> Item:
    """Returns question and answer about one row of the ability's topic.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> from hf_ava_bench.mini import ask
    >>> ask("scene", dio.render("scenes", 0, topic="scene"))
    Item(question='What place is this?', answer='city', value='city')

    ```
    """
    return _ASK[ability][1](row)


def load_mini(
    ability: str,
    split: str,
    *,
    n: int | None = None,
    seed: int = 0,
    image_size: int = 96,
    photos: Any = None,
) -> datasets.Dataset:
    """Returns items of mini-AVA with the columns of [`FEATURES`]; rendered once, then read from the cache.

    Args:
        ability (`str`): name of an ability.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        n (`int`, *optional*): number of items; 2,000, 250 and 500 by default.
        seed (`int`, defaults to 0): seed of the items.
        image_size (`int`, defaults to 96): height and width in pixels.
        photos (sequence of images, *optional*): photos for the backgrounds, see `hf_diorama.load("scenes")`.
    """
    dio = _import_diorama()
    name = find_ability(ability).id
    if split not in SIZES:
        raise ValueError(f"`split` of mini-AVA must be one of {', '.join(SIZES)}, got {split!r}.")
    topic = _ASK[name][0]
    # Both questions about depth have rows of their own.
    own_seed = 2 * seed + (name == "rel_depth")
    options = {} if photos is None else {"photos": photos, "photo_ratio": 1.0}
    rows = dio.load("scenes", split, n=n or SIZES[split], seed=own_seed, image_size=image_size, topic=topic, **options)
    rows = rows.cast_column("image", datasets.Image(decode=False))  # bytes stay as they are
    source = NAME if photos is None else f"{NAME}-photos"
    return rows.map(
        _to_item,
        fn_kwargs={"ability": name, "source": source},
        features=FEATURES,
        remove_columns=[column for column in rows.column_names if column not in FEATURES],
        desc=f"mini-AVA {name}/{split}",
    )


def _to_item(row: dict[str, Any], ability: str, source: str) -> dict[str, Any]:
    item = ask(ability, row)
    key = row["key"]
    meta = {"synthetic": True, "states": row["states"], "seed": key["seed"], "index": key["index"]}
    return {
        "id": f"{ability}-{key['split']}-{key['seed']}-{key['index']:06d}",
        "image": row["image"],
        "question": item.question,
        "answer": item.answer,
        "ability": ability,
        "source": source,
        "options": _options(ability, row),
        "answer_struct": build_struct(find_ability(ability).answer, item.value),
        "meta": json.dumps(meta, sort_keys=True),
    }


def _import_diorama() -> Any:
    try:
        import hf_diorama
    except ImportError as error:
        raise ImportError('mini-AVA needs hf-diorama: pip install "hf-ava-bench[mini]"') from error
    return hf_diorama
