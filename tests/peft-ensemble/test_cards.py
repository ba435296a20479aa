"""Model cards say what a reader needs: what to import, what was selected and why, what a student was taught."""

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from peft_ensemble import MemberSpec, PeftEnsemble, SSFConfig
from peft_ensemble.cards import ensemble_card, member_card
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones


def test_saved_adapters_say_what_to_import_once(build_model, tmp_path):
    model = get_peft_model(build_model("vit"), SSFConfig())
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in text
    assert text.count("import peft_ensemble") == 1
    model.add_adapter("second", SSFConfig())
    model.save_pretrained(tmp_path / "two", selected_adapters=["second"])
    assert (tmp_path / "two" / "README.md").read_text().count("import peft_ensemble") == 1


def test_cards_of_peft_s_own_methods_stay_as_they_are(build_model, tmp_path):
    get_peft_model(build_model("vit"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "peft_ensemble" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("backbone", "base_model"), [("facebook/dinov2-small", ["facebook/dinov2-small"]), ("/home/me/my: backbone", None)]
)
def test_cards_name_backbones_of_the_hub_alone(backbone, base_model):
    spec = MemberSpec(backbone=backbone, method=SSFConfig())
    for text in (member_card(spec, LABEL_NAMES, 6), ensemble_card([spec], {}, {}, LABEL_NAMES, 6)):
        data = ModelCard(text).data
        assert (data.library_name, data.pipeline_tag, data.base_model) == ("peft", "image-classification", base_model)
        assert backbone in text


def test_ensemble_and_student_say_where_they_come_from(tmp_path):
    backbone, _ = save_backbones(tmp_path)
    specs = MemberSpec.grid([backbone], [SSFConfig()], {"learning_rate": [1e-2, 1e-5]})
    ensemble = PeftEnsemble(specs, LABEL_NAMES, tmp_path / "ensemble")
    pool = draw_images(9, seed=1)
    ensemble.fit(draw_images(6, seed=0), arguments(num_train_epochs=1), unlabeled_val=pool)
    lines = (tmp_path / "ensemble" / "README.md").read_text().splitlines()
    (member,) = ensemble.members
    assert "Trained on 6 labelled images by `PeftEnsemble`. Classes: red, green, blue." in lines
    rate = member.training["learning_rate"]
    assert f"| [{member.id}](members/{member.id}) | ssf | {backbone} | 0 | learning_rate {rate} |" in lines
    (selection,) = ensemble.selections.values()
    (row,) = [line for line in lines if line.startswith(f"| {member.id} (selected)")]
    assert f" {selection.scores[selection.index]['bnm']:.4g} " in row
    assert sum(line.startswith(f"| {spec.id}") for spec in specs for line in lines) == 2
    student = MemberSpec(backbone=backbone, method=SSFConfig(), seed=1)
    ensemble.self_train(ensemble.pseudo_label(pool), pool, student, arguments(num_train_epochs=1))
    (card,) = (tmp_path / "ensemble" / "students").glob("*/README.md")
    # One member: its votes are certain, and so are the six true labels.
    assert (
        "100% of the targets are unanimous or true labels; the largest probability of a target is 1.00"
        in card.read_text()
    )
