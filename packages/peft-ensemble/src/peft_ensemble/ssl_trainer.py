"""The semi-supervised baselines on transformers' Trainer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from .data import ViewCollator, with_ids
from .ssl_algorithms import ALGORITHMS
from .storage import write_tensors
from .trainer import SelfTrainingTrainer

STATE = "ssl_algorithm.safetensors"
OPTIONS = {"freematch": ("clip_threshold", "use_quantile"), "finessl": ("weak_view",)}


class SSLTrainer(SelfTrainingTrainer):
    """A Trainer with a second stream of unlabelled images, for six algorithms.

    The unlabelled images of a step follow from the seed and the number of the step alone, so a resumed run sees those
    of an uninterrupted one; thresholds are saved in each checkpoint. Works with gradient accumulation and several
    processes.

    Args:
        algorithm: `"pseudo_label"`, `"fixmatch"`, `"flexmatch"`, `"freematch"`, `"softmatch"` or `"finessl"`.
        unlabeled_dataset: the pool, with a column `image`.
        unlabeled_batch_size: for each process and step; by default that of the labelled images.
        unlabeled_weight: lambda_u, the weight of the unlabelled loss.
        algorithm_options: `use_quantile` and `clip_threshold` of FreeMatch, `weak_view` of FineSSL; off by default.
        args, kwargs: of the Trainer. `data_collator` is a `ViewCollator`, whose processor serves both streams.

    Raises:
        ValueError: an unknown algorithm, an empty pool or another collator.

    Example:

    ```python
    >>> from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8)
    >>> images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8).tolist()
    >>> trainer = SSLTrainer(
    ...     "softmatch",
    ...     Dataset.from_dict({"image": images, "id": list("abcd")}),
    ...     model=ViTForImageClassification(config),
    ...     args=TrainingArguments(output_dir="out", max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
    ...         remove_unused_columns=False, save_strategy="no", logging_strategy="no"),
    ...     train_dataset=Dataset.from_dict({"image": images[:2], "id": ["a", "b"], "label": [0, 1]}),
    ...     data_collator=ViewCollator(ViTImageProcessor(size={"height": 16, "width": 16}), ("weak",)),
    ... )
    >>> trainer.algorithm.mu  # 1 / C before training
    tensor(0.5000)

    ```
    """

    def __init__(
        self,
        algorithm: str,
        unlabeled_dataset: Dataset,
        *args: Any,
        unlabeled_batch_size: int | None = None,
        unlabeled_weight: float = 1.0,
        algorithm_options: Mapping[str, bool] | None = None,
        **kwargs: Any,
    ):
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        options = dict(algorithm_options or {})
        if unknown := sorted(set(options) - set(OPTIONS.get(algorithm, ()))):
            known = ", ".join(OPTIONS.get(algorithm, ())) or "none"
            raise ValueError(f"expected algorithm_options of {algorithm} among {known}, got {unknown}")
        if not len(unlabeled_dataset):
            raise ValueError(
                "expected unlabelled images, got an empty data set; train on labels with the usual Trainer"
            )
        super().__init__(*args, **kwargs)
        if not isinstance(self.data_collator, ViewCollator):
            raise ValueError(f"data_collator must be a ViewCollator, got {type(self.data_collator).__name__}")
        self.unlabeled_dataset = with_ids(unlabeled_dataset)
        self.unlabeled_batch_size = unlabeled_batch_size or self.args.per_device_train_batch_size
        self.unlabeled_weight = unlabeled_weight
        gather: Callable[[torch.Tensor], torch.Tensor] = self.accelerator.gather
        model: Any = self.model
        num_classes: int = model.config.num_labels
        self.algorithm = ALGORITHMS[algorithm](num_classes, len(unlabeled_dataset), gather, **options)
        self.algorithm.to(self.args.device)
        self._draws = 0
        self.add_callback(_StateCallback(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; a checkpoint brings the thresholds as well."""
        self._draws = 0
        if resume_from_checkpoint is not None:
            state = Path(str(resume_from_checkpoint)) / STATE
            if not state.exists():
                raise ValueError(f"expected a checkpoint folder of an SSLTrainer, but there is no {state}")
            self.algorithm.load_state_dict(load_file(state))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def draw_unlabeled(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The next unlabelled images of this process: their indices, and a batch of weak and then strong views."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        step, size = world * self.unlabeled_batch_size, len(self.unlabeled_dataset)
        start = self._draws * step
        if start // size != (start - step) // size:
            self.algorithm.start_epoch()
        first = start + rank * self.unlabeled_batch_size
        places = range(first, first + self.unlabeled_batch_size)
        orders = {epoch: self._order(epoch) for epoch in sorted({place // size for place in places})}
        indices = [orders[place // size][place % size] for place in places]
        assert isinstance(self.data_collator, ViewCollator)
        collator = ViewCollator(self.data_collator.processor, ("weak", "strong"), self.args.seed, self._draws)
        self._draws += 1
        rows = [self.unlabeled_dataset[index] for index in indices]
        return torch.tensor(indices), collator([{"image": row["image"], "id": row["id"]} for row in rows])

    def _order(self, epoch: int) -> list[int]:
        """The order of the pool in one pass."""
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.unlabeled_dataset), generator=generator).tolist()
        return order

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The supervised loss plus the weighted unsupervised one, from one forward of all images."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        indices, batch = self.draw_unlabeled()
        device = inputs["pixel_values"].device
        pixel_values = torch.cat([inputs["pixel_values"], batch["pixel_values"].to(device)])
        outputs = model(pixel_values=pixel_values)
        sizes = [len(inputs["labels"]), len(indices), len(indices)]
        labeled, weak, strong = outputs.logits.split(sizes)
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss = self.algorithm.supervised_loss(labeled, inputs["labels"])
        loss = loss + self.unlabeled_weight * self.algorithm(weak, strong, indices.to(device), progress)
        if num_items_in_batch is not None:  # the Trainer then expects a loss that is already divided
            loss = loss / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


class _StateCallback(TrainerCallback):
    """Saves the thresholds with each checkpoint, and counts draws from the step that a run begins at."""

    def __init__(self, trainer: SSLTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on where the checkpoint ended."""
        self.trainer._draws = state.global_step * args.gradient_accumulation_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the thresholds beside the weights."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tensors = {name: value.clone() for name, value in self.trainer.algorithm.state_dict().items()}
        write_tensors(folder / STATE, tensors, {"algorithm": type(self.trainer.algorithm).__name__})
