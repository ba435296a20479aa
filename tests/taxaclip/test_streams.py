import io
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.taxa import TAXA
from support.taxa_streams import draw, write_parquet, write_tar
from taxaclip.streams import ImageTextStream, Sample, StreamIterator
from taxaclip.taxonomy import TEXT_TYPES

FILES, ROWS = 4, 6
TOTAL = FILES * ROWS


KNOWN = {Image.open(io.BytesIO(draw(number))).tobytes(): number for number in range(TOTAL)}


def numbers(samples: list[Sample]) -> list[int]:
    """Which of the drawn images these are."""
    return [KNOWN[sample.image.tobytes()] for sample in samples]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return write_parquet(tmp_path, FILES, ROWS)


def take(iterator: StreamIterator, count: int = TOTAL) -> list[int]:
    return numbers(list(islice(iterator, count)))


def test_each_epoch_holds_each_sample_once_in_an_order_of_its_own(files: list[str]) -> None:
    stream = ImageTextStream(files, buffer_size=5)
    seen = take(stream.iterate(), 3 * TOTAL)
    epochs = [seen[at : at + TOTAL] for at in range(0, 3 * TOTAL, TOTAL)]
    assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(TOTAL))]}) == 4
    assert take(ImageTextStream(files[::-1], buffer_size=5).iterate(), 3 * TOTAL) == seen
    assert take(ImageTextStream(files, buffer_size=5, seed=1).iterate()) != epochs[0]


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_parts_share_an_epoch_without_overlap(files: list[str], num_parts: int) -> None:
    stream = ImageTextStream(files, buffer_size=5)
    parts = []
    for part in range(num_parts):
        iterator, mine = stream.iterate(part, num_parts), []
        while iterator.state["epoch"] == 0:
            mine += take(iterator, 1)
        parts += mine[:-1]  # the last is of the next epoch
    assert sorted(parts) == list(range(TOTAL))


@pytest.mark.parametrize(("part", "num_parts"), [(0, 1), (1, 2), (4, 5)])
def test_state_goes_on_where_the_stream_was(files: list[str], part: int, num_parts: int) -> None:
    first = ImageTextStream(files, buffer_size=5).iterate(part, num_parts)
    states, whole = {}, []
    for done in range(50):
        if done in (0, 1, 5, 6, 11, 24, 25, 40):
            states[done] = dict(first.state)
        whole += take(first, 1)
    for done, state in states.items():
        again = ImageTextStream(files, buffer_size=5).iterate(part, num_parts, state)
        assert take(again, 10) == whole[done : done + 10], done


@pytest.mark.parametrize("layout", ["json", "texts"])
def test_tars_give_taxa_and_captions(layout: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", range(TOTAL), layout)
    samples = list(islice(ImageTextStream([path], buffer_size=7).iterate(), TOTAL))
    found = numbers(samples)
    assert sorted(found) == list(range(TOTAL))
    for number, sample in zip(found, samples, strict=True):
        expected = TAXA[number % len(TAXA)]
        assert sample.taxon is not None
        assert sample.taxon.names == expected.names
        assert [sample.caption(kind) for kind in TEXT_TYPES] == [expected.caption(kind) for kind in TEXT_TYPES]


def test_general_images_have_their_caption(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "shard.tar", range(TOTAL), "caption")
    for paths in ([tar], write_parquet(tmp_path / "parquet", text="captions")):
        samples = list(islice(ImageTextStream(paths, text="captions").iterate(), TOTAL))
        assert [sample.caption("sci") for sample in samples] == [f"general {number}" for number in numbers(samples)]


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """Six rows; the second has no image, the fourth no taxon."""
    table = pq.read_table(write_parquet(tmp_path, 1, ROWS)[0]).to_pydict()
    table["image"][1] = b"no image"
    for rank in ("kingdom", "phylum", "class", "order", "family", "genus", "species"):
        table[rank][3] = None
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    return str(tmp_path / "bad.parquet")


def test_bad_samples_are_counted_and_left_out_when_asked(bad: str, caplog: pytest.LogCaptureFixture) -> None:
    iterator = ImageTextStream([bad], on_error="skip").iterate()
    assert sorted(take(iterator, 4)) == [0, 2, 4, 5]
    take(iterator, 4)
    assert iterator.state["bad"] == 4
    assert caplog.text.count("Skipped a bad sample") == 4


def test_bad_samples_are_an_error_by_default(bad: str) -> None:
    with pytest.raises(ValueError, match=r"row [13] of file 0 of epoch 0.*on_error='skip'"):
        take(ImageTextStream([bad]).iterate(), 6)


def test_a_stream_without_a_good_sample_does_not_run_for_ever(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"none", b"none"], "text": ["a", "b"]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="none is good"):
        next(ImageTextStream([tmp_path / "bad.parquet"], text="captions", on_error="skip").iterate())


def test_wrong_arguments_are_refused(files: list[str]) -> None:
    for paths, options in (
        ([], {}),
        ([*files, "x.tar"], {}),
        (["x.csv"], {}),
        (files, {"text": "x"}),
        (files, {"on_error": "x"}),
        (files, {"buffer_size": 0}),
    ):
        with pytest.raises(ValueError, match="Expected"):
            ImageTextStream(paths, **options)  # type: ignore[arg-type]


def test_state_of_another_stream_is_refused(files: list[str]) -> None:
    first = ImageTextStream(files, buffer_size=5).iterate()
    take(first, 3)
    for paths, options in (
        (files, {"buffer_size": 6}),
        (files, {"buffer_size": 5, "seed": 1}),
        (files[:3], {"buffer_size": 5}),
    ):
        with pytest.raises(ValueError, match="another stream"):
            ImageTextStream(paths, **options).iterate(0, 1, dict(first.state))  # type: ignore[arg-type]
