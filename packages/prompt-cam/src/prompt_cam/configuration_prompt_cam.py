"""The options of a Prompt-CAM model, and what is written beside its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Variant = Literal["deep", "shallow", "interpolated", "late"]
Blur = Literal["patches", "all_tokens"]

ADAPTER_KEYS = {"peft_type": "PROMPT_CAM", "task_type": "IMAGE_CLASSIFICATION", "inference_mode": True}
"""What says, in the words that adapters use, which kind of adapter a folder holds."""


@dataclass(frozen=True, kw_only=True)
class PromptCAMConfig:
    """Options of Prompt-CAM (arXiv 2501.09333), with the values of the paper and its code as defaults.

    Args:
        num_classes (`int`): number of classes, and of class prompts.
        variant (`str`, defaults to `"deep"`):
            Where the class prompts enter (section 3.2). `"deep"`: before the last layer, after fresh class-agnostic
            prompts in each layer below. `"shallow"`: before the first layer. `"interpolated"`: before layer
            `insert_layer`, after class-agnostic prompts in each layer below. `"late"`: before the last layer with
            nothing below, so that the features that enter it can be computed once (ours).
        insert_layer (`int`, *optional*): layer that the class prompts enter, from 1. `"interpolated"` only.
        num_agnostic_prompts (`int`, *optional*):
            Class-agnostic prompts in each layer below; `num_classes` as in the released code if not given. With many
            classes a few dozen train faster. `"deep"` and `"interpolated"` only.
        prompt_dropout (`float`, defaults to 0.1): dropout of the prompts of each layer while training, in [0, 1).
        blur (`str`, defaults to `"patches"`):
            How [`~PromptCAMForImageClassification.rank_heads`] blurs a head: attention spread evenly over the
            `"patches"` (paper) or over `"all_tokens"` (released code).
        id2label (`dict[int, str]`, *optional*): names of the classes.
        base_model_name_or_path (`str`, *optional*): the backbone; taken from the backbone if not given.
        revision (`str`, *optional*): revision of the backbone on the Hub.

    Raises:
        ValueError: if a value is out of its range or does not go with the variant.

    Example:

    ```python
    >>> from prompt_cam import PromptCAMConfig
    >>> PromptCAMConfig(num_classes=200).find_insert_layer(num_layers=12)
    12
    >>> PromptCAMConfig(num_classes=200, variant="interpolated", insert_layer=9).find_insert_layer(num_layers=12)
    9

    ```
    """

    num_classes: int
    variant: Variant = "deep"
    insert_layer: int | None = None
    num_agnostic_prompts: int | None = None
    prompt_dropout: float = 0.1
    blur: Blur = "patches"
    id2label: dict[int, str] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {self.num_classes}.")
        if self.variant not in get_args(Variant):
            raise ValueError(f"`variant` must be one of {', '.join(get_args(Variant))}, got {self.variant!r}.")
        if self.blur not in get_args(Blur):
            raise ValueError(f"`blur` must be one of {', '.join(get_args(Blur))}, got {self.blur!r}.")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"`prompt_dropout` must be in [0, 1), got {self.prompt_dropout}.")
        if (self.insert_layer is not None) != (self.variant == "interpolated"):
            raise ValueError(
                f"`insert_layer` is for the variant 'interpolated', which needs it, got insert_layer="
                f"{self.insert_layer} with {self.variant!r}."
            )
        if self.num_agnostic_prompts is not None:
            if self.variant in ("shallow", "late"):
                raise ValueError(
                    f"The variant {self.variant!r} has no class-agnostic prompts: leave out `num_agnostic_prompts`, "
                    f"got {self.num_agnostic_prompts}."
                )
            if self.num_agnostic_prompts < 0:
                raise ValueError(f"`num_agnostic_prompts` must be at least 0, got {self.num_agnostic_prompts}.")
        if self.id2label is not None and sorted(self.id2label) != list(range(self.num_classes)):
            raise ValueError(
                f"`id2label` must name the classes 0 to {self.num_classes - 1}, got the keys {sorted(self.id2label)}."
            )

    def find_insert_layer(self, num_layers: int) -> int:
        """Returns the layer that the class prompts enter, from 1, in a backbone of `num_layers`."""
        layer = {"shallow": 1, "interpolated": self.insert_layer}.get(self.variant, num_layers)
        if layer is None or not 1 <= layer <= num_layers:
            raise ValueError(f"`insert_layer` must be from 1 to the {num_layers} layers of the backbone, got {layer}.")
        return layer

    def count_prompts(self, num_layers: int) -> dict[int, int]:
        """Returns how many prompts enter each layer (index from 0); the last of them are the class prompts."""
        last = self.find_insert_layer(num_layers) - 1
        agnostic = self.num_classes if self.num_agnostic_prompts is None else self.num_agnostic_prompts
        below = {} if self.variant == "late" or agnostic == 0 else dict.fromkeys(range(last), agnostic)
        return {**below, last: self.num_classes}

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `adapter_config.json`."""
        values = asdict(self)
        if self.id2label is not None:
            values["id2label"] = {str(index): name for index, name in self.id2label.items()}
            values["label2id"] = {name: index for index, name in self.id2label.items()}
        return {**ADAPTER_KEYS, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptCAMConfig":
        """Returns the options that [`to_dict`] wrote; raises `ValueError` for another kind of adapter or key."""
        if values.get("peft_type") != ADAPTER_KEYS["peft_type"]:
            raise ValueError(
                f"Expected an adapter of the type 'PROMPT_CAM', got {values.get('peft_type')!r}; other adapters are "
                "loaded by peft."
            )
        own = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - own - set(ADAPTER_KEYS) - {"label2id"})
        if unknown:
            raise ValueError(f"Expected keys of a Prompt-CAM adapter, got {unknown}; a newer version may have them.")
        kept = {key: value for key, value in values.items() if key in own}
        if kept.get("id2label") is not None:
            kept["id2label"] = {int(index): name for index, name in kept["id2label"].items()}
        return cls(**kept)
