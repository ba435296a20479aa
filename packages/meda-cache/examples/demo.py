"""Asks llava-nano about several images with the full cache, and with 20 and 10 percent of it: ours, and MEDA's.

    python packages/meda-cache/examples/demo.py --out demo/meda-cache
    python packages/meda-cache/examples/demo.py --out demo/meda-cache --data-dir DIR
    python packages/meda-cache/examples/demo.py --out demo/meda-cache --image DIR

With `--data-dir`, DIR is a folder of Parquet files, or the Hub id of a data set, with photos of the CIFAR-10 classes:
questions about them are asked as well. With `--image` it is a folder of any photos: nobody knows the right answers,
and what is counted is how often a smaller cache gives that of the full one. Everything is held out: no image and no
question was seen in training.
"""

import argparse
import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import demo_html
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.utils.logging import tqdm

import hf_diorama
from hf_diorama.questions import build_prompt
from meda_cache import MedaCache, attach

CACHES: dict[str, dict[str, Any]] = {  # what each is called, and its options; the full cache has none
    "full cache": {},
    "keep_ratio 0.2": {"keep_ratio": 0.2},
    "keep_ratio 0.1": {"keep_ratio": 0.1},
    "meda, keep_ratio 0.2": {"keep_ratio": 0.2, "preset": "meda"},
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SEED = 2_000  # of held-out questions that nobody looked at while llava-nano was trained
MAX_NEW_TOKENS = 48
SHOWN = 5  # answers printed
NUM_PHOTOS, NUM_ASKED = 16, 20  # such photos, and questions about them


def load_photos(data_dir: str) -> datasets.Dataset:
    """Returns the test photos of a local folder or of the Hub, with the columns `image` and `label`."""
    if Path(data_dir).is_dir():
        return hf_diorama.load("cifar10", split="test", data_dir=data_dir)
    if data_dir.count("/") != 1 or data_dir.startswith((".", "/")):
        raise ValueError(
            f"expected --data-dir to be an existing folder or a Hub id such as name/set, got {data_dir!r}"
        )
    photos = datasets.load_dataset(data_dir, split="test")
    photos = photos.rename_column("img", "image") if "img" in photos.column_names else photos
    if not {"image", "label"} <= set(photos.column_names):
        raise ValueError(f"expected the columns 'image' and 'label' in {data_dir}, got {photos.column_names}")
    return photos


def ask_about_photos(
    model: Any, processor: Any, rows: list[dict[str, Any]], photos: list[Image.Image]
) -> list[dict[str, Any]]:
    """Returns the questions about photos instead, in turn; what counts as right is the answer of the full cache."""
    shown = itertools.cycle(photos)
    asked = [
        {**row, "images": list(itertools.islice(shown, row["num_images"])), "reference": "full cache", "chance": 0.0}
        for row in rows
    ]
    return [{**row, "answer": answer(model, processor, {**row, "answer": ""}, {})["answer"]} for row in asked]


def check_classes(photos: datasets.Dataset) -> None:
    """Raises for classes that llava-nano was not taught."""
    names = getattr(photos.features["label"], "names", sorted(set(map(str, photos["label"][:]))))
    if unknown := [name for name in names if name not in CIFAR10_CLASSES]:
        raise ValueError(f"expected photos of the classes of CIFAR-10, which llava-nano knows, got {unknown[:5]}")


def answer(model: Any, processor: Any, row: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to one question, what the cache holds after it, and what it keeps of the images."""
    prompt = build_prompt(row["num_images"], row["question"])
    inputs = processor(images=row["images"], text=prompt, return_tensors="pt")
    cache: Any = MedaCache(model.config, **options) if options else DynamicCache(config=model.config)
    output = model.generate(**inputs, past_key_values=cache, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    prompt_length = inputs["input_ids"].shape[1]
    text = processor.decode(output[0, prompt_length:], skip_special_tokens=True).strip()
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    found = {
        "answer": text,
        "is_right": text == row["answer"],
        "stored_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    if options:
        found["layers"] = cache.stats().to_dict()["layers"]
        found["kept"] = count_kept_patches(cache, inputs["input_ids"][0] == model.config.image_token_id)
    return found


def count_kept_patches(cache: MedaCache, visual_mask: torch.Tensor) -> list[float]:
    """Returns for every visual token the share of (layer, head) pairs that keep it."""
    kept = torch.zeros(len(visual_mask))
    layers = list(cache.managed_layers.values())
    for layer in layers:
        positions = layer.positions[0].flatten().long()
        kept += torch.bincount(positions[positions < len(visual_mask)], minlength=len(visual_mask))
    return (kept / (len(layers) * layers[0].positions.shape[1]))[visual_mask].tolist()


def summarise(rows: list[dict[str, Any]], found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns the numbers of one cache: exact match in all and by kind, bytes, and what each layer keeps."""
    by_kind = defaultdict(list)
    for row, one in zip(rows, found, strict=True):
        by_kind[row["kind"]].append(one["is_right"])
    result: dict[str, Any] = {
        "name": name,
        "num_questions": len(found),
        "exact_match": sum(one["is_right"] for one in found) / len(found),
        "exact_match_by_kind": {kind: sum(right) / len(right) for kind, right in by_kind.items()},
        "stored_bytes": sum(one["stored_bytes"] for one in found) / len(found),
    }
    if "layers" in found[0]:
        result["layers"] = [
            {
                name: sum(one["layers"][number][name][0] for one in found) / len(found)
                for name in ("weight", "budget", "kept_text", "kept_visual")
            }
            for number in range(len(found[0]["layers"]))
        ]
    return result


def ask_all(model: Any, processor: Any, rows: list[dict[str, Any]], title: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns the numbers of all caches for one set of questions, and every single answer."""
    settings, answers = [], []
    for name, options in CACHES.items():
        answers.append([answer(model, processor, row, options) for row in tqdm(rows, desc=f"{title}, {name}")])
        settings.append(summarise(rows, answers[-1], name))
    chance = {kind: [row["chance"] for row in rows if row["kind"] == kind] for kind in {row["kind"] for row in rows}}
    by_kind = {kind: sum(values) / len(values) for kind, values in sorted(chance.items())}
    overall = sum(row["chance"] for row in rows) / len(rows)
    return {"title": title, "settings": settings, "chance": overall, "chance_by_kind": by_kind}, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/meda-cache"))
    parser.add_argument("--data-dir", help="photos to ask about as well: a folder of Parquet files or a Hub id")
    parser.add_argument("--image", metavar="DIR", help="photos to ask about as well: a folder of images of any kind")
    parser.add_argument("--num-questions", type=int, default=120)
    parser.add_argument("--num-images", type=int, default=8)
    args = parser.parse_args()
    if args.num_questions < 1:
        sys.exit(f"demo: expected --num-questions of at least 1, got {args.num_questions}")
    path = hf_diorama.model_path("llava-nano")
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    common = {"split": "heldout", "seed": SEED, "num_images": args.num_images}
    try:
        sets = {"rendered images": list(hf_diorama.multi_image_questions(args.num_questions, **common))}
        if args.data_dir:
            photos = load_photos(args.data_dir)
            check_classes(photos)
            sets["real photos"] = list(hf_diorama.multi_image_questions(args.num_questions, photos=photos, **common))
        own = hf_diorama.load_photos(args.image, NUM_PHOTOS) if args.image else []
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    if own:
        asked = sets["rendered images"][:NUM_ASKED]
        sets["your photos, as with the full cache"] = ask_about_photos(model, processor, asked, own)
    results, sections = [], []
    with attach(model):
        for title, rows in sets.items():
            result, answers = ask_all(model, processor, rows, title)
            results.append(result)
            print_answers(result, rows, answers)
            sections.append(demo_html.build_section(result, rows, answers))
    summary = {}
    for result in results:
        full = result["settings"][0]
        for setting in result["settings"]:
            share = setting["stored_bytes"] / full["stored_bytes"]
            summary[f"{result['title']}, {setting['name']}"] = (
                f"{setting['exact_match']:.1%} of {setting['num_questions']} exact (chance {result['chance']:.1%}), "
                f"{setting['stored_bytes'] / 1024:.0f} KiB a question = {share:.0%}"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "section.html", demo_html.INTRODUCTION + "\n".join(sections))
    write(args.out / "result.json", json.dumps({"summary": summary, "sets": results}, indent=1) + "\n")
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def print_answers(result: dict[str, Any], rows: list[dict[str, Any]], answers: list[list[dict[str, Any]]]) -> None:
    """Prints some answers, and what each layer keeps."""
    for index, row in list(enumerate(rows))[:SHOWN]:
        given = ", ".join(
            f"{setting['name']}: {one[index]['answer']!r}"
            for setting, one in zip(result["settings"], answers, strict=True)
        )
        print(f"  {row['question']} {row['answer']!r}; {given}")
    for setting in result["settings"][1:]:
        kept = "; ".join(f"{layer['kept_text']:.1f} + {layer['kept_visual']:.1f}" for layer in setting["layers"])
        print(f"  {setting['name']}, text + visual tokens kept by layer: {kept}")


if __name__ == "__main__":
    main()
