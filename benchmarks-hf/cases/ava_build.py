"""Images a second that hf-ava-bench checks and writes as a data set.

Ours is `build_dataset` from a folder laid out as on the Hub: read, convert, hash, decode, check, write Parquet. The
peer does what the released builder does: it decodes each image and saves it as JPEG anew at the default quality, which
changes colours, and checks nothing.
"""

import hashlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

import harness
from hf_ava_bench import build_dataset

N = 200


def make_jpeg(seed: int, size: int) -> bytes:
    """A smooth random picture with a little noise, as a JPEG file."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
    noisy = np.clip(np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 12, (size, size, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def setup(image_size: int) -> Path:
    datasets.disable_progress_bars()
    folder = Path(tempfile.mkdtemp())
    for split, first in (("train", 0), ("test", N)):
        target = folder / "hub" / split / "Counting"
        target.mkdir(parents=True)
        rows = [
            {
                "id": str(i),
                "image": {"bytes": make_jpeg(i, image_size), "path": None},
                "conversations": [
                    {"from": "human", "value": "<image>\nHow many?"},
                    {"from": "gpt", "value": str(1 + i % 30)},
                ],
            }
            for i in range(first, first + N)
        ]
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(target / "0.parquet")
    return folder


def stored(path: str) -> Any:
    table = datasets.load_dataset("parquet", data_files=path, split="train")
    return table.cast_column("image", datasets.Image(decode=False))


def check(folder: Path) -> None:
    """What is built has the bytes of the source; what the peer writes has not."""
    source = stored(f"{folder}/hub/test/Counting/0.parquet")
    digests = [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in source]
    built = stored(str(ours(folder) / "Counting" / "test-00000-of-00001.parquet"))
    assert [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in built] == digests
    anew = stored(str(peer(folder)))
    assert len(anew) == N
    assert not {hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in anew} & set(digests)


def fresh(folder: Path, name: str) -> Path:
    """An empty place; caches of `datasets` would make the second round a copy."""
    shutil.rmtree(folder / name, ignore_errors=True)
    datasets.disable_caching()
    return folder / name


def ours(folder: Path) -> Path:
    return build_dataset(fresh(folder, "ours"), f"path:{folder / 'hub'}", ["counting"], splits=["test"])


def peer(folder: Path) -> Path:
    out = fresh(folder, "peer")
    out.mkdir()
    rows = []
    for row in datasets.load_dataset("parquet", data_files=f"{folder}/hub/test/Counting/0.parquet", split="train"):
        buffer = io.BytesIO()
        row["image"].save(buffer, "JPEG")
        turns = row["conversations"]
        rows.append(
            {
                "id": row["id"],
                "image": {"bytes": buffer.getvalue(), "path": None},
                "question": turns[0]["value"],
                "answer": turns[1]["value"],
            }
        )
    path = out / "test.parquet"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)
    return path


CASE = harness.Timing(
    sizes=[{"image_size": 64}, {"image_size": 128}, {"image_size": 256}, {"image_size": 512}],
    setup=setup,
    check=check,
    ours=ours,
    peer=peer,
    items=N,
    unit="images",
)
PLOT = {"x": "image_size", "y": "images_per_s", "low": "q1", "high": "q3"}
