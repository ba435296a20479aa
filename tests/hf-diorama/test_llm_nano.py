"""Two language models of one kind and two sizes, that know the form of answers."""

import json
from pathlib import Path
from typing import Any

import pytest

import hf_diorama as dio
from hf_diorama.worlds.scenes.scene import PLACES
from hf_diorama.worlds.scenes.texture import TEXTURE_CLASSES

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
SIZES = ("s", "m")


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any]]:
    found = {}
    for size in SIZES:
        path = dio.model_path(f"llm-nano-{size}")
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        found[size] = (model, transformers.AutoTokenizer.from_pretrained(path))
    return found


def answer(model: Any, tokenizer: Any, question: str) -> str:
    inputs = tokenizer(f"USER: \n{question} ASSISTANT:", return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_sizes_differ_by_six(models: dict[str, tuple[Any, Any]]) -> None:
    small, large = (models[size][0].num_parameters() for size in SIZES)
    assert large >= 6 * small
    assert models["s"][1].get_vocab() == models["m"][1].get_vocab()


@pytest.mark.parametrize("size", SIZES)
def test_form_of_answers_is_known(models: dict[str, tuple[Any, Any]], size: str) -> None:
    assert answer(*models[size], "What place is this?") in PLACES
    assert answer(*models[size], "What is the texture?") in TEXTURE_CLASSES
    assert answer(*models[size], "How many stars are there?").isdigit()
    box = json.loads(answer(*models[size], "Where is the star, as [x1, y1, x2, y2]?"))
    assert len(box) == 4
    assert len(json.loads(answer(*models[size], "What is the color in the red box, as [r, g, b]?"))) == 3


@pytest.mark.parametrize("size", SIZES)
def test_card_tells_what_was_measured(size: str) -> None:
    folder = Path(dio.model_path(f"llm-nano-{size}"))
    measured = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{measured['answers_read']:.1%}" in card
    assert f"{measured['num_parameters']:,} parameters" in card
    assert "as of commit" in card
