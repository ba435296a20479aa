"""Items of an ability from the Hub, from a folder, or rendered: always the same table."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_ava_bench import mini
from hf_ava_bench.abilities import Ability, find_ability
from hf_ava_bench.formats import answers_of, read_entries, split_conversation
from hf_ava_bench.parsers import parse_box, parse_number, parse_rgb
from hf_ava_bench.schema import FEATURES, build_struct
from hf_ava_bench.scorers.boxes import AREA_BINS
from hf_ava_bench.scorers.numbers import BINS
from hf_ava_bench.scorers.texts import LENGTH_BINS

HUB_ID = "act13/AVA-Bench"
SPLITS = ("train", "validation", "test")
HOLDOUT = "holdout"


def load_ability(
    ability: str,
    source: str = "hub",
    split: str = "train",
    *,
    holdout: float = 0.2,
    seed: int = 0,
    streaming: bool = False,
    n: int | None = None,
    image_size: int = 96,
    photos: Any = None,
    strict: bool = True,
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns the items of one ability, from any source in the columns of `hf_ava_bench.schema.FEATURES`.

    The data set on the Hub has a train split only. Where a source has no test split, `split="test"` is held out from
    train and `split="train"` leaves it out: decided by the image, so that no image is on both sides, in each bin of
    answers alike, by the seed alone. Such rows say `"split_origin": "holdout"` in their `meta`, and results on them
    cannot be compared with the paper's.

    Args:
        ability (`str`): name of the ability, in any spelling.
        source (`str`, defaults to `"hub"`):
            `"hub"`; `"mini"`, rendered by `hf-diorama`, synthetic; or `"path:DIR"`, a folder made by
            [`build_dataset`], one laid out as on the Hub, or one with the released JSON files.
        split (`str`, defaults to `"train"`): `"train"`, `"test"`, or `"validation"` (of mini).
        holdout (`float`, defaults to 0.2): share of the images that is held out.
        seed (`int`, defaults to 0): seed of the hold-out, and of rendered items.
        streaming (`bool`, defaults to `False`): whether to read rows as they are asked for; not of a hold-out.
        n (`int`, *optional*):
            Number of rendered items; of others the most to take, drawn by the seed, since files may be sorted (the
            first ones if `streaming`).
        image_size (`int`, defaults to 96): size of rendered images in pixels.
        photos (sequence of images, *optional*): backgrounds of rendered items.
        strict (`bool`, defaults to `True`):
            Whether an answer that cannot be read, or an id that comes twice, is an error; else such rows stay, with an
            empty `answer_struct` and the `problem` in their `meta`, for whoever checks the rows.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` if `streaming`.

    Raises:
        ValueError: for an unknown ability, source or split, or rows that cannot be read.
        ConnectionError: if the Hub cannot be reached; the message lists what works without it.

    Example:

    ```python
    >>> from hf_ava_bench import load_ability
    >>> row = load_ability("counting", source="mini", split="test", n=4)[0]
    >>> row["question"], row["answer"], row["answer_struct"]["number"]
    ('How many stars are there?', '26', 26.0)

    ```
    """
    known = find_ability(ability)
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    if not 0 < holdout < 1:
        raise ValueError(f"`holdout` must be in (0, 1), got {holdout}.")
    if source == "mini":
        rendered = mini.load_mini(known.id, split, n=n, seed=seed, image_size=image_size, photos=photos)
        return rendered.to_iterable_dataset() if streaming else rendered
    if source != "hub" and not source.startswith("path:"):
        raise ValueError(f'`source` must be "hub", "mini" or "path:DIR", got {source!r}.')
    folder = None if source == "hub" else Path(source.removeprefix("path:"))
    raw, held_out = _read(known, folder, split, streaming)
    table = raw if "answer_struct" in (raw.features or ()) else _convert(raw, known, strict)
    if isinstance(table, datasets.IterableDataset):
        if held_out:
            raise ValueError(f"{source!r} has no test split, and a hold-out needs all rows: leave out `streaming`.")
        return table if n is None else table.take(n)
    if strict:
        _check_ids(table["id"], known)
    if held_out:
        table = _hold_out(table, known, split, holdout, seed)
    if n is None or n >= len(table):
        return table
    return table.select(np.sort(np.random.default_rng(seed).choice(len(table), n, replace=False)))


def _check_ids(ids: Iterable[str], ability: Ability) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids of {ability.id!r} come more than once, the first is {twice[0]!r}; "
            "build_dataset(..., skip_bad_rows=True) keeps the first of each."
        )


def _read(ability: Ability, folder: Path | None, split: str, streaming: bool) -> tuple[Any, bool]:
    """Returns the rows of a split as they are stored, and whether they have to be divided by a hold-out."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"Expected a folder after `path:`, got {str(folder)!r}.")
    if folder is not None and (json_rows := _read_json(ability, folder, split)) is not None:
        return json_rows
    if folder is not None and not (folder / "README.md").exists():
        files = {name: sorted(map(str, folder.glob(f"{name}/{ability.hub_name}/*.parquet"))) for name in SPLITS}
        files = {name: paths for name, paths in files.items() if paths}
        if not files:
            raise ValueError(f"Expected {folder}/train/{ability.hub_name}/*.parquet, or a README.md with configs.")
        stored = partial(datasets.load_dataset, "parquet", data_files=files)
        splits = list(files)
    else:
        path = HUB_ID if folder is None else str(folder)
        stored = partial(datasets.load_dataset, path, ability.hub_name)
        splits = _split_names(path, ability.hub_name)
    held_out = "test" not in splits
    if not held_out and split not in splits:
        raise ValueError(f"There is no split {split!r}; choose from {', '.join(splits)}.")
    if held_out and split == "validation":
        raise ValueError("There is no split 'validation'; choose train or test, which is held out from train.")
    return stored(split="train" if held_out else split, streaming=streaming), held_out


def _split_names(path: str, config: str) -> list[str]:
    try:
        return list(datasets.get_dataset_split_names(path, config))
    except ConnectionError as error:
        raise ConnectionError(
            f"{path} cannot be reached. Without a connection use source='mini' (rendered, needs hf-diorama), "
            "source='path:DIR' (a folder made by hf_ava_bench.build_dataset, or a download), or a cached snapshot."
        ) from error


def _read_json(ability: Ability, folder: Path, split: str) -> tuple[datasets.Dataset, bool] | None:
    """Returns the rows of released JSON files in `folder` or in `folder/<Config>`, or None where there are none."""
    for root in (folder / ability.hub_name, folder):
        train, test = root / "train.json", root / "questions.json"
        if train.exists() and (split == "train" or not test.exists()):
            rows = [{**entry, "id": key} for key, entry in read_entries(train).items()]
            return _json_table(rows, folder, root), not test.exists()
        if test.exists() and split == "test":
            truth = root / "ground_truth.json"
            if not truth.exists():
                raise ValueError(f"Expected the answers to {test} in {truth}, which is missing.")
            golds = read_entries(truth)
            questions = read_entries(test)
            if unanswered := [key for key in questions if key not in golds]:
                raise ValueError(
                    f"{len(unanswered)} questions of {test} have no answer in {truth}, first {unanswered[0]!r}."
                )
            rows = [
                {
                    "id": key,
                    "image": entry["image"],
                    "question": entry["text"],
                    "answer": answers_of(golds[key])[0],
                    "source": entry.get("category", ""),
                }
                for key, entry in questions.items()
            ]
            return _json_table(rows, folder, root), False
    return None


def _json_table(rows: list[dict[str, Any]], folder: Path, root: Path) -> datasets.Dataset:
    """Returns a table with the bytes of the images; a path that leads out of the folder is refused."""
    columns: dict[str, list[Any]] = {"id": [], "image": [], "question": [], "answer": [], "source": []}
    for row in rows:
        found = [base / row["image"] for base in (root, folder, root.parent) if (base / row["image"]).is_file()]
        if not found or not found[0].resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"Expected the image {row['image']!r} of item {row['id']!r} inside {folder}.")
        question, answer = row.get("question"), row.get("answer")
        if question is None:
            question, answer = split_conversation(row["conversations"])
        columns["id"].append(row["id"])
        columns["image"].append({"bytes": found[0].read_bytes(), "path": row["image"]})
        columns["question"].append(question)
        columns["answer"].append(answer)
        columns["source"].append(str(row.get("source") or row.get("dataset_type") or ""))
    table = datasets.Dataset.from_dict(columns)
    return table.cast_column("image", datasets.Image(decode=False))


def _convert(raw: Any, ability: Ability, strict: bool) -> Any:
    """Returns released rows as items; the bytes of the images stay as they are."""
    if "image" not in (raw.features or raw.column_names):
        raise ValueError(f"Expected the column `image`, got {', '.join(raw.features or raw.column_names)}.")
    raw = raw.cast_column("image", datasets.Image(decode=False))
    columns = list(raw.features or raw.column_names)
    if "conversations" not in columns and not {"question", "answer"} <= set(columns):
        raise ValueError(f"Expected the column `conversations`, or `question` and `answer`, got {', '.join(columns)}.")
    convert = partial(_to_item, ability=ability, strict=strict)
    options = {} if isinstance(raw, datasets.IterableDataset) else {"desc": f"AVA-Bench {ability.id}"}
    dropped = [column for column in columns if column not in FEATURES]
    return raw.map(convert, with_indices=True, features=FEATURES, remove_columns=dropped, **options)


def _to_item(row: Mapping[str, Any], index: int, ability: Ability, strict: bool) -> dict[str, Any]:
    name = str(row.get("id") or f"{ability.hub_name}_{index:08d}")
    question, answer, struct, problem = "", "", build_struct("text", None), {}
    try:
        if row.get("question") is not None:
            question, answer = row["question"], str(row["answer"])
        else:
            question, answer = split_conversation(row["conversations"] or ())
        struct = parse_answer(ability, answer)
    except ValueError as error:
        if strict:
            raise ValueError(f"Item {name!r} of {ability.id!r} cannot be read: {error}") from error
        problem = {"problem": str(error)}
    known = {"id", "image", "question", "answer", "conversations", "source", "dataset_type"}
    rest = {key: value for key, value in row.items() if key not in known and value is not None} | problem
    return {
        "id": name,
        "image": row["image"],
        "question": question,
        "answer": answer,
        "ability": ability.id,
        "source": str(row.get("source") or row.get("dataset_type") or ""),
        "options": [],
        "answer_struct": struct,
        "meta": json.dumps({"synthetic": False, **rest}, sort_keys=True, default=str),
    }


def parse_answer(ability: Ability, answer: str) -> dict[str, Any]:
    """Returns the `answer_struct` of a true answer.

    Raises:
        ValueError: if it cannot be read.
    """
    if ability.answer in ("text", "class"):
        return build_struct(ability.answer, answer)
    if ability.answer == "number":
        parsed = parse_number(answer, meters=ability.id == "abs_depth")
    else:
        parsed = parse_box(answer) if ability.answer == "box" else parse_rgb(answer)
    if parsed.value is None:
        raise ValueError(f"Expected a {ability.answer} as an answer of {ability.id!r}, got {answer!r}.")
    value = parsed.value[0] if ability.answer == "number" else list(parsed.value)
    return build_struct(ability.answer, [round(v) for v in parsed.value] if ability.answer == "rgb" else value)


def bin_of(ability: Ability, struct: Mapping[str, Any]) -> str:
    """Returns the bin of a true answer, within which hold-outs and counts are made."""
    if all(value is None for value in struct.values()):
        return "unreadable"
    if ability.answer == "number":
        return next(name for name, high in BINS.items() if struct["number"] <= high)
    if ability.answer == "box":
        x0, y0, x1, y1 = struct["box"]
        return next(name for name, high in AREA_BINS.items() if abs((x1 - x0) * (y1 - y0)) < high)
    if ability.answer == "text":
        return next(name for name, high in LENGTH_BINS.items() if len(struct["text"]) <= high)
    return "all" if ability.answer == "rgb" else str(struct["text"])


def _hold_out(table: datasets.Dataset, ability: Ability, split: str, share: float, seed: int) -> datasets.Dataset:
    """Returns the train or the test side: images, sorted by a keyed hash within the bin of their first item."""
    raw = table.cast_column("image", datasets.Image(decode=False))
    groups: dict[str, list[int]] = {}
    bins: dict[str, list[str]] = {}
    for index, row in enumerate(raw):
        digest = hash_image(row["image"])
        if digest not in groups:
            bins.setdefault(bin_of(ability, row["answer_struct"]), []).append(digest)
        groups.setdefault(digest, []).append(index)
    held: set[str] = set()
    for digests in bins.values():
        order = sorted(digests, key=lambda digest: hashlib.sha256(f"{seed}-{digest}".encode()).hexdigest())
        held.update(order[: round(share * len(order))])
    chosen = sorted(i for digest, rows in groups.items() if (digest in held) == (split == "test") for i in rows)
    return table.select(chosen).map(_mark_holdout, desc="hold-out")


def _mark_holdout(row: dict[str, Any]) -> dict[str, str]:
    return {"meta": json.dumps({**json.loads(row["meta"]), "split_origin": HOLDOUT}, sort_keys=True)}


def read_image(image: Mapping[str, Any]) -> bytes:
    """Returns the stored bytes of an image column read with `decode=False`."""
    data: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    return data


def hash_image(image: Mapping[str, Any]) -> str:
    """Returns the sha256 of the stored bytes of an image column read with `decode=False`."""
    return hashlib.sha256(read_image(image)).hexdigest()
