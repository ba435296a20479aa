"""Cards of the shipped models, read as the Hub reads them: metadata that it knows, and a licence."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers.pipelines import SUPPORTED_TASKS

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(ROOT.glob("packages/*/src/*/models/*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_card_of_a_shipped_model_is_valid(path: Path) -> None:
    card = ModelCard(path.read_text(encoding="utf-8"))
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag in SUPPORTED_TASKS
    assert card.text.lstrip().startswith(f"# {path.parent.name}")
