"""An ensemble trains, selects, labels, teaches and reports; its folder resumes and refuses what does not belong."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageClassification, ViTImageProcessor

from peft_ensemble import MemberSpec, PeftEnsemble, SSFConfig, UnsupervisedSelector, load_classifier, pseudo_labels
from peft_ensemble.data import MixCollator, fingerprint, with_ids
from peft_ensemble.storage import write_tensors
from support.tiny_ensembles import LABEL_NAMES, arguments, build_specs, draw_images, save_backbones


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module")
def fitted(backbones, tmp_path_factory):
    """An ensemble of 2 backbones x 2 methods x 2 learning rates, one of which learns nothing."""
    folder = tmp_path_factory.mktemp("ensemble")
    ensemble = PeftEnsemble(build_specs(backbones), LABEL_NAMES, folder)
    return ensemble.fit(draw_images(12, seed=0), arguments(), unlabeled_val=draw_images(30, seed=1))


def accuracy(probabilities, dataset):
    return (probabilities.argmax(-1) == torch.tensor(dataset["label"][:])).float().mean().item()


def test_members_beat_chance_and_one_of_each_group_is_selected(fitted):
    test = draw_images(60, seed=2)
    assert len(fitted.members) == 4
    assert len({spec.group for spec in fitted.members}) == 4
    assert accuracy(fitted.predict(test), test) > 0.6
    report = fitted.diversity(test, control=fitted, held_out=draw_images(30, seed=1))
    assert report.names == [spec.id for spec in fitted.members]
    assert report.gain["mean_probs"]["control"] == (0, 0, 0)
    assert "greedy" in report.ensembles


def test_members_are_ordinary_adapters(fitted):
    spec = fitted.members[0]
    folder = fitted.output_dir / "members" / spec.id
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json"
    }  # fmt: skip
    base = load_classifier(spec.backbone, 3)
    model = PeftModel.from_pretrained(base, folder).eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(pixel_values=pixels).logits, fitted.load(spec)(pixel_values=pixels).logits)
    assert "import peft_ensemble" in (folder / "README.md").read_text()


def test_head_of_peft_s_own_methods_is_trained_and_saved(fitted):
    spec = next(spec for spec in fitted.specs if spec.method_name == "lora")
    assert spec.method.modules_to_save is None
    model = fitted.load(spec)
    fresh = load_classifier(spec.backbone, 3)
    assert not torch.equal(model.base_model.model.classifier.weight, fresh.classifier.weight)


def test_second_fit_trains_nothing_and_selects_the_same(fitted, backbones):
    before = {path: path.stat().st_mtime_ns for path in sorted(fitted.output_dir.rglob("*.safetensors"))}
    again = PeftEnsemble(build_specs(backbones), LABEL_NAMES, fitted.output_dir)
    assert [spec.id for spec in again.members] == [spec.id for spec in fitted.members]
    again.fit(draw_images(12, seed=0), arguments(), unlabeled_val=draw_images(30, seed=1))
    assert {path: path.stat().st_mtime_ns for path in sorted(fitted.output_dir.rglob("*.safetensors"))} == before


def test_selection_does_not_see_labels(fitted, backbones):
    poisoned = draw_images(30, seed=1)
    poisoned = poisoned.remove_columns("label").add_column("label", [2] * 30)
    again = PeftEnsemble(build_specs(backbones), LABEL_NAMES, fitted.output_dir)
    again.fit(draw_images(12, seed=0), arguments(), unlabeled_val=poisoned)
    assert [spec.id for spec in again.members] == [spec.id for spec in fitted.members]


def test_selection_is_recorded(fitted):
    record = json.loads((fitted.output_dir / "ensemble.json").read_text())
    assert set(record["members"]) == {spec.id for spec in fitted.specs}
    for row in record["selection"].values():
        assert len(row["candidates"]) == len(row["scores"]) == 2
        assert row["selected"] in row["candidates"]


def test_pseudo_labels_follow_the_votes_and_are_keyed_by_id(fitted):
    pool = draw_images(30, seed=3)
    table = fitted.pseudo_label(pool)
    _, logits = fitted.member_logits(pool)
    votes = torch.nn.functional.one_hot(logits.argmax(-1), 3).sum(0)
    assert table["vote_counts"][:] == votes.tolist()
    torch.testing.assert_close(torch.tensor(table["target"][:]), votes / 4)
    assert set(table["n_members"]) == {4}
    assert not any(table["is_labeled"])
    (path,) = (fitted.output_dir / "pseudo_labels").glob("*mean_labels.parquet")
    read = Dataset.from_parquet(str(path))
    assert read["id"][:] == pool["id"][:] == table["id"][:]
    shuffled = fitted.pseudo_label(pool.select(range(29, -1, -1)))
    assert shuffled["top1"][::-1] == table["top1"][:]


def test_empty_pool_gives_an_empty_table_of_the_same_columns(fitted):
    some, none = fitted.pseudo_label(draw_images(3, seed=7)), fitted.pseudo_label(draw_images(3, seed=7).select([]))
    assert len(none) == 0
    assert none.features == some.features
    with pytest.raises(ValueError, match="got an empty pool"):
        fitted.self_train(none, draw_images(3, seed=7).select([]), fitted.members[0], arguments(), labeled="pseudo")


def test_mixed_batches_have_a_labelled_image_beside_each_of_the_pool():
    rows = [{"image": torch.zeros(3, 16, 16), "id": str(i), "soft_labels": [0.5, 0.5, 0.0]} for i in range(4)]
    rows = [{**row, "image": row["image"].to(torch.uint8)} for row in rows]
    truth = pseudo_labels.as_targets(draw_images(6, seed=0), 3)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    collator = MixCollator(processor, ("weak", "strong"), beside=truth)
    batch = collator(rows)
    assert batch["pixel_values"].shape == (16, 3, 16, 16)  # two views of eight images
    soft = batch["soft_labels"].unflatten(0, (2, 8))
    assert torch.equal(soft[0], soft[1])
    assert torch.equal(soft[0, :4], torch.tensor([[0.5, 0.5, 0.0]] * 4))
    assert torch.equal(soft[0, 4:].sort(dim=-1).values, torch.tensor([[0.0, 0.0, 1.0]] * 4))
    assert torch.equal(collator(rows)["soft_labels"], batch["soft_labels"])
    collator.epoch = 1
    assert not torch.equal(collator(rows)["soft_labels"], batch["soft_labels"])


def test_test_time_augmentation_averages_weak_passes(fitted):
    pool = draw_images(6, seed=3)
    one, ten = fitted.member_logits(pool)[1], fitted.member_logits(pool, tta=10)[1]
    assert not torch.equal(one, ten)
    again = PeftEnsemble(fitted.specs, LABEL_NAMES, fitted.output_dir)
    assert torch.equal(again.member_logits(pool, tta=10)[1], ten)
    with pytest.raises(ValueError, match="tta must be at least 1"):
        fitted.member_logits(pool, tta=0)


def test_student_learns_from_pseudo_labels(fitted):
    pool, test = draw_images(60, seed=4), draw_images(60, seed=2)
    spec = fitted.members[0]
    for labeled in ("pseudo", "mix"):
        student = fitted.self_train(fitted.pseudo_label(pool), pool, spec, arguments(), labeled=labeled)
        assert accuracy(fitted.predict_student(student, spec, test), test) > 0.6
    with pytest.raises(ValueError, match="labeled must be one of override, pseudo, mix, got 'no'"):
        fitted.self_train(fitted.pseudo_label(pool), pool, spec, arguments(), labeled="no")


def test_true_labels_override_and_are_added(fitted):
    labeled = draw_images(12, seed=0)
    pool = Dataset.from_list([{k: v for k, v in labeled[i].items() if k != "label"} for i in range(2)])
    pool = pool.cast(labeled.select_columns(["image", "id"]).features)
    targets = fitted.pseudo_label(pool)
    assert targets["is_labeled"][:] == [True, True]
    wrong = targets.remove_columns("target").add_column("target", [[0.0, 0.5, 0.5]] * 2)
    pool = pseudo_labels.attach_targets(with_ids(pool), wrong)
    merged = pseudo_labels.override(pool, pseudo_labels.as_targets(labeled, 3))
    assert len(merged) == 12
    assert merged["id"][:] == labeled["id"][:]
    assert [row.index(1.0) for row in merged["soft_labels"]] == labeled["label"][:]


def test_merged_member_is_a_plain_model(fitted, tmp_path):
    spec = next(spec for spec in fitted.specs if spec.method_name == "lora")
    merged = fitted.merge(spec)
    pixels = torch.randn(2, 3, 16, 16)
    expected = fitted.load(spec)(pixel_values=pixels).logits
    torch.testing.assert_close(merged(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(LABEL_NAMES))
    torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="AdaptFormer cannot be merged"):
        fitted.merge(next(spec for spec in fitted.specs if spec.method_name == "adaptformer"))


def test_member_with_bad_logits_is_left_out_with_a_warning(fitted, caplog):
    pool = draw_images(9, seed=5)
    kept, _ = fitted.member_logits(pool)
    (broken,) = fitted._answers(kept[:1], pool)
    key = fingerprint(pool.select_columns("id"))
    path = fitted.output_dir / "predictions" / f"{key}-1" / f"{kept[0].id}.safetensors"
    broken["logits"] = torch.full_like(broken["logits"], torch.nan)
    write_tensors(path, broken, {"ids": key, "member": kept[0].id, "tta": "1"})
    table = fitted.pseudo_label(pool)
    assert set(table["n_members"]) == {3}
    torch.testing.assert_close(torch.tensor(table["target"][:]).sum(-1), torch.ones(9))
    assert "its logits are not finite" in caplog.text


def test_folder_refuses_what_does_not_belong(fitted, backbones):
    with pytest.raises(ValueError, match="made with other labelled images"):
        fitted.fit(draw_images(12, seed=9), arguments(), unlabeled_val=draw_images(30, seed=1))
    with pytest.raises(ValueError, match=r"made with other training arguments: .*'num_train_epochs': 4"):
        fitted.fit(draw_images(12, seed=0), arguments(num_train_epochs=9), unlabeled_val=draw_images(30, seed=1))
    with pytest.raises(ValueError, match="with other members or classes"):
        PeftEnsemble(build_specs(backbones)[:2], LABEL_NAMES, fitted.output_dir)
    with pytest.raises(ValueError, match="with other members or classes"):
        PeftEnsemble(build_specs(backbones), ["a", "b", "c"], fitted.output_dir)


def test_missing_class_is_reported_and_keeps_its_column(backbones, tmp_path, caplog):
    labeled = draw_images(6, seed=0).filter(lambda row: row["label"] != 1)
    spec = MemberSpec(backbone=backbones[0], method=SSFConfig())
    ensemble = PeftEnsemble([spec], LABEL_NAMES, tmp_path).fit(labeled, arguments(num_train_epochs=1))
    assert "no labelled image of ['green']" in caplog.text
    assert ensemble.predict(draw_images(3, seed=1)).shape == (3, 3)


def test_ids_are_made_from_pixels_or_must_differ(fitted):
    pool = draw_images(6, seed=6, ids=False)
    assert len(set(fitted.pseudo_label(pool)["id"])) == 6
    twice = Dataset.from_list([pool[0], pool[0]]).cast(pool.features)
    with pytest.raises(ValueError, match=r"unique ids, but .* occurs again"):
        fitted.pseudo_label(twice)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MemberSpec(backbone="b", method="lora"), TypeError, "method must be a config"),
        (lambda: MemberSpec(backbone="b", method=SSFConfig(), training={"lr": 1}), ValueError, r"got \['lr'\]"),
        (lambda: MemberSpec(backbone="b", method=SSFConfig(), training={"seed": 1}), ValueError, "folders and seeds"),
        (lambda: MemberSpec(backbone="b", method=SSFConfig(), augmentation="x"), ValueError, "augmentation must be"),
        (lambda: MemberSpec(backbone="b", method=SSFConfig(), pooling="x"), ValueError, "pooling must be"),
        (lambda: MemberSpec.grid([], [SSFConfig()]), ValueError, "at least one backbone"),
        (lambda: PeftEnsemble([], ["a", "b"], "x"), ValueError, "members that differ"),
        (
            lambda: PeftEnsemble([MemberSpec(backbone="b", method=SSFConfig())], ["a"], "x"),
            ValueError,
            "at least two classes",
        ),
    ],
)
def test_wrong_specs_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_wrong_data_is_refused(backbones, tmp_path):
    ensemble = PeftEnsemble(build_specs(backbones)[:2], LABEL_NAMES, tmp_path)
    labeled = draw_images(6, seed=0)
    with pytest.raises(ValueError, match="expected unlabeled_val to select on"):
        ensemble.fit(labeled, arguments())
    with pytest.raises(ValueError, match="a column `image`"):
        ensemble.fit(labeled.remove_columns("image"), arguments())
    with pytest.raises(ValueError, match="a column `label`"):
        ensemble.fit(labeled.remove_columns("label"), arguments())
    outside = labeled.remove_columns("label").add_column("label", [3] * 6)
    with pytest.raises(ValueError, match="labels from 0 to 2, got 3 to 3"):
        ensemble.fit(outside, arguments())
    with pytest.raises(ValueError, match="a trained member in"):
        ensemble.predict(labeled)
    assert list(tmp_path.iterdir()) == []


def test_grid_spreads_search_over_training_method_and_views():
    search = {"learning_rate": [1e-3], "r": [2, 4], "augmentation": ["weak", "strong"]}
    specs = MemberSpec.grid(["a"], [LoraConfig(target_modules=["q_proj"])], search, seeds=[0, 1])
    assert [(spec.method.r, spec.augmentation, spec.seed) for spec in specs[:4]] == [
        (2, "weak", 0), (2, "strong", 0), (4, "weak", 0), (4, "strong", 0)
    ]  # fmt: skip
    assert len({spec.group for spec in specs}) == 2
    assert len({spec.id for spec in specs}) == 8
    assert UnsupervisedSelector().combine == "mean_sq_rank"
