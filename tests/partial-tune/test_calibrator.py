"""LogitCalibrator on real model classes: hook, fold, manual addition, files, and what it refuses."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForImageClassification, CLIPConfig, CLIPModel

from partial_tune import ClassPartition, GammaEstimate, LogitCalibrator
from support.partial_models import FAMILIES, NAMES, Family, build_vit, image_inputs, image_rows, text_inputs

GAMMA = 1.7
OFFSET = torch.tensor([0, GAMMA, 0, 0, GAMMA, GAMMA])


def make(partition: ClassPartition, gamma: float = GAMMA) -> LogitCalibrator:
    return LogitCalibrator(partition, gamma)


@torch.no_grad()
def logits_of(model: nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    return model(**inputs, **options).logits


def test_hook_fold_and_manual_addition_agree_and_undo(family: Family, partition: ClassPartition) -> None:
    model, calibrator = family.model, make(partition)
    before = logits_of(model, family.inputs)
    with calibrator.attach(model):
        torch.testing.assert_close(logits_of(model, family.inputs), before + OFFSET, rtol=0, atol=0)
    assert torch.equal(logits_of(model, family.inputs), before)
    if not family.has_bias:
        with pytest.raises(ValueError, match="whose head has none"):
            calibrator.fold_(model)
        return
    calibrator.fold_(model)
    torch.testing.assert_close(logits_of(model, family.inputs), before + OFFSET, rtol=0, atol=1e-6)
    calibrator.unfold_(model)
    torch.testing.assert_close(logits_of(model, family.inputs), before, rtol=0, atol=1e-6)


def test_hook_and_fold_predict_the_same_class_in_bfloat16(tiny_vit: nn.Module, partition: ClassPartition) -> None:
    model, calibrator, inputs = tiny_vit.bfloat16(), make(partition), image_inputs(64)
    inputs = {name: value.bfloat16() for name, value in inputs.items()}
    with calibrator.attach(model):
        hooked = logits_of(model, inputs)
    calibrator.fold_(model)
    folded = logits_of(model, inputs)
    assert hooked.dtype == folded.dtype == torch.bfloat16
    torch.testing.assert_close(hooked, folded, rtol=0.016, atol=0.016)  # two roundings instead of one
    top = hooked.float().topk(2, dim=1).values
    is_clear = top[:, 0] - top[:, 1] > 0.032
    assert is_clear.sum() > 30
    assert torch.equal(hooked.argmax(1)[is_clear], folded.argmax(1)[is_clear])


@pytest.mark.parametrize("raises", [False, True])
def test_no_hook_and_no_mark_remain(tiny_vit: nn.Module, partition: ClassPartition, raises: bool) -> None:
    with pytest.raises(RuntimeError) if raises else nullcontext(), make(partition).attach(tiny_vit):
        assert tiny_vit.config.logit_calibration["folded"] is False
        with pytest.raises(ValueError, match="is attached; detach it"):
            make(partition).attach(tiny_vit)
        if raises:
            raise RuntimeError
    assert not tiny_vit._forward_hooks
    assert not tiny_vit._forward_hooks_with_kwargs
    assert not hasattr(tiny_vit.config, "logit_calibration")


def test_attaching_the_same_calibrator_again_does_nothing(tiny_vit: nn.Module, partition: ClassPartition) -> None:
    calibrator, inputs = make(partition), image_inputs()
    before = logits_of(tiny_vit, inputs)
    with calibrator.attach(tiny_vit):
        with calibrator.attach(tiny_vit):
            pass
        torch.testing.assert_close(logits_of(tiny_vit, inputs), before + OFFSET)
    calibrator.attach(tiny_vit)
    calibrator.detach(tiny_vit)
    calibrator.detach(tiny_vit)
    assert torch.equal(logits_of(tiny_vit, inputs), before)


def test_a_copy_of_an_attached_model_is_attached_and_can_be_detached(
    tiny_vit: nn.Module, partition: ClassPartition
) -> None:
    calibrator, inputs = make(partition), image_inputs()
    before = logits_of(tiny_vit, inputs)
    with calibrator.attach(tiny_vit):
        copied = copy.deepcopy(tiny_vit)
    torch.testing.assert_close(logits_of(copied, inputs), before + OFFSET)
    calibrator.detach(copied)
    assert torch.equal(logits_of(copied, inputs), before)


def test_tuples_and_losses(tiny_vit: nn.Module, partition: ClassPartition) -> None:
    inputs, labels = image_inputs(), torch.tensor([0, 1, 2, 3, 4])
    plain = tiny_vit(**inputs, labels=labels)
    with make(partition).attach(tiny_vit):
        output = tiny_vit(**inputs, labels=labels)
        loss, logits = tiny_vit(**inputs, labels=labels, return_dict=False)
        (alone,) = tiny_vit(**inputs, return_dict=False)
    for found in (output.logits, output["logits"], logits, alone):
        torch.testing.assert_close(found, plain.logits + OFFSET)
    assert output.loss == loss == plain.loss  # the loss stays that of plain logits
    assert output[1] is output.logits


def test_plain_modules_with_tensor_outputs(partition: ClassPartition) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(3, 4)
    before, calibrator = model(x), make(partition)
    with calibrator.attach(model):
        torch.testing.assert_close(model(x), before + OFFSET)
    calibrator.fold_(model)
    torch.testing.assert_close(model(x), before + OFFSET)
    with pytest.raises(ValueError, match="folded into its head"):
        calibrator.attach(model)


def test_compiled_models(tiny_vit: nn.Module, partition: ClassPartition) -> None:
    inputs = image_inputs()
    before = logits_of(tiny_vit, inputs)
    compiled = torch.compile(tiny_vit, backend="eager", fullgraph=True)
    with make(partition).attach(compiled):
        torch.testing.assert_close(logits_of(compiled, inputs), before + OFFSET)
    torch.testing.assert_close(logits_of(tiny_vit, inputs), before)


def test_peft_model_is_folded_into_the_copy_that_runs(
    tiny_lora_vit: nn.Module, partition: ClassPartition, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = tiny_lora_vit.get_base_model().classifier
    original = wrapper.original_module.bias.clone()
    make(partition).fold_(tiny_lora_vit)
    torch.testing.assert_close(wrapper.modules_to_save["default"].bias - original, OFFSET)
    assert torch.equal(wrapper.original_module.bias, original)
    assert "Merge before saving" in caplog.text
    merged = tiny_lora_vit.merge_and_unload()
    with pytest.raises(ValueError, match="folded into its head"):
        make(partition).attach(merged)


def build_clip(seed: int = 0) -> tuple[CLIPModel, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**common, "vocab_size": 20, "eos_token_id": 2, "max_position_embeddings": 8},
        vision_config={**common, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    prompts = torch.tensor([[3 + index, 5, 2] for index in range(4)])
    return CLIPModel(config).eval(), {**image_inputs(), "input_ids": prompts}


def test_clip_candidates_are_aligned_by_name(partition: ClassPartition, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build_clip()
    plain = model(**inputs)
    calibrator = make(partition)
    with calibrator.attach(model, candidates=["fox", "cat", "yak", "bee"]):
        output = model(**inputs)
    offset = torch.tensor([GAMMA, 0, 0, GAMMA])
    torch.testing.assert_close(output.logits_per_image, plain.logits_per_image + offset)
    torch.testing.assert_close(output.logits_per_text, plain.logits_per_text + offset[:, None])
    assert "does not know: ['yak']" in caplog.text
    with calibrator.attach(model, candidates=["fox", "cat"]):
        with pytest.raises(ValueError, match="candidates with which this calibrator is attached"):
            calibrator.attach(model, candidates=["cat", "fox"])
        calibrator.attach(model, candidates=["fox", "cat"])
    with calibrator.attach(model), pytest.raises(ValueError, match="pass `candidates`"):
        model(**inputs)
    with pytest.raises(TypeError, match="list of class names"):
        calibrator.attach(model, candidates="cat")
    torch.testing.assert_close(calibrator.calibrate(torch.zeros(1, 2), ["cat", "bee"]), torch.tensor([[0, GAMMA]]))


def test_clip_with_adapters_is_attached(partition: ClassPartition) -> None:
    plain, inputs = build_clip()
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    before = model(**inputs).logits_per_image
    with make(partition).attach(model, candidates=["fox", "cat", "ant", "bee"]):
        after = model(**inputs).logits_per_image
    torch.testing.assert_close(after, before + torch.tensor([GAMMA, 0, 0, GAMMA]))
    assert torch.equal(model(**inputs).logits_per_image, before)


def test_clip_is_fitted_on_batches_of_images_and_prompts() -> None:
    model, inputs = build_clip()
    names = ("ant", "bee", "cat", "dog")
    partition = ClassPartition(names, (0, 2, 3))
    labels = torch.tensor([0, 2, 3, 0, 2])
    calibrator = LogitCalibrator.fit(model, [{**inputs, "labels": labels}], partition)
    plain = model(**inputs).logits_per_image.detach().double()
    others = [[c for c in partition.seen if c != int(label)] for label in labels]
    gaps = [row[ids].mean() - row[1] for row, ids in zip(plain, others, strict=True)]
    assert calibrator.gamma == pytest.approx(float(torch.stack(gaps).mean()), abs=1e-6)
    with calibrator.attach(model, candidates=names):
        shifted = model(**inputs).logits_per_image
    torch.testing.assert_close(shifted, plain.float() + calibrator.offset)


def test_pipeline_sees_calibrated_logits(tiny_vit: nn.Module) -> None:
    from PIL import Image
    from transformers import ViTImageProcessor, pipeline

    partition = ClassPartition(NAMES, (0, 1, 2, 3, 4))
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    classify = pipeline("image-classification", model=tiny_vit, image_processor=processor)
    image = Image.new("RGB", (8, 8))
    with make(partition, 50.0).attach(tiny_vit):
        assert classify(image)[0]["label"] == "fox"
    assert classify(image)[0]["score"] < 0.5


def test_folded_model_and_calibrator_survive_a_round_trip(
    tiny_vit: nn.Module, partition: ClassPartition, tmp_path: Path
) -> None:
    inputs = image_inputs()
    before = logits_of(tiny_vit, inputs)
    estimate = GammaEstimate(gamma=GAMMA, method="alg", num_samples=9, std=0.5, details={"per_class": {"ant": 1.0}})
    calibrator = LogitCalibrator(partition, GAMMA, estimate)
    calibrator.fold_(tiny_vit)
    tiny_vit.save_pretrained(tmp_path)
    calibrator.save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    loaded = LogitCalibrator.from_pretrained(tmp_path)
    assert torch.equal(logits_of(model, inputs), logits_of(tiny_vit, inputs))
    assert loaded.to_dict() == calibrator.to_dict()
    assert loaded.estimate == estimate
    for twice in (loaded.attach, loaded.fold_):
        with pytest.raises(ValueError, match="folded into its head"):
            twice(model)
    with pytest.raises(ValueError, match="this calibrator folded in"):
        make(partition, 2.0).unfold_(model)
    with pytest.raises(ValueError, match="this calibrator folded in"):
        make(ClassPartition(NAMES, (0, 2))).unfold_(model)  # the same offset on other classes
    loaded.unfold_(model)
    torch.testing.assert_close(logits_of(model, inputs), before, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="this calibrator folded in"):
        loaded.unfold_(model)


def test_a_model_saved_while_attached_is_plain_and_can_be_attached(
    tiny_vit: nn.Module, partition: ClassPartition, tmp_path: Path
) -> None:
    calibrator, inputs = make(partition), image_inputs()
    before = logits_of(tiny_vit, inputs)
    with calibrator.attach(tiny_vit):
        tiny_vit.save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.logit_calibration["folded"] is False
    assert torch.equal(logits_of(model, inputs), before)
    with calibrator.attach(model):
        torch.testing.assert_close(logits_of(model, inputs), before + OFFSET)


def test_files_that_do_not_fit_are_refused(partition: ClassPartition, tmp_path: Path) -> None:
    make(partition).save_pretrained(tmp_path)
    written = ["README.md", "calibrator.json", "calibrator.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    path = tmp_path / "calibrator.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "gamma": 3.0}))
    with pytest.raises(ValueError, match="files do not fit"):
        LogitCalibrator.from_pretrained(tmp_path)
    path.write_text(json.dumps({**values, "version": 99}))
    with pytest.raises(ValueError, match="version 1, got 99"):
        LogitCalibrator.from_pretrained(tmp_path)
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "names"}))
    with pytest.raises(ValueError, match=r"Expected names in calibrator\.json"):
        LogitCalibrator.from_pretrained(tmp_path)
    path.write_text(json.dumps(values))
    (tmp_path / "calibrator.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="a damaged file"):
        LogitCalibrator.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"calibrator\.json in"):
        LogitCalibrator.from_pretrained(tmp_path)


def test_card_tells_the_offset_and_is_not_overwritten(partition: ClassPartition, tmp_path: Path) -> None:
    make(partition).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    found = ModelCard(card.read_text(encoding="utf-8"))
    assert found.data.library_name == "partial-tune"
    assert f"Adds {GAMMA:.4g} to the logits of {len(partition.absent)} of {len(partition.names)} classes" in found.text
    card.write_text("mine", encoding="utf-8")
    make(partition).save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("has_card", [False, True])
def test_upload_sends_the_files_and_leaves_a_card_as_it_is(
    partition: ClassPartition, monkeypatch: pytest.MonkeyPatch, *, has_card: bool
) -> None:
    """The Hub is out of reach of a test: what is checked is what would be sent."""
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            sent["created"] = (repo_id, options)
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, repo_id: str, name: str) -> bool:
            return has_card and name == "README.md"

        def upload_folder(self, repo_id: str, folder_path: str, ignore_patterns: list[str] | None) -> str:
            names = {path.name for path in Path(folder_path).iterdir()}
            sent["files"] = sorted(names - set(ignore_patterns or []))
            sent["loaded"] = LogitCalibrator.from_pretrained(folder_path).gamma
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert make(partition).push_to_hub("me/model", private=True, token="t").endswith("me/model/commit/1")
    assert sent["created"] == ("me/model", {"private": True, "exist_ok": True})
    card = [] if has_card else ["README.md"]
    assert (sent["files"], sent["loaded"]) == ([*card, "calibrator.json", "calibrator.safetensors"], GAMMA)


def test_models_with_other_classes_are_refused(tiny_vit: nn.Module) -> None:
    for names in (NAMES[::-1], NAMES[:5]):
        with pytest.raises(ValueError, match="in their order"):
            make(ClassPartition(names, (0, 1))).attach(tiny_vit)


def loader(labels: list[int], **options: Any) -> DataLoader[Any]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return DataLoader(image_rows(labels), collate_fn=collate, **options)  # type: ignore[arg-type]


def test_fitting_reads_every_sample_once_in_evaluation_mode(partition: ClassPartition) -> None:
    model = build_vit(hidden_dropout_prob=0.5).train()
    plain = loader([0, 2, 3] * 5, batch_size=15)
    expected = LogitCalibrator.fit(model, plain, partition)
    assert model.training
    truncating = loader([0, 2, 3] * 5, batch_size=4, shuffle=True, drop_last=True)
    found = LogitCalibrator.fit(model, truncating, partition)
    assert found.estimate.num_samples == 15
    assert found.gamma == pytest.approx(expected.gamma, abs=1e-6)
    model.eval()
    batches = [{**batch, "labels": batch["labels"]} for batch in plain]
    assert LogitCalibrator.fit(model, batches, partition).gamma == expected.gamma


def test_fitting_methods(tiny_vit: nn.Module, partition: ClassPartition) -> None:
    everything = loader([0, 1, 2, 3, 4, 5] * 4, batch_size=6)
    assert LogitCalibrator.fit(tiny_vit, [], partition, 2).gamma == 2
    oracle = LogitCalibrator.fit(tiny_vit, everything, partition, "oracle", criterion="balanced")
    assert oracle.estimate.uses_absent_labels
    assert oracle.to_dict()["uses_absent_labels"] is True
    half = LogitCalibrator.fit(tiny_vit, everything, partition, "source_match", prior=0.5)
    with half.attach(tiny_vit):
        predicted = torch.cat([tiny_vit(pixel_values=b["pixel_values"]).logits.argmax(1) for b in everything])
    assert int(partition.absent_mask[predicted].sum()) == 12
    unlabeled = [{"pixel_values": batch["pixel_values"]} for batch in everything]
    assert LogitCalibrator.fit(tiny_vit, unlabeled, partition, "source_match", prior=0.5).gamma == half.gamma
    with pytest.raises(ValueError, match="got an empty loader"):
        LogitCalibrator.fit(tiny_vit, [], partition, "source_match", prior=0.5)
    for method, message in (("best", "alg, pcv_ratio"), (True, "number or one of")):
        with pytest.raises(ValueError, match=message):
            LogitCalibrator.fit(tiny_vit, everything, partition, method)
    with pytest.raises(ValueError, match="Expected `prior`"):
        LogitCalibrator.fit(tiny_vit, everything, partition, "source_match")
    with pytest.raises(ValueError, match="Expected `fine_tune`"):
        LogitCalibrator.fit(tiny_vit, loader([0, 2, 3] * 2), partition, "pcv")
    with pytest.raises(ValueError, match="not on the test set"):
        LogitCalibrator.fit(tiny_vit, everything, partition)
    with pytest.raises(ValueError, match="finite `gamma`"):
        LogitCalibrator.fit(tiny_vit, everything, partition, float("nan"))


def test_fitting_a_calibrated_model_or_without_labels_is_refused(
    tiny_vit: nn.Module, partition: ClassPartition
) -> None:
    with pytest.raises(ValueError, match="batches with `labels`"):
        LogitCalibrator.fit(tiny_vit, [image_inputs()], partition)
    with make(partition).attach(tiny_vit), pytest.raises(ValueError, match="is attached; detach it"):
        LogitCalibrator.fit(tiny_vit, loader([0, 2]), partition)


def test_fitting_a_pair_loader_and_a_plain_module(partition: ClassPartition) -> None:
    model, x = nn.Linear(4, 6), torch.randn(12, 4)
    data = TensorDataset(x, torch.tensor([0, 2, 3] * 4))
    calibrator = LogitCalibrator.fit(model, DataLoader(data, batch_size=5, shuffle=True), partition)
    assert calibrator.estimate.num_samples == 12
    assert "3 seen, 3 absent" in repr(calibrator)


@pytest.mark.parametrize("name", ["llama", "lora_llama", "bert", "lora_bert"])
def test_text_models_are_fitted_and_attached(name: str, partition: ClassPartition) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]().model.eval(), text_inputs(6)
    batches = [{**inputs, "labels": torch.tensor([0, 2, 3, 0, 2, 3])}]
    calibrator = LogitCalibrator.fit(model, batches, partition)
    before = logits_of(model, inputs)
    with calibrator.attach(model):
        torch.testing.assert_close(logits_of(model, inputs), before + calibrator.offset)


def test_pseudo_cross_validation_trains_on_pseudo_seen_classes_and_holds_out(caplog: pytest.LogCaptureFixture) -> None:
    """The recipe is a closed form here: a class-mean classifier of the classes that it is given."""
    partition = ClassPartition(NAMES, (0, 1, 2, 3))
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3] * 20)
    x = torch.nn.functional.one_hot(labels, 6).float() + 0.3 * torch.randn(80, 6, generator=generator)
    given: list[set[int]] = []

    def fine_tune(part: Any) -> nn.Module:
        classes = {int(part[index][1]) for index in range(len(part))}
        given.append(classes)
        model = nn.Linear(6, 6)
        with torch.no_grad():
            model.weight.copy_(4 * torch.eye(6))
            model.bias.copy_(torch.tensor([2.0 if index in classes else 0.0 for index in range(6)]))
        assert len(part) == 28  # 70 percent of 2 x 20
        return model

    data = DataLoader(TensorDataset(x, labels), batch_size=8, shuffle=True)
    model = nn.Linear(6, 6)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(6))
        model.bias.copy_(torch.tensor([2.0, 2, 2, 2, 0, 0]))
    found = LogitCalibrator.fit(model, data, partition, "pcv_ratio", fine_tune=fine_tune, seed=1)
    assert [len(classes) for classes in given] == [2, 2, 2]
    assert found.estimate.method == "pcv_ratio"
    assert found.gamma == pytest.approx(2.0, abs=0.5)  # the bias that separates seen from absent
    raw = LogitCalibrator.fit(model, data, partition, "pcv", fine_tune=fine_tune, seed=1)
    assert raw.gamma == pytest.approx(2.0, abs=0.5)
    assert not caplog.records
    details = raw.to_dict()["fit"]["details"]
    assert (details["seed"], details["operating_point"]) == (1, {"criterion": "overall", "value": None})
    own_order = DataLoader(data.dataset, batch_size=8, sampler=torch.utils.data.SubsetRandomSampler(range(40)))
    with pytest.raises(ValueError, match=r"got one with a SubsetRandomSampler; give a loader over a"):
        LogitCalibrator.fit(model, own_order, partition, "pcv", fine_tune=fine_tune)
