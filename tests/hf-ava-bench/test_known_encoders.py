"""The test of the whole pipeline: encoders whose abilities are known, through a language model, in their order.

Tokens, connector, LoRA on the pre-trained `llm-nano-s`, answers, scores and statistics all have to be right for the
order to come out. What each encoder can know follows from its definition, see `runner/encoders.py`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_diorama
from hf_ava_bench import run_benchmark
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.profiles import Profile
from hf_ava_bench.statistics import holm, sign_flip_test

PROFILE = Profile(
    name="known", epochs=4, localization_epochs=4, batch_size=16, learning_rate=3e-3, lora_r=16, lora_alpha=32,
    lora_dropout=0.0, standardize=True, bf16=True, n_train=800, n_test=200, system="",
    max_length=256, closed_sets="loglik",
)  # fmt: skip

# (ability, better, worse)
ORDER = [
    ("texture", "edge-hist", "patch-colour"),
    ("texture", "edge-hist", "blind"),
    ("texture", "oracle", "edge-hist"),
    ("color", "patch-colour", "edge-hist"),
]
PROFILES = {"texture": PROFILE, "color": replace(PROFILE, n_train=4_000)}  # three numbers take longer to learn


def build_llm():
    path = hf_diorama.model_path("llm-nano-s")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model, AutoTokenizer.from_pretrained(path)


def measure(folder, name, ability, profile, controls=()):
    return run_benchmark(
        KnownEncoder(name), build_llm(), folder / name / ability, [ability], source="mini", profile=profile,
        controls=controls, image_size=64, progress=False,
    ).abilities[ability]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The result of each encoder in each ability, computed when asked for."""
    folder, found = tmp_path_factory.mktemp("known"), {}

    def get(name, ability):
        if (name, ability) not in found:
            found[name, ability] = measure(folder, name, ability, PROFILES[ability])
        return found[name, ability]

    return get


def values_of(result):
    """The metric of each item, higher is better."""
    upwards = 1 if result.m1 > result.m0 else -1
    return upwards * np.array([result.values[key] for key in sorted(result.values)])


@pytest.mark.slow
def test_known_encoders_come_out_in_their_provable_order(results):
    p_values = []
    for ability, better, worse in ORDER:
        difference = values_of(results(better, ability)) - values_of(results(worse, ability))
        assert difference.mean() > 0, (ability, better, worse)
        p_values.append(sign_flip_test(difference, samples=10_000))
    adjusted = holm(p_values)
    assert max(adjusted) < 0.01, list(zip(ORDER, adjusted, strict=True))


@pytest.mark.slow
def test_who_sees_nothing_is_at_chance(results):
    result = results("blind", "texture")
    assert result.score_interval[0] <= 0.03
    assert result.score < 0.15


def test_oracle_is_read_and_tokens_of_other_images_are_not(tmp_path):
    """The same pipeline in seconds."""
    profile = replace(PROFILE, n_train=160, n_test=48, epochs=8)
    result = measure(tmp_path, "oracle", "scene", profile, controls=("shuffled",))
    assert result.score > 0.9
    assert result.controls["shuffled"] < 0.2
