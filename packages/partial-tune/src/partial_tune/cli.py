"""`partial-tune fit | apply | sweep | report`: on saved logits and on model folders. JSON on standard output."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partial_tune.accuracy import group_accuracies
from partial_tune.calibrator import METHODS, LogitCalibrator
from partial_tune.files import read_array, write_json, write_tensors
from partial_tune.fitting import require_labels
from partial_tune.partition import ClassPartition
from partial_tune.running import collect
from partial_tune.sweep import seen_absent_sweep

Inputs = tuple[nn.Module, Iterable[Any], ClassPartition]
# Of a model folder, what `save_pretrained` writes anew and what a training leaves behind is not copied.
NOT_COPIED = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.index.json",
    "trainer_state.json",
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the four commands."""
    parser = argparse.ArgumentParser(prog="partial-tune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="choose the offset and save a calibrator")
    fit.add_argument("--method", default="alg", help="alg, source_match, oracle, or a number (default: alg)")
    fit.add_argument("--prior", type=float, help="share of absent classes, for source_match")
    fit.add_argument("--out", type=Path, required=True, help="folder of the calibrator")
    apply = commands.add_parser("apply", help="apply a calibrator to a model folder, or to logits")
    apply.add_argument("calibrator", type=Path, help="folder of the calibrator")
    apply.add_argument("--model", type=Path, help="model folder: the offset goes into the head's bias")
    apply.add_argument("--out", type=Path, required=True, help="new model folder, or .safetensors file of logits")
    sweep = commands.add_parser("sweep", help="AUSUC, its factors, the best offsets")
    sweep.add_argument("--bootstrap", type=int, default=0, metavar="N", help="resamples for 95 percent intervals")
    report = commands.add_parser("report", help="accuracies before and after an offset")
    for command in (sweep, report):
        command.add_argument("--gamma", type=float, help="an offset to report")
        command.add_argument("--out", type=Path, help="also write the JSON to a file")
    report.add_argument("--calibrator", type=Path, help="folder of a calibrator, instead of --gamma")
    report.add_argument("--plot", type=Path, help="draw the curve into an image file (extra `plots`)")
    for command in (fit, apply, sweep, report):
        command.add_argument("--logits", type=Path, help=".npy or .safetensors (tensor `logits`), shape (N, C)")
    for command in (fit, sweep, report):
        command.add_argument("--model", type=Path, help="image classifier's folder, instead of --logits; needs --data")
        command.add_argument("--data", type=Path, help="image folder (one subfolder for each class name), for --model")
        command.add_argument("--labels", type=Path, help=".npy or .safetensors (tensor `labels`), shape (N,)")
        command.add_argument("--partition", type=Path, help="JSON file of a ClassPartition")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, or 1 with one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        result = {"fit": run_fit, "apply": run_apply, "sweep": run_sweep, "report": run_report}[args.command](args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"partial-tune {args.command}: {error}\n")
        return 1
    text = json.dumps(result, indent=1)
    if getattr(args, "out", None) is not None and args.command in ("sweep", "report"):
        write_json(args.out, result)
    sys.stdout.write(text + "\n")
    return 0


def _require(args: argparse.Namespace, *names: str) -> None:
    if missing := [f"--{name}" for name in names if getattr(args, name) is None]:
        raise ValueError(f"Expected {' and '.join(missing)}.")


def _read_partition(path: Path) -> ClassPartition:
    return ClassPartition.from_json(path.read_text(encoding="utf-8"))


def _read_calibrator(path: Path) -> LogitCalibrator:
    if not path.is_dir():
        raise ValueError(f"Expected the folder of a calibrator, got {path}, which is none.")
    return LogitCalibrator.from_pretrained(path)


def run_fit(args: argparse.Namespace) -> dict[str, Any]:
    """Fits a calibrator and saves it; returns its summary."""
    method = args.method if args.method in METHODS else _number(args.method)
    if method in ("pcv", "pcv_ratio"):
        raise ValueError(f"Expected a method that needs no training on the command line, got {method!r}; use Python.")
    if isinstance(method, float) and args.model is None:
        _require(args, "partition")
        calibrator = LogitCalibrator(_read_partition(args.partition), method)
    else:
        if args.model is None:
            inputs = read_saved(args, needs_labels=method != "source_match")
        else:
            inputs = read_model_folder(args, needs_partition=False)
        calibrator = LogitCalibrator.fit(*inputs, method, prior=args.prior)
    calibrator.save_pretrained(args.out)
    return calibrator.to_dict()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"Expected --method to be a number or one of {', '.join(METHODS)}, got {text!r}.") from None


def read_saved(args: argparse.Namespace, *, needs_labels: bool = True) -> Inputs:
    """Returns the saved logits and labels, as a model that passes them through and one batch."""
    _require(args, "logits", *(["labels"] if needs_labels else []), "partition")
    batch: Any = torch.as_tensor(read_array(args.logits, "logits"))
    if needs_labels:
        batch = (batch, torch.as_tensor(read_array(args.labels, "labels")))
    return nn.Identity(), [batch], _read_partition(args.partition)


def read_model_folder(args: argparse.Namespace, *, needs_partition: bool) -> Inputs:
    """Returns an image classifier, batches of an image folder whose subfolders are named like its classes, and groups.

    Without --partition the classes of the folder are the seen ones.
    """
    import datasets
    from torch.utils.data import DataLoader
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.utils.logging import tqdm

    _require(args, "model", "data", *(["partition"] if needs_partition else []))
    model = AutoModelForImageClassification.from_pretrained(args.model)
    processor = AutoImageProcessor.from_pretrained(args.model)
    images = datasets.load_dataset("imagefolder", data_dir=str(args.data), split="train")
    if "label" not in images.features:
        raise ValueError(f"Expected one subfolder of images for each class in {args.data}, got images without class.")
    names = images.features["label"].names
    ids = {name: index for index, name in model.config.id2label.items()}
    if unknown := sorted(set(names) - set(ids)):
        raise ValueError(
            f"Expected subfolders named like the model's classes ({list(ids)[:4]} ...), got {unknown[:4]}."
        )
    partition = _read_partition(args.partition) if args.partition else ClassPartition.from_names(model.config, names)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
        return {**inputs, "labels": torch.tensor([ids[names[row["label"]]] for row in rows])}

    loader = DataLoader(images, batch_size=32, collate_fn=collate)
    return model, tqdm(loader, desc="images"), partition


def _read_logits(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, ClassPartition]:
    inputs = read_saved(args) if args.model is None else read_model_folder(args, needs_partition=True)
    model, loader, partition = inputs
    logits, labels, _ = collect(model, loader)
    return logits, require_labels(labels), partition


def run_apply(args: argparse.Namespace) -> dict[str, Any]:
    """Applies a calibrator to a model folder (folded) or to logits; writes a new folder or file."""
    calibrator = _read_calibrator(args.calibrator)
    if (args.model is None) == (args.logits is None):
        raise ValueError("Expected either --model or --logits.")
    if args.logits is not None:
        logits = torch.as_tensor(read_array(args.logits, "logits"))
        write_tensors(args.out, {"logits": calibrator.calibrate(logits)})
    else:
        apply_to_folder(calibrator, args.model, args.out)
    return {"out": str(args.out), "gamma": calibrator.gamma, "method": calibrator.estimate.method}


def apply_to_folder(calibrator: LogitCalibrator, source: Path, out: Path) -> None:
    """Writes a copy of a model folder with the offset in the bias of the head, and the calibrator beside it."""
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    if out.exists():
        raise ValueError(f"Expected a new folder for --out, got {out}, which exists.")
    config = AutoConfig.from_pretrained(source)
    is_text = any("SequenceClassification" in name for name in config.architectures or [])
    kind = AutoModelForSequenceClassification if is_text else AutoModelForImageClassification
    model = kind.from_pretrained(source)
    calibrator.fold_(model)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    for path in sorted(source.iterdir()):  # processor, tokenizer, chat template, model card
        if path.is_file() and not (part / path.name).exists() and not any(map(path.match, NOT_COPIED)):
            shutil.copy(path, part / path.name)
    calibrator.save_pretrained(part)
    part.replace(out)


def run_sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the summary of a sweep."""
    result = seen_absent_sweep(*_read_logits(args))
    summary = result.to_dict(gammas=[0.0] if args.gamma is None else [0.0, args.gamma])
    if args.bootstrap:
        summary["bootstrap"] = result.bootstrap(args.bootstrap)
    return _finite_values(summary)


def run_report(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the accuracies without and with an offset, and draws the curve if asked."""
    logits, labels, partition = _read_logits(args)
    gamma = args.gamma
    if args.calibrator is not None:
        calibrator = _read_calibrator(args.calibrator)
        if calibrator.partition != partition:
            raise ValueError("Expected a calibrator of the same partition; classes or groups differ.")
        gamma = calibrator.gamma
    result = seen_absent_sweep(logits, labels, partition)
    report: dict[str, Any] = {"before": group_accuracies(logits, labels, partition), "ausuc": result.ausuc}
    points = {"no offset": result.at(0.0)}
    if gamma is not None:
        report |= {"gamma": gamma, "after": group_accuracies(logits, labels, partition, gamma=gamma)}
        points["calibrated"] = result.at(gamma)
    if args.plot is not None:
        from partial_tune.plots import plot_sweep

        figure: Any = plot_sweep(result, points).get_figure()
        figure.savefig(args.plot)
        report["plot"] = str(args.plot)
    return _finite_values(report)


def _finite_values(values: dict[str, Any]) -> dict[str, Any]:
    return {key: finite(item) for key, item in values.items()}


def finite(value: Any) -> Any:
    """Returns a value with infinite ends of intervals as None, which JSON knows."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


if __name__ == "__main__":
    sys.exit(main())
