"""Opening an index and classifying the first image: memory-mapped folders against a float32 array read whole.

The peer is what pybioclip does, restated: `numpy.load` and a JSON list of names, one matrix product, the likeliest
names. Embeddings are random, as many and as wide as the published ones. Each point runs in a process of its own; the
files were just written, so that they come from the page cache. Memory is that of the process less what it had before
it opened anything: with pages of mapped files, which the system may drop, and its own (anonymous) ones.
"""

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taxaclip import TaxonIndex, TaxonPath
from taxaclip.index_files import write_index

DIM, SCALE = 768, 100.0
KINDS = ("float32, read", "float16", "int8+float16")


def write_all(folder: Path, num_taxa: int) -> torch.Tensor:
    """Writes the same embeddings in all formats, and returns an image embedding near one of them."""
    rows = range(num_taxa)
    paths = [
        ("A", "B", f"c{r % 97:02d}", f"o{r % 997:03d}", f"f{r % 9973:04d}", f"g{r % 49999}", f"{r}") for r in rows
    ]
    frame = TaxonIndex([TaxonPath(names) for names in paths], torch.ones(num_taxa, 1), logit_scale=SCALE)
    generator = torch.Generator().manual_seed(0)
    embeds = torch.empty(num_taxa, DIM)
    for part in embeds.split(65536):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=generator), dim=1))
    half = embeds.half()
    scale = embeds.abs().amax(dim=1) / 127
    rough = torch.empty(num_taxa, DIM, dtype=torch.int8)
    for source, target, size in zip(embeds.split(65536), rough.split(65536), scale.split(65536), strict=True):
        target.copy_((source / size[:, None]).round())
    meta = {"logit_scale": SCALE, "source": {}}
    write_index(folder / KINDS[1], {"embeddings": half}, frame.offsets, frame.table, meta)
    tensors = {"embeddings": rough, "scale": scale, "exact": half}
    write_index(folder / KINDS[2], tensors, frame.offsets, frame.table, meta)
    np.save(folder / "embeddings.npy", embeds.T.numpy())
    columns = [frame.table[name].to_pylist() for name in frame.table.column_names[:7]]
    names = [[list(path), ""] for path in zip(*columns, strict=True)]
    (folder / "names.json").write_text(json.dumps(names))
    image = embeds[num_taxa // 3] + 0.02 * torch.randn(DIM, generator=generator)
    return torch.nn.functional.normalize(image[None], dim=1)


def _status() -> dict[str, float]:
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) / 1024 for name, *rest in fields if name in ("VmRSS:", "RssAnon:")}


def _measure(queue: Any, kind: str, folder: Path, image: torch.Tensor) -> None:
    torch.set_num_threads(1)
    torch.ones(8, 8) @ torch.ones(8, 8)
    before, started = _status(), time.perf_counter()
    if kind == KINDS[0]:
        embeds = torch.from_numpy(np.load(folder / "embeddings.npy"))
        names = json.loads((folder / "names.json").read_text())
    else:
        index = TaxonIndex.from_pretrained(folder / kind)
    opened, after = time.perf_counter(), _status()
    if kind == KINDS[0]:
        top = (SCALE * image @ embeds).softmax(dim=1)[0].topk(5)
        found = [" ".join(names[row][0][5:]) for row in top.indices.tolist()]
    else:
        scores = index.score(image)
        top = scores.probs["species"][0].topk(5)
        found = [" ".join(index.names(scores.first_rows["species"][row])[5:]) for row in top.indices.tolist()]
    done, last = time.perf_counter(), _status()
    numbers = {"open_seconds": opened - started, "first_image_seconds": done - opened}
    numbers |= {"open_mib": after["VmRSS"] - before["VmRSS"], "own_mib": last["RssAnon"] - before["RssAnon"]}
    queue.put((numbers | {"with_files_mib": last["VmRSS"] - before["VmRSS"]}, found, top.values.tolist()))


def measure(kind: str, folder: Path, image: torch.Tensor) -> Any:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, kind, folder, image))
    process.start()
    result = queue.get()
    process.join()
    return result


def run(*, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for num_taxa in (20_000,) if quick else (100_000, 867_455):
        with tempfile.TemporaryDirectory() as folder:
            image = write_all(Path(folder), num_taxa)
            results = {kind: measure(kind, Path(folder), image) for kind in KINDS}
        peer, names, probs = results[KINDS[0]]
        for kind, (numbers, found, values) in results.items():
            assert found[0] == names[0], f"{kind}: the likeliest is {found[0]}, not {names[0]}"
            assert abs(values[0] - probs[0]) <= 0.01 * probs[0], f"{kind}: {values[0]}, not {probs[0]}"
            ratios = {
                "open_ratio": peer["open_seconds"] / numbers["open_seconds"],
                "first_image_ratio": sum(list(peer.values())[:2]) / sum(list(numbers.values())[:2]),
                "own_memory_ratio": peer["own_mib"] / numbers["own_mib"],
            }
            rows.append({"num_taxa": num_taxa, "index": kind, **numbers, **ratios})
    return rows


PLOT = {"x": "num_taxa", "y": "own_mib", "line": "index"}
