"""An index of taxa: text embeddings sorted by path, on disk and memory-mapped, so that a clade is a slice."""

import difflib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor
from transformers.utils.logging import tqdm

from taxaclip.functional import rank_offsets, rank_sums
from taxaclip.taxonomy import RANKS, TaxonPath, clean_text, sort_taxa

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
TEMPLATES = ("a photo of {}.",)
FILES = ("index.safetensors", "ranks.safetensors", "taxonomy.arrow", "meta.json")
CHUNK = 65536  # rows that are in float32 at a time

logger = logging.getLogger(__name__)

Within = str | Sequence[str] | Mapping[str, str | Sequence[str]]


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
        dtype (`str`, defaults to `"float16"`): how embeddings are stored: `"float32"`, `"float16"` or `"int8"`.
        source (`dict`, *optional*): where the embeddings come from, for `meta.json`.

    Raises:
        ValueError: if there are not as many embeddings as taxa, or one of them is zero or not finite.

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
        norms = embeddings.float().norm(dim=1)
        if bad := torch.nonzero(~norms.isfinite() | (norms < 1e-6)).flatten().tolist():
            named = ", ".join(taxa[i].scientific_name for i in bad[:5])
            raise ValueError(
                f"{len(bad)} embeddings are zero or not finite ({named}); embed these taxa, or leave them out."
            )
        order = sort_taxa(taxa)
        unit = embeddings.float()[order] / norms[order, None]
        self.scale = unit.abs().amax(dim=1) / 127 if dtype == "int8" else None
        self.embeddings = (
            (unit / self.scale[:, None]).round().to(torch.int8) if self.scale is not None else unit.to(DTYPES[dtype])
        )
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

        Raises:
            ValueError: for templates without one `{}`.
        """
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError(f"Expected templates with one '{{}}' each, got {list(templates)}.")
        texts = [taxon.describe(text_type) for taxon in taxa]
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        prompts = [clean_text(template.format(text)) for text in distinct for template in templates]
        chunks = [prompts[at : at + batch_size] for at in range(0, len(prompts), batch_size)]
        embeds = torch.cat([embed_texts(model, processor, chunk) for chunk in tqdm(chunks, desc="taxa", disable=None)])
        embeds = embeds.unflatten(0, (len(distinct), len(templates))).mean(dim=1)
        row = {text: number for number, text in enumerate(distinct)}
        source = {"model": model.config._name_or_path, "templates": list(templates), "text_type": text_type}
        scale = model.logit_scale.exp().item()
        return cls(taxa, embeds[[row[text] for text in texts]], logit_scale=scale, dtype=dtype, source=source)

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
        kept = torch.nonzero(embeds.float().norm(dim=1) > 1e-6).flatten().tolist()
        if len(kept) < len(taxa):
            lost = sorted(set(range(len(taxa))) - set(kept))
            named = ", ".join(taxa[i].scientific_name for i in lost[:10])
            logger.warning("%d taxa have an all-zero vector and were left out: %s", len(lost), named)
        return cls(
            [taxa[i] for i in kept], embeds[kept], logit_scale=logit_scale, dtype=dtype, source={"npy": str(npy)}
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
        """Writes the index as safetensors, Arrow and JSON, whole or not at all, and returns the folder.

        Args:
            folder (`str` or `Path`): the folder; an index in it is replaced.

        Raises:
            FileExistsError: if there is something else than an index.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= set(FILES)):
            raise FileExistsError(
                f"Expected a new folder, or one with an index to replace, got {folder}; name another."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        tensors = {"embeddings": self.embeddings, **({"scale": self.scale} if self.scale is not None else {})}
        save_file(tensors, partial / "index.safetensors")
        save_file(self.offsets, partial / "ranks.safetensors")
        with (
            pa.OSFile(str(partial / "taxonomy.arrow"), "wb") as file,
            pa.ipc.new_file(file, self.table.schema) as writer,
        ):
            writer.write_table(self.table)
        meta = {"logit_scale": self.logit_scale, "source": self.source}
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if folder.exists():  # moved aside first, so that one of the two is always whole
            old = partial.with_name(f"{partial.name}-old")
            folder.replace(old)
            partial.replace(folder)
            shutil.rmtree(old)
        else:
            partial.replace(folder)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TaxonIndex":
        """Returns the index of a folder; embeddings and names stay on disk until they are needed.

        Args:
            folder (`str` or `Path`): written by `save_pretrained`.

        Raises:
            FileNotFoundError: if a file of the index is missing.
        """
        folder = Path(folder)
        for name in FILES:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"Expected a taxon index in {folder}, but {name} is missing; write it by save_pretrained."
                )
        index = cls.__new__(cls)
        with safe_open(folder / "index.safetensors", "pt") as file:
            index.embeddings = file.get_tensor("embeddings")
            index.scale = file.get_tensor("scale") if "scale" in file.keys() else None  # noqa: SIM118
        with safe_open(folder / "ranks.safetensors", "pt") as file:
            index.offsets = {rank: file.get_tensor(rank) for rank in RANKS}
        index.table = pa.ipc.open_file(pa.memory_map(str(folder / "taxonomy.arrow"))).read_all()
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        index.logit_scale, index.source = meta["logit_scale"], meta["source"]
        return index

    def find(self, within: Within | None) -> list[tuple[int, int]]:
        """Returns the row intervals of some clades, sorted and disjoint; the whole index for None.

        Args:
            within (`str`, sequence of `str`, or mapping from rank to names): clades of any ranks, by name.

        Raises:
            ValueError: for an unknown name, with close ones, or a name of several clades, with their paths.
        """
        if within is None:
            return [(0, len(self))]
        intervals = sorted(self._find_one(name, rank) for rank, name in _pairs(within))
        merged = intervals[:1]
        for low, high in intervals[1:]:
            if low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return merged

    def _find_one(self, name: str, rank: str | None) -> tuple[int, int]:
        found = []
        for at in RANKS if rank is None else (rank,):
            starts, column = self.offsets[at], self.table[at].combine_chunks()
            code = pc.index(column.dictionary, name).as_py()
            if code >= 0:
                codes = column.indices.to_numpy()[starts[:-1].numpy()]
                found += [(int(starts[group]), int(starts[group + 1])) for group in np.flatnonzero(codes == code)]
        if not found:
            known = {value for at in RANKS[:-1] for value in self.table[at].combine_chunks().dictionary.to_pylist()}
            close = difflib.get_close_matches(name, known, n=3)
            raise ValueError(
                f"Unknown clade {name!r}{f' at rank {rank}' if rank else ''}; close names: {close or 'none'}."
            )
        if len(set(found)) > 1:
            paths = ["/".join(filter(None, self.names(low))) for low, _ in found[:4]]
            raise ValueError(
                f"{name!r} names {len(found)} clades ({'; '.join(paths)}); give its rank, or a clade within."
            )
        return found[0]

    def score(self, image_embeds: torch.Tensor, within: Within | None = None) -> RankScores:
        """Returns the probabilities of every group at every rank, from one softmax over the taxa.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, dim)`): image embeddings of any length. The logits take
                `batch_size * num_taxa * 4` bytes.
            within (*optional*): clades to choose from, as of `find`; the softmax is over their taxa only.

        Raises:
            ValueError: if the embeddings have another size than the index.
        """
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"Expected image embeddings (batch_size, {self.embeddings.shape[1]}), got {tuple(image_embeds.shape)}."
            )
        intervals = self.find(within)
        unit = torch.nn.functional.normalize(image_embeds.float().cpu(), dim=-1)
        cosines = torch.cat([self._cosines(unit, *interval) for interval in intervals], dim=1)
        offsets, first_rows = self._active(intervals)
        probs = (self.logit_scale * cosines).softmax(dim=1)
        return RankScores(rank_sums(probs, offsets), first_rows, offsets, cosines.amax(dim=1))

    def _cosines(self, unit: torch.Tensor, low: int, high: int) -> torch.Tensor:
        cosines = unit.new_empty(len(unit), high - low)
        for at in range(low, high, CHUNK):
            end = min(at + CHUNK, high)
            rows = self.embeddings[at:end].float()
            if self.scale is not None:
                rows *= self.scale[at:end, None]
            cosines[:, at - low : end - low] = unit @ rows.T
        return cosines

    def _active(self, intervals: Iterable[tuple[int, int]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Returns where groups begin among the rows of these intervals, and a row of the index in each group."""
        intervals = list(intervals)
        offsets, first_rows = {}, {}
        for rank in RANKS:
            starts = self.offsets[rank]
            parts, rows, seen, last = [], [], 0, -1
            for low, high in intervals:
                group = torch.arange(
                    int(torch.searchsorted(starts, low, right=True)) - 1, int(torch.searchsorted(starts, high))
                )
                begins = starts[group].clamp(min=low)
                fresh = group > last  # the first group may have begun in an earlier interval
                parts.append(begins[fresh] - low + seen)
                rows.append(begins[fresh])
                seen, last = seen + high - low, int(group[-1])
            offsets[rank] = torch.cat([*parts, torch.tensor([seen])])
            first_rows[rank] = torch.cat(rows)
        return offsets, first_rows


def _pairs(within: Within) -> list[tuple[str | None, str]]:
    if isinstance(within, str):
        return [(None, within)]
    if not isinstance(within, Mapping):
        return [(None, name) for name in within]
    if unknown := sorted(set(within) - set(RANKS)):
        raise ValueError(f"Unknown ranks {unknown} in `within`; choose from {list(RANKS)}.")
    return [(rank, name) for rank, names in within.items() for name in ([names] if isinstance(names, str) else names)]


@torch.no_grad()
def embed_texts(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> torch.Tensor:
    """Returns the normalised text embeddings, (num_texts, dim), float32, on the CPU.

    Args:
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        texts (sequence of `str`): the texts; those longer than the context are cut.
    """
    length = model.text_model.embeddings.position_embedding.num_embeddings
    inputs = processor.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    inputs = inputs.to(model.device)
    pooled = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    return torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1).cpu()
