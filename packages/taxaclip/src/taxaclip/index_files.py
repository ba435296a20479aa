"""The folder of a taxon index: embeddings and groups as safetensors, names as Arrow, the rest as JSON."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from taxaclip.cards import CARD
from taxaclip.taxonomy import RANKS

FILES = ("index.safetensors", "ranks.safetensors", "taxonomy.arrow", "meta.json")
EXACT = "exact.safetensors"  # float16 rows beside int8 ones, of which few are ever read


def write_index(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    offsets: dict[str, torch.Tensor],
    table: pa.Table,
    meta: Any,
    card: str,
) -> None:
    """Writes an index, whole or not at all.

    Args:
        folder (`Path`): the folder; an index in it is replaced.
        tensors (`dict`): `embeddings`, and for int8 `scale`, and `exact` if the float16 rows are kept.
        offsets (`dict`): where the groups of each rank begin.
        table (`pyarrow.Table`): the names.
        meta: anything JSON can hold.
        card (`str`): its `README.md`.

    Raises:
        FileExistsError: if there is something else than an index.
    """
    known = {*FILES, EXACT, CARD}
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= known):
        raise FileExistsError(f"Expected a new folder, or one with an index to replace, got {folder}; name another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file({name: tensor for name, tensor in tensors.items() if name != "exact"}, partial / FILES[0])
        if "exact" in tensors:
            save_file({"exact": tensors["exact"]}, partial / EXACT)
        save_file(offsets, partial / FILES[1])
        with pa.OSFile(str(partial / FILES[2]), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        (partial / FILES[3]).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
        partial.chmod(0o755)
        if folder.exists():  # moved aside first, so that one of the two is always whole
            old = partial.with_name(f"{partial.name}-old")
            folder.replace(old)
            partial.replace(folder)
            shutil.rmtree(old)
        else:
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_index(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], pa.Table, Any]:
    """Returns the tensors, offsets, names and meta of an index; all but the last are memory-mapped.

    Args:
        folder (`Path`): written by `write_index`.

    Raises:
        FileNotFoundError: if a file of the index is missing.
        ValueError: if the files are of different indexes.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected a taxon index in {folder}, but {name} is missing; write it by save_pretrained."
            )
    tensors, starts = _read_tensors(folder / FILES[0]), _read_tensors(folder / FILES[1])
    if (folder / EXACT).is_file():
        tensors |= _read_tensors(folder / EXACT)
    table = pa.ipc.open_file(pa.memory_map(str(folder / FILES[2]))).read_all()
    offsets = {rank: starts[rank] for rank in RANKS}
    counts = {len(table), *(len(tensor) for tensor in tensors.values()), *(int(offsets[rank][-1]) for rank in RANKS)}
    if len(counts) > 1:
        raise ValueError(f"Expected as many taxa in each file of {folder}, got {sorted(counts)}; build it again.")
    return tensors, offsets, table, json.loads((folder / FILES[3]).read_text(encoding="utf-8"))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
