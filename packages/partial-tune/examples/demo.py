"""Fine-tunes a ResNet on five digits in a new domain, shows what becomes of the others, and repairs it.

    python packages/partial-tune/examples/demo.py --out demo/partial-tune

The scans are scikit-learn's; the source domain is as they are, the target domain is turned, faint and noisy.
"""

import argparse
import base64
import copy
import io
import json
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import affine_grid, grid_sample, interpolate
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

from partial_tune import (
    ClassPartition,
    LogitCalibrator,
    PartialTuneArguments,
    PartialTuneTrainer,
    diagnose,
    group_accuracies,
    plot_sweep,
    seen_absent_sweep,
)

mpl.use("Agg")

NAMES = [f"digit {index}" for index in range(10)]
OPTIONS: dict[str, Any] = {"per_device_train_batch_size": 64, "report_to": "none", "save_strategy": "no"}
OPTIONS |= {"logging_strategy": "no", "dataloader_pin_memory": False}
INTRODUCTION = """
<p>A small <code>ResNetForImageClassification</code> has learned ten digits, and is fine-tuned on five of them in a new
domain (turned, faint, noisy scans). It stops answering the others, although it tells them apart better than before
when it has to choose among them: what is lost is their bias. One number, added to their logits, brings them back.
It is chosen in three ways: from the fine-tuning images (average logit gap), from unlabeled target images and the
share of absent classes among them, and by an oracle that has seen the labels, as a bound.</p>
"""


def load_domains() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source images, target images and labels."""
    digits = load_digits()
    source = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    source = interpolate(source, size=(16, 16), mode="bilinear")
    turn = torch.tensor([[0.95, -0.31, 0.0], [0.31, 0.95, 0.0]]).expand(len(source), 2, 3)
    grid = affine_grid(turn, list(source.shape), align_corners=False)
    target = grid_sample(source, grid, align_corners=False, padding_mode="border")
    return source, 0.8 * target - 0.1 + 0.2 * torch.randn(target.shape), torch.tensor(digits.target)


def rows(images: torch.Tensor, labels: torch.Tensor, ids: list[int]) -> list[dict[str, Any]]:
    return [{"pixel_values": images[index], "labels": int(labels[index])} for index in ids]


def train_source(images: torch.Tensor, labels: torch.Tensor, out: Path) -> ResNetForImageClassification:
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    shape = {"num_channels": 1, "embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1]}
    config = ResNetConfig(**shape, **names, layer_type="basic")
    model = ResNetForImageClassification(config)
    args = TrainingArguments(str(out / "source"), max_steps=200, learning_rate=2e-3, **OPTIONS)
    Trainer(model, args, train_dataset=rows(images, labels, list(range(700)))).train()
    return model.eval()


def picture(axes: Any) -> str:
    """The axes as an <img> that needs no file."""
    buffer = io.BytesIO()
    axes.get_figure().savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="accuracy on absent against seen classes" src="data:image/png;base64,{data}"></figure>'


def table(found: dict[str, dict[str, float | None]]) -> str:
    columns = {"Y/Y": "all", "S/Y": "seen", "U/Y": "absent", "S/S": "within seen", "U/U": "within absent"}
    lines = ["<tr><th></th>" + "".join(f"<th>{name}</th>" for name in columns.values()) + "</tr>"]
    for name, values in found.items():
        cells = "".join(f'<td class="number">{values[key] or 0:.0%}</td>' for key in columns)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


@torch.no_grad()
def predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.eval()(pixel_values=images).logits


def run(out: Path) -> tuple[str, dict[str, Any]]:
    source_images, images, labels = load_domains()
    source = train_source(source_images, labels, out)
    model = copy.deepcopy(source)
    partition = ClassPartition.from_names(model.config, NAMES[:5])
    seen = rows(images, labels, [index for index in range(700, 1250) if labels[index] < 5])
    args = PartialTuneArguments(str(out / "tuned"), max_steps=100, learning_rate=1e-3, **OPTIONS)
    trainer = PartialTuneTrainer(model, args, partition=partition, train_dataset=seen)
    trainer.train()
    test = [{"pixel_values": images[1250:], "labels": labels[1250:]}]
    unlabeled = [{"pixel_values": images[700:1250]}]
    calibrators = {
        "average logit gap": trainer.fit_calibrator("alg"),
        "unlabeled images": LogitCalibrator.fit(model, unlabeled, partition, "source_match", prior=0.5),
        "oracle": LogitCalibrator.fit(model, test, partition, "oracle"),
    }
    logits, test_labels = predict(model, images[1250:]), labels[1250:]
    found = {"source": group_accuracies(predict(source, images[1250:]), test_labels, partition)}
    found["fine-tuned"] = group_accuracies(logits, test_labels, partition)
    for name, calibrator in calibrators.items():
        found[f"+ {name} ({calibrator.gamma:.2f})"] = group_accuracies(
            logits, test_labels, partition, gamma=calibrator.gamma
        )
    before = seen_absent_sweep(predict(source, images[1250:]), test_labels, partition)
    after = seen_absent_sweep(logits, test_labels, partition)
    points = {name: after.at(calibrator.gamma) for name, calibrator in calibrators.items()}
    axes = plot_sweep({"source": before, "fine-tuned": after}, {"no offset": after.at(0.0), **points})
    verdict = diagnose(source, model, test, partition)
    html = INTRODUCTION + table(found) + picture(axes) + f"<p>{escape(verdict.verdict)}: {escape(verdict.reason)}.</p>"
    summary = {
        f"absent classes, {name}": f"{values['U/Y']:.0%} (seen {values['S/Y']:.0%})" for name, values in found.items()
    }
    summary["area under the curve"] = f"{before.ausuc:.3f} -> {after.ausuc:.3f}"
    summary["diagnosis"] = verdict.verdict
    return html, {"summary": summary, "accuracies": found, "sweep": after.to_dict(), "diagnosis": verdict.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/partial-tune"))
    args = parser.parse_args()
    set_seed(0)
    html, result = run(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in {"section.html": html, "result.json": json.dumps(result, indent=1, default=str) + "\n"}.items():
        part = args.out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(args.out / name)
    print("\n".join(f"{what}: {value}" for what, value in result["summary"].items()))


if __name__ == "__main__":
    main()
