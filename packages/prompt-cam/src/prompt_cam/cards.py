"""The model card that goes with an adapter."""

from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from prompt_cam.configuration_prompt_cam import PromptCAMConfig

CARD = """---
{data}
---

# Prompt-CAM on {backbone}

Class prompts and one shared vector for {num_classes} classes (variant `{variant}`), trained on a frozen backbone. The
attention heads of the class that is predicted show the traits it is known by (Prompt-CAM, arXiv 2501.09333).

```python
from prompt_cam import PromptCAMForImageClassification

model = PromptCAMForImageClassification.from_pretrained("this folder or repository"{argument})
```

Classes: {classes}.
"""


def build_card(config: PromptCAMConfig) -> str:
    """Returns the text of `README.md`: what it is, how to load it, the classes.

    Args:
        config ([`PromptCAMConfig`]): of the adapter; without a name of its backbone, the reader has to give one.

    Returns:
        `str`: Markdown with the metadata block of the Hub
    """
    backbone = config.base_model_name_or_path
    data = ModelCardData(
        library_name="prompt-cam",
        pipeline_tag="image-classification",
        base_model=backbone if backbone and _is_hub_id(backbone) else None,
        tags=["prompt-cam", "interpretability"],
    )
    names = config.id2label or {}
    return CARD.format(
        data=data.to_yaml(),
        backbone=f"`{backbone}`" if backbone else "a backbone that was not named",
        num_classes=config.num_classes,
        variant=config.variant,
        argument="" if backbone else ", backbone",
        classes=", ".join(names[index] for index in sorted(names)) or f"0 to {config.num_classes - 1}, without names",
    )


def _is_hub_id(name: str) -> bool:
    """Whether the Hub would take this for a model; it refuses cards whose `base_model` is a folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()
