from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from support.taxa import TAXA
from support.taxa_streams import build_processor, write_parquet, write_tar
from taxaclip.batches import ContrastiveBatches
from taxaclip.streams import ImageTextStream
from taxaclip.taxonomy import TEXT_TYPES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    root = tmp_path_factory.mktemp("streams")
    return {text: write_parquet(root / text, 4, 6, text) for text in ("taxa", "captions")}


def make(files: dict[str, list[str]], replay: bool = False, **options: Any) -> ContrastiveBatches:
    if replay:
        general = ImageTextStream(files["captions"], text="captions", buffer_size=5)
        options |= {"replay_stream": general, "replay_batch_size": 3}
    stream = ImageTextStream(files["taxa"], buffer_size=5)
    options = {"batch_size": 8, "max_length": 400, **options}  # a token is a byte
    return ContrastiveBatches(stream, build_processor(), **options)


def texts(batch: dict[str, Any]) -> list[str]:
    """The caption of each image of a batch, as far as its tokens tell: in lower case, without spaces."""
    distinct = build_processor().tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    return [distinct[index].replace(" ", "") for index in batch["text_index"].tolist()]


def flat(text: str) -> str:
    return text.lower().replace(" ", "")


def kinds(batch: dict[str, Any]) -> list[set[str]]:
    """The types of text that each caption may be of."""
    names = {kind: {flat(taxon.caption(kind)) for taxon in TAXA} for kind in TEXT_TYPES}
    return [{kind for kind in TEXT_TYPES if text in names[kind]} for text in texts(batch)]


def equal(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for name in one
    )


def test_each_distinct_caption_comes_once(files: dict[str, list[str]]) -> None:
    single, plain = (next(iter(make(files, deduplicate=value))) for value in (True, False))
    assert texts(single) == texts(plain)
    assert len(plain["input_ids"]) == 8
    assert len(single["input_ids"]) == len(set(texts(plain))) < 8
    assert torch.equal(single["pixel_values"], plain["pixel_values"])


def test_captions_that_lose_their_end_are_counted(files: dict[str, list[str]]) -> None:
    batch = next(iter(make(files, batch_size=24, text_mix={"sci": 1.0}, max_length=24)))
    captions = {taxon.caption("sci").replace(" ", "") for taxon in TAXA}
    longer = [caption for caption in captions if len(caption) + 2 > 24]  # a token is a byte, and there are two more
    assert batch["num_cut"] == len(longer)
    assert 0 < len(longer) < len(captions)


def test_a_step_has_one_type_of_text_in_all_processes(files: dict[str, list[str]]) -> None:
    drawn = []
    for rank in (0, 1):
        batches = list(islice(make(files, rank=rank, world_size=2), 12))
        drawn.append([set.intersection(*kinds(batch)) for batch in batches])
        assert all(drawn[-1])
    assert all(left & right for left, right in zip(*drawn, strict=True))
    assert len({frozenset(found) for found in drawn[0]}) >= 4


def test_types_follow_their_weights_and_may_differ_within_a_step(files: dict[str, list[str]]) -> None:
    only = list(islice(make(files, text_mix={"sci": 1.0, "taxon": 0.0}), 4))
    assert all("sci" in found for batch in only for found in kinds(batch))
    mixed = [next(iter(make(files, per_sample=True, batch_size=24, rank=rank, world_size=2))) for rank in (0, 1)]
    assert not set.intersection(*kinds(mixed[0]))


def test_lineages_tell_which_ranks_two_images_share(files: dict[str, list[str]]) -> None:
    batch = next(iter(make(files, batch_size=24, text_mix={"taxon": 1.0})))
    number = [next(i for i, t in enumerate(TAXA) if flat(t.caption("taxon")) == text) for text in texts(batch)]
    for left in range(24):
        for right in range(24):
            one, other = TAXA[number[left]].names, TAXA[number[right]].names
            shared = [one[: depth + 1] == other[: depth + 1] for depth in range(7)]
            assert (batch["lineages"][left] == batch["lineages"][right]).tolist() == shared


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_state_goes_on_with_the_next_batch(files: dict[str, list[str]], num_workers: int, done: int) -> None:
    def load(batches: ContrastiveBatches, count: int) -> list[Any]:
        return list(islice(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=num_workers), count))

    whole = load(make(files, replay=True), done + 5)
    again = make(files, replay=True)
    again.go_on({batch["state"]["worker"]: batch["state"] for batch in whole[:done]})
    for found, expected in zip(load(again, 5), whole[done:], strict=True):
        assert equal(found, expected)
    assert [batch["state"]["step"] for batch in whole] == list(range(done + 5))


def test_state_of_another_number_of_workers_is_refused(files: dict[str, list[str]]) -> None:
    batch = next(iter(make(files)))
    other = make(files, world_size=2)
    other.go_on({0: batch["state"]})
    with pytest.raises(ValueError, match="as many workers and processes"):
        next(iter(other))


def test_wrong_arguments_are_refused(files: dict[str, list[str]], tmp_path: Path) -> None:
    general = ImageTextStream(files["captions"], text="captions")
    for options in (
        {"batch_size": 0},
        {"replay_stream": general},
        {"replay_batch_size": 2},
        {"replay_stream": general, "replay_batch_size": -1},
        {"text_mix": {"tag": 1.0}},
        {"text_mix": {"sci": 0.0}},
        {"text_mix": {"sci": 2.0, "com": -1.0}},
    ):
        with pytest.raises(ValueError, match="Expected"):
            make(files, **options)


def test_published_captions_are_used_as_they_are(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", range(12), "texts")
    batches = ContrastiveBatches(
        ImageTextStream([path]), build_processor(), batch_size=6, text_mix={"taxon_com": 1.0}, max_length=400
    )
    batch = next(iter(batches))
    assert set(texts(batch)) <= {flat(taxon.caption("taxon_com")) for taxon in TAXA}
    assert batch["has_taxa"]
