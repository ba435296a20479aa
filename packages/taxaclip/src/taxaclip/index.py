"""An index of taxa: text embeddings sorted by path, on disk and memory-mapped, so that a clade is a slice."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.cards import build_index_card
from taxaclip.clades import Interval, Pair, Within, active_groups, find_intervals, read_pairs
from taxaclip.functional import rank_offsets, rank_sums
from taxaclip.index_files import read_index, write_index
from taxaclip.taxonomy import RANKS, TaxonPath, sort_taxa
from taxaclip.texts import TEMPLATES, embed_names

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8, "int8+float16": torch.int8}
CHUNK = 1024  # rows that are in float32 at a time: few enough to stay in the processor's cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankScores:
    """Probabilities of the groups of every rank for some images.

    `probs[rank]` has the shape `(batch_size, num_groups)`; `first_rows[rank]` is a row of the index in each group: its
    names down to the rank are the group's; `offsets[rank]` says where each group begins among the scored taxa.
    `max_cosine` of shape `(batch_size,)` tells an image that fits nothing, which probabilities cannot.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import TaxonIndex, TaxonPath
    >>> bee = TaxonPath(("Animalia", "", "", "", "", "Apis", "mellifera"))
    >>> index = TaxonIndex([bee], torch.ones(1, 2), logit_scale=9)
    >>> index.score(torch.ones(1, 2)).probs["genus"]
    tensor([[1.]])

    ```
    """

    probs: dict[str, torch.Tensor]
    first_rows: dict[str, torch.Tensor]
    offsets: dict[str, torch.Tensor]
    max_cosine: torch.Tensor


class TaxonIndex:
    """Text embeddings of taxa, sorted by path.

    Args:
        taxa (sequence of `TaxonPath`): the taxa, in any order.
        embeddings (`torch.Tensor` of shape `(num_taxa, dim)`): their text embeddings; normalised here.
        logit_scale (`float`): scale of the cosines, `model.logit_scale.exp()`.
        dtype (`str`, defaults to `"float16"`): how embeddings are stored: `"float32"`, `"float16"`, `"int8"`, or
            `"int8+float16"`, where int8 finds the likeliest rows and float16 rows, read from disk, score these again.
        source (`dict`, *optional*): where the embeddings come from, for `meta.json`.

    Raises:
        ValueError: if there are not as many embeddings as taxa, one of them is zero or not finite, or the scale is not
            above 0.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import TaxonIndex, TaxonPath
    >>> bee = TaxonPath(("Animalia", "", "", "", "", "Apis", "mellifera"))
    >>> grass = TaxonPath(("Plantae", "", "", "", "", "Poa", "annua"))
    >>> index = TaxonIndex([grass, bee], torch.eye(2).flip(0), logit_scale=100.0)
    >>> scores = index.score(torch.tensor([[0.9, 0.1]]))
    >>> index.names(scores.first_rows["kingdom"][scores.probs["kingdom"].argmax()])[0]
    'Animalia'

    ```
    """

    _found: tuple[tuple[Pair, ...] | None, list[Interval]] | None = None

    def __init__(
        self,
        taxa: Sequence[TaxonPath],
        embeddings: torch.Tensor,
        *,
        logit_scale: float,
        dtype: str = "float16",
        source: dict[str, Any] | None = None,
    ):
        if embeddings.ndim != 2 or len(embeddings) != len(taxa) or not len(taxa):
            raise ValueError(f"Expected one embedding for each of {len(taxa)} taxa, got {tuple(embeddings.shape)}.")
        if dtype not in DTYPES:
            raise ValueError(f"Unknown dtype {dtype!r}; choose from {list(DTYPES)}.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"Expected a logit_scale above 0, such as model.logit_scale.exp(), got {logit_scale}.")
        norms = embeddings.float().norm(dim=1)
        if bad := torch.nonzero(~norms.isfinite() | (norms < 1e-6)).flatten().tolist():
            named = ", ".join(taxa[i].scientific_name for i in bad[:5])
            raise ValueError(
                f"{len(bad)} embeddings are zero or not finite ({named}); embed these taxa, or leave them out."
            )
        order = sort_taxa(taxa)
        unit = embeddings.float()[order]
        unit /= norms[order, None]
        self.scale = unit.abs().amax(dim=1) / 127 if DTYPES[dtype] == torch.int8 else None
        self.embeddings = (
            (unit / self.scale[:, None]).round().to(torch.int8) if self.scale is not None else unit.to(DTYPES[dtype])
        )
        self.exact = unit.to(torch.float16) if dtype == "int8+float16" else None
        columns = {rank: [taxa[i].names[column] for i in order] for column, rank in enumerate(RANKS)}
        columns |= {name: [getattr(taxa[i], name) for i in order] for name in ("common_name", "subspecies")}
        self.table = pa.table({name: pa.array(values).dictionary_encode() for name, values in columns.items()})
        self.offsets = rank_offsets([taxa[i].names for i in order])
        self.logit_scale = float(logit_scale)
        self.source = source or {}

    @classmethod
    def build(
        cls,
        model: CLIPModel,
        processor: CLIPProcessor,
        taxa: Sequence[TaxonPath],
        *,
        text_type: str = "index",
        templates: Sequence[str] = TEMPLATES,
        batch_size: int = 256,
        dtype: str = "float16",
        parts_dir: Path | None = None,
    ) -> "TaxonIndex":
        """Returns the index of these taxa for a CLIP, with progress.

        Args:
            model (`CLIPModel`): any CLIP.
            processor (`CLIPProcessor`): its processor.
            taxa (sequence of `TaxonPath`): the taxa.
            text_type (`str`, defaults to `"index"`): what stands for a taxon in a prompt, as of `TaxonPath.describe`.
            templates (sequence of `str`, defaults to `("a photo of {}.",)`): prompts with one `{}` each; the
                embeddings of several are averaged.
            batch_size (`int`, defaults to 256): prompts at a time; short ones come together.
            dtype (`str`, defaults to `"float16"`): as of the class.
            parts_dir (`Path`, *optional*): folder in which batches are kept until the end, so that a stopped call with
                the same arguments goes on.

        Raises:
            ValueError: for templates without one `{}`.
        """
        texts = [taxon.describe(text_type) for taxon in taxa]
        embeds = embed_names(model, processor, texts, templates=templates, batch_size=batch_size, parts_dir=parts_dir)
        source = {"model": model.config._name_or_path, "templates": list(templates), "text_type": text_type}
        return cls(taxa, embeds, logit_scale=model.logit_scale.exp().item(), dtype=dtype, source=source)

    @classmethod
    def from_npy(
        cls, npy: str | Path, taxa_json: str | Path, *, logit_scale: float = 100.0, dtype: str = "float16"
    ) -> "TaxonIndex":
        """Returns the index of published TreeOfLife embeddings; taxa whose vector is all zero are left out and logged.

        Args:
            npy (`str` or `Path`): array of shape `(dim, num_taxa)`, opened as a memory map, without pickles.
            taxa_json (`str` or `Path`): list of `[[seven names], common name]`, one for each column.
            logit_scale (`float`, defaults to 100.0): scale of the cosines; 100 for the published models.
            dtype (`str`, defaults to `"float16"`): as of the class.

        Raises:
            ValueError: if the two files do not fit.
        """
        array = np.load(npy, mmap_mode="r", allow_pickle=False)
        entries = json.loads(Path(taxa_json).read_text(encoding="utf-8"))
        if array.ndim != 2 or array.shape[1] != len(entries):
            raise ValueError(
                f"Expected embeddings of shape (dim, {len(entries)}), got {array.shape}; are they transposed?"
            )
        taxa = [TaxonPath(tuple(names), common or "") for names, common in entries]
        embeds = torch.from_numpy(np.ascontiguousarray(array.T))
        norms = embeds.float().norm(dim=1)
        if bad := torch.nonzero(~norms.isfinite()).flatten().tolist():
            named = ", ".join(taxa[i].scientific_name for i in bad[:10])
            raise ValueError(f"{len(bad)} embeddings in {npy} are not finite ({named}); is the file whole?")
        kept = torch.nonzero(norms > 1e-6).flatten().tolist()
        if lost := torch.nonzero(norms <= 1e-6).flatten().tolist():
            named = ", ".join(taxa[i].scientific_name for i in lost[:10])
            logger.warning("%d taxa have an all-zero vector and were left out: %s", len(lost), named)
        return cls(
            [taxa[i] for i in kept],
            embeds[kept] if lost else embeds,
            logit_scale=logit_scale,
            dtype=dtype,
            source={"npy": str(npy)},
        )

    def __len__(self) -> int:
        """Number of taxa."""
        return len(self.table)

    def names(self, row: int | torch.Tensor) -> tuple[str, ...]:
        """Returns the seven names of a taxon.

        Args:
            row (`int`): its row in the index.
        """
        return tuple(self.table[rank][int(row)].as_py() for rank in RANKS)

    def common_name(self, row: int | torch.Tensor) -> str:
        """Returns the common name of a taxon, `""` if it has none.

        Args:
            row (`int`): its row in the index.
        """
        name: str = self.table["common_name"][int(row)].as_py()
        return name

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the index as safetensors, Arrow and JSON, with a card; whole or not at all. Returns the folder.

        Args:
            folder (`str` or `Path`): the folder; an index in it is replaced.

        Raises:
            FileExistsError: if there is something else than an index.
        """
        tensors = {"embeddings": self.embeddings, "scale": self.scale, "exact": self.exact}
        meta = {"logit_scale": self.logit_scale, "source": self.source}
        held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        card = build_index_card(self.table, self.embeddings, self.source)
        write_index(Path(folder), held, self.offsets, self.table, meta, card)
        return Path(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TaxonIndex":
        """Returns the index of a folder; embeddings and names stay on disk until they are needed.

        Args:
            folder (`str` or `Path`): written by `save_pretrained`.

        Raises:
            FileNotFoundError: if a file of the index is missing.
            ValueError: if its files are of different indexes.
        """
        index = cls.__new__(cls)
        tensors, index.offsets, index.table, meta = read_index(Path(folder))
        index.embeddings, index.scale, index.exact = tensors["embeddings"], tensors.get("scale"), tensors.get("exact")
        index.logit_scale, index.source = meta["logit_scale"], meta["source"]
        return index

    def find(self, within: Within | None) -> list[Interval]:
        """Returns the row intervals of some clades, sorted and disjoint; the whole index for None.

        Args:
            within (`str`, sequence of `str`, or mapping from rank to names): clades of any ranks, by name.

        Raises:
            ValueError: for an unknown name, with close ones, or a name of several clades, with their paths.
        """
        pairs = None if within is None else read_pairs(within)
        if self._found is None or self._found[0] != pairs:  # batch after batch asks for the same clades
            self._found = pairs, find_intervals(self.table, self.offsets, within)
        return self._found[1]

    def clades(self, rank: str, within: Within | None = None) -> Iterator[tuple[tuple[str, ...], str, int]]:
        """Yields the clades of a rank in the order of the index.

        Args:
            rank (`str`): one of `RANKS`.
            within (*optional*): clades to look in, as of `find`.

        Yields:
            the names from the kingdom to the rank, the common name (of species only), and the number of taxa.

        Raises:
            ValueError: for an unknown rank or clade.
        """
        if rank not in RANKS:
            raise ValueError(f"Unknown rank {rank!r}; choose from {list(RANKS)}.")
        offsets, first_rows = active_groups(self.offsets, self.find(within))
        depth = RANKS.index(rank) + 1
        for row, count in zip(first_rows[rank].tolist(), offsets[rank].diff().tolist(), strict=True):
            yield self.names(row)[:depth], self.common_name(row) if rank == "species" else "", count

    def score(self, image_embeds: torch.Tensor, within: Within | None = None, *, rescore: int = 4096) -> RankScores:
        """Returns the probabilities of every group at every rank, from one softmax over the taxa.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, dim)`): image embeddings of any length. The logits take
                `batch_size * num_taxa * 4` bytes.
            within (*optional*): clades to choose from, as of `find`; the softmax is over their taxa only.
            rescore (`int`, defaults to 4096): in an index of dtype `"int8+float16"`, how many of the likeliest rows of
                each image are scored again by their float16 rows; the others keep their int8 cosine.

        Raises:
            ValueError: if the embeddings have another size than the index, or are not finite.
        """
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"Expected image embeddings (batch_size, {self.embeddings.shape[1]}), got {tuple(image_embeds.shape)}."
            )
        unit = torch.nn.functional.normalize(image_embeds.float().cpu(), dim=-1)
        if bad := torch.nonzero(~unit.isfinite().all(dim=1)).flatten().tolist():
            raise ValueError(f"Expected finite image embeddings, but rows {bad[:10]} are not; check model and dtype.")
        intervals = self.find(within)
        cosines = torch.cat([self._cosines(unit, *interval) for interval in intervals], dim=1)
        if self.exact is not None and rescore > 0:
            self._rescore(unit, cosines, intervals, rescore)
        offsets, first_rows = active_groups(self.offsets, intervals)
        probs = (self.logit_scale * cosines).softmax(dim=1)
        return RankScores(rank_sums(probs, offsets), first_rows, offsets, cosines.amax(dim=1))

    def _cosines(self, unit: torch.Tensor, low: int, high: int) -> torch.Tensor:
        cosines = unit.new_empty(len(unit), high - low)
        for at in range(low, high, CHUNK):
            end = min(at + CHUNK, high)
            cosines[:, at - low : end - low] = unit @ self.embeddings[at:end].float().T
        return cosines if self.scale is None else cosines * self.scale[low:high]

    def _rescore(self, unit: torch.Tensor, cosines: torch.Tensor, intervals: Sequence[Interval], count: int) -> None:
        """Replaces the largest cosines of each image by those of the float16 rows."""
        assert self.exact is not None
        rows = torch.cat([torch.arange(low, high) for low, high in intervals])
        best = cosines.topk(min(count, len(rows)), dim=1).indices
        for number, columns in enumerate(best):
            cosines[number, columns] = self.exact[rows[columns]].float() @ unit[number]
