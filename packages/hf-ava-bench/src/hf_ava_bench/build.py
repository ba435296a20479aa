"""A folder of Parquet files that `datasets.load_dataset` reads, checked row by row as it is written."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.utils import tqdm
from PIL import Image, UnidentifiedImageError

from hf_ava_bench.abilities import ABILITIES, Ability, find_ability
from hf_ava_bench.data import HUB_ID, bin_of, hash_image, load_ability, read_image
from hf_ava_bench.files import hash_file, write_text
from hf_ava_bench.formats import read_json, write_json
from hf_ava_bench.licences import licence_table
from hf_ava_bench.resolvers import resolve_option

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = "hf-ava-bench/manifest/1"


def build_dataset(
    out: str | Path,
    source: str = "hub",
    abilities: Sequence[str] | None = None,
    *,
    splits: Sequence[str] = ("train", "test"),
    skip_bad_rows: bool = False,
    **options: Any,
) -> Path:
    """Writes a data set of items that `datasets.load_dataset(out, "Counting")` reads, here or from the Hub.

    Every row is checked: its image decodes, its answer can be read and lies in the frame or in the closed set, and no
    id comes twice, nor an image with the same question. A part that is there already is kept, so that an interrupted
    build goes on where it stopped. The bytes of the images stay as they are.

    Args:
        out (`str` or `Path`): the folder.
        source (`str`, defaults to `"hub"`): as in [`load_ability`].
        abilities (sequence of `str`, *optional*): all fourteen by default.
        splits (sequence of `str`, defaults to `("train", "test")`): splits to write.
        skip_bad_rows (`bool`, defaults to `False`): whether to leave bad rows out, and report them in the manifest.
        **options: passed to [`load_ability`], e.g. `n` or `seed`.

    Returns:
        `Path`: the folder, with Parquet files, `README.md` and `manifest.json`.

    Raises:
        ValueError: for a bad row, unless they are skipped.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from hf_ava_bench import build_dataset
    >>> folder = build_dataset("mini-ava", "mini", ["counting"], n=3)
    >>> load_dataset(str(folder), "Counting", split="test")[0]["question"]
    'How many stars are there?'

    ```
    """
    folder = Path(out)
    names = [find_ability(name).id for name in abilities or ABILITIES]
    path = folder / MANIFEST
    if options.get("streaming"):
        raise ValueError("A build reads all rows of a part: leave out `streaming`.")
    request = {"source": source, **dict(sorted(options.items()))}
    if request.get("photos") is not None:
        request["photos"] = _hash_photos(options["photos"])
    manifest: dict[str, Any] = (
        read_json(path) if path.exists() else {"schema": MANIFEST_SCHEMA, "request": request, "parts": {}}
    )
    if manifest["request"] != request:
        raise ValueError(f"{folder} was built from {manifest['request']}, not from {request}; choose another folder.")
    todo = [(name, split) for name in names for split in splits]
    for name, split in tqdm(todo, desc=f"building {folder.name}", unit="part"):
        ability = find_ability(name)
        part = f"{ability.hub_name}/{split}-00000-of-00001.parquet"
        done = manifest["parts"].get(part)
        if done and (folder / part).exists() and hash_file(folder / part) == done["sha256"]:
            continue
        table = load_ability(name, source, split, strict=False, **options)
        manifest["parts"][part] = _write_part(table, ability, folder / part, skip_bad_rows)
        write_json(path, manifest)
    write_text(folder / "README.md", _card(manifest))
    return folder


def _hash_photos(photos: Sequence[Image.Image]) -> str:
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(repr(photo.size).encode() + photo.convert("RGB").tobytes())
    return digest.hexdigest()


def _write_part(table: Any, ability: Ability, path: Path, skip_bad_rows: bool) -> dict[str, Any]:
    raw = table.cast_column("image", datasets.Image(decode=False))
    seen: set[tuple[str, str]] = set()
    kept, bad, bins, sources = [], [], Counter[str](), Counter[str]()
    for index, row in enumerate(raw):
        problem = check_item(row, ability, seen)
        if problem is None:
            kept.append(index)
            bins[bin_of(ability, row["answer_struct"])] += 1
            sources[row["source"]] += 1
        elif skip_bad_rows:
            bad.append({"id": row["id"], "problem": problem})
        else:
            raise ValueError(
                f"Item {row['id']!r} of {ability.id!r}: {problem}. Pass skip_bad_rows=True to leave it out."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    raw.select(kept).cast_column("image", datasets.Image()).to_parquet(partial)
    partial.replace(path)
    origin = json.loads(raw[0]["meta"]).get("split_origin", "source") if len(raw) else "source"
    return {
        "num_rows": len(kept),
        "bins": dict(sorted(bins.items())),
        "sources": dict(sorted(sources.items())),
        "split_origin": origin,
        "bad_rows": bad,
        "sha256": hash_file(path),
    }


def check_item(row: Any, ability: Ability, seen: set[tuple[str, str]]) -> str | None:
    """Returns what is wrong with an item, or None; `seen` collects ids, and images with their questions."""
    if problem := json.loads(row["meta"]).get("problem"):
        return f"it cannot be read: {problem}"
    pair = (hash_image(row["image"]), row["question"])
    if pair in seen:
        return "its image comes with the same question twice"
    seen.add(pair)
    if ("id", row["id"]) in seen:
        return "its id comes more than once"
    seen.add(("id", row["id"]))
    try:
        with Image.open(io.BytesIO(read_image(row["image"]))) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"its image cannot be decoded ({error})"
    box = row["answer_struct"]["box"]
    if ability.answer == "box" and not all(0 <= value <= 1 for value in box):
        return f"its box {box} is not within [0, 1]"
    if ability.id == "abs_depth" and row["answer_struct"]["number"] <= 0:
        return "its depth is not positive"
    if row["options"] and resolve_option(row["answer"], row["options"]).value is None:
        return f"its answer {row['answer']!r} is none of its options"
    return None


def _card(manifest: dict[str, Any]) -> str:
    """Returns the README with the configurations that `load_dataset` reads, counts and terms."""
    configs: dict[str, list[str]] = {}
    for part in manifest["parts"]:
        configs.setdefault(part.partition("/")[0], []).append(part)
    synthetic = manifest["request"]["source"] == "mini"
    # One licence cannot stand for what many sources allow.
    lines = ["---", f"license: {'apache-2.0' if synthetic else 'other'}", "configs:"]
    for name, parts in sorted(configs.items()):
        lines += [f"- config_name: {name}", "  data_files:"]
        for part in sorted(parts):
            split = part.partition("/")[2].partition("-")[0]
            lines += [f"  - split: {split}", f"    path: {part}"]
    tags = ["tags:", "- ava-bench", *(["- synthetic"] if synthetic else [])]
    origin = "mini-AVA, synthetic: it says nothing about photos" if synthetic else f"{HUB_ID} (arXiv 2506.09082)"
    lines += [*tags, "---", "", "# AVA-Bench items", "", f"Made by `hf-ava-bench build` from {origin}.", ""]
    lines += ["| part | rows | split |", "|---|---|---|"]
    lines += [f"| {part} | {info['num_rows']} | {info['split_origin']} |" for part, info in manifest["parts"].items()]
    sources = {source for info in manifest["parts"].values() for source in info["sources"] if source}
    sources |= set() if synthetic else {s for name in configs for s in find_ability(name).sources}
    text = "Terms of the sources (a licence on the whole cannot override them):"
    return "\n".join([*lines, "", text, "", licence_table(tuple(sorted(sources))), ""])
