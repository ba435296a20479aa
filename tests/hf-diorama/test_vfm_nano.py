"""Towers of equal size that differ in what they were trained for."""

import sys
from pathlib import Path
from typing import Any

import pytest

import hf_diorama as dio

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
KINDS = ("supervised", "contrastive", "masked", "random")
TRAINING = Path(__file__).parents[2] / "packages" / "hf-diorama" / "training"


def load(kind: str) -> Any:
    path = dio.model_path(f"vfm-nano-{kind}")
    return transformers.AutoModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32).eval()


def test_towers_have_one_layout_and_their_own_weights() -> None:
    towers = [load(kind) for kind in KINDS]
    shapes = [{name: tensor.shape for name, tensor in tower.state_dict().items()} for tower in towers]
    assert all(shape == shapes[0] for shape in shapes)
    queries = [tower.layers[3].attention.q_proj.weight for tower in towers]
    for one in range(len(KINDS)):
        for other in range(one):
            assert not torch.allclose(queries[one], queries[other], atol=1e-3)


def test_training_was_worth_it() -> None:
    """Nearest neighbours among 200 images tell the body plan better after training than before."""
    ds = dio.load("creatures", "test", n=200, image_size=64)
    orders = ds["order"][:]
    same = torch.tensor([[one == other for other in orders] for one in orders])
    found = {}
    for kind in KINDS:
        processor = transformers.AutoImageProcessor.from_pretrained(dio.model_path(f"vfm-nano-{kind}"))
        with torch.no_grad():
            tokens = load(kind)(**processor(ds["image"][:], return_tensors="pt")).last_hidden_state
        features = tokens[:, 0]
        distance = torch.cdist(features, features).fill_diagonal_(torch.inf)
        found[kind] = same[torch.arange(200), distance.argmin(1)].float().mean().item()
    assert found["supervised"] > 0.9
    assert min(found["contrastive"], found["masked"]) > found["random"]


def test_processor_makes_what_towers_take() -> None:
    for kind in KINDS:
        processor = transformers.AutoImageProcessor.from_pretrained(dio.model_path(f"vfm-nano-{kind}"))
        values = processor(dio.render("creatures", 0, image_size=128)["image"], return_tensors="pt")["pixel_values"]
        assert values.shape == (1, 3, 64, 64)


def test_cards_tell_how_they_were_made() -> None:
    notes = (TRAINING / "vfm_nano_training.md").read_text(encoding="utf-8").split("## ")[1:]
    training = dict(note.split("\n", 1) for note in notes)
    for kind in KINDS:
        card = (Path(dio.model_path(f"vfm-nano-{kind}")) / "README.md").read_text(encoding="utf-8")
        assert "| species (of 96) |" in card
        assert f"train_vfm_nano_{kind}.py" in card
        assert "as of commit" in training[f"vfm-nano-{kind}"]
        assert training[f"vfm-nano-{kind}"].strip() in card


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TRAINING))
    import vfm_nano

    return vfm_nano


def test_run_of_another_length_goes_on_from_nothing(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def work_dir(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *options])
        return training.parse_args("tower", steps=100).work_dir

    assert work_dir() == work_dir("--steps", "100") != work_dir("--steps", "200")
    assert work_dir("--work-dir", "mine") == "mine"


def test_finished_run_says_steps_minutes_and_commit(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> dict[str, Any]:
            return {"loss": (self.weight * x).square().mean()}

    monkeypatch.setattr(sys, "argv", ["train.py", "--work-dir", str(tmp_path)])
    args, model = training.parse_args("line", steps=3), Line()
    training.train(args, model, 8, lambda rows: {"x": torch.tensor(rows).float()}, batch_size=4, lr=0.1)
    assert model.weight.item() < 1
    assert "3 steps, 0.0 CPU minutes in this call, commit " in capsys.readouterr().out
