"""Batches for contrastive training: one caption for each image, each distinct caption once, and a replayed batch."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import CLIPProcessor

from taxaclip.streams import ImageTextStream, Sample
from taxaclip.taxonomy import RANKS, TEXT_TYPES, clean_text
from taxaclip.texts import count_cut

Batch = dict[str, Any]


class ContrastiveBatches(torch.utils.data.IterableDataset[Batch]):
    """Endless batches from a stream of taxa and, with replay, one of general images.

    A batch holds `pixel_values`, `input_ids` and `attention_mask` of its distinct captions, `num_cut` (how many of
    these are longer than `max_length`), `text_index` (which caption is whose), `lineages` (a number for each taxon's
    group at each rank, the same in all processes), `replay_...` of the same, and `state`, from which `go_on` continues
    behind it, with as many workers and processes.

    Args:
        stream (`ImageTextStream`): of taxa.
        processor (`CLIPProcessor`): of the model.
        batch_size (`int`): images of a batch.
        text_mix (mapping from `str` to `float`, *optional*): text types and their weights; all five alike by default.
        per_sample (`bool`, defaults to `False`): whether each image draws its own type of text. By default all images
            of a step, in all processes, have one type, as in BioCLIP 2.
        replay_stream (`ImageTextStream`, *optional*): of general images with captions.
        replay_batch_size (`int`, defaults to 0): general images of a batch.
        deduplicate (`bool`, defaults to `True`): whether a caption that repeats is tokenised and encoded once.
        max_length (`int`, defaults to 77): tokens of a caption; longer ones are cut.
        rank, world_size (`int`): number of this process, and of processes.

    Raises:
        ValueError: for a batch size below 1, an unknown text type, or a replay stream without a batch size.
    """

    def __init__(
        self,
        stream: ImageTextStream,
        processor: CLIPProcessor,
        *,
        batch_size: int,
        text_mix: Mapping[str, float] | None = None,
        per_sample: bool = False,
        replay_stream: ImageTextStream | None = None,
        replay_batch_size: int = 0,
        deduplicate: bool = True,
        max_length: int = 77,
        rank: int = 0,
        world_size: int = 1,
    ):
        mix = dict(text_mix or dict.fromkeys(TEXT_TYPES, 1.0))
        if batch_size < 1 or replay_batch_size < 0 or (replay_stream is None) != (replay_batch_size == 0):
            raise ValueError(
                "Expected batch_size >= 1, and a replay_batch_size above 0 with a replay_stream only, "
                f"got {batch_size} and {replay_batch_size}."
            )
        if set(mix) - set(TEXT_TYPES) or min(mix.values()) < 0 or sum(mix.values()) <= 0:
            raise ValueError(f"Expected weights of {list(TEXT_TYPES)}, none negative, not all 0, got {mix}.")
        self.stream, self.processor, self.batch_size = stream, processor, batch_size
        self.text_types, self.weights = list(mix), np.array(list(mix.values())) / sum(mix.values())
        self.per_sample, self.deduplicate, self.max_length = per_sample, deduplicate, max_length
        self.replay_stream, self.replay_batch_size = replay_stream, replay_batch_size
        self.rank, self.world_size = rank, world_size
        self.states: dict[int, dict[str, Any]] = {}
        self.start = 0

    def go_on(self, states: Mapping[int, dict[str, Any]]) -> None:
        """Continues behind the batches that these states came with.

        Args:
            states (mapping from `int` to `dict`): the last `state` of each worker that gave one, by its number.
        """
        self.states = dict(states)
        self.start = max((state["step"] for state in states.values()), default=-1) + 1

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of this worker."""
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A DataLoader asks its workers in turn from 0; the next batch is that of worker `start % num_workers`.
        worker = (worker + self.start) % num_workers
        state = self.states.get(worker, {"step": worker - num_workers, "num_workers": num_workers, "num_parts": None})
        part, num_parts = self.rank * num_workers + worker, self.world_size * num_workers
        if (state["num_workers"], state["num_parts"] or num_parts) != (num_workers, num_parts):
            raise ValueError(
                f"Expected as many workers and processes as when the state was saved ({state['num_workers']} workers, "
                f"{state['num_parts']} parts), got {num_workers} and {num_parts}."
            )
        taxa = self.stream.iterate(part, num_parts, state.get("stream"))
        general = self.replay_stream and self.replay_stream.iterate(part, num_parts, state.get("replay"))
        step = state["step"]
        while True:
            step += num_workers
            samples = list(islice(taxa, self.batch_size))
            batch = self._collate(samples, self._draw_types(step, len(samples)))
            batch["lineages"] = torch.tensor([_lineage(s.taxon.names) if s.taxon else [0] * 7 for s in samples])
            batch["has_taxa"] = all(sample.taxon is not None for sample in samples)
            after: dict[str, Any] = {"stream": dict(taxa.state)}
            if general:
                replayed = self._collate(list(islice(general, self.replay_batch_size)), [""] * self.replay_batch_size)
                batch |= {f"replay_{name}": value for name, value in replayed.items()}
                after["replay"] = dict(general.state)
            numbers = {"worker": worker, "num_workers": num_workers, "num_parts": num_parts}
            yield {**batch, "state": {**after, **numbers, "step": step}}

    def _draw_types(self, step: int, count: int) -> list[str]:
        """One type for all images of a step in all processes, or one for each image."""
        key = (self.stream.seed, step, self.rank) if self.per_sample else (self.stream.seed, step)
        drawn = np.random.default_rng(key).choice(len(self.weights), count if self.per_sample else 1, p=self.weights)
        return [self.text_types[number] for number in drawn] * (1 if self.per_sample else count)

    def _collate(self, samples: Sequence[Sample], text_types: Sequence[str]) -> Batch:
        texts = [clean_text(sample.caption(kind)) for sample, kind in zip(samples, text_types, strict=True)]
        distinct = list(dict.fromkeys(texts)) if self.deduplicate else texts
        row = {text: number for number, text in enumerate(distinct)}
        index = [row[text] for text in texts] if self.deduplicate else list(range(len(texts)))
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(distinct, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        pixels = self.processor.image_processor([sample.image for sample in samples], return_tensors="pt")
        return {
            "pixel_values": pixels["pixel_values"],
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "text_index": torch.tensor(index),
            "num_cut": count_cut(tokens),
        }


@lru_cache(maxsize=1 << 16)
def _lineage(names: tuple[str, ...]) -> list[int]:
    """A 63-bit number for each prefix of a path, the same in all processes."""
    prefixes = ("\x1f".join(names[: depth + 1]) for depth in range(len(RANKS)))
    digests = (hashlib.blake2b(prefix.encode(), digest_size=8).digest() for prefix in prefixes)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]
