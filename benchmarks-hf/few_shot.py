"""The few-shot protocol of V-PET that the cases `peft_ensemble_*` share, once for each seed.

From a few labelled images and an unlabelled pool: members of two backbones and several methods, chosen among learning
rates without labels; teams of them and teams of seeds; students of one member (ST), of two methods on one backbone
(PET) and of two methods on two backbones (V-PET); FixMatch and SoftMatch for as many steps as a student has; and the
path in weight space from a linear probe to a tuned model. Test images are only measured on. A finished seed is kept as
JSON in the system's temporary directory, and its members while it runs, so that an interrupted run goes on.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, get_peft_model
from scipy import stats
from transformers import AutoImageProcessor, TrainingArguments
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import tqdm

import hf_diorama
from peft_ensemble import (
    AdaptFormerConfig,
    BitFitConfig,
    MemberSpec,
    PeftEnsemble,
    SelfTrainingTrainer,
    SSFConfig,
    SSLTrainer,
    UnsupervisedSelector,
    ViewCollator,
    aggregate,
    load_classifier,
    measure_diversity,
    wise_curve,
)
from peft_ensemble.aggregation import break_ties
from peft_ensemble.augmentation import View
from peft_ensemble.fitting import build_member, load_processor

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
RULES = ("mean_labels", "weighted", "dawid_skene", "mean_probs", "mean_logits")
PAIRS = ("agreement", "normalised_agreement", "same_wrong", "error_correlation")
Numbers = dict[str, float]


def lora(**options: Any) -> LoraConfig:
    """LoRA of scale 1, as the papers have it."""
    return LoraConfig(r=4, lora_alpha=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], **options)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The data of one seed, and how long is trained on it.

    Args:
        backbones: two folders or Hub ids; students and baselines are on the first.
        labeled, pool, test: images; the labels of the pool are only used to measure pseudo-labels.
        shifted: the test images in another domain.
        learning_rates: the candidates of each member.
        augmentation: the view of the labelled images; `views` those of the student.
        members: methods on the first backbone; the second has the first two.
        rules: by which students of V-PET are taught.
    """

    seed: int
    backbones: Sequence[str]
    label_names: Sequence[str]
    labeled: Dataset
    pool: Dataset
    test: Dataset
    shifted: Dataset
    learning_rates: Sequence[float]
    augmentation: View
    views: Sequence[View]
    member_epochs: int
    student_epochs: int
    batch_size: int = 32
    rules: Sequence[str] = ("mean_labels", "mean_logits", "softmax_counts")

    @property
    def methods(self) -> list[PeftConfig]:
        """Four methods: the paper's two first."""
        return [lora(), AdaptFormerConfig(bottleneck=16), SSFConfig(), BitFitConfig()]


def shift(dataset: Dataset, domain: str) -> Dataset:
    """The images in a domain of hf-diorama, the noise of each drawn by its place."""
    images = [hf_diorama.shift(image, domain, seed=index) for index, image in enumerate(dataset["image"])]
    return Dataset.from_dict({"image": images, "label": dataset["label"][:], "id": dataset["id"][:]})


def build_args(**options: Any) -> TrainingArguments:
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "report_to": []}
    shape = {"lr_scheduler_type": "cosine", "warmup_steps": 0.025, "weight_decay": 5e-4, "output_dir": "unused"}
    return TrainingArguments(**{**shape, **quiet, "use_cpu": not torch.cuda.is_available(), **options})


def labels_of(dataset: Dataset) -> torch.Tensor:
    return torch.tensor(dataset["label"][:])


def share(hits: torch.Tensor) -> float:
    return float(hits.double().mean())


def fit_members(task: Task, folder: Path) -> PeftEnsemble:
    """Four methods on the first backbone and two on the second, each chosen among its learning rates without labels.

    Each has a seed of its own: members of one seed would share the first weights of the head, which alone makes them
    agree.
    """
    search = {"learning_rate": task.learning_rates, "augmentation": [task.augmentation]}
    specs: list[MemberSpec] = []
    for number in range(6):
        backbone, method = task.backbones[number // 4], task.methods[number % 4]
        specs += MemberSpec.grid([backbone], [method], search, seeds=[10 * task.seed + number])
    ensemble = PeftEnsemble(specs, task.label_names, folder / "members")
    args = build_args(num_train_epochs=task.member_epochs, per_device_train_batch_size=task.batch_size)
    return ensemble.fit(task.labeled, args, unlabeled_val=task.pool.remove_columns("label"))


def measure_selection(ensemble: PeftEnsemble, test: Dataset) -> Numbers:
    """Mean over the groups of what choosing without labels costs, for each way of choosing."""
    groups: dict[str, list[MemberSpec]] = {}
    for spec in ensemble.specs:
        groups.setdefault(spec.group, []).append(spec)
    labels = labels_of(test)
    ways = {name: UnsupervisedSelector(combine=name) for name in ("mean_sq_rank", "mean_rank", "vote")}
    ways |= {name: UnsupervisedSelector(metrics=(name,)) for name in UnsupervisedSelector().metrics}
    found: dict[str, list[float]] = {}
    for group, specs in groups.items():
        answers = [ensemble.predict_student(ensemble.load(spec), spec, test) for spec in specs]
        accuracies = [share(answer.argmax(-1) == labels) for answer in answers]
        for name, selector in ways.items():
            regret = selector.select(ensemble.selections[group].scores).regret(accuracies)
            found.setdefault(f"regret/{name}", []).append(regret["regret"])
        found.setdefault("regret/random", []).append(regret["random_regret"])
        found.setdefault("oracle candidate", []).append(regret["oracle"])
    return {f"selection/{name}": float(np.mean(values)) for name, values in found.items()}


def fit_seeds(task: Task, like: MemberSpec, folder: Path) -> PeftEnsemble:
    """Three more seeds of a member: a team of equal size that differs in nothing but seeds."""
    specs = [dataclasses.replace(like, seed=1000 + 10 * task.seed + number, group="") for number in range(3)]
    args = build_args(num_train_epochs=task.member_epochs, per_device_train_batch_size=task.batch_size)
    return PeftEnsemble(specs, task.label_names, folder).fit(task.labeled, args)


def measure_team(logits: torch.Tensor, labels: torch.Tensor) -> Numbers:
    """What members of a team have in common and gain together."""
    report = measure_diversity(logits, labels, [str(number) for number in range(len(logits))], num_bootstrap=10)
    numbers = {"mean_member": float(np.mean(report.accuracies)), "best_member": max(report.accuracies)}
    pairs = {name: report.pairs.get(name, float("nan")) for name in PAIRS}
    confident = {f"confident_{name}": value for name, value in report.overlap.items()}
    return {**numbers, **report.ensembles, **pairs, **confident}


def combine(logits: torch.Tensor, rule: str, weights: torch.Tensor) -> torch.Tensor:
    """Targets by a rule; the weights are for `"weighted"`."""
    return aggregate(logits, rule, weights if rule == "weighted" else None)  # type: ignore[arg-type]


def agreement_weights(logits: torch.Tensor) -> torch.Tensor:
    """How often each member names the majority's class, on unlabelled images."""
    majority = break_ties(aggregate(logits), logits)
    return (logits.argmax(-1) == majority).double().mean(dim=1)


def teach(task: Task, ensemble: PeftEnsemble, spec: MemberSpec, targets: torch.Tensor) -> float:
    """The test accuracy of a fresh student of the targets of the pool."""
    table = Dataset.from_dict({"id": task.pool["id"][:], "target": targets.float().tolist()})
    args = build_args(num_train_epochs=task.student_epochs, per_device_train_batch_size=task.batch_size)
    pool = task.pool.remove_columns("label")
    student = ensemble.self_train(table, pool, spec, args, labeled="override", views=task.views)
    return share(ensemble.predict_student(student, spec, task.test).argmax(-1) == labels_of(task.test))


def run_baseline(task: Task, algorithm: str, spec: MemberSpec) -> float:
    """The test accuracy of a semi-supervised baseline that starts as the labelled-only member did.

    It has as many steps as a student.
    """
    steps = task.student_epochs * -(-len(task.pool) // task.batch_size)
    args = build_args(
        max_steps=steps,
        per_device_train_batch_size=min(task.batch_size, len(task.labeled)),
        learning_rate=spec.training["learning_rate"],
        seed=spec.seed,
        remove_unused_columns=False,
    )
    model = build_member(spec, task.label_names)
    pool = task.pool.remove_columns("label")
    collator = ViewCollator(load_processor(spec), (task.augmentation,), seed=spec.seed)
    trainer = SSLTrainer(
        algorithm, pool, model=model, args=args, train_dataset=task.labeled, data_collator=collator,
        unlabeled_batch_size=task.batch_size,
    )  # fmt: skip
    trainer.train()
    return accuracy(model.eval(), spec.backbone, task.test)


@torch.no_grad()
def read_features(model: torch.nn.Module, backbone: str, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head reads, and the logits, of all images."""
    features: list[torch.Tensor] = []
    hook = model.get_submodule("classifier").register_forward_pre_hook(lambda module, args: features.append(args[0]))
    logits = predict(model, backbone, dataset)
    hook.remove()
    return torch.cat(features), logits


@torch.no_grad()
def predict(model: torch.nn.Module, backbone: str, dataset: Dataset) -> torch.Tensor:
    collator = ViewCollator(AutoImageProcessor.from_pretrained(backbone))
    device = next(model.parameters()).device
    batches = [range(start, min(start + 64, len(dataset))) for start in range(0, len(dataset), 64)]
    pixels = (collator([dataset[index] for index in batch])["pixel_values"] for batch in batches)
    return torch.cat([model(pixel_values=value.to(device)).logits.cpu() for value in pixels])


def accuracy(model: torch.nn.Module, backbone: str, dataset: Dataset) -> float:
    return share(predict(model, backbone, dataset).argmax(-1) == labels_of(dataset))


def fit_probe(task: Task, backbone: str) -> torch.nn.Module:
    """A classifier with a linear probe of the labelled images as its head."""
    model = load_classifier(backbone, len(task.label_names), seed=task.seed).eval()
    features, _ = read_features(model, backbone, task.labeled)
    head = model.get_submodule("classifier")
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels_of(task.labeled)).backward()
        optimizer.step()
    return model


def measure_domains(task: Task, backbone: str, model: torch.nn.Module) -> Numbers:
    return {"target": accuracy(model, backbone, task.test), "shifted": accuracy(model, backbone, task.shifted)}


def measure_path(task: Task, chosen: Mapping[str, MemberSpec]) -> Numbers:
    """Accuracy on the test images and on the shifted ones, from the probe (0) to the model tuned from it (1)."""
    numbers: Numbers = {}
    for name, spec in chosen.items():
        method = dataclasses.replace(spec.method, modules_to_save=["classifier"])  # type: ignore[call-arg]
        torch.manual_seed(task.seed)
        model = get_peft_model(fit_probe(task, spec.backbone), method)
        args = build_args(
            num_train_epochs=task.member_epochs,
            per_device_train_batch_size=task.batch_size,
            learning_rate=spec.training["learning_rate"],
            seed=task.seed,
            remove_unused_columns=False,
        )
        collator = ViewCollator(load_processor(spec), (task.augmentation,), seed=task.seed)
        SelfTrainingTrainer(model=model, args=args, train_dataset=task.labeled, data_collator=collator).train()
        for row in wise_curve(model.eval(), ALPHAS, partial(measure_domains, task, spec.backbone)):
            numbers |= {f"wise/{name}/{row['alpha']:g}/{key}": row[key] for key in ("target", "shifted")}
    return numbers


def run_seed(task: Task, folder: Path) -> Numbers:
    """All numbers of one seed, as fractions."""
    ensemble = fit_members(task, folder)
    members = ensemble.members
    first, second = members[0], members[4]
    labels, pool_labels = labels_of(task.test), labels_of(task.pool)
    _, test = ensemble.member_logits(task.test)
    _, pool = ensemble.member_logits(task.pool)
    numbers = measure_selection(ensemble, task.test)
    names = [f"{spec.method_name} on {number}" for spec, number in zip(members, "000011", strict=True)]
    hits = (test.argmax(-1) == labels).double().mean(dim=1)
    numbers |= {f"member/{name}": float(value) for name, value in zip(names, hits, strict=True)}
    mixed = [0, 1, 4, 5]
    teams = {"v_pet": test[mixed], "pet": test[:2], "4 methods on 0": test[:4]}
    for name, spec, index in (("4 seeds on 0", first, 0), ("4 seeds on 1", second, 4)):
        _, others = fit_seeds(task, spec, folder / name.replace(" ", "-")).member_logits(task.test)
        teams[name] = torch.cat([test[index : index + 1], others])
    for name, logits in teams.items():
        numbers |= {f"team/{name}/{key}": value for key, value in measure_team(logits, labels).items()}
    weights = agreement_weights(pool[mixed])
    for rule in RULES:
        for where, logits, truth in (("test", test[mixed], labels), ("pool", pool[mixed], pool_labels)):
            targets = combine(logits, rule, weights)
            numbers[f"rule/{rule}/{where}"] = share(break_ties(targets, logits) == truth)
    student = dataclasses.replace(first, group="")
    for name, logits in {"st": pool[:1], "pet": pool[:2]}.items():
        numbers[f"student/{name}"] = teach(task, ensemble, student, aggregate(logits))
    for rule in task.rules:
        numbers[f"student/v_pet/{rule}"] = teach(task, ensemble, student, combine(pool[mixed], rule, weights))
    truth = torch.nn.functional.one_hot(pool_labels, len(task.label_names))
    numbers["student/true labels"] = teach(task, ensemble, student, truth)
    for algorithm in ("fixmatch", "softmatch"):
        numbers[f"baseline/{algorithm}"] = run_baseline(task, algorithm, first)
    return numbers | measure_path(task, {"lora": first, "adaptformer": members[1]})


# Paired differences, the first minus the second, and the sign that the papers expect (0 where they say nothing).
COMPARISONS: dict[str, tuple[str, str, int]] = {
    "student of V-PET over labelled-only": ("student/v_pet/mean_labels", "member/lora on 0", 1),
    "student of ST over labelled-only": ("student/st", "member/lora on 0", 1),
    "student of PET over student of ST": ("student/pet", "student/st", 1),
    "student of V-PET over student of PET": ("student/v_pet/mean_labels", "student/pet", 1),
    "student of V-PET over student of ST": ("student/v_pet/mean_labels", "student/st", 1),
    "FixMatch over labelled-only": ("baseline/fixmatch", "member/lora on 0", 0),
    "SoftMatch over labelled-only": ("baseline/softmatch", "member/lora on 0", 0),
    "student of V-PET over FixMatch": ("student/v_pet/mean_labels", "baseline/fixmatch", 1),
    "student of V-PET over SoftMatch": ("student/v_pet/mean_labels", "baseline/softmatch", 1),
    "pseudo-labels: mean labels over mean probs": ("rule/mean_labels/pool", "rule/mean_probs/pool", 1),
    "pseudo-labels: mean labels over mean logits": ("rule/mean_labels/pool", "rule/mean_logits/pool", 1),
    "pseudo-labels: weighted over mean labels": ("rule/weighted/pool", "rule/mean_labels/pool", 0),
    "pseudo-labels: Dawid-Skene over mean labels": ("rule/dawid_skene/pool", "rule/mean_labels/pool", 0),
    "student: mean labels over mean logits": ("student/v_pet/mean_labels", "student/v_pet/mean_logits", 1),
    "student: votes / K over softmax of counts": ("student/v_pet/mean_labels", "student/v_pet/softmax_counts", 0),
    "V-PET's members together over their mean": ("team/v_pet/mean_probs", "team/v_pet/mean_member", 1),
    "V-PET's members together over the best of them": ("team/v_pet/mean_probs", "team/v_pet/best_member", 0),
    "V-PET's members over 4 seeds on 0": ("team/v_pet/mean_probs", "team/4 seeds on 0/mean_probs", 0),
    "V-PET's members over 4 seeds on 1": ("team/v_pet/mean_probs", "team/4 seeds on 1/mean_probs", 0),
    "4 methods together over their mean": ("team/4 methods on 0/mean_logits", "team/4 methods on 0/mean_member", 1),
    "4 methods over 4 seeds": ("team/4 methods on 0/mean_logits", "team/4 seeds on 0/mean_logits", 1),
    "agreement: 4 methods minus 4 seeds": ("team/4 methods on 0/agreement", "team/4 seeds on 0/agreement", -1),
    "agreement, normalised: 4 methods minus 4 seeds": (
        "team/4 methods on 0/normalised_agreement",
        "team/4 seeds on 0/normalised_agreement",
        -1,
    ),
    "agreement: V-PET's members minus 4 seeds on 0": ("team/v_pet/agreement", "team/4 seeds on 0/agreement", -1),
    "confident overlap: 4 methods minus 4 seeds": (
        "team/4 methods on 0/confident_jaccard",
        "team/4 seeds on 0/confident_jaccard",
        -1,
    ),
    "regret: random choice minus mean squared rank": ("selection/regret/random", "selection/regret/mean_sq_rank", 1),
    "LoRA halfway minus tuned, target": ("wise/lora/0.5/target", "wise/lora/1/target", 0),
    "LoRA halfway minus tuned, shifted": ("wise/lora/0.5/shifted", "wise/lora/1/shifted", 1),
    "AdaptFormer halfway minus tuned, target": ("wise/adaptformer/0.5/target", "wise/adaptformer/1/target", 0),
    "AdaptFormer halfway minus tuned, shifted": ("wise/adaptformer/0.5/shifted", "wise/adaptformer/1/shifted", 1),
}


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 percent interval over seeds (Student's t)."""
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def summarise(results: list[Numbers]) -> list[dict[str, Any]]:
    """One row for each number, and one for each paired difference, with how often it is above zero and a verdict."""

    def row(what: str, values: np.ndarray) -> dict[str, Any]:
        mean, low, high = interval(values)
        samples = [round(float(value), 5) for value in values]
        return {"what": what, "value": mean, "low": low, "high": high, "seeds": len(values), "samples": samples}

    rows = [row(key, np.array([result[key] for result in results])) for key in results[0]]
    for name, (first, second, sign) in COMPARISONS.items():
        values = np.array([result[first] - result[second] for result in results])
        difference = {**row(name, values), "ups": int((values > 0).sum())}
        rows.append({**difference, "verdict": judge(difference["low"], difference["high"], sign)})
    return rows


def judge(low: float, high: float, sign: int) -> str:
    """What an interval says of a claim: `holds`, `does not hold`, or `open` where it spans zero or is none."""
    if not low > 0 and not high < 0:
        return "open"
    above = low > 0
    if sign == 0:
        return "above" if above else "below"
    return "holds" if above == (sign > 0) else "does not hold"


def run_seeds(name: str, build: Callable[[int], Task], seeds: Sequence[int], about: str) -> list[dict[str, Any]]:
    """All seeds of a case; those that are there are not run again.

    Args:
        about: what the numbers depend on besides this file, such as the source of the case.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("peft_ensemble").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    key = hashlib.sha256((Path(__file__).read_text(encoding="utf-8") + about).encode()).hexdigest()[:8]
    work = Path(tempfile.gettempdir()) / f"fovea-{name}-{key}"
    results = []
    for seed in tqdm(seeds, desc=f"{name}, seeds"):
        done = work / f"seed-{seed}.json"
        if not done.exists():
            folder = work / f"seed-{seed}"
            numbers = run_seed(build(seed), folder)
            part = done.with_suffix(".part")
            part.write_text(json.dumps(numbers), encoding="utf-8")
            part.replace(done)
            shutil.rmtree(folder)
        results.append(json.loads(done.read_text(encoding="utf-8")))
    return summarise(results)
