"""The command `peft-ensemble fit | select | pseudo-label | self-train | diversity | wise FILE.yaml`."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import ClassLabel, Dataset
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import tqdm

from .configuration_file import EnsembleFile, load_images, read_file
from .data import read_labels
from .ensemble import PeftEnsemble
from .interpolation import wise_curve
from .members import MemberSpec
from .plots import plot_agreement, plot_selection, plot_wise
from .storage import read_json, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 1 after an error, which is one line on stderr."""
    args = _build_parser().parse_args(argv)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that a new head is new is no news
    if args.no_progress:
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        args.run(Session(read_file(args.file), args))
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"peft-ensemble: {' '.join(str(error).split())}\n")
        return 1
    finally:
        transformers_logging.set_verbosity(verbosity)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peft-ensemble", description="Many cheap adapters know more than one.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    helps: dict[str, tuple[Callable[[Session], None], str]] = {
        "fit": (fit, "train the members, or go on, and select one of each group without labels"),
        "select": (select, "select again among trained candidates; with labelled images, say what it costs"),
        "pseudo-label": (pseudo_label, "write targets of the pool as Parquet"),
        "self-train": (self_train, "train a student on the targets of the pool"),
        "diversity": (diversity, "say how alike the members are and what combining them gains"),
        "wise": (wise, "evaluate each member from its pre-trained to its tuned weights"),
    }
    for name, (run, text) in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("file", type=Path, metavar="FILE.yaml")
        command.add_argument("--no-progress", action="store_true", help="no progress bars")
        if run in (select, diversity, wise):
            command.add_argument("--plots", action="store_true", help="write figures too (extra `plots`)")
        command.set_defaults(run=run, plots=False)
    return parser


class Session:
    """What all commands need: the file, its ensemble and its data."""

    def __init__(self, file: EnsembleFile, args: argparse.Namespace):
        self.file = file
        self.quiet: bool = args.no_progress
        self.plots: bool = args.plots
        self.labeled = load_images(file.labeled)
        feature = self.labeled.features.get("label")
        names = file.label_names or (feature.names if isinstance(feature, ClassLabel) else [])
        if not names:
            raise ValueError("expected a key `label_names`: the labelled images have no names of their classes")
        self.ensemble = file.build_ensemble(names)
        self.reports = Path(file.output_dir) / "reports"

    def pool(self) -> Dataset:
        """The unlabelled images; labels they may have are left out."""
        if self.file.unlabeled is None:
            raise ValueError("expected a key `unlabeled` with the pool")
        pool = load_images(self.file.unlabeled)
        return pool.remove_columns("label") if "label" in pool.column_names else pool

    def evaluation(self) -> dict[str, Dataset]:
        """The labelled sets to evaluate on, by name."""
        if not self.file.evaluation:
            raise ValueError("expected a key `evaluation` with labelled sets by name")
        return {name: load_images(source) for name, source in self.file.evaluation.items()}

    def fitted(self) -> PeftEnsemble:
        """The trained ensemble; its selection is made again, which trains nothing."""
        if not (self.ensemble.output_dir / "ensemble.json").exists():
            raise ValueError(
                f"expected a trained ensemble in {self.ensemble.output_dir}; run `peft-ensemble fit` first"
            )
        return self.fit()

    def fit(self) -> PeftEnsemble:
        """The ensemble, trained as far as it is not."""
        pool = None if self.file.unlabeled is None else self.pool()
        args = self.file.build_arguments(self.quiet)
        return self.ensemble.fit(self.labeled, args, pool, self.file.build_selector(), **self.file.fit)

    def accuracy(self, model: Any, spec: MemberSpec, dataset: Dataset) -> float:
        """The share of images that a model gets right."""
        labels = read_labels(dataset, len(self.ensemble.label_names))
        predicted = self.ensemble.predict_student(model, spec, dataset).argmax(dim=-1)
        return float((predicted == labels).double().mean())

    def save_figure(self, ax: Any, name: str) -> None:
        """Write a figure into the folder of reports, and say where."""
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png", dpi=150)
        self.reports.mkdir(parents=True, exist_ok=True)
        part = self.reports / f"{name}.png.part"
        part.write_bytes(buffer.getvalue())
        part.replace(self.reports / f"{name}.png")
        _print(str(self.reports / f"{name}.png"))


def fit(session: Session) -> None:
    """Train, and say which members were selected."""
    for spec in session.fit().members:
        _print(f"{spec.id}  {spec.training}")


def select(session: Session) -> None:
    """The candidates of each group, best first; their accuracies and the regret where there are labelled images."""
    ensemble = session.fitted()
    if not ensemble.selections:
        raise ValueError("expected groups of several candidates and a key `unlabeled`: there is nothing to select")
    test = next(iter(session.evaluation().values())) if session.file.evaluation else None
    recorded = read_json(ensemble.output_dir / "ensemble.json")["selection"]
    candidates = {spec.id: spec for spec in ensemble.specs}
    table: dict[str, Any] = {}
    for number, (group, selection) in enumerate(ensemble.selections.items()):
        names = recorded[group]["candidates"]
        row: dict[str, Any] = {"candidates": names, "combined": selection.combined, "selected": names[selection.index]}
        if test is not None:
            specs = [candidates[name] for name in tqdm(names, desc="candidates", disable=session.quiet)]
            row["accuracies"] = [session.accuracy(ensemble.load(spec), spec, test) for spec in specs]
            row |= selection.regret(row["accuracies"])
            if session.plots:
                session.save_figure(plot_selection(selection, row["accuracies"], names), f"selection-{number}")
        table[group] = row
        _print(f"{group}: {row['selected']}" + (f", regret {row['regret']:.1%}" if test is not None else ""))
    write_json(session.reports / "selection.json", table)


def pseudo_label(session: Session) -> None:
    """Write the targets, and say how sure the members are."""
    table = session.fitted().pseudo_label(session.pool(), **session.file.pseudo_label)
    margin = torch.tensor(table["margin"][:]).mean()
    _print(f"{len(table)} targets in {session.ensemble.output_dir / 'pseudo_labels'}, mean margin {margin:.2f}")


def self_train(session: Session) -> None:
    """Train a student, and say how good it is where there are labelled images."""
    ensemble, spec, pool = session.fitted(), session.file.build_student(), session.pool()
    targets = ensemble.pseudo_label(pool, **session.file.pseudo_label)
    args = session.file.build_arguments(session.quiet, **session.file.student_training)
    student = ensemble.self_train(targets, pool, spec, args, **session.file.self_train)
    _print(f"student {spec.id} in {ensemble.output_dir / 'students'}")
    for name, dataset in (session.evaluation() if session.file.evaluation else {}).items():
        _print(f"{name}  {session.accuracy(student, spec, dataset):.1%}")


def diversity(session: Session) -> None:
    """Print and write the report."""
    report = session.fitted().diversity(next(iter(session.evaluation().values())))
    _print(str(report))
    write_json(session.reports / "diversity.json", report.to_dict())
    if session.plots:
        session.save_figure(plot_agreement(report), "agreement")


def wise(session: Session) -> None:
    """Print and write the curve of each selected member that has a path in weight space."""
    sets = session.evaluation()
    if session.plots and len(sets) < 2:
        raise ValueError(f"expected two labelled sets in `evaluation` to draw one against the other, got {list(sets)}")
    ensemble, curves = session.fitted(), {}
    for spec in tqdm(ensemble.members, desc="members", disable=session.quiet):
        if spec.method_name == "vpt":
            _print(f"{spec.id}: prompts have no path in weight space, see `peft_ensemble.mix_outputs`")
            continue
        evaluate = lambda model, spec=spec: {  # noqa: E731
            name: session.accuracy(model, spec, dataset) for name, dataset in sets.items()
        }
        curves[spec.id] = wise_curve(ensemble.load(spec), session.file.alphas, evaluate)
        for row in curves[spec.id]:
            _print(spec.id + "".join(f"  {name} {value:.3f}" for name, value in row.items()))
        if session.plots:
            session.save_figure(plot_wise(curves[spec.id], *list(sets)[:2]), f"wise-{spec.id}")
    write_json(session.reports / "wise.json", curves)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
