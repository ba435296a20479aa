"""[`CalibrationCallback`]: fits the offset at the end of training and saves it with every checkpoint."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from partial_tune.calibrator import LogitCalibrator
from partial_tune.fitting import collect_sweep
from partial_tune.partition import ClassPartition
from partial_tune.upstream import get_base_model, is_sharded

logger = logging.getLogger(__name__)


class CalibrationCallback(TrainerCallback):
    """Fits ALG on the whole training data, in evaluation mode, at the end of training and at checkpoints.

    The calibrator is in `calibrator` after training and beside the weights in each checkpoint; the model is left as it
    is. gamma, and with an evaluation set of all classes AUSUC and the accuracies, are in `report` and in the trainer's
    log history. Trackers got their last log before: `trainer.log(callback.report)` sends it to them.

    Args:
        partition (`ClassPartition`): seen and absent classes.
        train_loader (`Iterable`, *optional*):
            Batches to fit on instead of the trainer's: training data without augmentation.
        eval_loader (`Iterable`, *optional*): labelled batches of all classes, to report what the offset does.

    Raises:
        ValueError: at the start of a training whose model is sharded (FSDP, DeepSpeed): one process cannot run it.

    Example:

    ```python
    >>> import torch
    >>> from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
    >>> from partial_tune import CalibrationCallback, ClassPartition
    >>> model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
    ...     intermediate_size=8, image_size=4, patch_size=4, num_labels=3))
    >>> data = [{"pixel_values": torch.zeros(3, 4, 4), "labels": label} for label in (0, 2)]
    >>> callback = CalibrationCallback(ClassPartition.from_dataset(model.config, [0, 2]))
    >>> args = TrainingArguments("out", max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
    ...     dataloader_pin_memory=False)
    >>> _ = Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    {'train_runtime': ...}
    >>> callback.calibrator.estimate.num_samples
    2

    ```
    """

    def __init__(self, partition: ClassPartition, *, train_loader: Any = None, eval_loader: Any = None) -> None:
        self.partition, self.train_loader, self.eval_loader = partition, train_loader, eval_loader
        self.calibrator: LogitCalibrator | None = None
        self.report: dict[str, float] = {}

    def _fit(self, kwargs: dict[str, Any]) -> LogitCalibrator:
        loader = kwargs["train_dataloader"] if self.train_loader is None else self.train_loader
        return LogitCalibrator.fit(get_base_model(kwargs["model"]), loader, self.partition)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses a sharded model, on which the pass of one process at a checkpoint would wait for ever."""
        if is_sharded():
            raise ValueError(
                "Expected a whole model in each process for `CalibrationCallback`, got FSDP or DeepSpeed; fit with "
                "`LogitCalibrator.fit` on the saved model instead."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the calibrator of the present weights into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self._fit(kwargs).save_pretrained(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fits the calibrator that is kept, and reports it."""
        self.calibrator = self._fit(kwargs)
        self.report = {"calibration_gamma": self.calibrator.gamma}
        if self.eval_loader is not None:
            result = collect_sweep(get_base_model(kwargs["model"]), self.eval_loader, self.partition).result()
            point = result.at(self.calibrator.gamma)
            found = {"ausuc": result.ausuc, "seen": point.seen, "absent": point.absent, "overall": point.overall}
            self.report |= {f"calibration_{name}": value for name, value in found.items() if value is not None}
        logger.info("Calibration: %s", self.report)
        state.log_history.append({**self.report, "epoch": state.epoch, "step": state.global_step})
