"""The command `hf-diorama`: worlds and models from the shell."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from hf_diorama.api import find_world, list_worlds, load, render
from hf_diorama.cards import build_card
from hf_diorama.checkpoints import list_models, model_path
from hf_diorama.contact_sheet import build_contact_sheet
from hf_diorama.draws import SPLITS

_SHOWN_SIZE = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command: 0 if all went well, 1 after an error, which is one line on stderr.

    Args:
        arguments (`Sequence[str]`, *optional*): words after `hf-diorama`; those of the shell if not given.

    Returns:
        `int`
    """
    parsed = _build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"hf-diorama: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-diorama", description="Seeded worlds with exact ground truth.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("render", help="write rows to a folder that datasets.load_dataset reads")
    _add_world(command, n=1_000, size="the world's default")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make; must not exist")
    command.add_argument("--format", choices=("parquet", "imagefolder"), default="parquet")
    command.set_defaults(run=_render)

    command = commands.add_parser("show", help="write a contact sheet, one PNG")
    _add_world(command, n=24, size=str(_SHOWN_SIZE))
    command.add_argument("--out", type=Path, metavar="FILE", help="defaults to WORLD.png")
    command.set_defaults(run=_show)

    command = commands.add_parser("models", help="list the nano models and their folders")
    command.set_defaults(run=_models)
    return parser


def _add_world(command: argparse.ArgumentParser, n: int, size: str) -> None:
    command.add_argument("world", help=", ".join(list_worlds()))
    command.add_argument("--n", type=int, default=n, help=f"number of rows (default {n})")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--split", default="train", help=", ".join(SPLITS))
    command.add_argument("--image-size", type=int, help=f"in pixels (default: {size})")


def _render(parsed: argparse.Namespace) -> None:
    find_world(parsed.world)
    if parsed.out.exists():
        raise ValueError(f"--out must be a folder that does not exist yet, got {str(parsed.out)!r}.")
    rows = load(parsed.world, parsed.split, n=parsed.n, seed=parsed.seed, image_size=parsed.image_size)
    with _new_folder(parsed.out) as folder:
        if parsed.format == "parquet":
            (folder / "data").mkdir()
            rows.to_parquet(folder / "data" / f"{parsed.split}-00000-of-00001.parquet")
        else:
            _write_imagefolder(rows, folder / parsed.split)
        (folder / "README.md").write_text(build_card(parsed.world, parsed.split, rows), encoding="utf-8")
    sys.stdout.write(f"{rows.num_rows} rows in {parsed.out}\n")


def _write_imagefolder(rows: datasets.Dataset, folder: Path) -> None:
    """Writes every image column as PNG files and all else as the lines of `metadata.jsonl`."""
    folder.mkdir()
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        rows = rows.cast_column(name, datasets.Image(decode=False))
        if name != "image":
            (folder / name).mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for i, row in enumerate(rows):
            entry: dict[str, Any] = {}
            for name, value in row.items():
                if name in images:
                    path = f"{i:06d}.png" if name == "image" else f"{name}/{i:06d}.png"
                    (folder / path).write_bytes(value["bytes"])
                    entry["file_name" if name == "image" else f"{name}_file_name"] = path
                else:
                    entry[name] = value
            lines.write(json.dumps(entry) + "\n")


def _show(parsed: argparse.Namespace) -> None:
    find_world(parsed.world)
    if parsed.n < 1:
        raise ValueError(f"--n must be at least 1, got {parsed.n}.")
    size = _SHOWN_SIZE if parsed.image_size is None else parsed.image_size
    rows = [render(parsed.world, index, parsed.seed, size, split=parsed.split) for index in range(parsed.n)]
    captions = [row.get("common_name") or row["topic"] for row in rows]
    path = parsed.out or Path(f"{parsed.world}.png")
    _save_png(build_contact_sheet([row["image"] for row in rows], captions=captions), path)
    sys.stdout.write(f"{path}\n")


def _models(parsed: argparse.Namespace) -> None:
    del parsed
    for name in list_models():
        sys.stdout.write(f"{name}\t{model_path(name)}\n")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill that takes its name only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG that takes its name only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        image.save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
