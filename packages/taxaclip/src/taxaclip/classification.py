"""Zero-shot classification of images into taxa: at one rank, or at the lowest rank that is certain enough."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.clades import Within
from taxaclip.functional import greedy_path
from taxaclip.images import ImageInput, embed_images, read_batches
from taxaclip.index import RankScores, TaxonIndex
from taxaclip.taxonomy import RANKS

Row = dict[str, Any]


class TaxonClassifier:
    """Classifies images by the taxa of an index.

    Args:
        model (`CLIPModel`): the CLIP whose texts the index holds; used as it is, on its device.
        processor (`CLIPProcessor`): its processor.
        index (`TaxonIndex`): taxa to choose from.

    Raises:
        ValueError: if model and index differ in the size of their embeddings.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    >>> from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    >>> from taxaclip import TaxonClassifier, TaxonIndex, TaxonPath
    >>> tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=2)).eval()
    >>> processor = CLIPProcessor(CLIPImageProcessorPil(), CLIPTokenizer())
    >>> bee = TaxonPath(("Animalia", "", "", "", "", "Apis", "mellifera"))
    >>> classifier = TaxonClassifier(model, processor, TaxonIndex([bee], torch.ones(1, 2), logit_scale=100.0))
    >>> (rows,) = classifier.predict([Image.new("RGB", (224, 224))], rank="auto")
    >>> rows[0]["species"], rows[0]["score"]
    ('Apis mellifera', 1.0)

    ```
    """

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, index: TaxonIndex):
        if model.config.projection_dim != index.embeddings.shape[1]:
            raise ValueError(
                f"Expected an index with embeddings of size {model.config.projection_dim}, as of the model, "
                f"got {index.embeddings.shape[1]}; build it with TaxonIndex.build(model, ...)."
            )
        self.model, self.processor, self.index = model, processor, index

    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        rank: str = "species",
        top_k: int = 5,
        min_confidence: float = 0.9,
        within: Within | None = None,
        batch_size: int = 32,
    ) -> Iterator[list[Row]]:
        """Yields the likeliest taxa of each image, in the order of the images.

        Args:
            images (iterable of paths or `PIL.Image.Image`): the images.
            rank (`str`, defaults to `"species"`): one of `RANKS`; or `"auto"` for the lowest taxon on the way from the
                root, always to the likeliest child, whose probability is at least `min_confidence`.
            top_k (`int`, defaults to 5): taxa for each image; `"auto"` gives one.
            min_confidence (`float`, defaults to 0.9): for `"auto"`, in [0, 1].
            within (*optional*): clades to choose from, as of `TaxonIndex.find`.
            batch_size (`int`, defaults to 32): images at a time.

        Yields:
            list of `dict`: the columns `file_name`, the seven ranks (names below the given rank are `""`),
            `species_epithet` and `species` (genus and epithet), `common_name`, `rank`, `score` (probability) and
            `max_cosine`; no row where nothing is certain enough; one row of `file_name` and `error` where an image
            cannot be read.

        Raises:
            ValueError: for an unknown rank or clade, or a number out of range.
        """
        if rank not in (*RANKS, "auto"):
            raise ValueError(f"Unknown rank {rank!r}; choose from {[*RANKS, 'auto']}.")
        if top_k < 1 or batch_size < 1 or not 0 <= min_confidence <= 1:
            raise ValueError(
                "Expected top_k >= 1, batch_size >= 1 and min_confidence in [0, 1], "
                f"got {top_k}, {batch_size} and {min_confidence}."
            )
        self.index.find(within)
        return self._predict(images, rank, top_k, min_confidence, within, batch_size)

    def _predict(
        self, images: Iterable[ImageInput], rank: str, top_k: int, least: float, within: Within | None, size: int
    ) -> Iterator[list[Row]]:
        for names, pictures in read_batches(images, size):
            embeds = embed_images(self.model, self.processor, pictures) if pictures else None
            scores = None if embeds is None else self.index.score(embeds, within)
            number = 0
            for name, error in names:
                if scores is None or error is not None:
                    yield [{"file_name": name, "error": error}]
                    continue
                rows = self._auto(scores, number, least) if rank == "auto" else self._top(scores, number, rank, top_k)
                cosine = float(scores.max_cosine[number])
                yield [{"file_name": name, **row, "max_cosine": cosine} for row in rows]
                number += 1

    def _top(self, scores: RankScores, number: int, rank: str, top_k: int) -> list[Row]:
        probs = scores.probs[rank][number]
        order = torch.argsort(probs, descending=True, stable=True)[:top_k]
        return [self._row(int(scores.first_rows[rank][group]), rank, float(probs[group])) for group in order.tolist()]

    def _auto(self, scores: RankScores, number: int, least: float) -> list[Row]:
        one = {rank: probs[number : number + 1] for rank, probs in scores.probs.items()}
        path = greedy_path(one, scores.offsets)[0].tolist()
        rows: list[Row] = []
        for rank, group in zip(RANKS, path, strict=True):
            row, prob = int(scores.first_rows[rank][group]), float(one[rank][0, group])
            if prob >= least and self.index.names(row)[RANKS.index(rank)]:  # an unknown name is passed through
                rows = [self._row(row, rank, prob)]
        return rows

    def _row(self, row: int, rank: str, score: float) -> Row:
        depth = RANKS.index(rank) + 1
        names = [name if column < depth else "" for column, name in enumerate(self.index.names(row))]
        genus, epithet = names[-2:]
        return {
            **dict(zip(RANKS[:-1], names, strict=False)),
            "species_epithet": epithet,
            "species": f"{genus} {epithet}".strip() if epithet else "",
            "common_name": self.index.common_name(row) if rank == "species" else "",
            "rank": rank,
            "score": score,
        }
