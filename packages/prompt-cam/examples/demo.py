"""Trains class prompts for eight drawn species on a frozen vit-nano, and looks at their heads.

    python packages/prompt-cam/examples/demo.py --out demo/prompt-cam
    python packages/prompt-cam/examples/demo.py --out demo/prompt-cam --image DIR      # and at your photos
    python packages/prompt-cam/examples/demo.py --gallery packages/prompt-cam/images     # the pictures of the README

The species come in pairs that differ in one part, so it is known where a class ought to look.
"""

import argparse
import base64
import io
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel
from transformers.utils.logging import tqdm

import hf_diorama as dio
from prompt_cam import PromptCAMConfig, aggregate_heads, get_prompt_cam_model

BRANCHING = (1, 1, 1, 2, 4)  # two genera of four species
WORLD: dict[str, Any] = {"image_size": 64, "branching": BRANCHING}
SHOWN = 2
NUM_PHOTOS = 3


def train(model: Any, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """A bare loop; `Trainer` does as well."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc="class prompts"):
        chosen = torch.randint(len(labels), (24,))
        loss = model(pixels[chosen], labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def find_trait(row: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """The part that tells a species from its sister, and its mask."""
    (part,) = dio.discriminating_parts(row["species"], row["species"] ^ 1, branching=BRANCHING)
    index = [entry["name"] for entry in row["parts"]].index(part)
    return part, torch.from_numpy(np.asarray(row["part_masks"]) == index + 1)


def look_at_photos(model: Any, photos: list[Image.Image], processor: Any) -> list[tuple[str, Any, str]]:
    """How the two likeliest classes of each photo see it."""
    likeliest = model.predict(processor(photos, return_tensors="pt")["pixel_values"]).topk(2).indices.tolist()
    return [
        (f"photo-{number}", model.compare_classes(photo, classes, processor), f"photo {number}, by the two likeliest")
        for number, (photo, classes) in enumerate(zip(photos, likeliest, strict=True), start=1)
    ]


def to_html(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/prompt-cam"))
    parser.add_argument("--gallery", type=Path, help="folder for the pictures as PNG files")
    parser.add_argument("--image", metavar="DIR", help="photos to look at as well: a folder of images")
    parser.add_argument("--steps", type=int, default=90)
    args = parser.parse_args()
    if args.steps < 1:
        sys.exit(f"demo: expected --steps of at least 1, got {args.steps}")
    try:
        photos = dio.load_photos(args.image, NUM_PHOTOS) if args.image else []
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    torch.manual_seed(0)
    path = dio.model_path("vit-nano")
    processor = AutoImageProcessor.from_pretrained(path)
    backbone = AutoModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32).eval()
    few, test = dio.load("creatures", n=600, **WORLD), dio.load("creatures", "heldout", n=120, **WORLD)
    names = dict(enumerate(few.features["species"].names))
    pixels = processor(few["image"][:], return_tensors="pt")["pixel_values"]
    model = get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=8, prompt_dropout=0.0, id2label=names))
    train(model, pixels, torch.tensor(few["species"][:]), args.steps)
    model.eval()

    rows = [row for row in test if find_trait(row)[1].sum() >= 12]
    pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([row["species"] for row in rows])
    masks = torch.stack([find_trait(row)[1] for row in rows])
    right = model.predict(pixels).argmax(1) == labels
    maps = aggregate_heads(model.maps(pixels, labels), model.rank_heads(pixels, labels).order, 1)
    maps = nn.functional.interpolate(maps[:, None], (64, 64), mode="bilinear")[:, 0]
    energy = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    edits = [dio.counterfactual(row, find_trait(row)[0], row["species"] ^ 1)["image"] for row in rows]
    after = model.predict(processor(edits, return_tensors="pt")["pixel_values"]).argmax(1)
    flipped = (after == (labels ^ 1))[right]

    shown = [index for index in range(len(rows)) if right[index]][:SHOWN]
    figures = []
    for number, index in enumerate(shown):
        row, part = rows[index], find_trait(rows[index])[0]
        sister = names[row["species"] ^ 1]
        edit = model.counterfactual(row["image"], edits[index], processor)
        caption = f"{names[row['species']]}, then with the {part} of its sister {sister}"
        figures.append((f"edited-{number}", edit.draw(), caption))
        classes = [row["species"], row["species"] ^ 1]
        figure = model.compare_classes(row["image"], classes, processor)
        figures.append((f"compared-{number}", figure, "the same image as the true class and its sister see it"))
    figures += look_at_photos(model, photos, processor) if photos else []
    if args.gallery:
        args.gallery.mkdir(parents=True, exist_ok=True)
        for name, figure, _ in figures:
            figure.savefig(args.gallery / f"{name}.png", dpi=90)
    summary = {
        "accuracy, 8 species": f"{right.float().mean():.0%} of {len(rows)} held-out images",
        "top head on the trait": f"{energy.mean():.0%} of its attention, on {masks.float().mean():.1%} of the image",
        "trait swapped": f"{flipped.float().mean():.0%} of {len(flipped)} right answers become the sister",
    }
    if photos:
        summary["your photos"] = f"{len(photos)} drawn as drawn species would see them: no photo was learned from"
    args.out.mkdir(parents=True, exist_ok=True)
    intro = "<p>One prompt for each species looks at the patches of a frozen <code>vit-nano</code>.</p>"
    (args.out / "section.html").write_text(intro + "".join(to_html(*pair[1:]) for pair in figures), encoding="utf-8")
    (args.out / "result.json").write_text(json.dumps({"summary": summary}, indent=1), encoding="utf-8")
    for name, value in summary.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
