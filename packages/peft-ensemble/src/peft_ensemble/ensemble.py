"""PeftEnsemble: many cheap adapters, trained, selected, asked and distilled (V-PET, arXiv 2503.09707)."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from transformers import TrainingArguments
from transformers.utils.logging import tqdm

from . import cards, fitting, pseudo_labels
from .aggregation import Rule, aggregate
from .augmentation import View
from .data import fingerprint, read_labels, with_ids
from .diversity import DiversityReport, measure_diversity
from .members import MemberSpec
from .prediction import Answer, ask_members, predict
from .prefix import FeatureCache
from .record import Record, describe_halving
from .search import Search, check_halving, member_folder
from .selection import Selection, UnsupervisedSelector, vote
from .storage import is_saved, read_tensors, write_parquet, write_tensors, write_text

logger = logging.getLogger(__name__)

Labeled = Literal["override", "pseudo", "mix"]


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
        self._record = Record(self.output_dir, self.specs, self.label_names)
        for group, row in self._record.read().get("selection", {}).items():
            self._selected[group] = row["selected"]

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
        *,
        halving: int | None = None,
        prefix_cache_mib: int = 1024,
    ) -> "PeftEnsemble":
        """Train every member on the labelled images, and select one of each group without labels.

        Args:
            labeled: a few labelled images.
            args: for all members; each has its own seed, and what its spec says. Its folder is not used.
            unlabeled_val: images to select on; needed if a group has several candidates. Labels are not looked at.
            selector: by default all seven criteria and the mean of squared ranks.
            halving: with an integer eta from 2, successive halving: candidates of a group are compared on the way, and
                one of eta goes on each time. Those that come through are what they would be without it.
            prefix_cache_mib: memory in MiB for features of frozen blocks. Members whose adapters start at a later
                block (`blocks=[k, ...]`) do not run those before it again for a view of an image that has been there;
                0 makes them.

        Raises:
            ValueError: other labelled images, training arguments or halving than the folder was made with, or nothing
                to select on.
        """
        labeled = with_ids(labeled)
        labels = read_labels(labeled, len(self.label_names))
        if absent := sorted(set(range(len(self.label_names))) - set(labels.tolist())):
            logger.warning("no labelled image of %s", [self.label_names[index] for index in absent])
        groups: dict[str, list[MemberSpec]] = {}
        for spec in self.specs:
            groups.setdefault(spec.group, []).append(spec)
        selector = selector or UnsupervisedSelector()
        compared = None if unlabeled_val is None else with_ids(unlabeled_val)
        if compared is None and any(len(candidates) > 1 for candidates in groups.values()):
            raise ValueError("expected unlabeled_val to select on: some groups have several candidates")
        if halving is not None:
            check_halving(halving, selector)
        self._record.update(
            labeled=fingerprint(labeled),
            training=fitting.describe_training(args),
            halving=describe_halving(halving, compared, selector),
        )
        self._labeled = labeled
        cache = FeatureCache(prefix_cache_mib * 2**20) if prefix_cache_mib else None
        search = Search(self.output_dir, self.label_names, self._record, labeled, args, selector, cache)
        with tqdm(total=len(self.specs), desc="members", disable=args.disable_tqdm) as bar:
            for group, candidates in groups.items():
                if halving is not None and compared is not None:
                    groups[group] = search.halve(group, candidates, halving, compared)
                for spec in groups[group]:
                    search.train(spec)
                bar.update(len(candidates))
        if compared is not None:
            self._select(groups, compared, search)
        card = cards.ensemble_card(self.members, groups, self.selections, self.label_names, len(labeled))
        write_text(self.output_dir / "README.md", card)
        return self

    def _select(self, groups: dict[str, list[MemberSpec]], dataset: Dataset, search: Search) -> None:
        """Choose one candidate of each group."""
        every = [spec for candidates in groups.values() for spec in candidates]
        answers = dict(zip([spec.id for spec in every], self._answers(every, dataset, features=True), strict=True))
        consensus = vote(list(answers.values()))
        table = {}
        for group, candidates in groups.items():
            selection = search.compare(candidates, [answers[spec.id] for spec in candidates], consensus)
            self.selections[group] = selection
            self._selected[group] = candidates[selection.index].id
            table[group] = {
                "candidates": [spec.id for spec in candidates],
                "scores": selection.scores,
                "combined": {str(key): value for key, value in selection.combined.items()},
                "selected": self._selected[group],
            }
        self._record.update(selection=table, unlabeled_val=fingerprint(dataset.select_columns("id")))

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
        for spec, answer in zip(self.members, self._answers(self.members, dataset, tta), strict=True):
            if torch.isfinite(answer["logits"]).all():
                kept.append(spec)
                logits.append(answer["logits"])
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
        _, logits = self.member_logits(dataset, tta)
        labeled_ids = set(self._labeled["id"][:]) if self._labeled is not None else set()
        table = pseudo_labels.build_table(dataset["id"][:], logits, aggregate(logits, rule, weights), labeled_ids)
        path = self.output_dir / "pseudo_labels" / f"{fingerprint(dataset.select_columns('id'))}-{rule}.parquet"
        write_parquet(path, table)
        return table

    def self_train(
        self,
        targets: Dataset,
        dataset: Dataset,
        student: MemberSpec,
        args: TrainingArguments,
        labeled: Labeled = "override",
        views: Sequence[View] = ("weak", "strong"),
    ) -> Any:
        """Train a fresh student on the targets of the pool; once, from the pre-trained checkpoint.

        Args:
            targets: as from `pseudo_label`, matched to the pool by id.
            dataset: the pool.
            student: what it is; its `augmentation` plays no part.
            args: as for `fit`.
            labeled: `"override"` gives the labelled images their true labels, and adds those that the pool lacks;
                `"mix"` puts beside each image of the pool a labelled one with its true label, in every batch;
                `"pseudo"` uses pseudo-labels for all of the pool and nothing else, as the released code does.
            views: of each image in a step; the loss is the mean over them.

        Returns:
            The student, a `PeftModel` in evaluation mode.
        """
        if labeled not in get_args(Labeled):
            raise ValueError(f"labeled must be one of {', '.join(get_args(Labeled))}, got {labeled!r}")
        pool = pseudo_labels.attach_targets(with_ids(dataset), targets)
        beside = None
        if labeled != "pseudo":
            if self._labeled is None:
                raise ValueError("expected the labelled images: call `fit` first, or use labeled='pseudo'")
            truth = pseudo_labels.as_targets(self._labeled, len(self.label_names))
            if labeled == "override":
                pool = pseudo_labels.override(pool, truth)
            else:
                pool, beside = pseudo_labels.without(pool, set(truth["id"])), truth
        if not len(pool):
            raise ValueError("expected images to train the student on, got an empty pool")
        lesson = [fingerprint(pool), list(views), fitting.describe_training(args), labeled == "mix"]
        name = f"{student.id}-{hashlib.sha256(json.dumps(lesson, sort_keys=True).encode()).hexdigest()[:8]}"
        folder = self.output_dir / "students" / name
        if is_saved(folder):
            shutil.rmtree(fitting.scratch_of(folder), ignore_errors=True)
        else:
            card = cards.student_card(student, self.members, self.label_names, pool)
            fitting.train(student, self.label_names, pool, args, folder, tuple(views), card, beside=beside)
        return fitting.load_member(student, self.label_names, folder)

    def predict_student(self, student: Any, spec: MemberSpec, dataset: Dataset) -> torch.Tensor:
        """Probabilities of a student, float32 `(N, num_classes)`."""
        (answer,) = predict([student], fitting.load_processor(spec), with_ids(dataset))
        return answer["logits"].softmax(dim=-1)

    def diversity(
        self, dataset: Dataset, control: "PeftEnsemble | None" = None, held_out: Dataset | None = None
    ) -> DiversityReport:
        """How alike the selected members are, and what combining them gains, on labelled images.

        Args:
            dataset: labelled images.
            control: an ensemble of one method from several seeds, as many as members: seeds disagree and gain too.
            held_out: other labelled images, to fit temperatures, weights and a greedy selection on.
        """
        labels = read_labels(dataset, len(self.label_names))
        members, logits = self.member_logits(dataset)
        fitted = None
        if held_out is not None:
            also, known = self.member_logits(held_out)
            both = [spec for spec in members if spec in also]
            logits = torch.stack([logits[members.index(spec)] for spec in both])
            known = torch.stack([known[also.index(spec)] for spec in both])
            members, fitted = both, (known, read_labels(held_out, len(self.label_names)))
        others = None if control is None else control.member_logits(dataset)[1]
        names = [spec.id for spec in members]
        return measure_diversity(logits, labels, names, control=others, held_out=fitted)

    def load(self, member: MemberSpec) -> Any:
        """A trained member, a `PeftModel` in evaluation mode."""
        self._check_trained(member)
        return fitting.load_member(member, self.label_names, self._folder(member))

    def merge(self, member: MemberSpec) -> Any:
        """A trained member as a plain transformers model, where its method allows it."""
        return self.load(member).merge_and_unload()

    def _check_trained(self, spec: MemberSpec) -> None:
        """Raise unless a member is there."""
        if not is_saved(folder := self._folder(spec)):
            stopped = self._record.is_stopped(spec)
            why = "successive halving has stopped it; take one of `members`" if stopped else "call `fit` first"
            raise ValueError(f"expected a trained member in {folder}; {why}")

    def _folder(self, spec: MemberSpec) -> Path:
        return member_folder(self.output_dir, spec)

    def _answers(
        self, specs: Sequence[MemberSpec], dataset: Dataset, tta: int = 1, features: bool = False
    ) -> list[Answer]:
        """Logits of members, and their features if asked for, from disk where they are there."""
        key = fingerprint(dataset.select_columns("id"))
        folder = self.output_dir / "predictions" / f"{key}-{tta}"
        paths = {spec.id: (folder / f"{spec.id}.safetensors") for spec in specs}
        about = {spec.id: {"ids": key, "member": spec.id, "tta": str(tta)} for spec in specs}
        answers: dict[str, Answer] = {}
        for spec in specs:
            saved = read_tensors(paths[spec.id], about[spec.id])
            if saved is not None and ("features" in saved or not features):
                answers[spec.id] = saved
        missing = [spec for spec in specs if spec.id not in answers]
        for spec in missing:
            self._check_trained(spec)
        said = ask_members(missing, [self._folder(spec) for spec in missing], self.label_names, dataset, tta)
        for spec, answer in zip(missing, said, strict=True):
            kept = answer if features else {"logits": answer["logits"]}
            write_tensors(paths[spec.id], kept, about[spec.id])
            answers[spec.id] = kept
        return [answers[spec.id] for spec in specs]
