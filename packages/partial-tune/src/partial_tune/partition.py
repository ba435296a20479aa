"""Which classes are seen in fine-tuning and which are absent: [`ClassPartition`]."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

GENERIC_NAME = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named


def hash_names(names: Sequence[str]) -> str:
    """Returns a digest of class names and their order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def read_names(labels: Any) -> tuple[str, ...]:
    """Returns the class names, in the order of their ids, of a model config, an `id2label` mapping or a sequence."""
    labels = getattr(labels, "id2label", labels)
    if isinstance(labels, Mapping):
        by_id = {int(key): str(value) for key, value in labels.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"Expected `id2label` with the ids 0 to {len(by_id) - 1}, got {sorted(by_id)[:8]}...")
        return tuple(by_id[index] for index in range(len(by_id)))
    if isinstance(labels, int):
        return tuple(f"LABEL_{index}" for index in range(labels))
    return tuple(map(str, labels))


@dataclass(frozen=True)
class ClassPartition:
    """The label space of a model, split into the classes seen in fine-tuning and the absent ones.

    Seen and absent classes are disjoint and neither is empty. A third group, `remaining`, exists for pseudo-splits
    only and is whatever belongs to none of them.

    Args:
        names (`tuple[str, ...]`): all class names; the position of a name is the id of its class.
        seen (`tuple[int, ...]`): ids of the classes with fine-tuning data.
        absent (`tuple[int, ...]`, *optional*):
            Ids of the absent ones. By default, and if empty, all that are not seen.

    Raises:
        ValueError: if a group is empty, ids are repeated, shared or out of range, or names are repeated.

    Example:

    ```python
    >>> from partial_tune import ClassPartition
    >>> partition = ClassPartition(names=("ant", "bee", "cat"), seen=(0, 2))
    >>> partition.absent, partition.absent_names
    ((1,), ('bee',))
    >>> ClassPartition.from_json(partition.to_json()) == partition
    True

    ```
    """

    names: tuple[str, ...]
    seen: tuple[int, ...]
    absent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names, seen = tuple(self.names), tuple(sorted(map(int, self.seen)))
        rest = set(range(len(names))) - set(seen)
        absent = tuple(sorted(map(int, self.absent or rest)))
        for field, value in (("names", names), ("seen", seen), ("absent", absent)):
            object.__setattr__(self, field, value)
        if len(set(names)) < len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Expected different class names, got {repeated[:5]} more than once.")
        for group, ids in (("seen", seen), ("absent", absent)):
            if not ids:
                raise ValueError(
                    f"Expected at least one {group} class among {len(names)}, got none: without seen and absent "
                    "classes there is nothing to calibrate."
                )
            if len(set(ids)) < len(ids) or ids[0] < 0 or ids[-1] >= len(names):
                raise ValueError(f"Expected different {group} ids from 0 to {len(names) - 1}, got {list(ids)[:20]}.")
        if both := sorted(set(seen) & set(absent)):
            raise ValueError(f"Expected disjoint groups, but {[names[i] for i in both][:5]} are seen and absent.")

    @property
    def num_classes(self) -> int:
        """Number of all classes."""
        return len(self.names)

    @property
    def remaining(self) -> tuple[int, ...]:
        """Ids that are neither seen nor absent. Empty outside pseudo-splits."""
        return tuple(sorted(set(range(self.num_classes)) - set(self.seen) - set(self.absent)))

    @property
    def seen_names(self) -> tuple[str, ...]:
        """Names of the seen classes, by id."""
        return tuple(self.names[index] for index in self.seen)

    @property
    def absent_names(self) -> tuple[str, ...]:
        """Names of the absent classes, by id."""
        return tuple(self.names[index] for index in self.absent)

    @property
    def absent_mask(self) -> torch.Tensor:
        """Boolean tensor of shape `(num_classes,)`, true for absent classes."""
        mask = torch.zeros(self.num_classes, dtype=torch.bool)
        mask[list(self.absent)] = True
        return mask

    @property
    def hash(self) -> str:
        """Digest of the names and their order, which a model's `id2label` must have as well."""
        return hash_names(self.names)

    @classmethod
    def from_names(cls, labels: Any, seen: Iterable[str]) -> "ClassPartition":
        """Returns the partition with these seen names.

        Args:
            labels (`PreTrainedConfig`, `Mapping[int, str]` or `Sequence[str]`): all classes.
            seen (`Iterable[str]`): names of the seen ones.

        Raises:
            ValueError: if a name is not among `labels`.
        """
        names, seen = read_names(labels), list(seen)
        if unknown := sorted(set(seen) - set(names)):
            raise ValueError(
                f"Expected names of the model's {len(names)} classes ({', '.join(names[:4])} ...), got {unknown[:5]}; "
                "rename them, or keep the `id2label` of the pre-trained model."
            )
        return cls(names, tuple(names.index(name) for name in seen))

    @classmethod
    def from_mask(cls, labels: Any, absent_mask: Any) -> "ClassPartition":
        """Returns the partition of a boolean mask of shape `(num_classes,)`, true for absent classes."""
        names, mask = read_names(labels), np.asarray(absent_mask)
        if mask.shape != (len(names),) or mask.dtype != bool:
            raise ValueError(
                f"Expected a boolean mask of shape ({len(names)},), got {mask.dtype} of shape {mask.shape}."
            )
        return cls(names, tuple(np.flatnonzero(~mask).tolist()), tuple(np.flatnonzero(mask).tolist()))

    @classmethod
    def from_dataset(cls, labels: Any, dataset: Any, label_column: str = "label") -> "ClassPartition":
        """Returns the partition whose seen classes are those that occur in a data set.

        Ids and names are compared with the model's: a data set whose labels were numbered anew, 0 to the number of its
        own classes, is an error and not a silent mix-up.

        Args:
            labels (`PreTrainedConfig`, `Mapping[int, str]` or `Sequence[str]`): all classes, as the model has them.
            dataset (`datasets.Dataset`, or a sequence of labels or of rows with `label_column`): fine-tuning data.
            label_column (`str`, defaults to `"label"`): column of integer ids or of names.

        Raises:
            ValueError: if the data set's labels are not the model's, or all or none of the classes occur.
        """
        names = read_names(labels)
        features = getattr(dataset, "features", None) or {}
        own = getattr(features.get(label_column), "names", None)
        if own is not None:
            check_same_labels(names, tuple(own), label_column)
        values = _read_labels(dataset, label_column)
        if all(isinstance(value, str) for value in values):
            return cls.from_names(names, values)
        if bad := [value for value in values if not 0 <= value < len(names)]:
            raise ValueError(f"Expected label ids from 0 to {len(names) - 1} in {label_column!r}, got {bad[:5]}.")
        return cls(names, tuple(values))

    def to_dict(self) -> dict[str, Any]:
        """Returns names and ids as plain lists."""
        return {"names": list(self.names), "seen": list(self.seen), "absent": list(self.absent)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassPartition":
        """Returns the partition that `to_dict` describes."""
        if missing := {"names", "seen", "absent"} - set(values):
            raise ValueError(f"Expected a partition with names, seen and absent, but {sorted(missing)} is missing.")
        return cls(tuple(values["names"]), tuple(values["seen"]), tuple(values["absent"]))

    def to_json(self) -> str:
        """Returns the partition as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "ClassPartition":
        """Returns the partition that `to_json` describes."""
        return cls.from_dict(json.loads(text))


def check_same_labels(names: tuple[str, ...], own: tuple[str, ...], label_column: str) -> None:
    """Raises if a data set's class names are neither the model's nor compatible with its unnamed classes."""
    unnamed = all(GENERIC_NAME.fullmatch(name) for name in names)
    if own == names or (unnamed and len(own) == len(names)):
        return
    fix = f'`dataset.align_labels_with_mapping(model.config.label2id, "{label_column}")`'
    if unnamed:
        fix = "`id2label` and `label2id` of the model from its pre-training, then " + fix
    raise ValueError(
        f"Expected the labels of column {label_column!r} to be numbered as the model's {len(names)} classes "
        f"({', '.join(names[:4])}, ...), got {len(own)} ({', '.join(own[:4])}, ...); the ids mean other classes. "
        f"Align them by name: {fix}."
    )


def _read_labels(dataset: Any, label_column: str) -> list[Any]:
    """The different labels of a data set, sorted."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and label_column not in columns:
        raise ValueError(f"Expected a column {label_column!r} in the data set, got {columns}; pass `label_column`.")
    if isinstance(dataset, (torch.Tensor, np.ndarray)):
        values: Iterable[Any] = dataset.tolist()
    elif hasattr(dataset, "unique"):
        values = dataset.unique(label_column)
    else:
        values = (row[label_column] if isinstance(row, Mapping) else row for row in dataset)
    plain = {value if isinstance(value, str) else int(value) for value in values}
    return sorted(plain, key=lambda value: (isinstance(value, str), value))
