"""What `attach` changes, and that all of it is undone."""

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

import meda_cache
from meda_cache import MedaCache, attach, detach
from support.tiny_decoders import Family, build_llama


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def implementations(model: Any) -> list[str]:
    return [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_leaving_the_context_restores_everything(family: Family, implementation: str) -> None:
    model, inputs = family.model, family.prompts(2)
    model.set_attn_implementation(implementation)
    logits, before, hooks_before = model(**inputs).logits, implementations(model), hooks(model)
    with attach(model):
        assert implementations(model) != before
        model.generate(**inputs, past_key_values=MedaCache(model.config), max_new_tokens=2)
    assert implementations(model) == before
    assert hooks(model) == hooks_before
    assert torch.equal(model(**inputs).logits, logits)
    model.set_attn_implementation("sdpa")


def test_an_exception_inside_restores_everything(llava: Family) -> None:
    before, hooks_before = implementations(llava.model), hooks(llava.model)
    with pytest.raises(KeyError), attach(llava.model):
        raise KeyError
    assert implementations(llava.model) == before
    assert hooks(llava.model) == hooks_before


def test_an_exception_inside_a_forward_leaves_the_cache_detached(llava: Family) -> None:
    cache = MedaCache(llava.model.config)
    with attach(llava.model):
        with pytest.raises(ValueError, match="Image features and image tokens"):
            llava.model(
                input_ids=llava.prompts(2)["input_ids"], pixel_values=torch.zeros(1, 3, 16, 16), past_key_values=cache
            )
        assert not cache.is_attached


def test_other_caches_and_the_vision_tower_are_left_alone(llava: Family) -> None:
    inputs = llava.prompts(2)
    expected = llava.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    with attach(llava.model):
        assert llava.model.config.vision_config._attn_implementation == "sdpa"
        cache = DynamicCache(config=llava.model.config)
        tokens = llava.model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert torch.equal(tokens, expected)


def test_attach_is_idempotent_and_detach_undoes_it_once_for_all(llava: Family) -> None:
    before = hooks(llava.model)
    attach(llava.model)
    attached = hooks(llava.model)
    assert attached > before
    with attach(llava.model):
        assert hooks(llava.model) == attached
    assert hooks(llava.model) == attached, "the inner block does not detach what it did not attach"
    detach(llava.model)
    detach(llava.model)
    assert hooks(llava.model) == before


def test_attached_model_is_not_kept_alive() -> None:
    model = build_llama()
    attach(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 reads it
def test_model_wrapped_by_peft_works(llava: Family) -> None:
    torch.manual_seed(0)
    model = get_peft_model(build_llama().eval(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    inputs = {"input_ids": torch.arange(3, 43)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    with attach(model):
        cache = MedaCache(model.config, keep_ratio=1)
        tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
        compressed = MedaCache(model.config, keep_ratio=0.2)
        model.generate(**inputs, past_key_values=compressed, max_new_tokens=5, do_sample=False)
    assert torch.equal(tokens, expected)
    assert compressed.stats().is_compressed


def test_import_registers_nothing() -> None:
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions\n"
        "before = set(functions)\n"
        f"import {meda_cache.__name__}\n"
        "assert set(functions) == before, set(functions) - before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
