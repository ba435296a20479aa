"""The shortcut audit: it finds what was planted, and mini-AVA has none."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_ava_bench import ABILITIES, audit_shortcuts, load_ability, score_items
from hf_ava_bench.cli import main
from hf_ava_bench.schema import FEATURES, build_struct

ANSWERS = ("sea", "city", "desert", "field")


def build_table(n, seed, *, tell):
    """Scenes whose question or whose color tells the answer, or neither."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        label = int(rng.integers(len(ANSWERS)))
        shown = label if tell == "color" else int(rng.integers(len(ANSWERS)))
        asked = label if tell == "question" else int(rng.integers(len(ANSWERS)))
        color = (200 * (shown & 1) + 20, 200 * (shown >> 1) + 20, 128)
        rows.append(
            {
                "id": str(index), "image": Image.new("RGB", (8, 8), color), "question": f"What is this, {asked}?",
                "answer": ANSWERS[label], "ability": "scene", "source": "planted", "options": list(ANSWERS),
                "answer_struct": build_struct("class", ANSWERS[label]), "meta": "{}",
            }
        )  # fmt: skip
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.mark.parametrize(
    ("tell", "question", "mean_color"),
    [("question", (1, 1), (0, 0.2)), ("color", (0, 0.2), (1, 1)), (None, (0, 0.2), (0, 0.2))],
)
def test_planted_shortcuts_are_found(tell, question, mean_color):
    scores = audit_shortcuts(build_table(200, 0, tell=tell), build_table(100, 1, tell=tell))
    assert question[0] <= scores["question"] <= question[1]
    assert mean_color[0] <= scores["mean_color"] <= mean_color[1]


def test_items_are_scored_row_by_row_with_their_options_and_sources():
    table = build_table(20, 0, tell=None)
    score = score_items(table, [*table["answer"][:10], *["no idea"] * 10])
    assert score.value == 0.5
    assert score.n_unparsable == 10
    assert score.sources == {"planted": {"n": 20, "accuracy": 0.5}}
    with pytest.raises(ValueError, match="Expected 20 predictions"):
        score_items(table, ["sea"] * 19)
    with pytest.raises(ValueError, match="at least one item"):
        score_items(table.select([]), [])


def test_command_audits(capsys):
    assert main(["audit", "--source", "mini", "--abilities", "Texture", "--max-samples", "12"]) == 0
    assert capsys.readouterr().out.startswith("texture: question ")


@pytest.mark.slow
@pytest.mark.parametrize("ability", ABILITIES)
def test_mini_cannot_be_answered_without_looking(ability):
    train, test = (
        load_ability(ability, "mini", split, n=n, image_size=32) for split, n in (("train", 600), ("test", 300))
    )
    for predictor, score in audit_shortcuts(train, test).items():
        assert score < 0.15, predictor
