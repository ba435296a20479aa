"""What `attach` changes, and that all of it is undone."""

import copy
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

import meda_cache
from meda_cache import MedaCache, attach, detach
from support.tiny_decoders import Family, build_family, build_llama, build_llava


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


def test_models_that_share_a_configuration() -> None:
    """The name of the attention implementation is in the configuration: whoever is detached last puts it back."""
    config = build_llama().config
    first, second = (type(build_llama())(config).eval() for _ in range(2))
    inputs = {"input_ids": torch.arange(3, 43)[None], "max_new_tokens": 4, "do_sample": False}
    expected = [model.generate(**inputs) for model in (first, second)]
    attach(first)
    assert torch.equal(second.generate(**inputs), expected[1]), "the other goes on as before"
    with attach(second):
        detach(first)
        cache = MedaCache(config, keep_ratio=0.2)
        second.generate(**inputs, past_key_values=cache)
        assert cache.stats().is_compressed
        with pytest.raises(RuntimeError, match="a model that is attached"):
            first.generate(**inputs, past_key_values=MedaCache(config))
    assert config._attn_implementation == "sdpa"
    assert torch.equal(first.generate(**inputs), expected[0])


def test_copy_of_an_attached_model_is_attached_by_itself(llava: Family) -> None:
    inputs, before = llava.prompts(2), hooks(llava.model)
    with attach(llava.model):
        twin = copy.deepcopy(llava.model)
        cache = MedaCache.from_model(twin, keep_ratio=0.3)
        tokens = twin.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        assert hooks(twin) == hooks(llava.model)
        detach(twin)
        assert (hooks(twin), twin.config.get_text_config()._attn_implementation) == (before, "sdpa")
        assert twin.generate.__self__ is twin
        original = MedaCache(llava.model.config, keep_ratio=0.3)
        expected = llava.model.generate(**inputs, past_key_values=original, max_new_tokens=4, do_sample=False)
    assert torch.equal(tokens, expected)
    with attach(twin):
        twin.generate(**inputs, past_key_values=MedaCache(twin.config), max_new_tokens=2)
    assert hooks(llava.model) == before


def test_block_does_not_detach_what_was_attached_anew(llava: Family) -> None:
    before = hooks(llava.model)
    with attach(llava.model):
        detach(llava.model)
        attach(llava.model)
    assert hooks(llava.model) > before
    detach(llava.model)


@pytest.mark.parametrize("options", [{"preset": "meda"}, {"preset": "balanced"}], ids=str)
def test_model_dispatched_to_cpu_and_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    """`device_map` of accelerate: weights of some layers are read from disk for each forward."""
    model = build_llava().eval()
    inputs = {**build_family("llava").prompts(1, 3), "max_new_tokens": 6, "do_sample": False}
    model.save_pretrained(tmp_path / "model")
    device_map = {"lm_head": "cpu", "model.vision_tower": "cpu", "model.multi_modal_projector": "disk"}
    decoder = ("embed_tokens", "layers.0", "layers.1", "layers.2", "layers.3", "norm", "rotary_emb")
    device_map |= {f"model.language_model.{name}": "disk" if "layers" in name else "cpu" for name in decoder}
    dispatched = (
        type(model)
        .from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
        .eval()
    )
    assert next(dispatched.model.language_model.layers[1].parameters()).is_meta, "its weights are not in memory"
    found = []
    for each in (model, dispatched):
        with attach(each):
            cache = MedaCache(each.config, keep_ratio=0.3, **options)
            found.append((each.generate(**inputs, past_key_values=cache), cache))
    (expected, plain), (tokens, cache) = found
    assert torch.equal(tokens, expected)
    for index, layer in plain.managed_layers.items():
        assert torch.equal(layer.positions, cache.managed_layers[index].positions)


def test_import_registers_nothing() -> None:
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions\n"
        "before = set(functions)\n"
        f"import {meda_cache.__name__}\n"
        "assert set(functions) == before, set(functions) - before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
