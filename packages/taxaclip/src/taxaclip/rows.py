"""Rows of predictions on disk, as JSON lines, CSV or Parquet: a stopped run goes on where it was."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils.logging import tqdm

from taxaclip.taxonomy import RANKS

TAXON_COLUMNS = ("file_name", *RANKS[:-1], "species_epithet", "species", "common_name", "rank", "score", "max_cosine")
LABEL_COLUMNS = ("file_name", "classification", "score")
NUMBERS = ("score", "max_cosine")
FORMATS = (".jsonl", ".csv", ".parquet")
BEGIN = b'{"file_name": '
ROWS_AT_ONCE = 4096  # rows of a Parquet row group at least

Row = dict[str, Any]


def write_rows(path: str | Path, results: Iterable[list[Row]], file_names: Sequence[str]) -> None:
    """Writes the rows of a classifier for each image, with progress; what is in the file already stays before them.

    JSON lines hold one `{"file_name": name, "rows": [...]}` for each image. CSV and Parquet hold one row for each
    prediction, with a column `error`, and one with nothing but its `file_name` where there is no prediction. They are
    collected beside the file, in `.<name>.jsonl`, and written whole at the end. So a stopped run loses at most the
    image it was at: call `finished_names`, and this with the other images.

    Args:
        path (`str` or `Path`): file that ends in `.jsonl`, `.csv` or `.parquet`.
        results (iterable of lists of rows): of `TaxonClassifier.predict` or `LabelClassifier.predict`, in the order of
            `file_names`.
        file_names (sequence of `str`): the images.

    Raises:
        ValueError: for another suffix, a file that holds something else, or more or fewer results than names.

    Example:

    ```python
    >>> from taxaclip import write_rows
    >>> rows = [[{"file_name": "a.jpg", "classification": "bee", "score": 0.75}]]
    >>> write_rows("rows.csv", rows, ["a.jpg"])
    >>> print(open("rows.csv").read())
    file_name,classification,score,error
    a.jpg,bee,0.75,

    ```
    """
    path = _check_format(path)
    finished_names(path)  # a file of other things is refused, half a line cut off
    journal = _journal(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with journal.open("a", encoding="utf-8") as file:
        for rows in tqdm(results, total=len(file_names), desc="images", disable=None):
            if count == len(file_names):
                raise ValueError(f"Expected rows of {count} images, as many as `file_names`, got more.")
            file.write(json.dumps({"file_name": file_names[count], "rows": rows}) + "\n")
            file.flush()
            count += 1
    if count < len(file_names):
        raise ValueError(f"Expected rows of {len(file_names)} images, as many as `file_names`, got {count}.")
    if journal != path:
        _write_table(path, journal)
        journal.unlink()


def finished_names(path: str | Path) -> set[str]:
    """Returns the names of the images whose rows a file, or what a stopped run left beside it, holds.

    Half a line at the end of JSON lines is cut off.

    Args:
        path (`str` or `Path`): as of `write_rows`; it need not exist.

    Raises:
        ValueError: for another suffix, or a file that holds something else.

    Example:

    ```python
    >>> from taxaclip import finished_names
    >>> finished_names("new.parquet")
    set()

    ```
    """
    path = _check_format(path)
    names = _read_journal(_journal(path))
    if path.suffix != ".jsonl" and path.exists():
        names |= {row["file_name"] for row in _read_table(path)}
    return names


def _check_format(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"Expected a file that ends in one of {', '.join(FORMATS)}, got {path}.")
    return path


def _journal(path: Path) -> Path:
    return path if path.suffix == ".jsonl" else path.with_name(f".{path.name}.jsonl")


def _read_journal(path: Path) -> set[str]:
    """The names in JSON lines; half a line at their end is cut off."""
    names: set[str] = set()
    if not path.exists():
        return names
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if not (line.startswith(BEGIN) or BEGIN.startswith(line)):
                    raise ValueError(
                        f"Expected rows of an earlier run in {path}, but it ends in something else; name another."
                    )
                break
            try:
                names.add(json.loads(line)["file_name"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"Expected rows of an earlier run in {path}, but line {number} is none.") from None
            end += len(line)
    if path.stat().st_size > end:
        os.truncate(path, end)
    return names


def _read_table(path: Path) -> Iterator[Row]:
    """The rows of a CSV or Parquet file that `write_rows` wrote, one after the other."""
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            columns, batches = tuple(file.schema_arrow.names), file.iter_batches()
            rows: Iterator[Row] = chain.from_iterable(batch.to_pylist() for batch in batches)
        else:
            with path.open(encoding="utf-8", newline="") as text:
                columns = tuple(next(csv.reader(text), ()))
            rows = _read_csv(path)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        columns = ()
    if columns not in ((*TAXON_COLUMNS, "error"), (*LABEL_COLUMNS, "error")):
        raise ValueError(f"Expected rows of an earlier run in {path}, got something else; name another file.")
    return rows


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: float(value) if name in NUMBERS and value else value for name, value in row.items()}


def _write_table(path: Path, journal: Path) -> None:
    """Writes the rows of the file that is there, and of the journal, as CSV or Parquet: all of them or none."""
    old = list(_columns(path)) if path.exists() else None
    columns = old or _journal_columns(journal)
    kept = {row["file_name"] for row in _read_table(path)} if path.exists() else set()
    rows = chain(_read_table(path) if path.exists() else (), _journal_rows(journal, kept))
    partial = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".csv":
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            _write_parquet(partial, columns, rows)
    except ValueError as error:
        raise ValueError(f"The rows in {path} have other columns than the new ones ({error}); name another.") from None
    partial.replace(path)


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    schema = pa.schema([(name, pa.float64() if name in NUMBERS else pa.string()) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[Row] = []
        for row in rows:
            if unknown := sorted(row.keys() - set(columns)):
                raise ValueError(f"unexpected columns {unknown}")
            batch.append(row)
            if len(batch) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))


def _columns(path: Path) -> tuple[str, ...]:
    row = next(_read_table(path), None)
    return tuple(row) if row else ()


def _journal_columns(journal: Path) -> tuple[str, ...]:
    is_label = any("classification" in row for row in _journal_rows(journal, set()))
    return (*(LABEL_COLUMNS if is_label else TAXON_COLUMNS), "error")


def _journal_rows(journal: Path, without: set[str]) -> Iterator[Row]:
    with journal.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["file_name"] not in without:
                yield from entry["rows"] or [{"file_name": entry["file_name"]}]
