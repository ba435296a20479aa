"""From a world's name to rows, datasets and streams."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from datasets.fingerprint import Hasher

from hf_diorama.arguments import check_integer, check_size, check_split
from hf_diorama.real_images import LOADERS, load_real
from hf_diorama.worlds import WORLDS, RowKey, World

SHARDS = 64
"""Contiguous blocks that a stream is cut into, so that up to this many workers share it evenly."""

_KEY_FEATURES = {
    **{name: datasets.Value("string") for name in ("world", "split", "options")},
    **{name: datasets.Value("int64") for name in ("version", "seed", "index", "image_size")},
}


def load(
    name: str,
    split: str = "train",
    *,
    n: int = 1_000,
    seed: int = 0,
    image_size: int | None = None,
    num_proc: int | None = None,
    data_dir: str | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Returns a dataset of rendered rows, or of real images under the same column names.

    Rows of a world are rendered once, with a progress bar, and kept in the cache of `datasets` under a key made of
    world, version, split, seed, number of rows, size and options. Row `i` does not depend on the number of rows.

    Args:
        name (`str`):
            A world (`"creatures"`, `"scenes"`) or real images (`"digits"`, `"cifar10"`, `"folder"`).
        split (`str`, defaults to `"train"`):
            `"train"`, `"validation"`, `"test"` or `"heldout"`. No two splits share a row. `heldout` is for final
            numbers: nothing was trained on its rows. Answers to questions about its seeds below 1000 were looked at
            while `llava-nano` was trained: report on seeds from 1000. Real images have the splits that they come with.
        n (`int`, defaults to 1000): number of rows. Worlds only.
        seed (`int`, defaults to 0): seed of the rows. Worlds only.
        image_size (`int`, *optional*):
            Height and width in pixels, 32 to 512; the world's default if not given. Worlds only.
        num_proc (`int`, *optional*): processes that render. Worlds only; changes no row.
        data_dir (`str`, *optional*): folder with real images. `"cifar10"` and `"folder"` only.
        **options: options of the world, see [`list_worlds`].

    Returns:
        `datasets.Dataset`

    Raises:
        ValueError: if a name, split, option, number or size is not one of the choices; the message lists them.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> ds = dio.load("creatures", split="train", n=4, seed=0, image_size=32)
    >>> ds.num_rows, ds[0]["image"].size
    (4, (32, 32))

    ```
    """
    if name in LOADERS:
        # The defaults of a world say nothing about real images; anything else does not apply to them.
        given = {"n": n != 1_000, "seed": seed != 0, "image_size": image_size is not None, "num_proc": num_proc}
        refused = [key for key, value in given.items() if value] + sorted(options)
        if refused:
            raise ValueError(f"{name!r} holds real images and takes `split` and `data_dir` only, got {refused}.")
        return load_real(name, split, data_dir)
    find_world(name, or_else=f" or real images ({', '.join(LOADERS)})")
    if data_dir is not None:
        raise ValueError(f"`data_dir` is for real images ({', '.join(LOADERS)}), got it with {name!r}.")
    arguments, features = _prepare(name, split, seed, image_size, options)
    blocks = _blocks(n)
    _row(**arguments, index=0)  # an option that the world refuses is one error here, not one inside a generator
    return datasets.Dataset.from_generator(
        _rows,
        features=features,
        gen_kwargs={**arguments, "blocks": blocks},
        split=datasets.NamedSplit(split),
        num_proc=num_proc,
    )


def stream(
    name: str,
    split: str = "train",
    *,
    n: int = 1_000_000,
    seed: int = 0,
    image_size: int | None = None,
    **options: Any,
) -> datasets.IterableDataset:
    """Returns an iterable dataset that renders rows as they are asked for and stores none.

    The rows equal those of [`load`], in the same order. Workers of a `torch.utils.data.DataLoader` and processes of
    `datasets.distributed.split_dataset_by_node` share them, each row once.

    Args:
        name (`str`): a world, `"creatures"` or `"scenes"`.
        split (`str`, defaults to `"train"`): as in [`load`].
        n (`int`, defaults to 1000000): number of rows after which the stream ends.
        seed (`int`, defaults to 0): seed of the rows.
        image_size (`int`, *optional*): height and width in pixels; the world's default if not given.
        **options: options of the world.

    Returns:
        `datasets.IterableDataset`

    Raises:
        ValueError: as [`load`].

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> row = next(iter(dio.stream("creatures", seed=1, image_size=32)))
    >>> row["image"].size
    (32, 32)

    ```
    """
    arguments, features = _prepare(name, split, seed, image_size, options)
    blocks = _blocks(n)
    _row(**arguments, index=0)
    return datasets.IterableDataset.from_generator(
        _rows, features=features, gen_kwargs={**arguments, "blocks": blocks}, split=datasets.NamedSplit(split)
    )


def render(
    name: str, index: int, seed: int = 0, image_size: int | None = None, *, split: str = "train", **options: Any
) -> dict[str, Any]:
    """Returns one row: the image as `PIL.Image.Image` and every annotation.

    Args:
        name (`str`): a world, `"creatures"` or `"scenes"`.
        index (`int`): which row of the split, from 0.
        seed (`int`, defaults to 0): seed of the rows.
        image_size (`int`, *optional*): height and width in pixels; the world's default if not given.
        split (`str`, defaults to `"train"`): as in [`load`].
        **options: options of the world.

    Returns:
        `dict[str, Any]`: one entry a column of [`load`]; class labels as integers.

    Raises:
        ValueError: as [`load`], and if `index` is negative.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> row = dio.render("creatures", index=17, seed=0, image_size=128)
    >>> row["image"].size, row["habitat"] == dio.load("creatures", n=18)[17]["habitat"]
    ((128, 128), True)

    ```
    """
    arguments, _ = _prepare(name, split, seed, image_size, options)
    return _row(**arguments, index=check_integer("index", index, 0))


def _prepare(
    name: str, split: str, seed: int, image_size: int | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], datasets.Features]:
    """Returns the checked arguments of `_rows` and the features of its rows."""
    world = find_world(name)
    check_split(split)
    seed = check_integer("seed", seed)
    size = check_size(world.image_size if image_size is None else image_size)
    for option in options:
        if option not in world.options:
            raise ValueError(f"{name!r} takes the options {', '.join(world.options) or 'none'}, got {option!r}.")
    features = datasets.Features({**world.features(**options), "key": _KEY_FEATURES})
    key = {"world": name, "version": world.version, "split": split, "seed": seed, "image_size": size}
    key["options"] = json.dumps({option: _describe(value) for option, value in options.items()}, sort_keys=True)
    return {"key": key, "options": dict(options)}, features


def _describe(value: Any) -> Any:
    """Returns the value of an option as JSON can hold it; images, which it cannot, stand there as one hash."""
    try:
        json.dumps(value)
    except TypeError:
        return Hasher.hash(value)
    return value


def list_worlds() -> dict[str, dict[str, Any]]:
    """Returns the worlds and their options with defaults.

    Returns:
        `dict[str, dict[str, Any]]`

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> dio.list_worlds()["creatures"]["habitat_bias"]
    0.3

    ```
    """
    return {name: dict(world.options) for name, world in WORLDS.items()}


def find_world(name: str, or_else: str = "") -> World:
    """Returns the world of that name; the error tells what else could have been meant."""
    if name not in WORLDS:
        raise ValueError(f"Expected a world ({', '.join(WORLDS)}){or_else}, got {name!r}.")
    return WORLDS[name]


def _blocks(n: int) -> list[tuple[int, int]]:
    """Returns contiguous half-open ranges of rows; `datasets` shares out the entries of a list among workers."""
    n = check_integer("n", n, 1)
    count = min(n, SHARDS)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def _rows(key: dict[str, Any], options: dict[str, Any], blocks: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, stop in blocks:
        for index in range(start, stop):
            yield _row(key, options, index)


def _row(key: Mapping[str, Any], options: Mapping[str, Any], index: int) -> dict[str, Any]:
    world = WORLDS[key["world"]]
    name = RowKey(world=key["world"], version=key["version"], split=key["split"], seed=key["seed"], index=index)
    return {**world.render(name, key["image_size"], **options), "key": {**key, "index": index}}
