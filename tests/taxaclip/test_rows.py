import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from taxaclip import finished_names, write_rows

NAMES = ["a.jpg", "b, or c.jpg", "d.jpg", "e.jpg"]
RESULTS: list[list[dict[str, object]]] = [
    [
        {"file_name": "a.jpg", "classification": "bee", "score": 0.75},
        {"file_name": "a.jpg", "classification": 'a "wasp"', "score": 0.25},
    ],
    [{"file_name": "b, or c.jpg", "error": "cannot be read\nas an image"}],
    [],
    [{"file_name": "e.jpg", "classification": "bee", "score": 1 / 3}],
]
LINES = [
    ("a.jpg", "bee", 0.75, None),
    ("a.jpg", 'a "wasp"', 0.25, None),
    ("b, or c.jpg", None, None, "cannot be read\nas an image"),
    ("d.jpg", None, None, None),
    ("e.jpg", "bee", 1 / 3, None),
]


def read(path: Path) -> list[tuple[object, ...]]:
    if path.suffix == ".parquet":
        return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file_name", "classification", "score", "error"]
    return [(row[0], row[1] or None, float(row[2]) if row[2] else None, row[3] or None) for row in rows[1:]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_each_prediction_is_a_row_and_no_image_is_lost(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"rows{suffix}"
    write_rows(path, RESULTS, NAMES)
    assert read(path) == LINES
    assert finished_names(path) == set(NAMES)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_stopped_run_goes_on_at_the_image_it_was_at(suffix: str, done: int, tmp_path: Path) -> None:
    def results() -> object:
        yield from RESULTS[:done]
        raise KeyboardInterrupt

    whole, stopped = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
    write_rows(whole, RESULTS, NAMES)
    with pytest.raises(KeyboardInterrupt):
        write_rows(stopped, results(), NAMES)  # type: ignore[arg-type]
    assert finished_names(stopped) == set(NAMES[:done])
    write_rows(stopped, RESULTS[done:], NAMES[done:])
    assert stopped.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_later_images_come_behind_the_rows_that_are_there(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(path, RESULTS[:2], NAMES[:2])
    write_rows(path, RESULTS[2:], NAMES[2:])
    assert read(path) == LINES
    write_rows(path, [], [])
    assert read(path) == LINES


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_that_was_killed_before_its_rows_were_removed_repeats_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(path, RESULTS, NAMES)
    lines = [json.dumps({"file_name": name, "rows": rows}) for name, rows in zip(NAMES[:2], RESULTS[:2], strict=True)]
    (tmp_path / f".rows{suffix}.jsonl").write_text("\n".join(lines) + "\n")
    write_rows(path, [], [])
    assert read(path) == LINES


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_of_taxa_are_not_mixed_with_rows_of_labels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(path, RESULTS, NAMES)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other columns"):
        write_rows(path, [[{"file_name": "f.jpg", "genus": "Apis", "score": 1.0}]], ["f.jpg"])
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_file_of_other_things_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("my notes\n")
    for call in (lambda: finished_names(tmp_path / name), lambda: write_rows(tmp_path / name, RESULTS, NAMES)):
        with pytest.raises(ValueError, match="something else"):
            call()
    assert (tmp_path / name).read_text() == "my notes\n"


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.parquet"):
        write_rows(tmp_path / "rows.txt", RESULTS, NAMES)


@pytest.mark.parametrize(("names", "got"), [(NAMES[:3], "more"), ([*NAMES, "f.jpg"], "got 4")])
def test_results_must_be_as_many_as_names(names: list[str], got: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=got):
        write_rows(tmp_path / "rows.csv", RESULTS, names)
    assert not (tmp_path / "rows.csv").exists()


def test_half_a_line_is_cut_off_without_writing_the_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, RESULTS[:2], NAMES[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"file_name": "d.j')
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("a kill here would lose all rows"))
    assert finished_names(path) == set(NAMES[:2])
    assert path.read_bytes() == whole
