"""Connector, adapters, answers, and whole runs on tiny models."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

import hf_ava_bench.runner.head as runner_head
from hf_ava_bench import Fingerprint, run_benchmark
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.head import IGNORED, AvaHead, Prompts, choose_options, generate_answers
from hf_ava_bench.runner.profiles import PROFILES, Profile, find_profile
from hf_ava_bench.runner.tiny import build_tiny_llm
from hf_ava_bench.runner.training import build_head, load_head, save_head

LORA = Profile(
    name="test", epochs=1, localization_epochs=1, batch_size=4, lora_r=4, lora_alpha=8, lora_dropout=0.0,
    n_train=8, n_test=6, system="", learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture
def llm():
    return build_tiny_llm(32, 2)


@pytest.fixture
def prompts(llm):
    return Prompts(llm[1], 4, "", 128)


def test_labels_hold_the_answer_and_the_end_and_nothing_else(prompts):
    item = prompts.encode("How many?", "6")
    end = prompts.tokenizer.eos_token_id
    assert [label for label in item["labels"] if label != IGNORED] == [*prompts.tokenizer(" 6")["input_ids"], end]
    assert sum(item["is_image"]) == 4
    text = prompts.tokenizer.decode(
        [i for i, image in zip(item["input_ids"], item["is_image"], strict=True) if not image]
    )
    assert text == "USER: \nHow many? ASSISTANT: 6</s>"
    assert prompts.encode("How many?", None)["input_ids"] == item["input_ids"][:-3]
    with pytest.raises(ValueError, match="more than 128 tokens"):
        prompts.encode("x" * 200, None)


def build_gpt2():
    """A model with learned absolute positions."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_padding_does_not_change_the_loss(llm, prompts, positions):
    head = AvaHead(llm[0] if positions == "rotary" else build_gpt2(), 5).eval()
    features = torch.randn(2, 4, 5)
    items = [prompts.encode("How many?", "6"), prompts.encode("What is written in the red box?", "oberon")]

    def loss(chosen, rows, **options):
        return head(features=features[rows], **prompts.collate(chosen), **options)["loss"].item()

    counts = [sum(label != IGNORED for label in item["labels"]) for item in items]
    alone = [loss([items[0]], [0]), loss([items[1]], [1])]
    assert loss(items, [0, 1]) == pytest.approx(np.average(alone, weights=counts), abs=1e-5)
    # Over the tokens of two processes, the shares add up to the same.
    shares = [loss([item], [row], num_items_in_batch=sum(counts)) for row, item in enumerate(items)]
    assert sum(shares) == pytest.approx(loss(items, [0, 1]), abs=1e-5)


def test_visual_tokens_stand_at_the_image_and_reach_the_loss(llm, prompts):
    head = AvaHead(llm[0], 5)
    features = torch.randn(1, 4, 5, requires_grad=True)
    batch = prompts.collate([prompts.encode("How many?", "6")])
    embeds = head.embed(features, batch["input_ids"], batch["is_image"])
    torch.testing.assert_close(embeds[batch["is_image"]], head.connector(features)[0])
    head(features=features, **batch)["loss"].backward()
    assert (features.grad.abs().sum(dim=-1) > 0).all()


def test_scale_and_shift_of_tokens_make_no_difference_once_they_are_fitted(llm, prompts):
    head = AvaHead(llm[0], 5).eval()
    features = torch.randn(300, 4, 5)
    features[..., 4] = 0  # a channel that says nothing
    batch = prompts.collate([prompts.encode("How many?", "6")])
    raw = head(features=features[:1], **batch)["loss"].item()
    losses = []
    for tokens in (features, 40 * features - 7):
        head.fit_scale(tokens)
        losses.append(head(features=tokens[:1], **batch)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != pytest.approx(raw, abs=1e-5)


def test_batched_answers_equal_single_ones(llm, prompts):
    head = AvaHead(llm[0], 5).eval()
    features = torch.randn(3, 4, 5)
    questions = ["How many?", "What is written in the red box?", "Where is the star?"]
    batched = generate_answers(head, prompts, features, questions, max_new_tokens=6)
    single = [
        generate_answers(head, prompts, features[i : i + 1], [question], max_new_tokens=6)[0]
        for i, question in enumerate(questions)
    ]
    assert batched == single


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_options_are_chosen_by_mean_log_likelihood(llm, prompts, monkeypatch, positions, batch_size):
    head = AvaHead(llm[0] if positions == "rotary" else build_gpt2(), 5).eval()
    features = torch.randn(3, 4, 5)
    options = [["left", "right below", "up"], ["sea", "city"], ["a", "bb", "ccc", "d"]]
    questions = ["Which way?", "What place is this?", "?"]
    expected, likelihoods = [], []
    for row, names in enumerate(options):
        scores = []
        for name in names:
            batch = prompts.collate([prompts.encode(questions[row], name)])
            scores.append(-head(features=features[row : row + 1], **batch)["loss"].item())
        expected.append(names[int(np.argmax(scores))])
        likelihoods += scores
    real, found = runner_head._score_options, []
    monkeypatch.setattr(runner_head, "_score_options", lambda *a: found.append(real(*a)) or found[-1])
    assert choose_options(head, prompts, features, questions, options, batch_size=batch_size) == expected
    assert [score for scores in found for score in scores] == pytest.approx(likelihoods, abs=1e-5)


def test_image_and_question_are_computed_once(llm, prompts):
    head = AvaHead(llm[0], 5).eval()
    lengths = []
    head.llm.model.register_forward_hook(lambda *a: lengths.append(tuple(a[-1].last_hidden_state.shape[:2])))
    choose_options(head, prompts, torch.randn(1, 4, 5), ["Which way?"], [["left", "right", "up"]])
    prompt = len(prompts.encode("Which way?", None)["input_ids"])
    assert lengths == [(1, prompt), (3, len(" right") + 1)]


def test_only_connector_and_adapter_learn_and_adapters_share_one_base(llm):
    head = build_head(llm[0], 5, LORA, "counting", seed=0)
    second = build_head(head.llm, 5, LORA, "color", seed=0)
    assert second.llm is head.llm
    assert sorted(head.llm.peft_config) == ["color", "counting"]
    learning = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert learning
    assert all("connector" in name or ("lora" in name and "color" in name) for name in learning)
    assert not any("lm_head" in name for name in learning)
    base = sum(p.numel() for name, p in second.named_parameters() if "lora" not in name and "connector" not in name)
    assert base == sum(p.numel() for p in build_tiny_llm(32, 2)[0].parameters())


def test_heads_survive_saving(llm, prompts, tmp_path):
    head = build_head(llm[0], 5, LORA, "counting", seed=0)
    for name, parameter in head.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    features = torch.randn(1, 4, 5)
    head.fit_scale(3 * features + 1)
    batch = prompts.collate([prompts.encode("How many?", "6")])
    head.eval()
    expected = head(features=features, **batch)["loss"]
    save_head(head, tmp_path, "counting")
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".md"}
    again = load_head(build_tiny_llm(32, 2)[0], 5, tmp_path, "counting")
    torch.testing.assert_close(again(features=features, **batch)["loss"], expected, atol=1e-6, rtol=0)


def test_paper_profile_has_the_published_settings():
    paper = PROFILES["paper"]
    assert (paper.lora_r, paper.lora_alpha, paper.lora_dropout) == (128, 256, 0.05)
    assert (paper.epochs, paper.localization_epochs, paper.batch_size, paper.learning_rate) == (10, 20, 16, 1e-4)
    assert paper.warmup_ratio == 0.03
    with pytest.raises(ValueError, match="paper, fast, smoke"):
        find_profile("huge")


def tiny_vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False)


def test_run_with_adapters_goes_on_where_it_stopped(tmp_path, llm, monkeypatch):
    arguments = {"source": "mini", "profile": LORA, "progress": False, "image_size": 32}
    vit = tiny_vit()
    run_benchmark(vit, llm, tmp_path / "vit", ["scene"], **arguments)
    import hf_ava_bench.runner.run as runner

    real, trained = runner.train_head, []
    monkeypatch.setattr(runner, "train_head", lambda *a, **k: trained.append(k["ability"]) or real(*a, **k))
    fresh = build_tiny_llm(32, 2)
    fingerprint = run_benchmark(vit, fresh, tmp_path / "vit", ["scene", "counting"], **arguments)
    assert trained == ["counting", "counting"]  # the head and its blind control; `scene` was there
    assert sorted(fingerprint.abilities) == ["counting", "scene"]
    result = fingerprint.abilities["counting"]
    assert set(result.controls) == {"blind", "shuffled"}
    assert result.n == len(result.values) == 6
    assert result.interval[0] <= result.value <= result.interval[1]
    assert (tmp_path / "vit" / "heads" / "counting" / "connector.safetensors").exists()
    stored = Fingerprint.load(tmp_path / "vit" / "fingerprint.json")
    assert stored == fingerprint
    assert any("synthetic" in warning for warning in stored.warnings)
    assert stored.resolution == 32
    assert stored.table().startswith(
        "ViTModel through LlamaForCausalLM (16 tokens an image of 32 pixels, profile test)"
    )
    hashes = [digest for ability in stored.abilities.values() for digest in ability.items.values()]
    assert len({len(digest) for digest in hashes}) == 1
    assert len(set(hashes)) == 4  # of two splits of two abilities
    assert "| counting | mae_gt |" in stored.table()
    # Another request does not take the old results.
    run_benchmark(vit, fresh, tmp_path / "vit", ["scene"], seed=1, **arguments)
    assert trained[2:] == ["scene", "scene"]


def test_a_tower_is_taken_by_its_folder(tmp_path, llm):
    tiny_vit().save_pretrained(tmp_path / "tower")
    arguments = {"source": "mini", "profile": LORA, "progress": False, "image_size": 32, "controls": ()}
    loaded = run_benchmark(str(tmp_path / "tower"), llm, tmp_path / "run", ["scene"], **arguments)
    assert loaded.num_tokens == 16


def test_run_without_controls_says_so(tmp_path, llm):
    fingerprint = run_benchmark(
        tiny_vit(), llm, tmp_path, ["scene"], source="mini", profile=LORA, progress=False, image_size=32, controls=()
    )
    assert any("no blind control" in warning for warning in fingerprint.warnings)
    with pytest.raises(ValueError, match="may hold blind, shuffled, random, oracle"):
        run_benchmark(tiny_vit(), llm, tmp_path, ["scene"], source="mini", profile=LORA, controls=["deaf"])


def test_controls_with_other_towers(tmp_path, llm):
    controls = ("blind", "random", "oracle")
    arguments = {"source": "mini", "profile": LORA, "progress": False, "image_size": 32, "controls": controls}
    result = run_benchmark(tiny_vit(), llm, tmp_path, ["scene"], **arguments).abilities["scene"]
    assert tuple(result.controls) == controls
    assert all(0 <= score <= 1 for score in result.controls.values())
    assert not isinstance(llm[0], PeftModel)
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["scene"]
    with pytest.raises(ValueError, match="patch-colour has none"):
        run_benchmark(KnownEncoder("patch-colour"), llm, tmp_path, ["scene"], **arguments)


def test_fingerprint_of_another_version_is_refused(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"schema": "hf-ava-bench/fingerprint/0"}))
    with pytest.raises(ValueError, match="got 'hf-ava-bench/fingerprint/0'"):
        Fingerprint.load(path)
