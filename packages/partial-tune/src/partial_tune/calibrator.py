"""[`LogitCalibrator`]: one number, fitted, applied to a model, saved with it."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from partial_tune.attachment import (
    MARK,
    LogitHook,
    add_offset,
    align_offset,
    check_labels_of,
    check_uncalibrated,
    hooks_of,
    read_mark,
)
from partial_tune.cards import build_card
from partial_tune.files import read_array, write_json, write_tensors, write_text
from partial_tune.fitting import collect_absent_gaps, collect_gaps, collect_sweep, run_splits
from partial_tune.gamma import GammaEstimate, choose_by_oracle, combine_splits, match_absent_rate
from partial_tune.partition import ClassPartition
from partial_tune.result import Criterion
from partial_tune.running import build_eval_loader
from partial_tune.upstream import find_head, get_base_model

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1
METHODS = ("alg", "pcv_ratio", "pcv", "source_match", "oracle")
JSON_NAME, TENSORS_NAME, CARD_NAME = "calibrator.json", "calibrator.safetensors", "README.md"


class LogitCalibrator:
    """The offset that a partly fine-tuned classifier needs on its absent classes.

    Fit it with [`LogitCalibrator.fit`]. Apply it with `attach` (a hook; any classifier, any adapter) or `fold_` (into
    the bias of the head; free at inference). A model has at most one calibration: a second one is an error.

    Args:
        partition (`ClassPartition`): the model's classes, in the order of its logits.
        gamma (`float`): offset in logit units, added to the logits of absent classes.
        estimate (`GammaEstimate`, *optional*): where `gamma` comes from, saved with it.

    Raises:
        ValueError: if `gamma` is not finite.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, LogitCalibrator
    >>> model = torch.nn.Linear(4, 3)
    >>> calibrator = LogitCalibrator(ClassPartition(("ant", "bee", "cat"), seen=(0, 2)), gamma=2.0)
    >>> x = torch.zeros(1, 4)
    >>> before = model(x)
    >>> with calibrator.attach(model):
    ...     (model(x) - before).tolist()
    [[0.0, 2.0, 0.0]]
    >>> torch.equal(model(x), before)
    True

    ```
    """

    def __init__(self, partition: ClassPartition, gamma: float, estimate: GammaEstimate | None = None) -> None:
        if not np.isfinite(gamma):
            raise ValueError(f"Expected a finite `gamma`, got {gamma}.")
        self.partition = partition
        self.gamma = float(gamma)
        self.estimate = estimate or GammaEstimate(gamma=self.gamma, method="given", num_samples=0)

    def __repr__(self) -> str:
        groups = f"{len(self.partition.seen)} seen, {len(self.partition.absent)} absent classes"
        return f"LogitCalibrator(gamma={self.gamma:.4g}, method={self.estimate.method!r}, {groups})"

    @property
    def offset(self) -> Tensor:
        """Float32 tensor of shape `(num_classes,)`: gamma for absent classes, else 0."""
        return self.gamma * self.partition.absent_mask.float()

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        partition: ClassPartition,
        method: str | float = "alg",
        *,
        criterion: Criterion = "overall",
        value: float | None = None,
        prior: float | None = None,
        fine_tune: Callable[[Dataset[Any]], nn.Module] | None = None,
        num_splits: int = 3,
        seed: int = 0,
    ) -> "LogitCalibrator":
        """Returns the calibrator of a fine-tuned model. The model is run in evaluation mode and not changed.

        Args:
            model (`nn.Module`): fine-tuned classifier with outputs for all classes, plain or wrapped by peft.
            loader (`Iterable`):
                Batches that are mappings with `labels`, or `(inputs, labels)`: the fine-tuning data, without
                augmentation. A shuffled or truncating `DataLoader` is read once in order and whole. For `"oracle"`
                labelled data of all classes, for `"source_match"` target data, labels or not.
            partition (`ClassPartition`): the model's classes.
            method (`str` or `float`, defaults to `"alg"`):
                - `"alg"`: average logit gap, no absent data needed;
                - `"pcv_ratio"`, `"pcv"`: pseudo cross-validation, needs `fine_tune` and 4 seen classes;
                - `"source_match"`: the share `prior` of target samples is predicted as absent;
                - `"oracle"`: the best offset by `criterion`, on labels of absent classes;
                - a number: that number.
            criterion (`str`, defaults to `"overall"`): as in `SweepResult.operating_point`.
            value (`float`, *optional*): as in `SweepResult.operating_point`.
            prior (`float`, *optional*): share of absent classes among the samples, for `"source_match"`.
            fine_tune (`Callable`, *optional*):
                For pseudo cross-validation: takes a part of `loader.dataset` and returns a fresh copy of the source
                model, fine-tuned on it with the same recipe.
            num_splits (`int`, defaults to 3), seed (`int`, defaults to 0): of pseudo cross-validation.

        Raises:
            TypeError, ValueError: if model, data, partition and method do not fit, or the model is calibrated already.
        """
        if method not in METHODS and isinstance(method, (str, bool)):
            raise ValueError(f"Expected `method` to be a number or one of {', '.join(METHODS)}, got {method!r}.")
        check_uncalibrated(model)
        check_labels_of(model, partition)
        if not isinstance(method, str):
            return cls(partition, float(method))
        loader = build_eval_loader(loader)
        if method == "oracle":
            estimate = choose_by_oracle(collect_sweep(model, loader, partition), criterion, value)
        elif method == "source_match":
            if prior is None:
                raise ValueError(
                    'Expected `prior`, the share of absent classes, for `method="source_match"`, got None.'
                )
            estimate = match_absent_rate(collect_absent_gaps(model, loader, partition), prior)
        else:
            estimate = collect_gaps(model, loader, partition)
        if method in ("pcv", "pcv_ratio"):
            if fine_tune is None or not isinstance(loader, DataLoader):
                raise ValueError(f"Expected `fine_tune` and a `DataLoader` for `method={method!r}`.")
            splits = run_splits(loader, partition, fine_tune, num_splits, seed, criterion, value)
            estimate = combine_splits(splits, estimate, ratio=method == "pcv_ratio")
            asked = {"seed": seed, "operating_point": {"criterion": criterion, "value": value}}
            estimate = replace(estimate, details={**estimate.details, **asked})
        return cls(partition, estimate.gamma, estimate)

    def calibrate(self, logits: Tensor, candidates: Sequence[str] | None = None) -> Tensor:
        """Returns logits with the offset added, classes in the last dimension, in the dtype of `logits`."""
        return add_offset(logits, self._offset_for(candidates), -1)

    def attach(self, model: nn.Module, candidates: Sequence[str] | None = None) -> ExitStack:
        """Returns a context manager that detaches `model`, whose logits are calibrated from now on.

        The hook is on the model inside of any wrapper. A loss that the model computes stays that of plain logits, as
        training wants it. Attaching the same calibrator again does nothing.

        Args:
            model (`nn.Module`): classifier with the classes of the partition, or a CLIP model with `candidates`.
            candidates (`Sequence[str]`, *optional*):
                Class names in the order of the text prompts, for zero-shot models. Unknown names get no offset, with a
                warning.

        Raises:
            ValueError: if the model is folded or attached to another calibrator or with other candidates, or its
                classes differ.
        """
        base = get_base_model(model)
        scope = ExitStack()
        offset = self._offset_for(candidates)
        if mine := [hook for hook in hooks_of(base) if hook.owner is self]:
            if not torch.equal(mine[0].offset, offset):
                raise ValueError("Expected the candidates with which this calibrator is attached; detach it first.")
            return scope  # whoever attached it detaches it
        check_uncalibrated(base)
        if candidates is None:
            check_labels_of(base, self.partition)
        hook = LogitHook(self, offset)
        base.register_forward_hook(hook, with_kwargs=True)
        self._mark(base, folded=False)
        scope.callback(self.detach, base)
        return scope

    def detach(self, model: nn.Module) -> None:
        """Undoes `attach`. Does nothing if `model` is not attached."""
        base = get_base_model(model)
        for key, hook in list(base._forward_hooks.items()):
            if isinstance(hook, LogitHook) and hook.owner is self:
                base._forward_hooks.pop(key)
                base._forward_hooks_with_kwargs.pop(key, None)
                self._unmark(base)

    def fold_(self, model: nn.Module) -> None:
        """Adds the offset to the bias of the model's head, in place: no cost, and exports keep it.

        Raises:
            ValueError: if the model is calibrated already, its classes differ, or its head has no bias or is not
            unique.
        """
        check_uncalibrated(model)
        check_labels_of(model, self.partition)
        self._add_to_bias(model, self.gamma)
        self._mark(get_base_model(model), folded=True)
        if hasattr(model, "peft_config"):
            logger.warning(
                "The offset is in the adapter's copy of the head, but an adapter saved alone does not say so: after "
                "loading it a second offset goes unnoticed. Merge before saving (`merge_and_unload`), or use `attach`."
            )

    def unfold_(self, model: nn.Module) -> None:
        """Takes the offset out of the bias again, up to the rounding of one subtraction.

        Raises:
            ValueError: if this calibrator is not folded into the model.
        """
        base = get_base_model(model)
        mark = read_mark(base)
        same = all(mark.get(key) == value for key, value in self._describe_mark(folded=True).items())
        if not same:
            raise ValueError(f"Expected a model with this calibrator folded in ({self!r}), got {mark or 'none'}.")
        self._add_to_bias(model, -self.gamma)
        self._unmark(base)

    def _add_to_bias(self, model: nn.Module, gamma: float) -> None:
        head = find_head(model, self.partition.num_classes)
        if head.bias is None:
            raise ValueError(
                f"Expected a head with a bias to fold into, got {type(get_base_model(model)).__name__} whose head has "
                "none (as decoder language models); use `attach`."
            )
        with torch.no_grad():
            offset = gamma * self.partition.absent_mask.to(head.bias.device)
            wide = head.bias.to(torch.promote_types(head.bias.dtype, torch.float32)) + offset
            head.bias.copy_(wide.to(head.bias.dtype))

    def _offset_for(self, candidates: Sequence[str] | None) -> Tensor:
        return self.offset if candidates is None else align_offset(self.partition.names, self.offset, candidates)

    def _mark(self, base: nn.Module, *, folded: bool) -> None:
        mark = {**self._describe_mark(folded=folded), "version": FORMAT_VERSION, "method": self.estimate.method}
        setattr(getattr(base, "config", base), MARK, mark)

    def _describe_mark(self, *, folded: bool) -> dict[str, Any]:
        """What tells one calibration of a model from another."""
        absent = list(self.partition.absent)
        return {"gamma": self.gamma, "absent": absent, "labels": self.partition.hash, "folded": folded}

    def _unmark(self, base: nn.Module) -> None:
        owner = getattr(base, "config", base)
        if hasattr(owner, MARK):
            delattr(owner, MARK)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `calibrator.json` holds."""
        from partial_tune import __version__

        return {
            "version": FORMAT_VERSION,
            "library_version": __version__,
            "method": self.estimate.method,
            "gamma": self.gamma,
            "names": list(self.partition.names),
            "seen": list(self.partition.seen_names),
            "absent": list(self.partition.absent_names),
            "labels": self.partition.hash,
            "uses_absent_labels": self.estimate.uses_absent_labels,
            "fit": {
                "num_samples": self.estimate.num_samples,
                "std": self.estimate.std,
                "details": self.estimate.details,
            },
        }

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `calibrator.json` and `calibrator.safetensors`, each whole or not at all, beside the model.

        A model card is written where there is none.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / TENSORS_NAME, {"offset": self.offset})
        write_json(folder / JSON_NAME, self.to_dict())
        if not (folder / CARD_NAME).exists():
            write_text(folder / CARD_NAME, build_card(self.partition, self.gamma, self.estimate))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **hub_kwargs: Any) -> "LogitCalibrator":
        """Returns the calibrator of a folder, or of a repository on the Hub.

        Args:
            name_or_path (`str` or `Path`): an existing folder, or a repository id.
            hub_kwargs: `revision`, `token`, `cache_dir` and the like of `huggingface_hub.hf_hub_download`.

        Raises:
            FileNotFoundError: if the folder has no calibrator.
            ValueError: if the files do not fit each other.
        """
        folder = Path(name_or_path)
        if folder.is_dir():
            paths = [folder / JSON_NAME, folder / TENSORS_NAME]
            if missing := [path.name for path in paths if not path.exists()]:
                raise FileNotFoundError(f"Expected {' and '.join(missing)} in {folder}; save with `save_pretrained`.")
        else:
            from huggingface_hub import hf_hub_download

            paths = [
                Path(hf_hub_download(str(name_or_path), name, **hub_kwargs)) for name in (JSON_NAME, TENSORS_NAME)
            ]
        return cls._from_files(json.loads(paths[0].read_text(encoding="utf-8")), read_array(paths[1], "offset"))

    @classmethod
    def _from_files(cls, values: dict[str, Any], offset: Tensor) -> "LogitCalibrator":
        if values.get("version") != FORMAT_VERSION:
            raise ValueError(f"Expected a calibrator of version {FORMAT_VERSION}, got {values.get('version')!r}.")
        needed = {"names", "seen", "absent", "gamma", "method", "uses_absent_labels", "fit"}
        if missing := sorted(needed - set(values)):
            raise ValueError(f"Expected {', '.join(missing)} in {JSON_NAME}; save it anew with `save_pretrained`.")
        names, fit = values["names"], values["fit"]
        seen, absent = ([names.index(name) for name in values[group]] for group in ("seen", "absent"))
        estimate = GammaEstimate(
            gamma=values["gamma"],
            method=values["method"],
            num_samples=fit["num_samples"],
            std=fit["std"],
            uses_absent_labels=values["uses_absent_labels"],
            details=fit["details"],
        )
        calibrator = cls(ClassPartition(tuple(names), tuple(seen), tuple(absent)), values["gamma"], estimate)
        if not torch.equal(calibrator.offset, offset):
            raise ValueError(f"Expected {TENSORS_NAME} to hold the offset of {JSON_NAME}; the files do not fit.")
        return calibrator

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Uploads what [`save_pretrained`] writes to a repository on the Hub, and returns the address of the commit.

        The repository is made if need be; the model card of one that has one stays.

        Args:
            repo_id (`str`): such as `"me/my-model"`.
            kwargs: `private` and `token`, and `commit_message` and `revision` of `HfApi.upload_folder`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=kwargs.pop("token", None))
        repo_id = api.create_repo(repo_id, private=kwargs.pop("private", None), exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            kept = [CARD_NAME] if api.file_exists(repo_id, CARD_NAME) else None
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=kept, **kwargs))
