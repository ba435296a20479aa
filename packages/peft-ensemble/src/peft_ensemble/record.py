"""`ensemble.json`: what an ensemble is made of, so that its folder goes on with that and refuses anything else."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets import Dataset

from .data import fingerprint
from .members import MemberSpec
from .selection import UnsupervisedSelector
from .storage import read_json, write_json

SCHEMA = 1
VERSIONS = ("peft", "peft-ensemble", "torch", "transformers")
FIXED = {"labeled": "labelled images", "training": "training arguments", "halving": "halving"}


class Record:
    """The file of one ensemble.

    Args:
        folder: of the ensemble.
        specs: its members.
        label_names: its classes.

    Raises:
        ValueError: the folder holds an ensemble of other members or classes.
    """

    def __init__(self, folder: Path, specs: Sequence[MemberSpec], label_names: Sequence[str]):
        self.path = folder / "ensemble.json"
        self.about = {
            "schema": SCHEMA,
            "label_names": list(label_names),
            "members": {spec.id: spec.to_dict() for spec in specs},
        }
        known = self.read()
        if known and any(known.get(key) != value for key, value in self.about.items()):
            raise ValueError(
                f"{self.path} is of an ensemble with other members or classes; use the same, or another output_dir"
            )

    def read(self) -> dict[str, Any]:
        """All that is known: nothing before the first `update`."""
        return read_json(self.path) if self.path.exists() else {}

    def update(self, **new: Any) -> None:
        """Write what is new.

        Raises:
            ValueError: other labelled images, training arguments or halving than the ensemble was made with.
        """
        known = self.read()
        for key, what in FIXED.items():
            if key in new and known.get(key, new[key]) != new[key]:
                raise ValueError(
                    f"{self.path} was made with other {what}: {known[key]}, now {new[key]}; use another output_dir"
                )
        versions = {name: metadata.version(name) for name in VERSIONS}
        write_json(self.path, {**known, **self.about, "versions": versions, **new})

    def rounds(self, group: str) -> list[dict[str, Any]]:
        """The rounds of successive halving that a group has behind it."""
        rounds: list[dict[str, Any]] = self.read().get("rounds", {}).get(group, [])
        return rounds

    def add_round(self, group: str, row: dict[str, Any]) -> None:
        """Write another round of a group."""
        self.update(rounds={**self.read().get("rounds", {}), group: [*self.rounds(group), row]})

    def is_stopped(self, spec: MemberSpec) -> bool:
        """Whether a round has stopped a candidate."""
        return any(spec.id in row["candidates"] and spec.id not in row["kept"] for row in self.rounds(spec.group))


def describe_halving(
    keep_one_of: int | None, dataset: Dataset | None, selector: UnsupervisedSelector
) -> dict[str, Any] | None:
    """What the rounds of successive halving depend on, as JSON takes it."""
    if keep_one_of is None or dataset is None:
        return None
    ids = fingerprint(dataset.select_columns("id"))
    described: dict[str, Any] = json.loads(
        json.dumps({"keep_one_of": keep_one_of, "unlabeled_val": ids, "selector": dataclasses.asdict(selector)})
    )
    return described
