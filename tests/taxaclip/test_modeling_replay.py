from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel

import taxaclip
from support.taxa_streams import build_model, build_processor
from taxaclip import ReplayCLIPModel, contrastive_loss
from taxaclip.convert import REPLAY_FILE

GOLDEN = Path(__file__).parent / "golden"


def make_inputs(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, 16, 16, generator=generator)
    texts = [f"a photo of number {number}" for number in range(size)]
    tokens = build_processor().tokenizer(texts, padding=True, return_tensors="pt")
    return {"pixel_values": pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def test_saved_model_is_a_plain_clip_and_a_projection(tmp_path: Path) -> None:
    model = build_model(replay=True).eval()
    model.replay_projection.weight.data.mul_(2)
    model.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    assert type(plain) is CLIPModel
    assert plain.config.architectures == ["CLIPModel"]
    assert set(load_file(tmp_path / "model.safetensors")) == set(plain.state_dict())
    again = ReplayCLIPModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    (tmp_path / REPLAY_FILE).unlink()
    fresh = ReplayCLIPModel.from_pretrained(tmp_path)
    assert torch.equal(fresh.replay_projection.weight, model.visual_projection.weight)


def test_converted_projection_is_found_and_goes_back_to_open_clip(converted: dict[str, Path], tmp_path: Path) -> None:
    source = load_file(GOLDEN / "tiny_gelu" / "open_clip_model.safetensors")
    model = ReplayCLIPModel.from_pretrained(converted["tiny_gelu"])
    assert torch.equal(model.replay_projection.weight, source["visual.continual_proj"].T)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_bytes(
        (converted["tiny_gelu"] / "preprocessor_config.json").read_bytes()
    )
    taxaclip.hf_to_open_clip(tmp_path / "hf", tmp_path / "back")
    for name, value in load_file(tmp_path / "back" / "open_clip_model.safetensors").items():
        assert torch.equal(value, source[name]), name


def test_stripped_model_computes_the_same_and_shares_weights() -> None:
    model = build_model(replay=True).eval()
    plain = model.strip_replay()
    assert type(plain) is CLIPModel
    inputs = make_inputs(3)
    assert torch.equal(plain(**inputs).logits_per_image, model(**inputs).logits_per_image)
    assert plain.visual_projection.weight is model.visual_projection.weight


def test_both_batches_go_through_their_projection() -> None:
    model = build_model(replay=True).eval()
    model.replay_projection.weight.data.normal_()
    inputs, replay = make_inputs(3), make_inputs(2, seed=1)
    output = model(**inputs, **{f"replay_{name}": value for name, value in replay.items()})
    pooled = model.vision_model(replay["pixel_values"]).pooler_output
    torch.testing.assert_close(output.replay_image_embeds, pooled @ model.replay_projection.weight.T)
    for embeds, expected in (
        (output.image_embeds, model(**inputs).image_embeds),
        (output.text_embeds, model(**inputs).text_embeds),
        (output.replay_text_embeds, model(**replay).text_embeds),
    ):
        torch.testing.assert_close(torch.nn.functional.normalize(embeds, dim=1), expected)


def test_each_projection_learns_from_its_own_loss_alone() -> None:
    model = build_model(replay=True)
    inputs, replay = make_inputs(3), make_inputs(3, seed=1)
    output = model(**inputs, **{f"replay_{name}": value for name, value in replay.items()})
    for image, text, learning, resting in (
        (output.image_embeds, output.text_embeds, model.visual_projection, model.replay_projection),
        (output.replay_image_embeds, output.replay_text_embeds, model.replay_projection, model.visual_projection),
    ):
        model.zero_grad()
        contrastive_loss(image, text, model.logit_scale).backward(retain_graph=True)
        assert learning.weight.grad.abs().max() > 0
        assert resting.weight.grad is None
        assert model.text_projection.weight.grad.abs().max() > 0


def test_projection_is_found_in_any_cache_of_the_hub_at_any_revision(tmp_path: Path) -> None:
    for revision, factor in (("a" * 40, 1.0), ("b" * 40, 3.0)):
        model = build_model(replay=True)
        model.replay_projection.weight.data.fill_(factor)
        model.save_pretrained(tmp_path / "models--birds--clip" / "snapshots" / revision)
    (tmp_path / "models--birds--clip" / "refs").mkdir()
    (tmp_path / "models--birds--clip" / "refs" / "main").write_text("a" * 40)
    for revision, factor in ((None, 1.0), ("b" * 40, 3.0)):
        options = {} if revision is None else {"revision": revision}
        found = ReplayCLIPModel.from_pretrained("birds/clip", cache_dir=tmp_path, local_files_only=True, **options)
        assert found.replay_projection.weight.unique().tolist() == [factor]


def test_saving_and_sending_at_once_would_leave_the_projection_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="push_to_hub"):
        build_model(replay=True).save_pretrained(tmp_path, push_to_hub=True)
