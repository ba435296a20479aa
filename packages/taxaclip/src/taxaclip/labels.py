"""Zero-shot classification by labels of one's own, which may be summed into bins."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.images import ImageInput, check_several, embed_images, read_batches
from taxaclip.texts import TEMPLATES, embed_names

Row = dict[str, Any]


class LabelClassifier:
    """Classifies images by any labels.

    Args:
        model (`CLIPModel`): any CLIP; used as it is, on its device.
        processor (`CLIPProcessor`): its processor.
        labels (sequence of `str`): distinct labels; they may hold commas.
        templates (sequence of `str`, defaults to `("a photo of {}.",)`): prompts with one `{}` each; the embeddings of
            several are averaged.
        bins (mapping from `str` to `str`, *optional*): the bin of every label; probabilities are summed in bins.

    Raises:
        ValueError: for no or repeated labels, one string instead of several, or a label without a bin.

    Example:

    ```python
    >>> from taxaclip import LabelClassifier
    >>> LabelClassifier(None, None, ["bee", "bee"])
    Traceback (most recent call last):
        ...
    ValueError: Expected distinct labels, at least one, got 'bee' more than once.

    ```
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPProcessor,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        bins: Mapping[str, str] | None = None,
    ):
        if isinstance(labels, str):
            raise ValueError(f"Expected a list of labels, got the string {labels!r}; write [{labels!r}] for one.")
        repeated = next((label for label, count in Counter(labels).items() if count > 1), None)
        if not labels or repeated is not None:
            got = "none" if repeated is None else f"{repeated!r} more than once"
            raise ValueError(f"Expected distinct labels, at least one, got {got}.")
        if bins is not None and (missing := [label for label in labels if not bins.get(label)]):
            raise ValueError(f"Expected a bin for every label, got none for {missing[:5]}.")
        self.model, self.processor = model, processor
        embeds = embed_names(model, processor, labels, templates=templates)
        self.embeddings = torch.nn.functional.normalize(embeds, dim=-1)
        bin_of = list(labels) if bins is None else [bins[label] for label in labels]
        self.classes = list(dict.fromkeys(bin_of))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._bin = torch.tensor([numbers[name] for name in bin_of])

    def predict(self, images: Iterable[ImageInput], *, top_k: int = 5, batch_size: int = 32) -> Iterator[list[Row]]:
        """Yields the likeliest labels, or bins, of each image, in the order of the images.

        Args:
            images (iterable): paths, folders, `PIL.Image.Image`s, bytes, or rows of a data set or a stream of
                `datasets` with a column `image`.
            top_k (`int`, defaults to 5): labels for each image.
            batch_size (`int`, defaults to 32): images at a time.

        Yields:
            list of `dict` with `file_name`, `classification` and `score` (probability); one of `file_name` and
            `error` where an image cannot be read.

        Raises:
            ValueError: for a number below 1.
            TypeError: for one image instead of several.
        """
        check_several(images)
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"`top_k` and `batch_size` must be at least 1, got {top_k} and {batch_size}.")
        return self._predict(images, top_k, batch_size)

    def _predict(self, images: Iterable[ImageInput], top_k: int, batch_size: int) -> Iterator[list[Row]]:
        for names, pictures in read_batches(images, batch_size):
            rows = iter(self.rows(embed_images(self.model, self.processor, pictures), top_k=top_k))
            for name, error in names:
                if error is None:
                    yield [{"file_name": name, **row} for row in next(rows)]
                else:
                    yield [{"file_name": name, "error": error}]

    def rows(self, image_embeds: torch.Tensor, *, top_k: int = 5) -> list[list[Row]]:
        """Returns the rows of `predict`, without `file_name`, for images that are embedded already.

        Args:
            image_embeds (`torch.Tensor` of shape `(num_images, dim)`): embeddings of any length.
            top_k (`int`, defaults to 5): labels for each image.

        Raises:
            ValueError: for embeddings that are not finite, or a `top_k` below 1.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        if not bool(image_embeds.isfinite().all()):
            raise ValueError("Expected finite image embeddings, got others; check model and dtype.")
        results = []
        for probs in self._score(image_embeds):
            order = torch.argsort(probs, descending=True, stable=True)[:top_k].tolist()
            results.append([{"classification": self.classes[n], "score": float(probs[n])} for n in order])
        return results

    def _score(self, embeds: torch.Tensor) -> torch.Tensor:
        """Probabilities of the classes, (num_images, num_classes)."""
        unit = torch.nn.functional.normalize(embeds.float().cpu(), dim=-1)
        probs = (self.model.logit_scale.exp().cpu() * unit @ self.embeddings.T).softmax(dim=1).detach()
        return probs.new_zeros(len(probs), len(self.classes)).index_add_(1, self._bin, probs)
