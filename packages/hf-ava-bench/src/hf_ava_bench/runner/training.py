"""One adapter and one connector for each ability, on one language model."""

import copy
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_ava_bench.runner.head import AvaHead, Prompts
from hf_ava_bench.runner.processes import get_state
from hf_ava_bench.runner.profiles import Profile


class _Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded prompts with the tokens of their images."""

    def __init__(self, table: datasets.Dataset, features: torch.Tensor, prompts: Prompts):
        rows = zip(table["question"], table["answer"], strict=True)
        self.encoded = [prompts.encode(question, answer) for question, answer in rows]
        self.features = features

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.encoded[index], "features": self.features[index]}


def build_head(llm: nn.Module, width: int, profile: Profile, ability: str, seed: int) -> AvaHead:
    """Returns a head for an ability: a fresh connector, and a fresh adapter of the ability's name on the model.

    The base weights are shared by all abilities and stay frozen, unless the profile trains all of a tiny model: then
    each ability has a copy.
    """
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        if profile.train_llm:
            head = AvaHead(copy.deepcopy(llm), width)
        else:
            # Anchored to the layers of the language model, whatever they are called, and without its output layer.
            config = LoraConfig(
                r=profile.lora_r,
                lora_alpha=profile.lora_alpha,
                lora_dropout=profile.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            if isinstance(llm, PeftModel):
                llm.add_adapter(ability, config)
                llm.set_adapter(ability)
            else:
                llm = get_peft_model(llm, config, adapter_name=ability)
            head = AvaHead(llm, width)
    finally:
        torch.set_rng_state(generator_state)
    return head


def train_head(
    head: AvaHead,
    prompts: Prompts,
    table: datasets.Dataset,
    features: torch.Tensor,
    profile: Profile,
    *,
    ability: str,
    folder: Path,
    seed: int,
    progress: bool,
) -> dict[str, float]:
    """Trains connector and adapter with [`transformers.Trainer`] and returns its metrics.

    On several processes (`accelerate launch`, `torchrun`) they share each batch, so that the steps are those of one
    process; a last batch that is not full is filled up with the first items.
    """
    processes = get_state().num_processes
    if profile.batch_size % processes:
        raise ValueError(
            f"`batch_size` of the profile is shared by {processes} processes, and {profile.batch_size} is no multiple "
            "of that."
        )
    if profile.standardize:
        head.fit_scale(features)
    epochs = profile.localization_epochs if ability == "localization" else profile.epochs
    steps = max(1, round(len(table) / profile.batch_size * epochs))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=profile.batch_size // processes,
        learning_rate=profile.learning_rate,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        warmup_steps=round(profile.warmup_ratio * steps),
        seed=seed,
        bf16=profile.bf16,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not progress,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**prompts.collate(rows), "features": torch.stack([row["features"] for row in rows])}

    trainer = Trainer(
        model=head, args=arguments, train_dataset=_Items(table, features, prompts), data_collator=collate
    )
    trainer.remove_callback(PrinterCallback)
    start = time.process_time()
    metrics = trainer.train().metrics
    head.eval()
    return {
        "train_loss": float(metrics["train_loss"]),
        "train_seconds": float(metrics["train_runtime"]),
        "train_cpu_seconds": time.process_time() - start,
    }


def save_head(head: AvaHead, folder: Path, ability: str) -> None:
    """Writes what was trained, as safetensors: the connector, and the adapter or the tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**head.connector.state_dict(), "center": head.center, "spread": head.spread}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "connector.safetensors")
    if isinstance(head.llm, PeftModel):
        head.llm.save_pretrained(str(folder), selected_adapters=[ability], save_embedding_layers=False)
    else:
        head.llm.save_pretrained(str(folder / "llm"))  # type: ignore[operator]


def load_head(llm: nn.Module, width: int, folder: Path, ability: str) -> AvaHead:
    """Returns the head that [`save_head`] wrote, on the same base model."""
    trained = folder / "llm"
    if trained.is_dir():
        llm = type(llm).from_pretrained(trained)  # type: ignore[attr-defined]
    elif isinstance(llm, PeftModel):
        llm.load_adapter(str(folder / ability), ability, low_cpu_mem_usage=True)
        llm.set_adapter(ability)
    else:
        llm = PeftModel.from_pretrained(llm, str(folder / ability), adapter_name=ability, low_cpu_mem_usage=True)
    head = AvaHead(llm, width)
    tensors = load_file(folder / "connector.safetensors")
    head.center.copy_(tensors.pop("center"))
    head.spread.copy_(tensors.pop("spread"))
    head.connector.load_state_dict(tensors)
    return head.eval()
