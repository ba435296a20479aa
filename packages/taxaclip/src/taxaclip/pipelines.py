"""The task `"taxon-classification"` of `transformers.pipeline`, registered when asked for and not at import."""

from pathlib import Path
from typing import Any

from transformers import CLIPModel, Pipeline
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.pipelines import PIPELINE_REGISTRY

from taxaclip.classification import Row, TaxonClassifier
from taxaclip.images import embed_pixels, read_image
from taxaclip.index import TaxonIndex

TASK = "taxon-classification"
OPTIONS = ("rank", "top_k", "min_confidence", "within")


class TaxonClassificationPipeline(Pipeline):
    """Images to rows of taxa, as a pipeline of transformers: made by `pipeline("taxon-classification", ...)`.

    Images are resized by PIL, as open_clip does. Where torchvision is installed, transformers loads processors that
    resize by it, up to a grey level differently; a `CLIPImageProcessor` of that kind is replaced.

    Args:
        index (`TaxonIndex`, `str` or `Path`): the index, or its folder.
        kwargs: what every pipeline takes (`model`, `image_processor`, `device`, `batch_size`), and the options of
            `TaxonClassifier.predict`: `rank`, `top_k`, `min_confidence`, `within`. They may be given in a call, too.

    Raises:
        ValueError: for an unknown rank or clade, a number out of range, or an index of another model's size.
    """

    model: CLIPModel
    image_processor: Any
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, index: TaxonIndex | str | Path, **kwargs: Any):
        self.index = index if isinstance(index, TaxonIndex) else TaxonIndex.from_pretrained(index)
        super().__init__(*args, **kwargs)
        if type(self.image_processor).__name__ == "CLIPImageProcessor":
            self.image_processor = CLIPImageProcessorPil.from_dict(self.image_processor.to_dict())
        self.classifier = TaxonClassifier(self.model, None, self.index)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := sorted(kwargs.keys() - {*OPTIONS, "timeout"}):
            raise TypeError(f"Unexpected options {unknown} of {TASK!r}; it takes {', '.join(OPTIONS)} and timeout.")
        options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
        return {name: kwargs[name] for name in ("timeout",) if name in kwargs}, options, {}

    def preprocess(self, image: Any, timeout: Any = None) -> dict[str, Any]:  # type: ignore[override]
        """Returns the pixels of an image.

        Args:
            image (`str` or `PIL.Image.Image`): path, URL or picture.
            timeout (`float`, *optional*): seconds to wait for a URL.
        """
        picture = read_image(load_image(image, timeout=timeout))
        return {"pixel_values": self.image_processor(picture, return_tensors="pt")["pixel_values"]}

    def _forward(self, model_inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        embeds = embed_pixels(self.model, model_inputs["pixel_values"])
        return {"rows": [{"rows": rows} for rows in self.classifier.rows(embeds, **options)]}

    def postprocess(self, model_outputs: Any) -> list[Row]:  # type: ignore[override]
        """Returns the rows of one image.

        Args:
            model_outputs (`dict`): of one image, or of a batch of one.
        """
        found = model_outputs["rows"]
        rows: list[Row] = (found[0] if isinstance(found, list) else found)["rows"]
        return rows


def register_pipeline() -> None:
    """Makes `"taxon-classification"` a task of `transformers.pipeline`. Calling it again changes nothing.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from transformers import CLIPConfig, CLIPModel, pipeline
    >>> from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    >>> from taxaclip import TaxonIndex, TaxonPath, register_pipeline
    >>> register_pipeline()
    >>> tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=2)).eval()
    >>> bee = TaxonPath(("Animalia", "", "", "", "", "Apis", "mellifera"))
    >>> index = TaxonIndex([bee], torch.ones(1, 2), logit_scale=9)
    >>> classify = pipeline("taxon-classification", model, image_processor=CLIPImageProcessorPil(), index=index)
    >>> classify(Image.new("RGB", (224, 224)), rank="genus")[0]["genus"]
    'Apis'

    ```
    """
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=TaxonClassificationPipeline, pt_model=CLIPModel)
