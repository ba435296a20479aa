"""Four members from two towers and two methods vote on drawn animals, and a student learns from their votes.

    python packages/peft-ensemble/examples/demo.py --out demo/peft-ensemble

Three labelled images of each of eight species of hf-diorama's creatures. One tower has learned without labels, the
other has known these species among 96: the student on the first learns from the votes of both.
"""

import argparse
import base64
import io
import json
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

import hf_diorama as dio
from peft_ensemble import (
    AdaptFormerConfig,
    MemberSpec,
    PeftEnsemble,
    plot_agreement,
    plot_selection,
    plot_wise,
    wise_curve,
)

SHOTS, NUM_POOL, NUM_TEST, SHOWN = 3, 100, 120, 8
WORLD: dict[str, Any] = {"image_size": 64, "branching": (1, 1, 1, 2, 4), "seed": 5}  # two genera of four species
INTRODUCTION = """
<p>Members are adapters of two methods on two frozen towers: <code>vfm-nano-contrastive</code>, trained without
labels, and <code>vfm-nano-supervised</code>, which has known these species among 96. They see {labeled} labelled
images of {classes} species, and the learning rate of each is chosen without labels. Their votes on {pool} unlabelled
images are the targets of a student, LoRA on the contrastive tower, that starts afresh.</p>
"""


def load_images(split: str, count: int, start: int = 0) -> tuple[Dataset, list[str]]:
    """Creatures with their species."""
    rows = dio.load("creatures", split, n=start + count, **WORLD).select(range(start, start + count))
    names, labels = rows.features["species"].names, rows["species"][:]
    ids = [f"{split}-{start + index}" for index in range(count)]
    return Dataset.from_dict({"image": rows["image"][:], "label": labels, "id": ids}), names


def choose_few(rows: Dataset, num_classes: int) -> Dataset:
    """The first images of each class."""
    labels = rows["label"][:]
    places = [[place for place, label in enumerate(labels) if label == index][:SHOTS] for index in range(num_classes)]
    return rows.select([place for some in places for place in some])


def build_args(epochs: int) -> TrainingArguments:
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "report_to": []}
    return TrainingArguments("unused", num_train_epochs=epochs, per_device_train_batch_size=20, **quiet)


def to_image(content: Any, alt: str, width: int | None = None) -> str:
    """A PIL image or a figure's axes as an <img> that needs no file."""
    buffer = io.BytesIO()
    if hasattr(content, "figure"):
        content.figure.savefig(buffer, format="png", dpi=72)
    else:
        content.save(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f' width="{width}"' if width else ""
    return f'<img alt="{escape(alt)}"{size} src="data:image/png;base64,{data}">'


def show_votes(pool: Dataset, targets: Dataset, votes: torch.Tensor, members: list[str], names: list[str]) -> str:
    """The images on which members disagree most, with each vote, the target and the truth."""
    chosen = sorted(range(len(pool)), key=lambda index: (-targets["entropy"][index], index))[: SHOWN // 2]
    chosen += sorted(set(range(len(pool))) - set(chosen))[: SHOWN - len(chosen)]
    head = "".join(f"<th>{escape(text)}</th>" for text in ["", *members, "target", "truth"])
    lines = [head]
    for index in chosen:
        target = targets["target"][index]
        shares = [f"{names[place]} {share:.0%}" for place, share in enumerate(target) if share > 0]
        truth = names[pool["label"][index]]
        cells = [to_image(pool["image"][index], truth, 64), *(names[vote] for vote in votes[:, index].tolist())]
        right = "\u2713" if targets["top1"][index] == pool["label"][index] else "\u2717"
        lines.append("".join(f"<td>{cell}</td>" for cell in [*cells, ", ".join(shares), f"{truth} {right}"]))
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{rows}</table></div>'


def share_right(probabilities: torch.Tensor, dataset: Dataset) -> float:
    return float((probabilities.argmax(-1) == torch.tensor(dataset["label"][:])).double().mean())


def draw_selection(ensemble: PeftEnsemble, member: MemberSpec, test: Dataset) -> Any:
    """What choosing the learning rate of a member without labels has cost."""
    candidates = [spec for spec in ensemble.specs if spec.group == member.group]
    answers = [ensemble.predict_student(ensemble.load(spec), spec, test) for spec in candidates]
    rates = [f"learning rate {spec.training['learning_rate']:g}" for spec in candidates]
    accuracies = [share_right(answer, test) for answer in answers]
    return plot_selection(ensemble.selections[member.group], accuracies, rates)


def measure_path(ensemble: PeftEnsemble, member: MemberSpec, sets: dict[str, Dataset]) -> list[dict[str, float]]:
    """The accuracies of a member from its pre-trained to its tuned weights."""

    def measure(model: Any) -> dict[str, float]:
        return {name: share_right(ensemble.predict_student(model, member, some), some) for name, some in sets.items()}

    return wise_curve(ensemble.load(member), [0.0, 0.25, 0.5, 0.75, 1.0], measure)


def show(ax: Any, caption: str) -> str:
    return f"<figure>{to_image(ax, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def run(out: Path) -> tuple[str, dict[str, Any]]:
    rows, names = load_images("train", NUM_POOL + 80)
    labeled, pool = choose_few(rows, len(names)), rows.select(range(80, 80 + NUM_POOL))
    test, _ = load_images("heldout", NUM_TEST)
    shifted = Dataset.from_dict({**test.to_dict(), "image": [dio.shift(image, "rotated") for image in test["image"]]})
    towers = [str(dio.model_path(f"vfm-nano-{name}")) for name in ("contrastive", "supervised")]
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    methods = [lora, AdaptFormerConfig(bottleneck=8)]
    specs = MemberSpec.grid(towers, methods, search={"learning_rate": [2e-2, 5e-3]})
    ensemble = PeftEnsemble(specs, names, out / "ensemble")
    unlabeled = pool.remove_columns("label")
    ensemble.fit(labeled, build_args(8), unlabeled_val=unlabeled)

    targets = ensemble.pseudo_label(unlabeled)
    members, logits = ensemble.member_logits(unlabeled)
    titles = [f"{spec.method_name} on {Path(spec.backbone).name.removeprefix('vfm-nano-')}" for spec in members]
    spec = MemberSpec(backbone=towers[0], method=lora, training={"learning_rate": 2e-2})
    student = ensemble.self_train(targets, unlabeled, spec, build_args(8), views=("weak",))
    report = replace(ensemble.diversity(test), names=titles)

    html = INTRODUCTION.format(labeled=len(labeled), classes=len(names), pool=len(pool))
    html += show_votes(pool, targets, logits.argmax(-1), titles, names)
    curve = measure_path(ensemble, members[0], {"as drawn": test, "turned and faint": shifted})
    html += show(plot_agreement(report), "how often members agree")
    html += show(draw_selection(ensemble, members[0], test), f"choosing without labels: {titles[0]}")
    html += show(plot_wise(curve, "as drawn", "turned and faint"), f"in weight space: {titles[0]}")
    right = [top == label for top, label in zip(targets["top1"], pool["label"], strict=True)]
    summary = {
        "members, test images": ", ".join(f"{value:.0%}" for value in report.accuracies),
        "four members together": f"{share_right(ensemble.predict(test), test):.0%}",
        "pseudo-labels that are right": f"{sum(right) / len(right):.0%} of {len(right)}",
        "student": f"{share_right(ensemble.predict_student(student, spec, test), test):.0%}",
        "members agree": f"{report.pairs['agreement']:.0%}",
    }
    return html, {"summary": summary, "diversity": report.to_dict(), "wise": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/peft-ensemble"))
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    html, result = run(args.out)
    for name, text in {"section.html": html, "result.json": json.dumps(result, indent=1) + "\n"}.items():
        part = args.out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(args.out / name)
    print("\n".join(f"{what}: {value}" for what, value in result["summary"].items()))


if __name__ == "__main__":
    main()
