"""Training the candidates of an ensemble and comparing them: what `PeftEnsemble.fit` does, on one folder.

Successive halving (arXiv 1502.07943): train all candidates a little, go on with the best, and so on. Candidates are
stopped, never trained differently: learning rates follow the schedule of the whole training from the start, so one
that comes through all rounds is, bit for bit, what it would be without them.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainingArguments

from . import cards, fitting
from .cross_validation import cross_validate
from .members import MemberSpec
from .prediction import Answer, ask_members
from .prefix import FeatureCache
from .record import Record
from .selection import Selection, UnsupervisedSelector
from .storage import is_saved

logger = logging.getLogger(__name__)


def plan_rounds(num_candidates: int, keep_one_of: int) -> list[tuple[float, int]]:
    """When candidates are compared, and how many go on.

    Args:
        num_candidates: n, at the start.
        keep_one_of: eta; a round keeps one of so many, rounded up, and ends after eta times as much training as the
            one before it. The number of rounds is the largest that leaves one candidate or more.

    Returns:
        For each round, the share of the training at its end, in (0, 1), and the number of candidates that go on.

    Example:

    ```python
    >>> plan_rounds(24, keep_one_of=3)  # in all 24 / 9 + 8 * 2 / 9 + 3 * 2 / 3 = 6.4 trainings instead of 24
    [(0.1111111111111111, 8), (0.3333333333333333, 3)]

    ```
    """
    rounds = 0
    while keep_one_of ** (rounds + 1) <= num_candidates:
        rounds += 1
    return [
        (keep_one_of ** (number - rounds), ceil(num_candidates / keep_one_of ** (number + 1)))
        for number in range(rounds)
    ]


def check_halving(keep_one_of: int, selector: UnsupervisedSelector) -> None:
    """Raise unless candidates can be halved so."""
    if isinstance(keep_one_of, bool) or not isinstance(keep_one_of, int) or keep_one_of < 2:
        raise ValueError(f"halving must be an integer from 2: one of so many candidates stays; got {keep_one_of}")
    if "cv_accuracy" in selector.metrics:
        raise ValueError("the metric 'cv_accuracy' needs whole trainings; leave it or halving out")


def member_folder(output_dir: Path, spec: MemberSpec) -> Path:
    """Where a member is, or will be, in the folder of its ensemble."""
    return output_dir / "members" / spec.id


@dataclass
class Search:
    """The candidates of an ensemble on their way.

    Args:
        output_dir: of the ensemble.
        label_names: its classes.
        record: its `ensemble.json`.
        labeled: the labelled images.
        args: for all candidates.
        selector: compares them.
        cache: for features of frozen blocks.
    """

    output_dir: Path
    label_names: Sequence[str]
    record: Record
    labeled: Dataset
    args: TrainingArguments
    selector: UnsupervisedSelector
    cache: FeatureCache | None

    def train(self, spec: MemberSpec, until: float = 1.0) -> None:
        """Train a member to a share of its training, or go on with it, unless that is done."""
        folder = member_folder(self.output_dir, spec)
        if is_saved(folder):
            shutil.rmtree(fitting.scratch_of(folder), ignore_errors=True)  # of a run that was killed right here
            return
        logger.info("member %s, up to %.0f%% of its training", spec.id, 100 * until)
        card = cards.member_card(spec, self.label_names, len(self.labeled))
        fitting.train(
            spec,
            self.label_names,
            self.labeled,
            self.args,
            folder,
            (spec.augmentation,),
            card,
            cache=self.cache,
            until=until,
        )

    def halve(
        self, group: str, candidates: Sequence[MemberSpec], keep_one_of: int, dataset: Dataset
    ) -> list[MemberSpec]:
        """The candidates of a group that come through all rounds, compared on unlabelled images."""
        left = list(candidates)
        past = self.record.rounds(group)
        for number, (until, count) in enumerate(plan_rounds(len(left), keep_one_of)):
            row = past[number] if number < len(past) else None
            if row is None:
                for spec in left:
                    self.train(spec, until)
                folders = [fitting.find_checkpoint(member_folder(self.output_dir, spec)) for spec in left]
                selection = self.selector.select(
                    self.selector.score_all(ask_members(left, folders, self.label_names, dataset))
                )
                best = sorted(selection.combined, key=lambda index: (selection.combined[index], index))[:count]
                row = {
                    "until": until,
                    "candidates": [spec.id for spec in left],
                    "scores": selection.scores,
                    "kept": [left[index].id for index in sorted(best)],
                }
                self.record.add_round(group, row)
            for spec in left:
                if spec.id not in row["kept"]:
                    scratch = fitting.scratch_of(member_folder(self.output_dir, spec))
                    shutil.rmtree(scratch, ignore_errors=True)
            left = [spec for spec in left if spec.id in row["kept"]]
        return left

    def compare(
        self, candidates: Sequence[MemberSpec], answers: Sequence[Answer], consensus: torch.Tensor | None
    ) -> Selection:
        """The choice among candidates of one group, given what they say about unlabelled images."""
        accuracies = None
        if "cv_accuracy" in self.selector.metrics:
            accuracies = [self._cross_validate(spec) for spec in candidates]
        return self.selector.select(self.selector.score_all(answers, consensus, accuracies))

    def _cross_validate(self, spec: MemberSpec) -> float:
        folder, num_folds = self.output_dir / "folds" / spec.id, self.selector.num_folds
        return cross_validate(spec, self.label_names, self.labeled, self.args, folder, num_folds, self.cache)
