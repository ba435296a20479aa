"""Fourteen adapters on one language model against fourteen models: memory, load time, disk.

The language model is an untrained Llama (8 layers, 256 wide); LoRA has the paper's rank as a share of the width: 128
of 896. Each way is loaded from disk in a process of its own; memory is what the process grew by.
"""

import gc
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_ava_bench import ABILITIES
from hf_ava_bench.runner.profiles import Profile
from hf_ava_bench.runner.training import build_head, load_head, save_head

WIDTH = 256  # of the language model and of the visual tokens
RANK = round(128 / 896 * WIDTH)
PROFILE = Profile(name="adapters", epochs=1, localization_epochs=1, lora_r=RANK, lora_alpha=2 * RANK)


def write_both(folder: Path, names: list[str]) -> None:
    """Writes the base once with an adapter for each ability, and a merged model for each ability."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4_096, hidden_size=WIDTH, num_hidden_layers=8, num_attention_heads=4, intermediate_size=4 * WIDTH
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tiny = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    LlamaForCausalLM(tiny).save_pretrained(folder / "tiny")
    for name in names:
        head = build_head(AutoModelForCausalLM.from_pretrained(folder / "base"), WIDTH, PROFILE, name, 0)
        for key, weight in head.llm.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.02)
        save_head(head, folder / "heads" / name, name)
        head.llm.merge_and_unload().save_pretrained(folder / "merged" / name)


def load_adapters(folder: Path, names: list[str]) -> Any:
    llm = AutoModelForCausalLM.from_pretrained(folder / "base")
    heads = {}
    for name in names:
        heads[name] = load_head(llm, WIDTH, folder / "heads" / name, name)
        llm = heads[name].llm
    return llm


def load_models(folder: Path, names: list[str]) -> Any:
    return {name: AutoModelForCausalLM.from_pretrained(folder / "merged" / name).eval() for name in names}


def check(folder: Path, names: list[str]) -> None:
    """Each adapter of the shared base gives the logits of its own model."""
    ids = torch.arange(20)[None]
    shared, own = load_adapters(folder, names), load_models(folder, names)
    assert isinstance(shared, PeftModel)
    logits = []
    for name in names:
        shared.set_adapter(name)
        with torch.inference_mode():
            logits.append(shared.eval()(ids).logits)
            assert torch.allclose(logits[-1], own[name](ids).logits, atol=1e-4)
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


def measure(task: tuple[str, str, list[str]]) -> tuple[float, float]:
    """Returns seconds and MiB of loading one way; runs in a process of its own."""
    way, folder, names = task
    torch.set_num_threads(1)
    load = {"adapters": load_adapters, "models": load_models}[way]
    AutoModelForCausalLM.from_pretrained(Path(folder) / "tiny")  # imports and first calls are no part of it
    before, start = _resident_mib(), time.perf_counter()
    loaded = load(Path(folder), names)
    seconds = time.perf_counter() - start
    sum(float(p.sum()) for p in _parameters(loaded))  # mapped files count once they are read
    return seconds, _resident_mib() - before


def _resident_mib() -> float:
    """Returns the resident memory of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _parameters(loaded: Any) -> list[torch.Tensor]:
    models = loaded.values() if isinstance(loaded, dict) else [loaded]
    return [parameter.detach() for model in models for parameter in model.parameters()]


def _mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    names = list(ABILITIES)[: 2 if quick else None]
    folder = Path(tempfile.mkdtemp())
    write_both(folder, names)
    check(folder, names)
    disk = {"adapters": _mib(folder / "base") + _mib(folder / "heads"), "models": _mib(folder / "merged")}
    samples: dict[str, list[tuple[float, float]]] = {"adapters": [], "models": []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for index in range(1 if quick else 3):
            for way in list(samples)[:: 1 if index % 2 else -1]:
                samples[way].append(pool.apply(measure, ((way, str(folder), names),)))
    shutil.rmtree(folder)
    row: dict[str, Any] = {"abilities": len(names), "rank": RANK}
    medians = {way: np.median(np.array(values), axis=0) for way, values in samples.items()}
    for index, what in enumerate(("load_s", "memory_mib")):
        row |= {f"{what}_{way}": float(medians[way][index]) for way in samples}
        row[f"{what}_ratio"] = float(medians["models"][index] / medians["adapters"][index])
    row |= {f"disk_mib_{way}": value for way, value in disk.items()}
    return [row | {"disk_mib_ratio": disk["models"] / disk["adapters"], "samples": samples}]
