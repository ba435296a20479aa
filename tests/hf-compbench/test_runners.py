"""Runners: real tiny models, the store after kill -9, sharding, batches, option log-probabilities."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import hf_diorama
from hf_compbench import score
from hf_compbench.features import build_dataset, build_row
from hf_compbench.prompting import load_prompt
from hf_compbench.runners import HeuristicRunner, ResponseStore, TransformersRunner, read_responses, run_model
from hf_compbench.runners.run import build_requests, list_places
from hf_compbench.runners.transformers_runner import compare_batch_sizes

TEXT = {
    "model_type": "llama",
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = "<pad> </s> <unk> <image> <fake_token_around_image> <global-img> <end_of_utterance>".split()
WORDS = (
    "Image 1 2 : which what is the larger better A B C D . ? Answer with letter of one option only same Both".split()
)


def build_tokenizer():
    vocab = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
        extra_special_tokens={"image_token": "<image>"},
    )


def build_llava():
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **VISION},
        text_config=TEXT,
        image_token_index=3,
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def build_llava_next():
    pinpoints = [[16, 32], [32, 16]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **VISION},
        text_config=TEXT,
        image_token_index=3,
        vision_feature_layer=-1,
        image_grid_pinpoints=pinpoints,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaNextForConditionalGeneration(config), processor


def build_idefics3():
    config = Idefics3Config(
        vision_config={"image_size": 32, "patch_size": 8, **VISION}, text_config=TEXT, image_token_id=3, scale_factor=2
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    return Idefics3ForConditionalGeneration(config), Idefics3Processor(images, build_tokenizer(), image_seq_len=4)


FAMILIES = {"llava": build_llava, "llava_next": build_llava_next, "idefics3": build_idefics3}


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    torch.manual_seed(0)
    model, processor = FAMILIES[request.param]()
    return TransformersRunner(model, processor, name=request.param, chat_template="plain", max_new_tokens=4)


@pytest.fixture(scope="module")
def nano():
    path = hf_diorama.model_path("llava-nano")
    return TransformersRunner.from_pretrained(path, chat_template="plain", max_new_tokens=6)


@pytest.fixture(scope="module")
def few(mini):
    """Six rows of six kinds."""
    return mini.select([0, 9, 17, 33, 41, 49])


def ask(rows, prompt="v2", orders=("12", "21"), option_shifts=1, runner=None, **options):
    """The requests of all questions to rows."""
    places = list_places(rows, orders, option_shifts)
    return list(build_requests(rows, runner or HeuristicRunner("left"), load_prompt(prompt), places, **options))


def test_two_images_reach_the_model_in_their_order(tiny, few):
    assert tiny.layout == "interleaved"
    requests = ask(few)
    inputs = [tiny.encode([request.messages]) for request in requests[:2]]
    assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    flat = [one["pixel_values"].squeeze(0) for one in inputs]  # Idefics3 has a dimension for the batch
    assert len(flat[0]) == 2
    assert torch.equal(flat[0][0], flat[1][1])  # the other order
    with torch.inference_mode():
        logits = [tiny.model(**one).logits[0, -1] for one in inputs]
    assert not torch.allclose(logits[0], logits[1])


def test_batched_logits_are_those_of_one(tiny, few):
    chats = [request.messages for request in ask(few, orders=["12"])][:3]
    with torch.inference_mode():
        together = tiny.model(**tiny.encode(chats)).logits[:, -1]
        alone = torch.stack([tiny.model(**tiny.encode([chat])).logits[0, -1] for chat in chats])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_batch_of_one_equals_batch_of_many(tiny, nano, few):
    requests = ask(few)
    assert compare_batch_sizes(tiny, requests, 8) == []
    assert compare_batch_sizes(nano, ask(few, "nano"), 8) == []


def brute_force(runner, request):
    """One full forward for each option, without a cache."""
    scores = []
    inputs = runner.encode([request.messages])
    for text in request.choices:
        tokens = torch.tensor([runner.encode_option(text)])
        full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1)}
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        with torch.inference_mode():
            logprobs = runner.model(**full).logits[0].log_softmax(dim=-1)
        start = inputs["input_ids"].shape[1] - 1
        scores.append(sum(float(logprobs[start + i, token]) for i, token in enumerate(tokens[0].tolist())))
    return scores


@pytest.mark.parametrize("prompt", ["v2", "nano", "paper-v1"])
def test_option_scores_equal_full_forwards(tiny, nano, few, prompt):
    for single in (tiny, nano):
        # In float64, but for the norms of the models, which stay in float32: hence relative for scores of -20.
        model = copy.deepcopy(single.model).double()
        runner = TransformersRunner(model, single.processor, name="double", chat_template="plain")
        requests = ask(few, prompt, orders=["12"])
        assert len({len(request.choices) for request in requests}) > 1  # in one batch
        for request, scores in zip(requests, runner.score_options(requests), strict=True):
            assert scores == pytest.approx(brute_force(runner, request), rel=1e-5, abs=1e-5)


def test_lack_of_memory_halves_batches_of_options(nano, few, monkeypatch):
    requests = ask(few, "nano")
    wanted = nano.score_options(requests)
    sizes, plain = [], TransformersRunner._score

    def scarce(self, batch, inputs):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch, inputs)

    monkeypatch.setattr(TransformersRunner, "_score", scarce)
    for scores, expected in zip(nano.score_options(requests), wanted, strict=True):
        assert scores == pytest.approx(expected, rel=1e-4)
    assert sizes == [12, 6, 3, 3, 6, 3, 3]


def test_token_budget_and_lack_of_memory_change_nothing(nano, few, monkeypatch):
    requests = ask(few, "nano")
    wanted = nano.generate(requests)
    sizes = []
    plain = TransformersRunner._generate

    def scarce(self, batch, inputs):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch, inputs)

    monkeypatch.setattr(TransformersRunner, "_generate", scarce)
    assert nano.generate(requests) == wanted
    assert max(sizes) == len(requests)
    monkeypatch.setattr(nano, "max_batch_tokens", 100)
    sizes.clear()
    assert nano.generate(requests) == wanted
    assert max(sizes) <= 2


def test_a_model_of_one_image_gets_a_composite(caplog):
    class OneImage(TransformersRunner):
        def encode(self, chats):
            if sum(part["type"] == "image" for part in chats[0][0]["content"]) > 1:
                raise ValueError("one image only")
            return super().encode(chats)

    model, processor = build_llava()
    with caplog.at_level("WARNING"):
        runner = OneImage(model, processor, name="one", chat_template="plain")
    assert runner.layout == "composite"
    assert "takes one image at a time" in caplog.text


def test_the_store_knows_retrained_weights_and_another_processor(mini, tmp_path):
    rows, path, store = mini.select([0]), tmp_path / "model", tmp_path / "responses.jsonl"
    shutil.copytree(hf_diorama.model_path("llava-nano"), path)

    def answer():
        runner = TransformersRunner.from_pretrained(str(path), chat_template="plain", max_new_tokens=2)
        return {response["key"] for response in run_model(rows, runner, prompt="nano", store=store)}

    first = answer()
    assert answer() == first
    weights = load_file(path / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, path / "model.safetensors", {"format": "pt"})
    second = answer()
    assert not first & second
    config = json.loads((path / "processor_config.json").read_text())
    config["image_processor"]["do_normalize"] = False
    (path / "processor_config.json").write_text(json.dumps(config))
    assert not answer() & (first | second)
    assert len(read_responses(store)) == 6


def test_responses_say_how_they_were_made(few):
    for mode, answer in (("generate", "reply"), ("logprob", "scores")):
        runner = HeuristicRunner("left")
        runner.score_options = lambda requests: [[0.0] * len(request.choices) for request in requests]
        response = run_model(few, runner, mode=mode, layout="text_first")[0]
        assert answer in response
        prompt = {"prompt": "v2", "prompt_hash": load_prompt("v2").digest}
        wanted = {"model": "heuristic:left", "mode": mode, "layout": "text_first", "shown": "own", **prompt}
        assert {name: response[name] for name in wanted} == wanted


def test_questions_that_failed_are_errors_and_asked_again(few, tmp_path):
    class Flaky(HeuristicRunner):
        def generate(self, requests):
            return [None if request.order == "21" else "Left" for request in requests]

    store = tmp_path / "r.jsonl"
    responses = run_model(few, Flaky("left"), store=store)
    assert [response.get("status", "ok") for response in responses] == ["ok", "error"] * 6
    assert score(few, responses, num_bootstrap=10).missing == 0  # no reply in that order: it counts as never asked
    again = run_model(few, HeuristicRunner("left"), store=store)
    assert all("reply" in response for response in again)
    assert len(store.read_text().splitlines()) == 12 + 6


def test_missing_chat_template_is_one_clear_error():
    model, processor = build_llava()
    with pytest.raises(ValueError, match="pass chat_template='plain'"):
        TransformersRunner(model, processor, name="bare")


def test_llava_nano_answers_in_both_orders_and_is_scored(nano, mini):
    names = mini.features["relativity"].int2str
    rows = mini.filter(lambda row: names(row["relativity"]) == "quantity")
    replies = run_model(rows, nano, prompt="nano")
    logprobs = run_model(rows, nano, prompt="nano", mode="logprob")
    assert len(replies) == len(logprobs) == 16
    assert all(len(response["scores"]) == 3 for response in logprobs)
    column = score(rows, logprobs, num_bootstrap=50).columns["MS-quantity"]
    assert column["num_swapped"] == 8
    assert 0 <= column["debiased_accuracy"] <= 1
    assert score(rows, replies, num_bootstrap=50).columns["MS-quantity"]["n"] == 8


def test_keys_name_everything_that_changes_an_answer(few):
    def keys(**options):
        return {request.key for request in ask(few, **options)}

    trained = HeuristicRunner("left")
    trained.fingerprint = "other weights"
    base = keys()
    assert keys() == base
    assert len(base) == 12
    for change in (
        {"runner": HeuristicRunner("right")},
        {"runner": trained},
        {"prompt": "nano"},
        {"layout": "text_first"},
        {"shown": "blank"},
        {"mode": "logprob"},
    ):
        assert not keys(**change) & base
    assert len(keys(option_shifts=3)) > 12  # the rows whose options are things
    other = few.map(lambda row: {"options": [*row["options"], "a third thing"]}, load_from_cache_file=False)
    assert not {request.key for request in ask(other)} & base


def test_blank_and_shuffled_images_are_not_the_own_ones(few):
    own, blank, shuffled = (
        [request.images[0] for request in ask(few, shown=shown)] for shown in ("own", "blank", "shuffled")
    )
    assert all(image.getextrema() == ((128, 128),) * 3 for image in blank)
    assert all(a.size == b.size for a, b in zip(own, blank, strict=True))
    assert all(a.tobytes() != b.tobytes() for a, b in zip(own, shuffled, strict=True))
    two = few.select([0, 1])
    pairs = zip(ask(two), ask(two, shown="shuffled"), strict=True)
    assert all(a.images[0].tobytes() != b.images[0].tobytes() for a, b in pairs)
    with pytest.raises(ValueError, match="at least two rows"):
        ask(few.select([0]), shown="shuffled")


def test_heuristics(mini):
    names = mini.features["relativity"].int2str
    sided = mini.filter(lambda row: names(row["relativity"]) not in ("existence", "quality", "quantity"))
    left = score(sided, run_model(sided, HeuristicRunner("left")), num_bootstrap=50)
    assert {column["pair_accuracy"] for column in left.columns.values()} == {0}
    assert {column["accuracy"] for column in left.columns.values()} == {0.5}
    replies = run_model(mini, HeuristicRunner("random"))
    assert len(Counter(reply["reply"] for reply in replies)) > 2
    with pytest.raises(ValueError, match="got 'best'"):
        HeuristicRunner("best")


@pytest.mark.parametrize("rule", ["brighter", "sharper"])
def test_heuristics_that_look(rule):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8))
    winner, loser = {"brighter": ("white", "gray"), "sharper": (noise, "white")}[rule]
    picture = [
        image if isinstance(image, Image.Image) else Image.new("L", (16, 16), image) for image in (winner, loser)
    ]
    common = {"source": "mini_photos", "relativity": "quality", "question": "Which?", "options": ["Left", "Right"]}
    rows = build_dataset(
        [
            {**build_row(keys=(f"{i}a", f"{i}b"), answer_text=("Left", "Right")[i], **common), **images}
            for i, images in enumerate({"image_1": a, "image_2": b} for a, b in (picture, picture[::-1]))
        ]
    )
    assert (
        score(rows, run_model(rows, HeuristicRunner(rule)), num_bootstrap=50).columns["MP-quality"]["pair_accuracy"]
        == 1
    )


SLOW_RUN = """
import sys, time
import datasets
from hf_compbench.runners import HeuristicRunner, run_model

class Slow(HeuristicRunner):
    def generate(self, requests):
        time.sleep(0.05)
        return super().generate(requests)

ds = datasets.load_from_disk(sys.argv[1])
run_model(ds, Slow("random"), store=sys.argv[2], batch_size=2)
"""


def test_killed_run_goes_on_where_it_stopped(mini, tmp_path):
    mini.save_to_disk(tmp_path / "mini")
    script = tmp_path / "run.py"
    script.write_text(SLOW_RUN)
    store = tmp_path / "responses.jsonl"
    command = [sys.executable, str(script), str(tmp_path / "mini"), str(store)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not store.exists() or store.read_bytes().count(b"\n") < 12):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = store.read_bytes()
    assert 12 <= before.count(b"\n") < 128
    store.write_bytes(before[: before.rindex(b"\n") + 1] + b'{"key": "torn')  # as a crash in the middle of a line
    asked = []

    class Counting(HeuristicRunner):
        def generate(self, requests):
            asked.extend(requests)
            return super().generate(requests)

    resumed = run_model(mini, Counting("random"), store=store)
    assert len(asked) == 128 - before[: before.rindex(b"\n") + 1].count(b"\n")
    assert resumed == run_model(mini, HeuristicRunner("random"))
    assert [json.loads(line)["key"] for line in store.read_text().splitlines()] == [r["key"] for r in resumed]
    assert (
        score(mini, read_responses(store), num_bootstrap=20).to_dict()
        == score(mini, resumed, num_bootstrap=20).to_dict()
    )


TWO_PROCESSES = """
import json, sys
import datasets
from hf_compbench.runners import HeuristicRunner, run_model
from accelerate import PartialState

ds = datasets.load_from_disk(sys.argv[1])
responses = run_model(ds, HeuristicRunner("random"), store=sys.argv[2], distributed=True)
if PartialState().is_main_process:
    print(json.dumps(sorted(response["key"] for response in responses)))
"""


@pytest.mark.loopback
@pytest.mark.slow
def test_two_processes_share_the_questions(mini, tmp_path):
    few = mini.select(range(12))
    few.save_to_disk(tmp_path / "few")
    script = tmp_path / "run.py"
    script.write_text(TWO_PROCESSES)
    arguments = [str(script), str(tmp_path / "few"), str(tmp_path / "responses.jsonl")]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29651", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    wanted = run_model(few, HeuristicRunner("random"))
    assert json.loads(outputs[0][0].splitlines()[-1]) == sorted(response["key"] for response in wanted)
    parts = sorted(Path(tmp_path).glob("responses-*.jsonl"))
    assert [part.name for part in parts] == ["responses-00000-of-00002.jsonl", "responses-00001-of-00002.jsonl"]
    assert min(part.read_bytes().count(b"\n") for part in parts) > 0


def test_errors_in_the_store_are_asked_again(tmp_path):
    with ResponseStore(tmp_path / "r.jsonl") as store:
        store.append({"key": "k", "id": "a", "status": "error"})
        assert "k" not in store
        store.append({"key": "k", "id": "a", "reply": "Left"})
        assert "k" in store
    assert read_responses(tmp_path) == [{"key": "k", "id": "a", "reply": "Left"}]


def test_bad_runs_give_one_clear_error(mini, tmp_path):
    bare = mini.select([0]).map(lambda row: {"image_1": None, "image_2": None})
    with pytest.raises(ValueError, match="has no images; resolve them"):
        run_model(bare, HeuristicRunner("left"))
    with pytest.raises(ValueError, match="got 'chat'"):
        run_model(mini, HeuristicRunner("left"), mode="chat")
    with pytest.raises(ValueError, match="Expected `store`"):
        run_model(mini, HeuristicRunner("left"), distributed=True)
    with pytest.raises(FileNotFoundError, match="JSONL file of responses"):
        read_responses(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"key": \n{}\n')
    with pytest.raises(ValueError, match="JSON in line 1"):
        read_responses(tmp_path / "bad.jsonl")
