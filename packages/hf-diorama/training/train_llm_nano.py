"""Trains `llm-nano-s` and `llm-nano-m`, character-level Llamas that know how questions are answered.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_llm_nano.py s
    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_llm_nano.py m

The text is the questions and answers of `hf-ava-bench` about rendered scenes. No image is seen. In half of the turns,
facts are listed where a head has its image, the answer among them, so that looking answers up there is learnt too; in
the others an answer can be known by its form and frequency only. Run the same command again to go on from the last
checkpoint; `--evaluate` measures the shipped model on held-out rows and writes its card.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import read_commit, wilson
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_diorama as dio
from hf_ava_bench import ABILITIES, mini
from hf_ava_bench.runner.tiny import build_tokenizer

SIZES = {
    "s": {"hidden_size": 80, "num_hidden_layers": 3, "intermediate_size": 224, "num_attention_heads": 4},
    "m": {"hidden_size": 160, "num_hidden_layers": 4, "intermediate_size": 560, "num_attention_heads": 4},
}
STEPS = 4_000
LEARNING_RATE = {"s": 2e-3, "m": 1e-3}
BATCH = 16


def build_turns(split: str, n: int, seed: int) -> list[tuple[str, str, str]]:
    """Returns prompts without and with facts, and their answers, for `n` rows of each ability."""
    rng = random.Random(seed)
    items: dict[str, list[mini.Item]] = {}
    for name in ABILITIES:
        topic = mini._ASK[name][0]
        rows = (dio.render("scenes", index, seed, 64, split=split, topic=topic) for index in range(n))
        items[name] = [mini.ask(name, row) for row in rows]
    turns = []
    for name, item in [(name, item) for name, asked in items.items() for item in asked]:
        others = rng.sample([other for other in items if other != name], 2)
        known = [(name, item.answer), *((other, rng.choice(items[other]).answer) for other in others)]
        facts = [f"{topic.replace('_', ' ')}: {answer}" for topic, answer in known]
        rng.shuffle(facts)
        prompts = (f"USER: {seen}\n{item.question} ASSISTANT:" for seen in ("", "; ".join(facts)))
        turns.append((*prompts, item.answer))
    return turns


def encode(tokenizer: Any, turns: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Returns every turn twice, without and with facts; the labels are the answer and its end."""
    rows = []
    for *prompts, answer in turns:
        reply = tokenizer(f" {answer}{tokenizer.eos_token}")["input_ids"]
        for prompt in prompts:
            ids = tokenizer(prompt)["input_ids"]
            labels = [-100] * len(ids) + reply
            rows.append({"input_ids": ids + reply, "labels": labels, "length": len(labels)})
    return rows


class Clock(TrainerCallback):
    """Keeps the CPU seconds of all calls that a run took, beside its checkpoints."""

    def __init__(self, path: Path):
        self.path, self.before = path, json.loads(path.read_text()) if path.exists() else 0.0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.path.write_text(json.dumps(self.before + time.process_time()))


def train(size: str, rows: int, work: Path, out: Path) -> None:
    """Trains one of the models from its last checkpoint, and writes it in half precision."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="eager",  # the fastest for so short texts
        **SIZES[size],
    )
    training = TrainingArguments(
        output_dir=str(work),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        learning_rate=LEARNING_RATE[size],
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        bf16=True,
        use_cpu=True,
        logging_steps=100,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    work.mkdir(parents=True, exist_ok=True)
    clock = Clock(work / "cpu_seconds.json")
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=training,
        train_dataset=encode(tokenizer, build_turns("train", rows, 0)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[clock],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    trainer.model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    info = {
        "steps": training.max_steps,
        "batch": BATCH,
        "learning_rate": training.learning_rate,
        "rows_each": rows,
        "cpu_minutes": (clock.before + time.process_time()) / 60,
        "commit": read_commit(),
    }
    (out / "training.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def measure_perplexity(model: Any, tokenizer: Any, turns: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Returns perplexity a character of answers without facts, with its 95 percent interval over turns."""
    losses = []
    for prompt, _, answer in turns:
        ids = tokenizer(f"{prompt} {answer}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        losses.append(torch.nn.functional.cross_entropy(model(ids).logits[0, start - 1 : -1], ids[0, start:]).item())
    values = torch.tensor(losses, dtype=torch.float64)
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    return {
        "perplexity": math.exp(mean),
        "perplexity_low": math.exp(mean - 1.96 * error),
        "perplexity_high": math.exp(mean + 1.96 * error),
    }


@torch.inference_mode()
def count_read(model: Any, tokenizer: Any, turns: Sequence[tuple[str, str, str]]) -> int:
    """Returns how many answers are written exactly, greedily, with the facts in view."""
    hits = 0
    for _, prompt, answer in turns:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        hits += tokenizer.decode(ids, skip_special_tokens=True).strip() == answer
    return hits


def evaluate(name: str, folder: Path) -> None:
    """Measures the shipped model on held-out rows; writes `evaluation.json` and the card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = build_turns("heldout", 20, 0)
    hits = count_read(model, tokenizer, turns)
    low, high = wilson(hits, len(turns))
    result = measure_perplexity(model, tokenizer, turns) | {
        "answers_read": hits / len(turns),
        "read_low": low,
        "read_high": high,
        "num_turns": len(turns),
        "num_parameters": model.num_parameters(),
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_card(name, folder)
    print(result)


def write_card(name: str, folder: Path) -> None:
    """Writes the card of a model from what its training and its evaluation left."""
    info, result = (
        json.loads((folder / f"{which}.json").read_text(encoding="utf-8")) for which in ("training", "evaluation")
    )
    card = CARD.format(name=name, size=name[-1], **result, **info, **SIZES[name[-1]])
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [synthetic, hf-diorama]
---

# {name}

A character-level `LlamaForCausalLM`: {num_parameters:,} parameters, {num_hidden_layers} layers, {hidden_size} wide.
It knows how questions about the scenes of `hf-diorama` are answered, and was taught to look answers up in a list of
facts; how often it can is told below. It saw no image. It is a head for experiments with `hf-ava-bench`, and of no use
outside.

## Held-out rows

{num_turns} turns about rows of `heldout`, seed 0, as many of each of the 14 abilities.

| what | value | 95 percent interval |
|-|-|-|
| answers written exactly, with the answer among three facts | {answers_read:.1%} | {read_low:.1%} to {read_high:.1%} |
| perplexity a character of answers, without facts | {perplexity:.2f} | {perplexity_low:.2f} to {perplexity_high:.2f} |

## Training

- The questions and answers of `hf-ava-bench` about the first {rows_each} rows of each ability's topic of `scenes`,
  split `train`, seed 0: each once alone, once with three facts where a head has its image.
- {steps} steps of {batch} turns, loss on the answers, AdamW, cosine from {learning_rate}, bf16 autocast, seed 0.
- {cpu_minutes:.1f} CPU minutes on one thread of a shared machine, script as of commit {commit}.
- `OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_llm_nano.py {size}`, then with `--evaluate`.

## Limits

One seed. Digits of numbers without facts follow their frequency; nothing in the text says what a picture shows.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped model and write its card")
    parser.add_argument("--rows", type=int, default=1_500, help="rows of each ability")
    parser.add_argument("--work-dir", default="/tmp/llm-nano", help="checkpoints, to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    name = f"llm-nano-{args.size}"
    out = Path(dio.__file__).parent / "models" / name
    if args.evaluate:
        evaluate(name, out)
    else:
        rate = LEARNING_RATE[args.size]
        work = Path(f"{args.work_dir}-{args.size}-{STEPS}-steps-{args.rows}-rows-rate-{rate}")
        train(args.size, args.rows, work, out)


if __name__ == "__main__":
    main()
