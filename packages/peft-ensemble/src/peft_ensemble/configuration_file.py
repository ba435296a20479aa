"""One YAML file that says what an ensemble is, what it is trained on and what is asked of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import HfArgumentParser, TrainingArguments

from .ensemble import PeftEnsemble
from .members import MemberSpec
from .modeling_classifier import Pooling
from .selection import UnsupervisedSelector


@dataclass(kw_only=True)
class EnsembleFile:
    """The keys of the YAML file of the command `peft-ensemble`; README and `examples/ensemble.yaml` show one.

    Args:
        output_dir: the folder of the ensemble.
        backbones, methods, search, seeds, pooling: as for `MemberSpec.grid`; a method has its `peft_type` (`lora`,
            `ssf`, ...) and the fields of its config.
        labeled: a folder with one folder of images for each class, a Parquet file, or arguments of
            `datasets.load_dataset`, with a column `image` and a column `label`.
        unlabeled: the pool, in the same ways; candidates are selected on it too.
        evaluation: labelled sets by name; `select` and `diversity` use the first, `wise` all of them.
        label_names: by default the names of the column `label`.
        training: of the members, fields of `TrainingArguments`; `student_training` what differs for a student.
        selector: fields of `UnsupervisedSelector`.
        fit, pseudo_label, self_train: further arguments of these methods of `PeftEnsemble`.
        student: fields of `MemberSpec`; its `method` is as in `methods`.
        alphas: where `wise` evaluates.
    """

    output_dir: str
    backbones: list[str]
    methods: list[dict]  # type: ignore[type-arg]
    labeled: Any
    unlabeled: Any = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    pooling: Pooling = "native"
    training: dict[str, Any] = field(default_factory=dict)
    student_training: dict[str, Any] = field(default_factory=dict)
    selector: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    pseudo_label: dict[str, Any] = field(default_factory=dict)
    self_train: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])

    def __post_init__(self) -> None:
        for name in (
            "methods",
            "search",
            "training",
            "student_training",
            "selector",
            "pseudo_label",
            "student",
            "alphas",
        ):
            setattr(self, name, _read_numbers(getattr(self, name)))

    def build_ensemble(self, label_names: list[str]) -> PeftEnsemble:
        """The ensemble of the file; nothing is trained."""
        methods = [build_method(method) for method in self.methods]
        specs = MemberSpec.grid(self.backbones, methods, self.search, self.seeds, self.pooling)
        return PeftEnsemble(specs, label_names, self.output_dir)

    def build_selector(self) -> UnsupervisedSelector:
        """How candidates are selected."""
        return UnsupervisedSelector(**self.selector)

    def build_arguments(self, disable_tqdm: bool, **changes: Any) -> TrainingArguments:
        """The training arguments of the members, or of the student with its changes."""
        quiet = {"disable_tqdm": disable_tqdm, "report_to": []}
        return TrainingArguments(**{"output_dir": self.output_dir, **quiet, **self.training, **changes})

    def build_student(self) -> MemberSpec:
        """What the student is."""
        if not self.student:
            raise ValueError("expected a key `student` with a backbone and a method, to know what to train")
        return MemberSpec(**{**self.student, "method": build_method(self.student.get("method", {}))})


def read_file(path: str | Path) -> EnsembleFile:
    """The YAML file, checked.

    Raises:
        ValueError: a file that is not one mapping, lacks a key or has one that nobody knows.
    """
    try:
        (parsed,) = HfArgumentParser(EnsembleFile).parse_yaml_file(path)  # type: ignore[arg-type]
    except OSError:
        raise
    except Exception as error:  # YAML's errors too, whose package is a requirement of transformers and not of ours
        raise ValueError(f"{path}: {error}; the keys are {', '.join(EnsembleFile.__dataclass_fields__)}") from error
    return parsed


def build_method(fields: Mapping[str, Any]) -> PeftConfig:
    """The config of a method from its `peft_type` and its other fields.

    Raises:
        ValueError: an unknown `peft_type` or field.

    Example:

    ```python
    >>> import peft_ensemble
    >>> build_method({"peft_type": "adaptformer", "bottleneck": 8}).bottleneck
    8

    ```
    """
    classes = {
        str(key.value).lower().removeprefix("vis_"): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    name = str(fields.get("peft_type", "")).lower().removeprefix("vis_")
    if name not in classes:
        raise ValueError(f"peft_type must be one of {', '.join(sorted(classes))}, got {fields.get('peft_type')!r}")
    try:
        method: PeftConfig = classes[name](**{key: value for key, value in fields.items() if key != "peft_type"})
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    return method


def load_images(source: Any) -> Dataset:
    """A data set of images from a folder of classes, a Parquet file, or arguments of `datasets.load_dataset`.

    Raises:
        ValueError: no such file or folder, or something else than one split.
    """
    if isinstance(source, Mapping):
        arguments = {"split": "train", **source}
    elif Path(str(source)).is_dir():
        arguments = {"path": "imagefolder", "data_dir": str(source), "split": "train"}
    elif Path(str(source)).is_file():
        arguments = {"path": "parquet", "data_files": str(source), "split": "train"}
    else:
        raise ValueError(
            f"expected a folder of class folders, a Parquet file or arguments of datasets.load_dataset, got {source!r}"
        )
    dataset = load_dataset(**arguments)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"expected one split, got {type(dataset).__name__} from {source!r}")
    return dataset


def _read_numbers(value: Any) -> Any:
    """The value with strings such as "1e-3", which YAML does not take for a number, as numbers."""
    if isinstance(value, dict):
        return {key: _read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value
