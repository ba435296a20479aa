"""Endless streams of images with captions from webdataset tars and Parquet files, which go on exactly where they were.

Read by `datasets` in streaming mode. The order depends on the seed, the files and the number of parts, and on nothing
else; the state is the place of the current block of rows, and of the sample in it.
"""

import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from PIL import Image

from taxaclip.images import read_image
from taxaclip.taxonomy import RANKS, TEXT_TYPES, TaxonPath

FORMATS = {".tar": "webdataset", ".parquet": "parquet"}
ROWS_AT_ONCE = 64
State = dict[str, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """An image with its taxon, its captions by type, or both; the one caption of a general image has the type `""`."""

    image: Image.Image
    taxon: TaxonPath | None = None
    captions: Mapping[str, str] = field(default_factory=dict)

    def caption(self, text_type: str) -> str:
        """Returns the caption of this type: the written one, or the taxon's.

        Args:
            text_type (`str`): one of `TEXT_TYPES`; ignored for general images.
        """
        if "" in self.captions:
            return self.captions[""]
        if text_type in self.captions or self.taxon is None:
            return self.captions[text_type]
        return self.taxon.caption(text_type)


class ImageTextStream:
    """An endless stream of samples from the files of a data set.

    Files are shuffled by seed and epoch, and dealt out to the processes and their workers; rows are shuffled in
    blocks. With fewer files than parts, each part takes its share of the rows of all files.

    Args:
        files (sequence of `str` or `Path`): webdataset tars, or Parquet files. For taxa: an image (`image`, or `jpg`
            and the like), and the seven ranks with, if known, `common_name`, as columns or in a `json` file of the
            sample; or the text files of BioCLIP's tars. For captions: an image, and `text`, `caption` or `txt`.
        text (`str`, defaults to `"taxa"`): `"taxa"`, or `"captions"` for general images.
        seed (`int`, defaults to 0): of the order.
        buffer_size (`int`, defaults to 5000): rows of a block, undecoded in memory.
        on_error (`str`, defaults to `"raise"`): `"raise"`, or `"skip"` for a warning and one more in `state["bad"]`.

    Raises:
        ValueError: for no files, files of an unknown kind, or an unknown option.

    Example:

    ```python
    >>> import io
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from PIL import Image
    >>> from taxaclip.streams import ImageTextStream
    >>> data = io.BytesIO()
    >>> Image.new("RGB", (4, 4)).save(data, "png")
    >>> pq.write_table(pa.table({"image": [data.getvalue()], "text": ["a black square"]}), "general.parquet")
    >>> next(ImageTextStream(["general.parquet"], text="captions").iterate()).caption("")
    'a black square'

    ```
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        text: str = "taxa",
        seed: int = 0,
        buffer_size: int = 5000,
        on_error: str = "raise",
    ):
        self.files = sorted(map(str, files))
        kinds = {FORMATS.get(Path(file).suffix) for file in self.files}
        if len(kinds) != 1 or None in kinds:
            raise ValueError(f"Expected files that all end in one of {', '.join(FORMATS)}, got {self.files[:5]}.")
        if text not in ("taxa", "captions") or on_error not in ("raise", "skip") or buffer_size < 1:
            raise ValueError(
                "Expected text 'taxa' or 'captions', on_error 'raise' or 'skip', buffer_size >= 1, "
                f"got {text!r}, {on_error!r}, {buffer_size}."
            )
        (self._format,) = kinds
        self.parse: Callable[[dict[str, Any]], Sample] = parse_taxon if text == "taxa" else parse_caption
        self.seed, self.buffer_size, self.on_error = seed, buffer_size, on_error
        names = [Path(file).name for file in self.files]
        self.key = zlib.crc32(json.dumps([names, seed, buffer_size]).encode())  # all that the order depends on

    def iterate(self, part: int = 0, num_parts: int = 1, state: State | None = None) -> "StreamIterator":
        """Returns the samples of one part, from the beginning or from a state.

        Args:
            part (`int`, defaults to 0): number of this part, such as `rank * num_workers + worker`.
            num_parts (`int`, defaults to 1): number of parts.
            state (`dict`, *optional*): of an iterator of the same part of the same stream.

        Raises:
            ValueError: for a state of other files, another seed or another buffer size.
        """
        return StreamIterator(self, part, num_parts, state)

    def read_epoch(self, epoch: int, part: int, num_parts: int, file: int, row: int) -> Iterator[tuple[int, int, Any]]:
        """Yields (file, row in the file, row's data) of one part of an epoch, in file order.

        Args:
            epoch (`int`): number of the epoch; files come in another order in each.
            part, num_parts (`int`): as of `iterate`.
            file, row (`int`): where to begin: number of the file in this order, and row in it.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.files))
        by_rows = len(order) < num_parts
        mine = order if by_rows else order[part::num_parts]
        for number in range(file, len(mine)):
            start = row if number == file else 0
            for at, data in enumerate(self._read_file(self.files[mine[number]], start), start=start):
                if not by_rows or at % num_parts == part:
                    yield number, at, data

    def _read_file(self, path: str, start: int) -> Iterator[dict[str, Any]]:
        rows = load_dataset(self._format, data_files={"train": path}, split="train", streaming=True).decode(False)
        # `iter` in batches: iterating itself would deal rows out to DataLoader workers once more.
        for batch in (rows.skip(start) if start else rows).iter(ROWS_AT_ONCE):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


class StreamIterator(Iterator[Sample]):
    """The samples of a part of a stream.

    `state` is what to begin a new iterator with, behind the last sample: `epoch`, `file` and `row` where its block
    begins, `block` (its number in the epoch), `position` in the block, `bad`, the samples that were skipped, and
    `key`, which tells the stream.

    Args:
        stream (`ImageTextStream`): the stream.
        part, num_parts, state: as of `ImageTextStream.iterate`.
    """

    def __init__(self, stream: ImageTextStream, part: int, num_parts: int, state: State | None):
        self.stream, self.part, self.num_parts = stream, part, num_parts
        start = {"epoch": 0, "file": 0, "row": 0, "block": 0, "position": 0, "bad": 0, "key": stream.key}
        self.state: State = dict(state or start)
        if self.state["key"] != stream.key:
            raise ValueError(
                "Expected a state of the same files, seed and buffer_size, got one of another stream, whose order it "
                "cannot go on with; begin without a state."
            )
        self._samples = self._iterate()

    def __next__(self) -> Sample:
        """Returns the next sample."""
        return next(self._samples)

    def _iterate(self) -> Iterator[Sample]:
        while True:
            epoch, file, row = (self.state[name] for name in ("epoch", "file", "row"))
            is_whole, good = file == row == self.state["position"] == 0, 0
            rows = self.stream.read_epoch(epoch, self.part, self.num_parts, file, row)
            while block := _take(rows, self.stream.buffer_size):
                for sample in self._shuffled(block):
                    good += 1
                    yield sample
                file, row, _ = block[-1]
                self.state |= {"file": file, "row": row + 1, "block": self.state["block"] + 1, "position": 0}
            if is_whole and good == 0:
                raise ValueError(f"Expected samples in {self.stream.files[:5]}, part {self.part}, but none is good.")
            self.state |= {"epoch": epoch + 1, "file": 0, "row": 0, "block": 0, "position": 0}

    def _shuffled(self, block: list[tuple[int, int, Any]]) -> Iterator[Sample]:
        key = (self.stream.seed, self.state["epoch"], self.part, self.state["block"])
        order = np.random.default_rng(key).permutation(len(block))
        for index in order[self.state["position"] :]:
            file, row, data = block[index]
            self.state["position"] += 1
            try:
                sample = self.stream.parse(data)
            except (OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
                where = f"row {row} of file {file} of epoch {self.state['epoch']} ({data.get('__key__', 'no key')})"
                if self.stream.on_error == "raise":
                    raise ValueError(f"Bad sample, {where}: {error!r}; on_error='skip' leaves such out.") from error
                self.state["bad"] += 1
                logger.warning("Skipped a bad sample, %s: %r", where, error)
                continue
            yield sample


def _take(rows: Iterator[Any], count: int) -> list[Any]:
    return [row for _, row in zip(range(count), rows, strict=False)]


def parse_caption(row: Mapping[str, Any]) -> Sample:
    """Returns the sample of a general image.

    Args:
        row (mapping): its columns, or the files of a tar.

    Raises:
        ValueError: if there is no text or no image.
        OSError: if the image cannot be read.
    """
    text = next((row[name] for name in ("text", "caption", "txt") if row.get(name)), None)
    if not isinstance(text, str):
        raise ValueError(f"Expected a column text, caption or txt, got {sorted(row)}")
    return Sample(_find_image(row), captions={"": text})


def parse_taxon(row: Mapping[str, Any]) -> Sample:
    """Returns the sample of an image of a taxon.

    Args:
        row (mapping): its columns, or the files of a tar.

    Raises:
        ValueError: if there are neither ranks nor captions, or no image.
        OSError: if the image cannot be read.
    """
    columns = {name.lower(): value for name, value in row.items()}
    if isinstance(columns.get("json"), (str, bytes, dict)):
        data = columns["json"]
        columns |= data if isinstance(data, dict) else json.loads(data)
    if all(rank in columns for rank in RANKS):
        common = columns.get("common_name") or columns.get("common") or ""
        return Sample(_find_image(row), TaxonPath(tuple(columns[rank] or "" for rank in RANKS), common))
    captions = {name: columns[f"{name}.txt"] for name in TEXT_TYPES if columns.get(f"{name}.txt")}
    if len(captions) < len(TEXT_TYPES):
        raise ValueError(f"Expected the seven ranks, or a text file of each of {TEXT_TYPES}, got {sorted(row)}")
    tag = columns.get("taxontag.txt")
    return Sample(_find_image(row), parse_tag(tag) if tag else None, captions)


def parse_tag(tag: str) -> TaxonPath:
    """Returns the taxon of a caption with tags, `a photo of kingdom Animalia phylum Chordata ... species arctos.`

    Args:
        tag (`str`): the caption; a rank that is not known has no name behind its tag, or no tag.

    Raises:
        ValueError: if it has no tags.

    Example:

    ```python
    >>> from taxaclip.streams import parse_tag
    >>> parse_tag("a photo of kingdom Animalia phylum Chordata order Cypriniformes genus Carassius.").names[2:4]
    ('', 'Cypriniformes')

    ```
    """
    parts = re.split(rf"\b({'|'.join(RANKS)})\b", tag.removeprefix("a photo of ").rstrip("."))
    found = {rank: name.strip() for rank, name in zip(parts[1::2], parts[2::2], strict=True)}
    return TaxonPath(tuple(found.get(rank, "") for rank in RANKS))


def _find_image(row: Mapping[str, Any]) -> Image.Image:
    for name, value in row.items():
        data = value.get("bytes") if isinstance(value, dict) else value
        if name.lower() in ("image", "jpg", "jpeg", "png", "webp") and isinstance(data, bytes):
            return read_image(data)
        if name == "image" and isinstance(value, dict) and value.get("path"):
            return read_image(value["path"])
    raise ValueError(f"Expected an image (image, jpg, jpeg, png or webp), got {sorted(row)}")
