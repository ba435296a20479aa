"""Asks llava-nano held-out questions with `generate`, and writes exact match by kind and number of images as JSON.

python evaluate_llava_nano.py --model DIR --photos DIR --output evaluation.json
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
import transformers
from llava_nano_data import load_photos
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_diorama.questions import KINDS, build_prompt, multi_image_questions

HELDOUT_SEED = 1200  # of the split `heldout`; 0, 1000, 1100 and the numbers of images after them were looked at


def wilson_interval(hits: int, n: int, z: float = 1.96) -> list[float]:
    """Returns the 95 percent score interval of a proportion."""
    share, spread = hits / n, z / n * math.sqrt(hits * (n - hits) / n + z * z / 4)
    center, scale = share + z * z / (2 * n), 1 + z * z / n
    return [round((center - spread) / scale, 4), round((center + spread) / scale, 4)]


def summarize(rows: list[dict]) -> dict:
    """Returns n, exact match with its interval, and the mean chance of some questions."""
    hits = sum(row["hit"] for row in rows)
    chance = sum(row["chance"] for row in rows) / len(rows)
    ci = wilson_interval(hits, len(rows))
    return {"n": len(rows), "exact_match": round(hits / len(rows), 4), "ci95": ci, "chance": round(chance, 4)}


def answer(model, processor, rows: list[dict]) -> list[str]:
    """Returns the model's greedy answers to questions, in one batch."""
    prompts = [build_prompt(row["num_images"], row["question"]) for row in rows]
    inputs = processor(text=prompts, images=[row["images"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs.to(model.dtype))
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the saved model")
    parser.add_argument(
        "--photos", required=True, help="folder with CIFAR-10 as Parquet; its test split is asked about"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num-images", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
    parser.add_argument("--questions", type=int, default=280, help="per number of images, shared by the kinds")
    parser.add_argument("--batch-size", type=int, default=14)
    args = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    photos = load_photos(args.photos, "test")
    started, rows = time.perf_counter(), []
    for num_images in tqdm(args.num_images, desc="numbers of images"):
        questions = multi_image_questions(
            args.questions, split="heldout", seed=HELDOUT_SEED + num_images, num_images=num_images, photos=photos
        )
        while batch := [row for _, row in zip(range(args.batch_size), questions, strict=False)]:
            for row, text in zip(batch, answer(model, processor, batch), strict=True):
                kept = {name: row[name] for name in ("kind", "num_images", "chance", "question", "answer")}
                rows.append({**kept, "predicted": text, "hit": text == row["answer"]})
    scenes = [row for row in rows if row["kind"] != "photo"]
    groups = {"1-8": [row for row in scenes if row["num_images"] <= 8]}
    groups |= {str(k): [row for row in scenes if row["num_images"] == k] for k in args.num_images}
    table = {
        kind: {
            name: summarize(part)
            for name, ks in {"1-8": range(1, 9), **{str(k): [k] for k in args.num_images}}.items()
            if (part := [row for row in rows if row["kind"] == kind and row["num_images"] in ks])
        }
        for kind in KINDS
    }
    result = {
        "split": "heldout",
        "questions_seed": f"{HELDOUT_SEED} + number of images",
        "photos": "CIFAR-10 test",
        "weights": "as shipped (fp16), computed in fp32",
        "all_kinds_but_photo": {name: summarize(part) for name, part in groups.items() if part},
        "by_kind": table,
        "seconds": round(time.perf_counter() - started),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
        "misses": [{k: row[k] for k in ("question", "answer", "predicted")} for row in rows if not row["hit"]][:20],
    }  # fmt: skip
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["all_kinds_but_photo"], indent=1))
    for kind, cells in table.items():
        print(kind, {name: cell["exact_match"] for name, cell in cells.items()})


if __name__ == "__main__":
    main()
