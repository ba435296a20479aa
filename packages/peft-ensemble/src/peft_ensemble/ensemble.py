"""PeftEnsemble: many cheap adapters, trained, selected, asked and distilled (V-PET, arXiv 2503.09707)."""

import hashlib
import json
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import Dataset, concatenate_datasets
from transformers import TrainingArguments

from . import cards, fitting
from .aggregation import Rule, aggregate, break_ties, vote_counts
from .augmentation import View
from .data import fingerprint, read_labels, with_ids
from .diversity import DiversityReport, measure_diversity
from .members import MemberSpec
from .selection import Selection, UnsupervisedSelector
from .storage import read_json, read_tensors, write_json, write_parquet, write_tensors

logger = logging.getLogger(__name__)

Labeled = Literal["override", "pseudo"]
SCHEMA = 1
VERSIONS = ("peft", "peft-ensemble", "torch", "transformers")


class PeftEnsemble:
    """Members of several backbones and PEFT methods, in one folder that can be resumed.

    ```
    output_dir/
      ensemble.json                    the members, what was selected and why, the data, versions
      members/<id>/                    an ordinary peft adapter with its head
      predictions/<data>/<id>.safetensors
      pseudo_labels/<data>-<rule>.parquet
      students/<id>/                   an ordinary peft adapter with its head
    ```

    Data sets have a column `image` (PIL images or uint8 arrays), `label` where they are labelled, and may have `id`.
    Rows are known by their ids, never by their position.

    Args:
        specs: the members, see `MemberSpec.grid`.
        label_names: the classes, in the order of their numbers.
        output_dir: where everything is written. A member that is there already is not trained again, one that was
            stopped goes on from its last checkpoint (with the `save_strategy` of the training arguments).

    Raises:
        ValueError: no members, two alike, or a folder that holds another ensemble.

    Example:

    ```python
    >>> from peft_ensemble import SSFConfig
    >>> specs = MemberSpec.grid(["a-vit"], [SSFConfig()], seeds=[0, 1])
    >>> ensemble = PeftEnsemble(specs, ["cat", "dog"], "my-ensemble")
    >>> [spec.seed for spec in ensemble.members]
    [0, 1]

    ```
    """

    def __init__(self, specs: Sequence[MemberSpec], label_names: Sequence[str], output_dir: str | Path):
        ids = [spec.id for spec in specs]
        if not ids or len(set(ids)) != len(ids):
            raise ValueError(f"expected members that differ, got {ids}")
        if len(label_names) < 2:
            raise ValueError(f"expected at least two classes, got {list(label_names)}")
        self.specs = list(specs)
        self.label_names = list(label_names)
        self.output_dir = Path(output_dir)
        self.selections: dict[str, Selection] = {}
        self._selected = {spec.group: spec.id for spec in reversed(self.specs)}
        self._labeled: Dataset | None = None
        self._check_folder()

    @property
    def members(self) -> list[MemberSpec]:
        """The selected members, one of each group, in order."""
        return [spec for spec in self.specs if self._selected[spec.group] == spec.id]

    def fit(
        self,
        labeled: Dataset,
        args: TrainingArguments,
        unlabeled_val: Dataset | None = None,
        selector: UnsupervisedSelector | None = None,
    ) -> "PeftEnsemble":
        """Train every member on the labelled images, and select one of each group without labels.

        Args:
            labeled: a few labelled images.
            args: for all members; each has its own seed, and what its spec says. Its folder is not used.
            unlabeled_val: images to select on; needed if a group has several candidates. Labels are not looked at.
            selector: by default all seven criteria and the mean of squared ranks.

        Raises:
            ValueError: other labelled images or training arguments than the folder was made with, or nothing to select
                on.
        """
        labeled = with_ids(labeled)
        labels = read_labels(labeled, len(self.label_names))
        if absent := sorted(set(range(len(self.label_names))) - set(labels.tolist())):
            logger.warning("no labelled image of %s", [self.label_names[index] for index in absent])
        groups: dict[str, list[MemberSpec]] = {}
        for spec in self.specs:
            groups.setdefault(spec.group, []).append(spec)
        if unlabeled_val is None and any(len(candidates) > 1 for candidates in groups.values()):
            raise ValueError("expected unlabeled_val to select on: some groups have several candidates")
        self._record(labeled=fingerprint(labeled), training=fitting.describe_training(args))
        self._labeled = labeled
        for number, spec in enumerate(self.specs, start=1):
            folder = self.output_dir / "members" / spec.id
            if not (folder / "metrics.json").exists():
                logger.info("member %d of %d: %s", number, len(self.specs), spec.id)
                card = cards.member_card(spec, self.label_names, len(labeled))
                metrics = fitting.train(spec, self.label_names, labeled, args, folder, (spec.augmentation,), card)
                write_json(folder / "metrics.json", metrics)
        if unlabeled_val is not None:
            self._select(groups, with_ids(unlabeled_val), selector or UnsupervisedSelector())
        return self

    def _select(self, groups: dict[str, list[MemberSpec]], dataset: Dataset, selector: UnsupervisedSelector) -> None:
        """Choose one candidate of each group."""
        for group, candidates in groups.items():
            answers = [self._answers(spec, dataset) for spec in candidates]
            scores = [selector.score(answer["features"], answer["logits"]) for answer in answers]
            selection = selector.select(scores)
            self.selections[group] = selection
            self._selected[group] = candidates[selection.index].id
        table = {
            group: {
                "candidates": [spec.id for spec in candidates],
                "scores": self.selections[group].scores,
                "combined": {str(key): value for key, value in self.selections[group].combined.items()},
                "selected": self._selected[group],
            }
            for group, candidates in groups.items()
        }
        self._record(selection=table, unlabeled_val=fingerprint(dataset.select_columns("id")))

    def predict(self, dataset: Dataset, combine: Rule = "mean_probs", tta: int = 1) -> torch.Tensor:
        """Probabilities of the selected members together, float64 `(N, num_classes)`; see `aggregate`."""
        return aggregate(self.member_logits(dataset, tta)[1], combine)

    def member_logits(self, dataset: Dataset, tta: int = 1) -> tuple[list[MemberSpec], torch.Tensor]:
        """The selected members whose logits are finite, and those logits `(K, N, num_classes)`.

        Args:
            dataset: images.
            tta: number of weakly augmented passes to average; 1 is one clean pass.
        """
        if tta < 1:
            raise ValueError(f"tta must be at least 1, got {tta}")
        dataset = with_ids(dataset)
        kept, logits = [], []
        for spec in self.members:
            answer = self._answers(spec, dataset, tta)["logits"]
            if torch.isfinite(answer).all():
                kept.append(spec)
                logits.append(answer)
            else:
                logger.warning("member %s is left out: its logits are not finite", spec.id)
        if not kept:
            raise ValueError("expected a member with finite logits, found none; lower the learning rate")
        return kept, torch.stack(logits)

    def pseudo_label(
        self, dataset: Dataset, rule: Rule = "mean_labels", tta: int = 1, weights: torch.Tensor | None = None
    ) -> Dataset:
        """One target for each image, written as Parquet as well.

        Args:
            dataset: the unlabelled pool; it may hold the labelled images.
            rule: how the members are combined, see `aggregate`. The paper's is `"mean_labels"`.
            tta: number of weakly augmented passes of each member; the released code has 10, the paper 1.
            weights: of the members, for `rule="weighted"`.

        Returns:
            A data set with `id`, `target` (a probability for each class), `vote_counts`, `top1` (ties: the larger mean
            probability, then the lowest class), `margin` (of the two largest targets), `entropy` (in nats),
            `n_members` and `is_labeled`.
        """
        dataset = with_ids(dataset)
        members, logits = self.member_logits(dataset, tta)
        targets = aggregate(logits, rule, weights)
        largest = targets.topk(2, dim=-1).values
        entropy = torch.special.entr(targets).sum(dim=-1)
        known = set(self._labeled["id"][:]) if self._labeled is not None else set()
        table = Dataset.from_dict(
            {
                "id": dataset["id"][:],
                "target": targets.float().tolist(),
                "vote_counts": vote_counts(logits).tolist(),
                "top1": break_ties(targets, logits).tolist(),
                "margin": (largest[:, 0] - largest[:, 1]).tolist(),
                "entropy": entropy.tolist(),
                "n_members": [len(members)] * len(dataset),
                "is_labeled": [value in known for value in dataset["id"]],
            }
        )
        path = self.output_dir / "pseudo_labels" / f"{fingerprint(dataset.select_columns('id'))}-{rule}.parquet"
        write_parquet(path, table)
        return table

    def self_train(
        self,
        pseudo_labels: Dataset,
        dataset: Dataset,
        student: MemberSpec,
        args: TrainingArguments,
        labeled: Labeled = "override",
        views: Sequence[View] = ("weak", "strong"),
    ) -> Any:
        """Train a fresh student on the targets of the pool; once, from the pre-trained checkpoint.

        Args:
            pseudo_labels: as from `pseudo_label`, matched to the pool by id.
            dataset: the pool.
            student: what it is; its `augmentation` plays no part.
            args: as for `fit`.
            labeled: `"override"` gives the labelled images their true labels, and adds those that the pool lacks;
                `"pseudo"` uses pseudo-labels for all of the pool and nothing else, as the released code does.
            views: of each image in a step; the loss is the mean over them.

        Returns:
            The student, a `PeftModel` in evaluation mode.
        """
        if labeled not in get_args(Labeled):
            raise ValueError(f"labeled must be 'override' or 'pseudo', got {labeled!r}")
        pool = self._attach_targets(with_ids(dataset), pseudo_labels)
        if labeled == "override":
            pool = self._override(pool)
        if not len(pool):
            raise ValueError("expected images to train the student on, got an empty pool")
        taught = json.dumps([fingerprint(pool), list(views), fitting.describe_training(args)], sort_keys=True)
        name = f"{student.id}-{hashlib.sha256(taught.encode()).hexdigest()[:8]}"
        folder = self.output_dir / "students" / name
        if not (folder / "metrics.json").exists():
            card = cards.student_card(student, self.members, self.label_names, pool)
            metrics = fitting.train(student, self.label_names, pool, args, folder, tuple(views), card)
            write_json(folder / "metrics.json", metrics)
        return fitting.load_member(student, self.label_names, folder)

    def predict_student(self, student: Any, spec: MemberSpec, dataset: Dataset) -> torch.Tensor:
        """Probabilities of a student, float32 `(N, num_classes)`."""
        answer = fitting.predict(student, fitting.load_processor(spec), with_ids(dataset), batch_size=64)
        return answer["logits"].softmax(dim=-1)

    def diversity(self, dataset: Dataset) -> DiversityReport:
        """How alike the selected members are, and what combining them gains, on labelled images."""
        labels = read_labels(dataset, len(self.label_names))
        members, logits = self.member_logits(dataset)
        return measure_diversity(logits, labels, [spec.id for spec in members])

    def load(self, member: MemberSpec) -> Any:
        """A trained member, a `PeftModel` in evaluation mode."""
        folder = self.output_dir / "members" / member.id
        if not (folder / "metrics.json").exists():
            raise ValueError(f"expected a trained member in {folder}; call `fit` first")
        return fitting.load_member(member, self.label_names, folder)

    def merge(self, member: MemberSpec) -> Any:
        """A trained member as a plain transformers model, where its method allows it."""
        return self.load(member).merge_and_unload()

    def _answers(self, spec: MemberSpec, dataset: Dataset, tta: int = 1) -> dict[str, torch.Tensor]:
        """Logits and features of one member, from disk if they are there."""
        key = fingerprint(dataset.select_columns("id"))
        path = self.output_dir / "predictions" / f"{key}-{tta}" / f"{spec.id}.safetensors"
        about = {"ids": key, "member": spec.id, "tta": str(tta)}
        if (saved := read_tensors(path, about)) is not None:
            return saved
        answer = fitting.predict(
            self.load(spec),
            fitting.load_processor(spec),
            dataset,
            batch_size=64,
            tta=tta,
            seed=spec.seed,
            desc=spec.id,
        )
        write_tensors(path, answer, about)
        return answer

    def _attach_targets(self, dataset: Dataset, pseudo_labels: Dataset) -> Dataset:
        """The pool's images with their targets as `soft_labels`."""
        targets = dict(zip(pseudo_labels["id"][:], pseudo_labels["target"][:], strict=True))
        if missing := [value for value in dataset["id"] if value not in targets]:
            raise ValueError(
                f"expected a pseudo-label for every image; {len(missing)} have none, such as {missing[0]!r}"
            )
        dataset = dataset.select_columns(["image", "id"])
        return dataset.add_column("soft_labels", [targets[value] for value in dataset["id"]])

    def _override(self, pool: Dataset) -> Dataset:
        """The pool with true labels where they are known, and the labelled images that it lacks."""
        if self._labeled is None:
            raise ValueError("expected the labelled images: call `fit` first, or use labeled='pseudo'")
        labels = read_labels(self._labeled, len(self.label_names))
        one_hot = torch.nn.functional.one_hot(labels, len(self.label_names)).float().tolist()
        truth = dict(zip(self._labeled["id"][:], one_hot, strict=True))
        inside = set(pool["id"][:])
        targets = [truth.get(key, target) for key, target in zip(pool["id"], pool["soft_labels"], strict=True)]
        pool = pool.remove_columns("soft_labels").add_column("soft_labels", targets)
        rest = [index for index, value in enumerate(self._labeled["id"]) if value not in inside]
        if not rest:
            return pool
        extra = self._labeled.select(rest).select_columns(["image", "id"])
        extra = extra.add_column("soft_labels", [truth[value] for value in extra["id"]])
        return concatenate_datasets([pool, extra.cast(pool.features)])

    def _check_folder(self) -> None:
        """Refuse a folder of another ensemble, and take over its selection."""
        path = self.output_dir / "ensemble.json"
        if not path.exists():
            return
        record = read_json(path)
        members = {spec.id: spec.to_dict() for spec in self.specs}
        if record["schema"] != SCHEMA or record["label_names"] != self.label_names or record["members"] != members:
            raise ValueError(
                f"{path} is of an ensemble with other members or classes; use another output_dir, or the same specs"
            )
        for group, row in record.get("selection", {}).items():
            self._selected[group] = row["selected"]

    def _record(self, **new: Any) -> None:
        """Write ensemble.json with what is new; refuse other data than it was made with."""
        path = self.output_dir / "ensemble.json"
        record = read_json(path) if path.exists() else {}
        for key, what in (("labeled", "labelled images"), ("training", "training arguments")):
            if key in new and record.get(key, new[key]) != new[key]:
                raise ValueError(
                    f"{path} was made with other {what}: {record[key]}, now {new[key]}; use another output_dir"
                )
        record |= {
            "schema": SCHEMA,
            "label_names": self.label_names,
            "members": {spec.id: spec.to_dict() for spec in self.specs},
            "versions": {name: metadata.version(name) for name in VERSIONS},
            **new,
        }
        write_json(path, record)
