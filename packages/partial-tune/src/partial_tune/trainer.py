"""[`PartialTuneTrainer`]: a transformers `Trainer` that knows which classes it does not see."""

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from partial_tune.arguments import PartialTuneArguments
from partial_tune.attachment import check_labels_of, check_uncalibrated
from partial_tune.calibrator import LogitCalibrator
from partial_tune.lolsgd import default_drop, draw_classes, freeze_lora_a
from partial_tune.lolsgd_loop import build_loader, run_lolsgd
from partial_tune.partition import ClassPartition, check_same_labels
from partial_tune.regularization import (
    distillation_loss,
    freeze_for_batch_norm_policy,
    rank_loss,
    set_batch_norm_mode,
)
from partial_tune.running import check_features, read_sample_labels
from partial_tune.upstream import find_head, get_base_model, get_logits


class PartialTuneTrainer(Trainer):
    """A `Trainer` for data of some of the model's classes. The loss is over all classes.

    It refuses what makes the other classes disappear: a head that was made anew with fewer outputs, and labels that
    were numbered anew. Parameters that a method or policy freezes stay frozen after training.

    Args:
        model (`PreTrainedModel`, `PeftModel` or `nn.Module`): classifier with outputs for all classes, not calibrated.
        args (`PartialTuneArguments`): options.
        partition (`ClassPartition`): seen and absent classes. The training data has seen ones only.
        source_model (`nn.Module`, *optional*):
            The model before fine-tuning, for selective distillation and for pseudo cross-validation: another object
            than `model`. It is put on the device of the training and into evaluation mode; its weights stay.
        kwargs: of `Trainer`.

    Raises:
        ValueError: if model, data and partition do not fit.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from partial_tune import ClassPartition, PartialTuneArguments, PartialTuneTrainer
    >>> model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
    ...     intermediate_size=8, image_size=4, patch_size=4, num_labels=3))
    >>> data = [{"pixel_values": torch.zeros(3, 4, 4), "labels": label} for label in (0, 2)]
    >>> args = PartialTuneArguments("out", max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
    ...     dataloader_pin_memory=False)
    >>> partition = ClassPartition.from_dataset(model.config, data, label_column="labels")
    >>> trainer = PartialTuneTrainer(model, args, partition=partition, train_dataset=data)
    >>> trainer.train().global_step
    {'train_runtime': ...}
    1
    >>> trainer.fit_calibrator().estimate.method
    'alg'

    ```
    """

    args: PartialTuneArguments

    def __init__(
        self,
        model: nn.Module,
        args: PartialTuneArguments,
        *,
        partition: ClassPartition,
        source_model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        check_uncalibrated(model)
        check_outputs(model, partition)
        check_labels_of(model, partition)
        self.partition, self.source_model = partition, source_model
        self._worker_step: int | None = None  # of the present worker, in LOLSGD
        self._train_labels = check_training_data(kwargs.get("train_dataset"), partition)
        self._has_own_optimizer = any(item is not None for item in kwargs.get("optimizers", ()))
        if source_model is model:
            raise ValueError("Expected a copy for `source_model`, got `model` itself; use `copy.deepcopy(model)`.")
        if args.method == "lp_ft" and args.world_size > 1:
            raise ValueError(f"Expected one process for `lp_ft`, which freezes and thaws, got {args.world_size}.")
        if args.distill_weight and source_model is None:
            raise ValueError("Expected `source_model` (the frozen teacher) for `distill_weight` > 0, got None.")
        freeze_for_batch_norm_policy(model, args.bn)
        if args.method == "frozen_head":
            find_head(model, partition.num_classes).requires_grad_(False)
        if args.method == "lolsgd":
            drop = default_drop(len(partition.seen)) if args.drop is None else args.drop
            draw_classes(partition.seen, drop, seed=0, round_id=0, worker=0)  # raises if it is out of range
            self._drop = drop
            if args.lora_average == "freeze_a":
                freeze_lora_a(model)
        super().__init__(model, args, **kwargs)
        if source_model is not None:
            source_model.to(args.device).eval()
        if args.method == "lp_ft":
            self.add_callback(_ProbeThenTune(find_head(model, partition.num_classes), args.probe_ratio))

    def fit_calibrator(self, method: str | float = "alg", **kwargs: Any) -> LogitCalibrator:
        """Returns the calibrator of the model as it is now, fitted on the training data in evaluation mode.

        `"pcv"` and `"pcv_ratio"` fine-tune copies of `source_model` on some of the seen classes, with the same
        arguments, collator, loss and optimizer class; callbacks are not run.

        Args:
            method (`str` or `float`, defaults to `"alg"`): as in `LogitCalibrator.fit`.
            kwargs: as in `LogitCalibrator.fit`.

        Raises:
            ValueError: as `LogitCalibrator.fit`; for pseudo cross-validation without `source_model`, or with
                `optimizers=`, which cannot be made anew.
        """
        kwargs = {"fine_tune": self._fine_tune_copy, "seed": self.args.seed, **kwargs}
        model: Any = self.model
        loader = self.get_train_dataloader() if self._train_labels is None else build_loader(self, None)
        return LogitCalibrator.fit(model, loader, self.partition, method, **kwargs)

    def _fine_tune_copy(self, dataset: Dataset[Any]) -> nn.Module:
        """A copy of the source model, fine-tuned like this one on data of some of the seen classes."""
        if self.source_model is None:
            raise ValueError("Expected `source_model`, from which pseudo cross-validation starts, got None.")
        if self._has_own_optimizer:
            raise ValueError(
                "Expected an optimizer that can be made anew for pseudo cross-validation, got `optimizers=`; pass "
                "`optimizer_cls_and_kwargs=` and `lr_scheduler_type`."
            )
        seen = np.unique(read_sample_labels(dataset)).tolist()
        args = copy.copy(self.args)
        if args.drop is not None:
            args.drop = min(len(seen) - 1, round(args.drop * len(seen) / len(self.partition.seen)))
        args.save_strategy, args.eval_strategy, args.report_to = "no", "no", []
        args.push_to_hub = args.eval_on_start = args.load_best_model_at_end = False
        model = copy.deepcopy(self.source_model).to(args.device)
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir = folder
            trainer = PartialTuneTrainer(
                model,
                args,
                partition=ClassPartition(self.partition.names, tuple(seen)),
                source_model=self.source_model,
                train_dataset=dataset,
                data_collator=self.data_collator,
                compute_loss_func=self.compute_loss_func,
                optimizer_cls_and_kwargs=self.optimizer_cls_and_kwargs,
            )
            trainer.train()
        return model

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the model's loss and, in training, the extra ones; see `Trainer.compute_loss`."""
        options = self.args
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        set_batch_norm_mode(model, options.bn)
        if not options.distill_weight and not options.rank_weight:
            return super().compute_loss(model, inputs, *args, **kwargs)
        kwargs = {**dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)), **kwargs}
        return_outputs = kwargs.pop("return_outputs", False)
        features: list[Tensor] = []
        head = find_head(model, self.partition.num_classes)
        handle = head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        try:
            loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True, **kwargs)
        finally:
            handle.remove()
        extra = self._extra_loss(inputs, outputs, features[0])
        if kwargs.get("num_items_in_batch") is not None and self.model_accepts_loss_kwargs:
            extra = extra / self.current_gradient_accumulation_steps  # `loss` is scaled already, this is a batch mean
        return (loss + extra, outputs) if return_outputs else loss + extra

    def _extra_loss(self, inputs: dict[str, Any], outputs: Any, features: Tensor) -> Tensor:
        options = self.args
        extra = torch.zeros((), device=features.device)
        if options.rank_weight:
            extra = extra + options.rank_weight * rank_loss(check_features(features))
        if options.distill_weight and self.source_model is not None:
            warmup = options.distill_warmup_ratio * max(1, self.state.max_steps)
            weight = options.distill_weight * min(1.0, self._progress() / warmup if warmup else 1.0)
            with torch.no_grad():
                teacher = get_logits(self.source_model(**{k: v for k, v in inputs.items() if k != "labels"}))
            student = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
            mask = self.partition.absent_mask.to(student.device)
            extra = extra + weight * distillation_loss(student, teacher, mask, options.distill_temperature)
        return extra

    def _progress(self) -> int:
        """Steps taken: by the present worker, in LOLSGD."""
        return self.state.global_step if self._worker_step is None else self._worker_step

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Takes a training step; with `bn="stats_only"` the forward that renews the statistics is all of it."""
        if self.args.bn != "stats_only":
            return super().training_step(model, inputs, *args, **kwargs)
        model.train()
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach()

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: TrainingArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if self.args.method != "lolsgd":
            return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval)
        return run_lolsgd(self, resume_from_checkpoint, ignore_keys_for_eval)


class _ProbeThenTune(TrainerCallback):
    """Trains the head alone for the first steps, then everything that was trainable before."""

    def __init__(self, head: nn.Module, probe_ratio: float) -> None:
        self.head, self.probe_ratio = head, probe_ratio
        self.frozen: list[nn.Parameter] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        own = set(map(id, self.head.parameters()))
        self.frozen = [p for p in kwargs["model"].parameters() if p.requires_grad and id(p) not in own]
        self._set(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state)

    def _set(self, state: TrainerState) -> None:
        is_probing = state.global_step < self.probe_ratio * state.max_steps
        for parameter in self.frozen:
            parameter.requires_grad_(not is_probing)


def check_outputs(model: nn.Module, partition: ClassPartition) -> None:
    """Raises if a model has another number of outputs than the partition has classes."""
    num_labels = getattr(getattr(get_base_model(model), "config", None), "num_labels", None)
    if num_labels is None or num_labels == partition.num_classes:
        return
    raise ValueError(
        f"Expected a model with {partition.num_classes} outputs, one for each class, got {num_labels}"
        + (", as many as there are seen classes" if num_labels == len(partition.seen) else "")
        + ". A head that is made anew for the fine-tuning data loses the absent classes: load the pre-trained model "
        "without `num_labels=...` and `ignore_mismatched_sizes=True`, and keep its `id2label`."
    )


def check_training_data(dataset: Any, partition: ClassPartition) -> np.ndarray | None:
    """Returns the labels of the training data, or raises if they are not the partition's seen classes."""
    if dataset is None or isinstance(dataset, torch.utils.data.IterableDataset):
        return None
    features = getattr(dataset, "features", None) or {}
    for column in ("labels", "label"):
        if own := getattr(features.get(column), "names", None):
            check_same_labels(partition.names, tuple(own), column)
    labels = read_sample_labels(dataset)
    if unseen := sorted(set(labels.tolist()) - set(partition.seen)):
        message = f"Expected training data of the {len(partition.seen)} seen classes, got samples of {unseen[:8]}"
        if set(labels.tolist()) <= set(range(len(partition.seen))):
            message += (
                f"; ids below {len(partition.seen)} only: the labels seem to be numbered anew. Align them by name "
                "with `dataset.align_labels_with_mapping(model.config.label2id, column)`"
            )
        raise ValueError(message + ".")
    return labels
