"""Zero-shot classification of images into taxa: at one rank, or at the lowest rank that is certain enough."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.clades import Within
from taxaclip.functional import greedy_path
from taxaclip.functional import top_k as largest
from taxaclip.images import ImageInput, check_several, embed_images, read_batches
from taxaclip.index import RankScores, TaxonIndex
from taxaclip.taxonomy import RANKS

Row = dict[str, Any]


class TaxonClassifier:
    """Classifies images by the taxa of an index.

    Args:
        model (`CLIPModel`): the CLIP whose texts the index holds; used as it is, on its device.
        processor (`CLIPProcessor`): its processor; only `predict` needs it.
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

    def __init__(self, model: CLIPModel, processor: CLIPProcessor | None, index: TaxonIndex):
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
            images (iterable): paths, folders, `PIL.Image.Image`s, bytes, or rows of a data set or a stream of
                `datasets` with a column `image`.
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
            TypeError: for one image instead of several.
        """
        check_several(images)
        options = self._check(rank, top_k, min_confidence, within)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if self.processor is None:
            raise ValueError("Expected a classifier with a processor to predict from images; `rows` takes embeddings.")
        return self._predict(images, options, batch_size)

    def _check(self, rank: str, top_k: int, min_confidence: float, within: Within | None) -> dict[str, Any]:
        if rank not in (*RANKS, "auto"):
            raise ValueError(f"Unknown rank {rank!r}; choose from {[*RANKS, 'auto']}.")
        if top_k < 1 or not 0 <= min_confidence <= 1:
            raise ValueError(f"Expected top_k >= 1 and min_confidence in [0, 1], got {top_k} and {min_confidence}.")
        self.index.find(within)
        return {"rank": rank, "top_k": top_k, "min_confidence": min_confidence, "within": within}

    def _predict(self, images: Iterable[ImageInput], options: dict[str, Any], size: int) -> Iterator[list[Row]]:
        assert self.processor is not None
        for names, pictures in read_batches(images, size):
            rows = iter(self.rows(embed_images(self.model, self.processor, pictures), **options))
            for name, error in names:
                if error is None:
                    yield [{"file_name": name, **row} for row in next(rows)]
                else:
                    yield [{"file_name": name, "error": error}]

    def rows(
        self,
        image_embeds: torch.Tensor,
        *,
        rank: str = "species",
        top_k: int = 5,
        min_confidence: float = 0.9,
        within: Within | None = None,
    ) -> list[list[Row]]:
        """Returns the rows of `predict`, without `file_name`, for images that are embedded already.

        Args:
            image_embeds (`torch.Tensor` of shape `(num_images, dim)`): their embeddings.
            rank, top_k, min_confidence, within (*optional*): as of `predict`.

        Raises:
            ValueError: for an unknown rank or clade, a number out of range, or embeddings that are not finite.
        """
        self._check(rank, top_k, min_confidence, within)
        scores = self.index.score(image_embeds, within)
        results = []
        for number, cosine in enumerate(scores.max_cosine.tolist()):
            if rank == "auto":
                rows = self._auto(scores, number, min_confidence)
            else:
                rows = self._top(scores, number, rank, top_k)
            results.append([{**row, "max_cosine": cosine} for row in rows])
        return results

    def _top(self, scores: RankScores, number: int, rank: str, top_k: int) -> list[Row]:
        probs = scores.probs[rank][number]
        groups = largest(probs, top_k).tolist()
        return [self._row(int(scores.first_rows[rank][group]), rank, float(probs[group])) for group in groups]

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
