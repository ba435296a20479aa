"""The run of one tower through one language model over some abilities: one result file for each, resumable."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets.utils import tqdm
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ava_bench.abilities import ABILITIES, Ability, find_ability
from hf_ava_bench.constants import fit_constant
from hf_ava_bench.data import load_ability
from hf_ava_bench.files import write_text
from hf_ava_bench.fingerprint import AbilityResult, Fingerprint, anchor, read_result
from hf_ava_bench.formats import read_json
from hf_ava_bench.results import score_items
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.head import AvaHead, Prompts, choose_options, generate_answers
from hf_ava_bench.runner.processes import get_state
from hf_ava_bench.runner.profiles import Profile, find_profile
from hf_ava_bench.runner.tiny import build_tiny_llm
from hf_ava_bench.runner.towers import Tower, VisionTower, find_name
from hf_ava_bench.runner.training import build_head, save_head, train_head
from hf_ava_bench.scoring import Score

CONTROLS = ("blind", "shuffled", "random", "oracle")
LIBRARIES = ("datasets", "hf-ava-bench", "numpy", "peft", "torch", "transformers")


@dataclass(kw_only=True)
class _Run:
    """What all abilities of a run share. `llm` gets its adapters with the first head."""

    tower: Tower
    llm: nn.Module
    llm_name: str
    tokenizer: Any
    profile: Profile
    source: str
    seed: int
    out: Path
    controls: Sequence[str]
    progress: bool
    data: Mapping[str, Any]

    def request(self) -> str:
        """Returns the sha256 of everything that can change a result."""
        parts = {
            "tower": self.tower.key,
            "llm": self.llm_name,
            "weights": _hash_weights(self.llm),
            "profile": asdict(self.profile),
            "source": self.source,
            "seed": self.seed,
            "controls": list(self.controls),
            "data": dict(self.data),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _hash_weights(llm: nn.Module) -> str:
    """Returns a hash of the names, shapes and sums of the weights."""
    sums = [(name, tuple(p.shape), float(p.detach().double().sum())) for name, p in llm.named_parameters()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def run(
    vfm: Any,
    llm: Any,
    abilities: str | Sequence[str],
    out: str | Path,
    *,
    source: str,
    profile: str | Profile,
    seed: int,
    controls: Sequence[str],
    progress: bool,
    **data: Any,
) -> Fingerprint:
    """See [`hf_ava_bench.run_benchmark`]."""
    unknown = set(controls) - set(CONTROLS)
    if unknown:
        raise ValueError(f"`controls` may hold {', '.join(CONTROLS)}, got {sorted(unknown)}.")
    names = list(ABILITIES) if abilities == "all" else [abilities] if isinstance(abilities, str) else abilities
    chosen = [find_ability(name) for name in names]
    settings = find_profile(profile)
    tower: Tower = vfm if isinstance(vfm, Tower) else VisionTower(vfm, token_budget=settings.token_budget)
    if "random" in controls and not hasattr(tower, "randomize"):
        raise ValueError(f"The control 'random' needs a vision model with weights, and {tower.name} has none.")
    model, tokenizer, name = _load_llm(llm)
    plan = _Run(
        tower=tower,
        llm=model,
        llm_name=name,
        tokenizer=tokenizer,
        profile=settings,
        source=source,
        seed=seed,
        out=Path(out),
        controls=tuple(controls),
        progress=progress and get_state().is_main_process,
        data=data,
    )
    request = plan.request()
    results: dict[str, AbilityResult] = {}
    num_tokens = 0
    try:
        for ability in tqdm(chosen, desc=tower.name, unit="ability", disable=not plan.progress):
            path = plan.out / "abilities" / f"{ability.id}.json"
            stored = read_json(path) if path.exists() else {}
            if stored.get("request") != request:
                result, tokens = _run_ability(plan, ability)
                (result,) = broadcast_object_list([result])  # clocks differ
                stored = {"request": request, "num_tokens": tokens, "result": asdict(result)}
                if get_state().is_main_process:
                    write_text(path, json.dumps(stored) + "\n")
            results[ability.id] = read_result(stored["result"])
            num_tokens = int(stored["num_tokens"])
    finally:
        if isinstance(plan.llm, PeftModel):
            plan.llm.unload()  # the caller's model is as it was
    fingerprint = Fingerprint(
        tower=tower.name,
        llm=name,
        profile=asdict(settings),
        seed=seed,
        num_tokens=num_tokens,
        resolution=getattr(tower, "image_size", None),
        abilities=results,
        versions={library: metadata.version(library) for library in LIBRARIES},
    )
    if get_state().is_main_process:
        fingerprint.save(plan.out / "fingerprint.json")
    get_state().wait_for_everyone()
    return fingerprint


def _load_llm(llm: Any) -> tuple[nn.Module, Any, str]:
    if llm == "tiny":
        return *build_tiny_llm(), "tiny"
    if isinstance(llm, str):
        llm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32), AutoTokenizer.from_pretrained(llm)
    model, tokenizer = llm
    return model, tokenizer, find_name(model)


def _run_ability(plan: _Run, ability: Ability) -> tuple[AbilityResult, int]:
    with get_state().main_process_first():  # the others find its caches
        train, test = (
            load_ability(ability.id, plan.source, split, n=n, **plan.data)
            for split, n in (("train", plan.profile.n_train), ("test", plan.profile.n_test))
        )
    tokens = _encode(plan, plan.tower, train, test)
    head, prompts, cost = _train(plan, ability, train, tokens[0], name=ability.id)
    score = score_items(test, _answer(plan, ability, head, prompts, test, tokens[1]))
    columns = ("answer_struct", "answer", "question", "options")
    constant = fit_constant(ability.id, *(list(train[column]) for column in columns))
    m0, m1 = score_items(test, [constant] * len(test)).value, ability.perfect
    if get_state().is_main_process:
        save_head(head, plan.out / "heads" / ability.id, ability.id)
    controls: dict[str, float] = {}
    if "shuffled" in plan.controls:
        turned = tokens[1].roll(len(test) // 2 or 1, dims=0)
        wrong = score_items(test, _answer(plan, ability, head, prompts, test, turned))
        controls["shuffled"] = anchor(wrong.value, m0, m1)
    for control in ("blind", "random", "oracle"):
        if control in plan.controls:
            seen = _control_tokens(plan, control, train, test, tokens)
            controls[control] = anchor(_measure_control(plan, ability, control, train, test, seen).value, m0, m1)
    items = {"train": _hash_items(train), "test": _hash_items(test)}
    result = AbilityResult.from_score(score, test, m0, controls=controls, cost=cost, items=items)
    return result, tokens[0].shape[1]


def _hash_items(table: Any) -> str:
    columns = (table[column][:] for column in ("id", "question", "answer"))
    return hashlib.sha256(json.dumps(list(zip(*columns, strict=True))).encode()).hexdigest()


def _encode(plan: _Run, tower: Tower, *tables: Any) -> list[torch.Tensor]:
    with get_state().main_process_first():
        folder = plan.out.parent / "tokens"
        return [compute_features(table, tower, folder, progress=plan.progress) for table in tables]


def _control_tokens(plan: _Run, control: str, train: Any, test: Any, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the tokens of train and test items that a control sees instead of the tower's."""
    if control == "blind":
        return [torch.zeros_like(part) for part in tokens]
    tower = KnownEncoder("oracle") if control == "oracle" else plan.tower.randomize(plan.seed)  # type: ignore[attr-defined]
    return _encode(plan, tower, train, test)


def _measure_control(
    plan: _Run, ability: Ability, control: str, train: Any, test: Any, tokens: list[torch.Tensor]
) -> Score:
    """Returns the score of a head trained on a control's tokens; its adapter is not kept."""
    name = f"{ability.id}-{control}"
    head, prompts, _ = _train(plan, ability, train, tokens[0], name=name)
    score = score_items(test, _answer(plan, ability, head, prompts, test, tokens[1]))
    if isinstance(plan.llm, PeftModel):
        plan.llm.set_adapter(ability.id)
        plan.llm.delete_adapter(name)
    return score


def _train(plan: _Run, ability: Ability, table: Any, tokens: torch.Tensor, name: str) -> tuple[AvaHead, Prompts, Any]:
    prompts = Prompts(plan.tokenizer, tokens.shape[1], plan.profile.system, plan.profile.max_length)
    head = build_head(plan.llm, tokens.shape[2], plan.profile, name, plan.seed)
    if isinstance(head.llm, PeftModel):
        plan.llm = head.llm
    folder = plan.out / "trainer"
    cost = train_head(
        head,
        prompts,
        table,
        tokens,
        plan.profile,
        ability=ability.id,
        folder=folder,
        seed=plan.seed,
        progress=plan.progress,
    )
    trained = sum(parameter.numel() for parameter in head.parameters() if parameter.requires_grad)
    return head, prompts, {**cost, "num_trained": float(trained)}


def _answer(
    plan: _Run, ability: Ability, head: AvaHead, prompts: Prompts, table: Any, tokens: torch.Tensor
) -> list[str]:
    """Returns an answer to each item, from all processes in turn."""
    questions, options = list(table["question"]), list(table["options"])
    closed = plan.profile.closed_sets == "loglik" and all(options)
    with get_state().split_between_processes(list(range(len(questions)))) as rows:
        asked = [questions[row] for row in rows]
        if closed:
            own = choose_options(head, prompts, tokens[rows], asked, [options[row] for row in rows])
        else:
            own = generate_answers(head, prompts, tokens[rows], asked, max_new_tokens=ability.max_new_tokens)
    return list(gather_object(own))
