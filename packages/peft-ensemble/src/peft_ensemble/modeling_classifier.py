"""Image classifiers of vision foundation models: transformers' own head, or one on the class token."""

import logging
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .structure import find_structure

Pooling = Literal["native", "cls"]


class ClassTokenClassifier(PreTrainedModel):
    """A linear classifier on the class token of a vision model, behind its final norm.

    Heads of transformers differ: DINOv2 reads the class token and the mean of the patches, CLIP the mean of the
    patches, and DINOv3 has no classifier. Both papers read the class token of every backbone, as timm does.

    Args:
        backbone: a headless vision model whose first token is a class token.
        num_labels: number of classes.

    Example:

    ```python
    >>> from transformers import DINOv3ViTConfig, DINOv3ViTModel
    >>> config = DINOv3ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = ClassTokenClassifier(DINOv3ViTModel(config), num_labels=3)
    >>> model(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape
    torch.Size([2, 3])

    ```
    """

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    base_model_prefix = "backbone"

    def __init__(self, backbone: PreTrainedModel, num_labels: int):
        super().__init__(backbone.config)
        if find_structure(backbone).num_prefix_tokens == 0:
            raise ValueError(f"{type(backbone).__name__} has no class token; use pooling='native'")
        self.num_labels = num_labels
        self.config.num_labels = num_labels
        self.backbone = backbone
        config: Any = backbone.config
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Logits `(batch_size, num_labels)`, and the cross-entropy if there are labels.

        `num_items_in_batch` comes from the Trainer when it accumulates gradients: the loss is then a sum over this
        batch, divided by the number of images in all of them.
        """
        output = self.backbone(pixel_values, **kwargs)
        # CLIP norms its class token only on the way to the pooled output, which is nothing but that.
        is_clip = type(self.backbone).__name__ == "CLIPVisionModel"
        features = output.pooler_output if is_clip else output.last_hidden_state[:, 0]
        logits = self.classifier(features.to(self.classifier.weight.dtype))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


def load_classifier(
    backbone: str, num_labels: int, pooling: Pooling = "native", seed: int = 0, **kwargs: Any
) -> PreTrainedModel:
    """A classifier on a pre-trained vision model, its head new.

    Args:
        backbone: a local folder or a Hub id of a vision model of transformers.
        num_labels: number of classes.
        pooling: `"native"` is the head of transformers (for models without one, such as DINOv3: `"cls"`), `"cls"` a
            linear layer on the class token, as in both papers.
        seed: of the new head. The global random state is left as it was.
        kwargs: go to `from_pretrained`. `dtype` is float32 by default, whatever the checkpoint is stored in: a head
            and adapters in half precision learn badly, and a CPU is slow in it.

    Raises:
        ValueError: an unknown pooling, or `"cls"` for a model without a class token.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> ViTForImageClassification(config).save_pretrained("tiny-vit")
    >>> load_classifier("tiny-vit", num_labels=5, pooling="cls").classifier
    Linear(in_features=32, out_features=5, bias=True)

    ```
    """
    if pooling not in ("native", "cls"):
        raise ValueError(f"pooling must be 'native' or 'cls', got {pooling!r}")
    kwargs = {"dtype": torch.float32, **kwargs}
    config = AutoConfig.from_pretrained(backbone)
    known = type(config) in AutoModelForImageClassification._model_mapping
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if known:
            names = [f"LABEL_{index}" for index in range(num_labels)]
            numbered = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
            options = {**numbered, "ignore_mismatched_sizes": True, **kwargs}
            model: PreTrainedModel = _load(AutoModelForImageClassification, backbone, **options)
            _renew(model.classifier)
            if pooling == "native":
                return model
            return ClassTokenClassifier(_headless(model), num_labels)
        return ClassTokenClassifier(_load(AutoModel, backbone, **kwargs), num_labels)


def _load(auto_class: Any, backbone: str, **kwargs: Any) -> Any:
    """A pre-trained model, without transformers' report that its head is new, which is meant; other gaps are reported.

    Raises:
        ValueError: the checkpoint lacks weights of the backbone, which would be random.
    """
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_report)
    try:
        model, info = auto_class.from_pretrained(backbone, output_loading_info=True, **kwargs)
    finally:
        log.removeFilter(_is_no_report)
    names = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    if gaps := sorted(name for name in names if name.split(".")[0] != "classifier" and "pooler" not in name):
        raise ValueError(
            f"expected the weights of a whole {type(model).__name__} in {backbone}, but {len(gaps)} are missing or of "
            f"another shape, such as {gaps[0]}; they would be random"
        )
    return model


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _renew(head: Any) -> None:
    """Give a classifier new weights, whatever the checkpoint had there."""
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)


def _headless(model: Any) -> Any:
    """The vision model inside a classifier of transformers."""
    return model.vision_model if hasattr(model, "vision_model") else getattr(model, model.base_model_prefix)
