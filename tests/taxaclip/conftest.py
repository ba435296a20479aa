"""A tiny CLIP of random weights, converted from the golden checkpoint, and a tokenizer of single bytes for it."""

from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

import taxaclip
from taxaclip.convert import build_image_processor

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two golden checkpoints as folders of transformers, with the replay projection."""
    root = tmp_path_factory.mktemp("converted")
    kinds = ("tiny_gelu", "tiny_quickgelu")
    return {kind: taxaclip.open_clip_to_hf(GOLDEN / kind, root / kind, keep_replay=True) for kind in kinds}


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """Bytes as tokens, and start and end where the tiny vocabulary of 600 has them."""
    symbols = sorted(ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate([*symbols, *(f"{symbol}</w>" for symbol in symbols)])}
    return CLIPTokenizer(vocab={**vocab, "<|startoftext|>": 598, "<|endoftext|>": 599}, merges=[])


@pytest.fixture(scope="session")
def clip(converted: dict[str, Path], tokenizer: CLIPTokenizer) -> tuple[CLIPModel, CLIPProcessor]:
    model = CLIPModel.from_pretrained(converted["tiny_gelu"]).eval()
    return model, CLIPProcessor(image_processor=build_image_processor({}, 32), tokenizer=tokenizer)
