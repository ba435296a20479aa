"""Hierarchical contrastive training with experience replay, on `transformers.Trainer` and accelerate."""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from taxaclip.batches import Batch, ContrastiveBatches
from taxaclip.cards import drop_local_base_model, write_model_card
from taxaclip.convert import REPLAY_FILE
from taxaclip.distributed import cached_backward, distributed_contrastive_loss
from taxaclip.modeling_replay import ReplayCLIPModel
from taxaclip.open_clip import REPLAY
from taxaclip.streams import ImageTextStream

TARGETS = ("diag", "multi", "hier")
MAX_LOGIT_SCALE = math.log(100)
STATE_FILE = "stream-{rank}.json"
MODEL_INPUTS = ("pixel_values", "input_ids", "attention_mask")


@dataclass
class ContrastiveArguments(TrainingArguments):
    """`TrainingArguments` with BioCLIP 2's optimiser as defaults, and what contrastive training adds.

    Weight decay 0.2 on matrices only, betas 0.9 and 0.98, epsilon 1e-6, cosine schedule, peak 1e-4, no clipping (the
    recipe of the released code). `max_steps` must be given, streams have no end. Batch sizes are of one process.

    Args:
        targets (`str`, defaults to `"diag"`): which texts are right for an image: its own (`"diag"`, the paper), those
            of its taxon in equal shares (`"multi"`), or all, weighted by the lowest rank they share (`"hier"`).
        rank_weights (list of `float`): for `"hier"`, from the kingdom to the species; halved at each rank by default.
        text_mix (`dict`, *optional*): text types and their weights; all five alike by default.
        text_mix_per_sample (`bool`, defaults to `False`): whether images draw types on their own; by default all
            images of a step in all processes have one type (the paper).
        replay_batch_size (`int`, defaults to 0): replayed images of a step.
        deduplicate (`bool`, defaults to `True`): whether captions that repeat in a batch are encoded once.
        grad_cache_size (`int`, *optional*): images in memory at a time (GradCache); the loss is still of the batch.
        loss_chunk_size (`int`, *optional*): height of the tiles of logits that exist at a time; for `"diag"`.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0
    lr_scheduler_type: Any = "cosine"
    targets: str = "diag"
    rank_weights: list[float] = field(default_factory=lambda: [2.0**-depth for depth in range(6, -1, -1)])
    text_mix: dict[str, float] | None = None
    text_mix_per_sample: bool = False
    replay_batch_size: int = 0
    deduplicate: bool = True
    grad_cache_size: int | None = None
    loss_chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.ignore_data_skip = True  # streams go on by their state
        self.remove_unused_columns = False
        self.ddp_find_unused_parameters = False  # the scale is used outside of the forward pass, which looks unused
        if self.targets not in TARGETS:
            raise ValueError(f"Unknown targets {self.targets!r}; choose from {list(TARGETS)}.")
        if self.loss_chunk_size is not None and self.targets != "diag":
            raise ValueError(
                "Expected `loss_chunk_size` with targets='diag' only: tiles know one right text an image."
            )
        if self.fp16 and self.grad_cache_size is not None:
            raise ValueError("Expected bf16=True, or full precision, with `grad_cache_size`: it has no loss scaling.")
        for name in ("grad_cache_size", "loss_chunk_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


class ContrastiveTrainer(Trainer):
    """Trains a CLIP on a stream of taxa, with experience replay if there is a stream of general images.

    Checkpoints are plain `CLIPModel`s (with `replay_projection.safetensors` beside; adapters for a PEFT model), and
    hold the state of the streams: `train(resume_from_checkpoint=True)` goes on from the last whole one to the same
    weights, with as many processes and workers.

    Args:
        model (`CLIPModel`, `ReplayCLIPModel` or `PeftModel` of one): in float32; `bf16=True` is for mixed precision.
        args (`ContrastiveArguments`): how to train.
        processor (`CLIPProcessor`): of the model; saved with each checkpoint.
        train_stream (`ImageTextStream`): of taxa.
        replay_stream (`ImageTextStream`, *optional*): of general images, `text="captions"`; needs a `ReplayCLIPModel`.
        kwargs: as of `Trainer`, such as `callbacks`.

    Raises:
        ValueError: for arguments that do not fit each other.
    """

    args: ContrastiveArguments
    model: Any

    def __init__(
        self,
        model: Any,
        args: ContrastiveArguments,
        processor: CLIPProcessor,
        train_stream: ImageTextStream,
        replay_stream: ImageTextStream | None = None,
        **kwargs: Any,
    ):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not isinstance(base, CLIPModel):
            raise ValueError(f"Expected a CLIPModel, got {type(base).__name__}.")
        if isinstance(base, ReplayCLIPModel) != (replay_stream is not None):
            raise ValueError("Expected a ReplayCLIPModel with a replay_stream, and a CLIPModel without one.")
        if base.dtype != torch.float32:
            raise ValueError(f"Expected weights in float32, got {base.dtype}; bf16=True trains in mixed precision.")
        self.batches = ContrastiveBatches(
            train_stream,
            processor,
            batch_size=args.per_device_train_batch_size,
            text_mix=args.text_mix,
            per_sample=args.text_mix_per_sample,
            replay_stream=replay_stream,
            replay_batch_size=args.replay_batch_size,
            deduplicate=args.deduplicate,
            max_length=base.text_model.embeddings.position_embedding.num_embeddings,
            rank=args.process_index,
            world_size=args.world_size,
        )
        self._states: dict[int, dict[str, Any]] = {}
        self._captions: dict[str, list[float]] = {"repeated_captions": [], "cut_captions": []}
        self.processor = processor  # not Trainer's processing_class, which would change the model's special tokens
        super().__init__(model, args, train_dataset=self.batches, **kwargs)
        self.add_callback(_ClampLogitScale())

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Batch]:
        """Returns the loader of whole batches: each process reads its own part of the streams."""
        # With a generator of its own it takes nothing from the random state that a checkpoint restores.
        workers, generator = self.args.dataloader_num_workers, torch.Generator()
        return torch.utils.data.DataLoader(self.batches, batch_size=None, num_workers=workers, generator=generator)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Returns the parameters with weight decay: matrices, not norms, biases, class embedding and scale.

        Args:
            model (`torch.nn.Module`): the model.
        """
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Trains to `max_steps`.

        Args:
            resume_from_checkpoint (`bool` or `str`, *optional*): folder of a checkpoint; True for the last whole one
                in `output_dir`, or the beginning if there is none.
            kwargs: as of `Trainer.train`.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(self.args.output_dir), self.args.world_size)
        self._states = {}
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / STATE_FILE.format(rank=self.args.process_index)
            if not path.is_file():
                raise FileNotFoundError(f"Expected a checkpoint of a ContrastiveTrainer, but {path} is missing.")
            saved = json.loads(path.read_text(encoding="utf-8"))
            self._states = {state["worker"]: state for state in saved}
        self.batches.go_on(self._states)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Returns the loss of a batch, and adds its gradients.

        Args:
            model (`torch.nn.Module`): the model, wrapped.
            inputs (`dict`): of `ContrastiveBatches`.
            num_items_in_batch: unused.
        """
        state = inputs.pop("state")
        self._states[state["worker"]] = state
        distinct = len(inputs["input_ids"])
        self._captions["repeated_captions"].append(1 - distinct / len(inputs["text_index"]))
        self._captions["cut_captions"].append(inputs["num_cut"] / distinct)
        if self.args.targets != "diag" and not inputs["has_taxa"]:
            raise ValueError(f"Expected samples with their seven ranks for targets={self.args.targets!r}.")
        if self.args.grad_cache_size is None:
            loss: torch.Tensor = super().training_step(model, inputs)
            return loss
        return self._cached_step(model, self._prepare_inputs(inputs))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of a batch over all processes.

        Args:
            model (`torch.nn.Module`): the model, wrapped.
            inputs (`dict`): of `ContrastiveBatches`.
            return_outputs (`bool`, defaults to `False`): whether to return the embeddings, too.
            num_items_in_batch: unused.
        """
        embeds = _embed(model, inputs)
        loss = self._loss(inputs, *embeds)
        return (loss, embeds) if return_outputs else loss

    def _loss(self, inputs: Batch, *embeds: torch.Tensor) -> torch.Tensor:
        """The loss from embeddings of images and of distinct captions, not in half precision."""
        images, texts, *replayed = (x.float() if x.dtype.itemsize < 4 else x for x in embeds)
        scale = self.accelerator.unwrap_model(self.model).logit_scale
        chunk_size = self.args.loss_chunk_size
        options: dict[str, Any] = {}
        if self.args.targets == "multi":
            options = {"taxon_ids": inputs["lineages"][:, -1].contiguous()}
        elif self.args.targets == "hier":
            options = {"taxon_ids": inputs["lineages"], "rank_weights": self.args.rank_weights}
        images, texts = images[: len(inputs["text_index"])], texts[inputs["text_index"]]
        loss = distributed_contrastive_loss(images, texts, scale, chunk_size=chunk_size, **options)
        if replayed:
            index = inputs["replay_text_index"]
            general, captions = replayed[0][: len(index)], replayed[1][index]
            loss = loss + distributed_contrastive_loss(general, captions, scale, chunk_size=chunk_size)
        return loss

    def _cached_step(self, model: Any, inputs: Batch) -> torch.Tensor:
        """A training step by GradCache; gradients are averaged here and not by DistributedDataParallel."""
        model.train()
        inner = self.accelerator.unwrap_model(model)
        assert self.args.grad_cache_size is not None
        count = -(-len(inputs["pixel_values"]) // self.args.grad_cache_size)

        def embed(part: Batch) -> tuple[torch.Tensor, ...]:
            with self.compute_loss_context_manager():
                return _embed(inner, part)

        def loss(*embeds: torch.Tensor) -> torch.Tensor:
            return self._loss(inputs, *embeds) / self.current_gradient_accumulation_steps

        with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
            value = cached_backward(embed, list(_split(inputs, count)), loss)
        if dist.is_available() and dist.is_initialized():
            for parameter in inner.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
        return value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the shares of captions that repeat in a batch, and that are longer than the model's context.

        And with the number of samples skipped so far.

        Args:
            logs (`dict`): names and values.
            start_time (`float`, *optional*): start of training.
        """
        if "loss" in logs and self._captions["cut_captions"]:
            logs |= {name: sum(shares) / len(shares) for name, shares in self._captions.items()}
            kinds = [state[kind] for state in self._states.values() for kind in ("stream", "replay") if kind in state]
            logs["bad_samples"] = sum(kind["bad"] for kind in kinds)
            for shares in self._captions.values():
                shares.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self.processor.save_pretrained(folder)
            drop_local_base_model(folder)  # of peft, which writes cards of its own
            about = f"Trained by taxaclip on images and their taxonomy, with targets `{self.args.targets}`."
            write_model_card(folder, self.accelerator.unwrap_model(self.model).config, about)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card of `Trainer`, without the path of a model that is not on the Hub.

        Args:
            args, kwargs: as of `Trainer.create_model_card`.
        """
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            drop_local_base_model(Path(str(self.args.output_dir)))

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves the random states as `Trainer` does, and the state of the streams of this process."""
        super()._save_rng_state(output_dir)
        path = Path(output_dir) / STATE_FILE.format(rank=self.args.process_index)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(list(self._states.values())) + "\n", encoding="utf-8")
        partial.replace(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        file = Path(resume_from_checkpoint) / REPLAY_FILE
        if file.is_file():
            self.model.replay_projection.weight.data.copy_(load_file(file)[REPLAY])


def last_whole_checkpoint(output_dir: str | Path, world_size: int = 1) -> str | None:
    """Returns the last checkpoint of a folder that was written to its end; None if there is none.

    Args:
        output_dir (`str` or `Path`): of the training.
        world_size (`int`, defaults to 1): number of processes.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
        except (OSError, ValueError):
            continue
        if all((folder / STATE_FILE.format(rank=rank)).is_file() for rank in range(world_size)):
            return str(folder)
    return None


class _ClampLogitScale(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps the logarithm of the scale in [0, ln 100], as CLIP and BioCLIP do."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clamps it behind each step of the optimiser."""
        scale = kwargs["model"].logit_scale
        if scale.requires_grad:
            scale.data.clamp_(0, MAX_LOGIT_SCALE)


def _embed(model: Any, inputs: Batch) -> tuple[torch.Tensor, ...]:
    names = [name for name in inputs if name.removeprefix("replay_") in MODEL_INPUTS]
    output = model(**{name: inputs[name] for name in names})
    kinds = ("image_embeds", "text_embeds", "replay_image_embeds", "replay_text_embeds")
    return tuple(output[kind] for kind in kinds if output.get(kind) is not None)


def _split(inputs: Batch, count: int) -> Iterator[Batch]:
    """Parts of a batch: images and distinct captions are split each by themselves.

    What has fewer rows than there are parts is filled up with its first row, behind the others, where no loss looks.
    """
    names = [name for name in inputs if name.removeprefix("replay_") in MODEL_INPUTS]
    pieces = {}
    for name in names:
        rows = torch.arange(max(count, len(inputs[name])), device=inputs[name].device)
        pieces[name] = inputs[name][rows.where(rows < len(inputs[name]), 0)].tensor_split(count)
    for number in range(count):
        yield {name: pieces[name][number] for name in names}
