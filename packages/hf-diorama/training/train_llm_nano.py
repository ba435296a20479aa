"""Trains `llm-nano-s` and `llm-nano-m`, character-level Llamas that know how questions and answers are written.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_llm_nano.py s
    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_llm_nano.py m

The text is the questions and answers of `hf-ava-bench` about rendered scenes, and captions of creatures: no image is
seen, so answers can be known by their form and frequency only. Run the same command again to go on from the last
checkpoint; `--evaluate` measures the shipped model on held-out rows and writes its card.
"""

import argparse
import json
import math
import string
import time
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_diorama as dio
from hf_ava_bench import ABILITIES, mini

SIZES = {
    "s": {"hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 4},
    "m": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 6},
}
STEPS = {"s": 2_000, "m": 600}
BATCH = 16
LENGTH = 192
SPECIAL = ("<pad>", "<unk>", "</s>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each printable ASCII character and the line break."""
    characters = [c for c in string.printable if c not in "\t\r\x0b\x0c"]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_texts(split: str, n: int, seed: int) -> list[str]:
    """Returns `n` turns for each ability and as many captions."""
    texts = []
    for name in ABILITIES:
        topic = mini._ASK[name][0]
        for index in range(n):
            row = dio.render("scenes", index, seed, 64, split=split, topic=topic)
            item = mini.ask(name, row)
            texts.append(f"USER: \n{item.question} ASSISTANT: {item.answer}</s>")
    for index in range(n):
        captions = dio.render("creatures", index, seed, 32, split=split)["captions"]
        texts.append(f"USER: \nWhat is this? ASSISTANT: {captions['scientific_common']}</s>")
    return texts


def build_blocks(tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int) -> datasets.Dataset:
    """Returns shuffled texts joined and cut into blocks of `LENGTH` tokens."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [token for i in order for token in tokenizer(texts[i])["input_ids"]]
    blocks = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return datasets.Dataset.from_dict({"input_ids": blocks, "labels": blocks})


def evaluate(name: str, folder: Path) -> None:
    """Writes perplexity a character on held-out rows, with its standard error over blocks, to the card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    blocks = build_blocks(tokenizer, build_texts("heldout", 100, 0), 0).with_format("torch")
    losses = []
    with torch.inference_mode():
        for start in range(0, len(blocks), 16):
            ids = blocks[start : start + 16]["input_ids"]
            logits = model(input_ids=ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            losses += loss.mean(dim=1).tolist()
    values = torch.tensor(losses, dtype=torch.float64)
    mean, error = values.mean().item(), (values.std() / math.sqrt(len(values))).item()
    result = {
        "perplexity": math.exp(mean),
        "interval_95": [math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)],
        "num_blocks": len(values),
        "characters_a_block": LENGTH,
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    info = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    low, high = result["interval_95"]
    card = CARD.format(name=name, size=name[-1], low=low, high=high, **result, **info, **SIZES[name[-1]])
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(result)


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A character-level `LlamaForCausalLM` of {num_parameters:,} parameters ({num_hidden_layers} layers, {hidden_size} wide)
that knows how questions and answers about the scenes of `hf-diorama` are written. It saw no image: it knows an answer
by its form and frequency. It is a head for experiments with `hf-ava-bench`, and of no use outside.

The text is the questions and answers of `hf-ava-bench` about rows 0 to {rows_each} of each topic of `scenes`, split
`train`, seed 0, and as many captions of `creatures`.

| what | value |
|---|---|
| steps | {steps} of 16 blocks of 192 characters, AdamW, cosine from {learning_rate} |
| time | {cpu_minutes:.1f} CPU minutes, one thread |
| perplexity a character, heldout | {perplexity:.3f} ({low:.3f} to {high:.3f}, 95 percent; {num_blocks} blocks) |
| command | `python packages/hf-diorama/training/train_llm_nano.py {size}`, then with `--evaluate` |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped model and write its card")
    parser.add_argument("--rows", type=int, default=1_000, help="rows of each ability")
    parser.add_argument("--work-dir", default="/tmp/llm-nano", help="checkpoints, to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    name = f"llm-nano-{args.size}"
    out = Path(dio.__file__).parent / "models" / name
    if args.evaluate:
        evaluate(name, out)
        return
    work = f"{args.work_dir}-{args.size}"
    tokenizer = build_tokenizer()
    blocks = build_blocks(tokenizer, build_texts("train", args.rows, 0), 0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="eager",
        **SIZES[args.size],
    )
    training = TrainingArguments(
        output_dir=work,
        max_steps=STEPS[args.size],
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
    )
    model = LlamaForCausalLM(config)
    trainer = Trainer(model=model, args=training, train_dataset=blocks, data_collator=default_data_collator)
    start = time.process_time()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(work) if Path(work).is_dir() else None)
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    info = {
        "steps": training.max_steps,
        "learning_rate": training.learning_rate,
        "rows_each": args.rows - 1,
        "cpu_minutes": (time.process_time() - start) / 60,
    }
    (out / "training.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
