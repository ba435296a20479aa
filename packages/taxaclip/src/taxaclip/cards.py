"""The cards (README.md) that go with saved models and indexes, with the metadata that the Hub reads."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from huggingface_hub import DatasetCardData, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import CLIPConfig

CARD = "README.md"
TASK = "zero-shot-image-classification"
TAGS = ["taxaclip", "clip", "biology"]
PAGE = """---
{data}
---

# {title}

{about}

```python
{code}
```
"""
LOAD = {
    "transformers": """import taxaclip

model, processor = taxaclip.from_pretrained("this folder or repository")  # a stock CLIPModel and CLIPProcessor""",
    "open_clip": """import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:this folder")  # "hf-hub:" and a repository""",
}
LOAD_INDEX = """from huggingface_hub import snapshot_download
from taxaclip import TaxonIndex

index = TaxonIndex.from_pretrained(snapshot_download("this repository", repo_type="dataset"))  # or a folder"""


def write_model_card(folder: Path, config: CLIPConfig, about: str, *, library: str = "transformers") -> None:
    """Writes the card of a CLIP, unless there is one.

    Args:
        folder (`Path`): of the model.
        config (`CLIPConfig`): of the model; names what it was made from, if that is on the Hub.
        about (`str`): where the weights come from, one paragraph of Markdown.
        library (`str`, defaults to `"transformers"`): `"transformers"` or `"open_clip"`, which loads the files.
    """
    name = config._name_or_path
    base_model = name if is_hub_id(name) else None
    data = ModelCardData(library_name=library, pipeline_tag=TASK, base_model=base_model, tags=TAGS)
    vision: Any = config.vision_config
    size = f"Images of {vision.image_size} pixels, embeddings of {config.projection_dim} numbers."
    page = PAGE.format(data=data.to_yaml(), title="A CLIP of taxa", about=f"{about} {size}", code=LOAD[library])
    if not (folder / CARD).exists():
        _write(folder / CARD, page)


def drop_local_base_model(folder: Path) -> None:
    """Removes `base_model` from a card of peft or `Trainer` where it is no id: the Hub refuses such cards.

    Args:
        folder (`Path`): of the model; it may have no card.
    """
    if (folder / CARD).is_file():
        card = ModelCard.load(folder / CARD)
        found = card.data.base_model
        if found is not None and not all(map(is_hub_id, found if isinstance(found, list) else [found])):
            card.data.base_model = None
            _write(folder / CARD, str(card))


def build_index_card(table: pa.Table, embeddings: torch.Tensor, source: dict[str, Any]) -> str:
    """Returns the card of a taxon index, a data set for the Hub.

    Args:
        table (`pyarrow.Table`): names of the taxa.
        embeddings (`torch.Tensor` of shape `(num_taxa, dim)`): as they are stored.
        source (`dict`): where they come from, of `TaxonIndex`; a `model` is named if it is on the Hub.
    """
    model = source.get("model")
    prompts = ", ".join(f"`{template}`" for template in source.get("templates", ()))
    about = [
        f"Text embeddings of {len(table):,} taxa, {embeddings.shape[1]} numbers each",
        f" ({str(embeddings.dtype).removeprefix('torch.')}), sorted by path from kingdom to species.",
        f" Model: `{model}`." if is_hub_id(model) else "",
        f" Prompts: {prompts}." if prompts else "",
    ]
    data = DatasetCardData(pretty_name="Taxon index", task_categories=[TASK], tags=TAGS)
    return PAGE.format(data=data.to_yaml(), title="A taxon index", about="".join(about), code=LOAD_INDEX)


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def is_hub_id(name: Any) -> bool:
    """Returns whether the Hub would take this for a repository.

    Args:
        name: a name; a folder of this name is none.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).exists()
