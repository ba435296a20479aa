"""pybioclip's classifiers by their names, arguments and columns: replace `from bioclip import ...` by this module.

Scores are sums over all taxa of a group (pybioclip leaves out those of `min_prob` or less), a list is answered image
by image also where a path comes twice, and custom labels use the prompts in `templates` instead of 80 fixed ones.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from taxaclip.classification import TaxonClassifier
from taxaclip.convert import from_pretrained
from taxaclip.images import embed_images, embed_pixels, read_image
from taxaclip.index import TaxonIndex
from taxaclip.labels import LabelClassifier
from taxaclip.taxonomy import RANKS
from taxaclip.texts import TEMPLATES

MODEL = "hf-hub:imageomics/bioclip-2"
# The models that have published embeddings of taxa, and where; pybioclip squashes images for these.
TREE_OF_LIFE = {
    "imageomics/bioclip": "imageomics/TreeOfLife-10M",
    "imageomics/bioclip-2": "imageomics/TreeOfLife-200M",
}
EMBEDDINGS = ("embeddings/txt_emb_species.npy", "embeddings/txt_emb_species.json")

Images = str | Path | Image.Image | Sequence[str | Path | Image.Image]
Row = dict[str, Any]


class Rank(Enum):
    """The ranks, from the root."""

    KINGDOM = 0
    PHYLUM = 1
    CLASS = 2
    ORDER = 3
    FAMILY = 4
    GENUS = 5
    SPECIES = 6


class _Classifier:
    """What the three classifiers share: a model, and the embeddings of images.

    Args:
        model_str (`str`): `"hf-hub:"` and an id, an id, a folder or a file of a CLIP.
        pretrained_str (`str`, *optional*): the tokenizer, for a model without one (in pybioclip: a tag of weights).
        device (`str` or `torch.device`, defaults to `"cpu"`): where the model runs.
        squash (`bool`, *optional*): whether images are squashed to a square in float arithmetic, as pybioclip does for
            the models in `TREE_OF_LIFE`; by default for these.
    """

    def __init__(
        self,
        model_str: str = MODEL,
        pretrained_str: str | None = None,
        device: str | torch.device = "cpu",
        *,
        squash: bool | None = None,
    ):
        name = model_str.removeprefix("hf-hub:")
        self.model: CLIPModel
        self.processor: CLIPProcessor
        self.model, self.processor = from_pretrained(name, tokenizer=pretrained_str)
        self.model.eval().to(device)
        self.squash = name in TREE_OF_LIFE if squash is None else squash

    def create_image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Returns the normalised embeddings of images, `(num_images, dim)`.

        Args:
            images (sequence of `PIL.Image.Image`): the images.
        """
        pictures = [read_image(image) for image in images]
        if not self.squash:
            return embed_images(self.model, self.processor, pictures)
        size = int(self.model.vision_model.embeddings.image_size)
        return embed_pixels(self.model, squash_images(pictures, size, self.processor))

    def _embed(self, images: Images, batch_size: int) -> tuple[list[str], torch.Tensor]:
        """File names, or places in the list for pictures, and embeddings."""
        listed = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
        names = [str(place) if isinstance(image, Image.Image) else str(image) for place, image in enumerate(listed)]
        parts = [
            self.create_image_features([read_image(image) for image in listed[at : at + batch_size]])
            for at in range(0, len(listed), batch_size)
        ]
        return names, torch.cat(parts) if parts else torch.zeros(0, self.model.visual_projection.out_features)


class TreeOfLifeClassifier(_Classifier):
    """Classifies images by the taxa of the tree of life, or of an index.

    Args:
        index (`TaxonIndex`, `str` or `Path`, *optional*): the taxa; by default the published embeddings of BioCLIP or
            BioCLIP 2 are downloaded, 2.7 GB for the latter.
        kwargs: `model_str`, `pretrained_str`, `device`, `squash`.

    Raises:
        ValueError: for another model without an index.

    Example:

    ```python
    >>> from taxaclip.compat.pybioclip import Rank, TreeOfLifeClassifier
    >>> TreeOfLifeClassifier(model_str="./nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected an open_clip checkpoint: a file, or a folder with open_clip_model.safetensors or ...

    ```
    """

    def __init__(self, *, index: TaxonIndex | str | Path | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if index is None:
            name = kwargs.get("model_str", MODEL).removeprefix("hf-hub:")
            if name not in TREE_OF_LIFE:
                raise ValueError(
                    f"Expected an `index` for {name}: only {', '.join(TREE_OF_LIFE)} have a published one."
                )
            files = (hf_hub_download(TREE_OF_LIFE[name], file, repo_type="dataset") for file in EMBEDDINGS)
            index = TaxonIndex.from_npy(*files)
        self.index = index if isinstance(index, TaxonIndex) else TaxonIndex.from_pretrained(index)
        self._classifier = TaxonClassifier(self.model, None, self.index)

    def predict(
        self, images: Images, rank: Rank = Rank.SPECIES, min_prob: float = 1e-9, k: int = 5, batch_size: int = 10
    ) -> list[Row]:
        """Returns rows of all images: `file_name`, the ranks down to the given one, and `score`.

        Species have `species_epithet`, `species` and `common_name`, too.

        Args:
            images (path, `PIL.Image.Image`, or a list of them): the images; a picture's `file_name` is its place.
            rank (`Rank`, defaults to `Rank.SPECIES`): the rank.
            min_prob (`float`, defaults to 1e-9): groups above the species with a smaller score are left out.
            k (`int`, defaults to 5): rows for each image at most.
            batch_size (`int`, defaults to 10): images at a time.
        """
        names, embeds = self._embed(images, batch_size)
        label = RANKS[rank.value]
        columns = list(RANKS[: rank.value + 1])
        if rank is Rank.SPECIES:
            columns = [*RANKS[:-1], "species_epithet", "species", "common_name"]
        results: list[Row] = []
        for at in range(0, len(names), batch_size):
            part = self._classifier.rows(embeds[at : at + batch_size], rank=label, top_k=k)
            for name, rows in zip(names[at : at + batch_size], part, strict=True):
                kept = [row for row in rows if rank is Rank.SPECIES or row["score"] >= min_prob]
                results += [{"file_name": name, **{c: row[c] for c in columns}, "score": row["score"]} for row in kept]
        return results


class CustomLabelsClassifier(_Classifier):
    """Classifies images by labels of one's own.

    Args:
        cls_ary (sequence of `str`): the labels.
        templates (sequence of `str`): prompts with one `{}` each.
        kwargs: `model_str`, `pretrained_str`, `device`, `squash`.

    Example:

    ```python
    >>> from taxaclip.compat.pybioclip import CustomLabelsClassifier
    >>> CustomLabelsClassifier(["bee", "wasp"], model_str="./nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected an open_clip checkpoint: a file, or a folder with open_clip_model.safetensors or ...

    ```
    """

    def __init__(
        self,
        cls_ary: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        bins: Mapping[str, str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        labels = [label.strip() for label in cls_ary]
        self._labels = LabelClassifier(self.model, self.processor, labels, templates=templates, bins=bins)

    def predict(self, images: Images, k: int | None = None, batch_size: int = 10) -> list[Row]:
        """Returns rows of all images: `file_name`, `classification` and `score`.

        Args:
            images (path, `PIL.Image.Image`, or a list of them): the images; a picture's `file_name` is its place.
            k (`int`, *optional*): rows for each image; all by default.
            batch_size (`int`, defaults to 10): images at a time.
        """
        names, embeds = self._embed(images, batch_size)
        rows = self._labels.rows(embeds, top_k=k or len(self._labels.classes))
        return [{"file_name": name, **row} for name, part in zip(names, rows, strict=True) for row in part]


class CustomLabelsBinningClassifier(CustomLabelsClassifier):
    """Classifies images by bins of labels.

    Args:
        cls_to_bin (mapping from `str` to `str`): the bin of each label.
        kwargs: of `CustomLabelsClassifier`.

    Example:

    ```python
    >>> from taxaclip.compat.pybioclip import CustomLabelsBinningClassifier
    >>> CustomLabelsBinningClassifier({"bee": "flies", "ant": "walks"}, model_str="./nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: Expected an open_clip checkpoint: a file, or a folder with open_clip_model.safetensors or ...

    ```
    """

    def __init__(self, cls_to_bin: Mapping[str, str], **kwargs: Any):
        bins = {label.strip(): name for label, name in cls_to_bin.items()}
        super().__init__(list(bins), bins=bins, **kwargs)


def squash_images(images: Sequence[Image.Image], size: int, processor: CLIPProcessor) -> torch.Tensor:
    """Returns images squashed to a square by bilinear interpolation with antialiasing, in float, and normalised.

    Args:
        images (sequence of `PIL.Image.Image`): RGB images.
        size (`int`): height and width, in pixels.
        processor (`CLIPProcessor`): whose image processor has mean and standard deviation.
    """
    squashed = []
    for image in images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        squashed.append(torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True))
    mean, std = (torch.tensor(values)[:, None, None] for values in _moments(processor))
    return (torch.cat(squashed) - mean) / std


def _moments(processor: CLIPProcessor) -> tuple[list[float], list[float]]:
    return list(processor.image_processor.image_mean), list(processor.image_processor.image_std)
