"""Maps of words: a concept against another in CLIP, SigLIP and SigLIP2."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from finer_cam import layers
from finer_cam.cam import FinerCAM
from finer_cam.output import FinerCAMOutput
from finer_cam.tail import undisturbed


class _Concepts(nn.Module):
    """An image-text model as a classifier whose logits are cosines with text embeddings `(B, num_texts, D)`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, text_embeds: Tensor, **kwargs: Any) -> Tensor:
        embeds = F.normalize(layers.image_embeds(self.model, pixel_values, kwargs).float(), dim=1)
        return torch.einsum("bd,btd->bt", embeds, text_embeds.to(embeds.device))


class ZeroShotFinerCAM:
    """Maps of what a text says about an image that another text does not, for CLIP, SigLIP and SigLIP2.

    The classes are texts: with z the image embedding and t the text embeddings, all of length 1, the objective
    `z . t_c - gamma * mean z . t_d` is Finer-CAM's (arXiv 2501.11309) with the texts as rows of the classifier. The
    text tower runs once for a text, and is not differentiated; concepts of one call share one forward. Cosines are
    differentiated, not logits, whose scale could overflow in half precision and does not change a map.

    Args:
        model (`CLIPModel`, `SiglipModel` or `Siglip2Model`): it has `get_image_features` and `get_text_features`.
        processor: its processor, for images and texts.
        templates (`Sequence[str]`, defaults to `("{}",)`): sentences around a text, whose embeddings are averaged.
        **options: those of [`FinerCAM`]: target_layer, method, gamma, normalize, clip_outliers, channel_batch_size,
            top_channels.

    Raises:
        ValueError: if the model is none of these, or an option does not apply.

    Example:

    ```python
    >>> import torch
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
    >>> from finer_cam import ZeroShotFinerCAM
    >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "bird": 2, "red": 3, "wing": 4}, "<pad>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    >>> processor = CLIPProcessor(CLIPImageProcessorPil(), tokenizer)
    >>> tower = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    >>> model = CLIPModel(CLIPConfig(text_config=dict(vocab_size=5, eos_token_id=1, bos_token_id=0, **tower),
    ...                              vision_config=dict(image_size=32, patch_size=8, **tower)))
    >>> cam = ZeroShotFinerCAM(model, processor)
    >>> out = cam(pixel_values=torch.randn(2, 3, 32, 32), target=["red wing", "wing"], against="bird")
    >>> out.maps.shape
    torch.Size([2, 2, 32, 32])

    ```
    """

    def __init__(self, model: nn.Module, processor: Any, *, templates: Sequence[str] = ("{}",), **options: Any):
        self.model = layers.unwrap(model)
        if not layers.has_texts(self.model):
            raise ValueError(
                "`model` must have `get_image_features` and `get_text_features` as CLIPModel has, but "
                f"{type(self.model).__name__} has not; use `FinerCAM` for classifiers."
            )
        if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
            raise ValueError(f"`templates` must be sentences with '{{}}' for the text, got {templates!r}.")
        refused = sorted({"references", "num_references", "weighting", "processor"} & options.keys())
        if refused:
            raise ValueError(f"{refused} do not apply: references are the texts of `against`, weighted equally.")
        _, layer = layers.get_target_layer(self.model, options.pop("target_layer", "auto"))
        self.processor, self.templates = processor, tuple(templates)
        self._cam = FinerCAM(
            _Concepts(self.model), target_layer=layer, num_references=0, processor=processor, **options
        )
        self._text_embeds: dict[str, Tensor] = {}

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        *,
        target: str | Sequence[str],
        against: str | Sequence[str] | None = None,
        gamma: float | Sequence[float] | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> FinerCAMOutput:
        """Returns the maps of one or several texts.

        Args:
            images (`PIL.Image.Image` or a list of them): B images, for the processor; or give `pixel_values`.
            target (`str` or `list[str]`): what to look for, such as "red epaulets"; Q texts give an axis Q.
            against (`str` or `list[str]`, *optional*):
                What to compare it with, such as "bird"; without it the maps are base maps. A text that is a target,
                too, is left out for that target alone.
            gamma (`float` or `list[float]`, *optional*): instead of that of the object.
            pixel_values (`torch.Tensor`, *optional*): processed images, with further inputs as keywords.

        Returns:
            [`FinerCAMOutput`], whose classes are the texts, targets first; `logits` are those of the model.

        Raises:
            ValueError: if there are no images or no texts.
        """
        targets = _texts(target, "target")
        others = [] if against is None else _texts(against, "against")
        if len(others) == 1 and others[0] in targets:
            raise ValueError(f"`against` must have a text other than each of `target`, got {against!r}.")
        if (images is None) == (pixel_values is None):
            raise ValueError(
                "expected either `images` or `pixel_values`, got " + ("both." if images is not None else "none.")
            )
        if images is not None:
            kwargs = {**self.processor(images=images, return_tensors="pt"), **kwargs}
            pixel_values = kwargs.pop("pixel_values")
        assert pixel_values is not None
        device, dtype = layers.find_placement(self.model)
        kwargs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        texts = list(dict.fromkeys([*targets, *others]))
        rows = texts if len(texts) > 1 else texts * 2  # one logit would mean two classes
        ids = [list(range(len(targets)))] * len(pixel_values)
        out = self._cam(
            pixel_values.to(device, dtype),
            target=0 if isinstance(target, str) else ids,
            references=[texts.index(text) for text in others] or None,
            gamma=gamma if others else 0.0,
            text_embeds=self._embed(rows).expand(len(pixel_values), -1, -1),
            **kwargs,
        )
        return replace(out, logits=layers.scale_cosines(self.model, out.logits[:, : len(texts)]))

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings of texts, `(num_texts, D)`, float32, of length 1; those seen before from memory."""
        device, _ = layers.find_placement(self.model)
        for text in dict.fromkeys(texts):
            if text not in self._text_embeds:
                sentences = [template.format(text) for template in self.templates]
                padding = layers.text_padding(self.model)
                inputs = self.processor(text=sentences, padding=padding, truncation=True, return_tensors="pt")
                with undisturbed(self.model):
                    embeds = layers.text_embeds(self.model, inputs.to(device)).float()
                    mean = F.normalize(embeds, dim=1).mean(dim=0)
                    self._text_embeds[text] = F.normalize(mean, dim=0)
        return torch.stack([self._text_embeds[text] for text in texts])


def _texts(value: Any, name: str) -> list[str]:
    """Returns one text or several as a list."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, Sequence) and len(texts) > 0
    if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"`{name}` must be a text or a list of texts, got {value!r}.")
    if len(set(texts)) != len(texts):
        raise ValueError(f"`{name}` must not name a text twice, got {value!r}.")
    return list(texts)
