"""Prompt-CAM on frozen nano backbones: accuracy, and whether its heads lie on the trait that tells a species apart.

16 species of `creatures` (8 pairs of sisters, which differ in one part). Beside it, on the same backbone: a linear
probe on the class token, Grad-CAM on that probe, and attention rollout. Everything is measured on held-out images, and
with the metrics of finer-cam; intervals are of 95 percent, by bootstrap over images, one training seed. Rows of a
backbone are kept in a temporary folder, under a key of weights, data and code, so that an interrupted run goes on.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, ViTForImageClassification
from transformers.utils.logging import tqdm

import finer_cam
import hf_diorama as dio
import prompt_cam
from finer_cam import FinerCAM, compute_faithfulness, energy_in_region, upsample_maps
from hf_diorama.worlds.creatures.taxonomy import TRAITS
from prompt_cam import PromptCAMConfig, aggregate_heads, get_prompt_cam_model

Row = dict[str, Any]
NUM_CLASSES, SIZE = 16, 64
BACKBONES = ("vit-nano", *(f"vfm-nano-{kind}" for kind in ("supervised", "contrastive", "masked", "random")))
STEPS, BATCH, LEARNING_RATE = 300, 24, 5e-3
MIN_AREA = 12  # pixels of the trait below which an image says nothing about it
NUM_IMAGES, CURVE_STEPS = 300, 10
PLOT = None


def load_split(split: str, n: int) -> Any:
    ds = dio.load("creatures", split=split, n=n, image_size=SIZE)
    return ds.filter(lambda species: species < NUM_CLASSES, input_columns="species")


def read_traits(ds: Any, count: int) -> dict[str, Any]:
    """Held-out images with the mask of the part that tells each from its sister, and two edits of it.

    `swapped` has the part as the sister has it. `erased` has it painted over with the mean colour around it.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("images", "labels", "masks", "parts", "swapped", "erased")}
    for row in tqdm(ds, desc="traits"):
        (part,) = dio.discriminating_parts(row["species"], row["species"] ^ 1)
        names, label_map = [entry["name"] for entry in row["parts"]], np.asarray(row["part_masks"])
        mask = torch.from_numpy(label_map == 1 + names.index(part))
        if mask.sum() < MIN_AREA or len(found["labels"]) == count:
            continue
        ring = nn.functional.max_pool2d(mask[None].float(), 5, 1, 2)[0].bool() & ~mask
        pixels = np.array(row["image"])
        pixels[mask.numpy()] = pixels[ring.numpy()].mean(0)
        found["images"].append(row["image"])
        found["labels"].append(row["species"])
        found["masks"].append(mask)
        found["parts"].append(torch.from_numpy(np.isin(label_map, [1 + names.index(name) for name in TRAITS])))
        found["swapped"].append(dio.counterfactual(row, part, row["species"] ^ 1)["image"])
        found["erased"].append(Image.fromarray(pixels))
    assert len(found["labels"]) == count, f"only {len(found['labels'])} rows have the part in view"
    tensors = {"labels": torch.tensor(found["labels"]), "masks": torch.stack(found["masks"])}
    return {**found, **tensors, "parts": torch.stack(found["parts"])}


def fit_probe(backbone: Any, pixels: torch.Tensor, labels: torch.Tensor) -> Any:
    """A linear classifier on the class token: logistic regression to its optimum, lightly regularised."""
    with torch.no_grad():
        tokens = torch.cat([backbone(part).last_hidden_state[:, 0] for part in pixels.split(256)])
    mean, std = tokens.mean(0), tokens.std(0) + 1e-6
    weight = torch.zeros(NUM_CLASSES, tokens.shape[1], requires_grad=True)
    bias = torch.zeros(NUM_CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (tokens - mean) / std @ weight.T + bias
        loss = nn.functional.cross_entropy(logits, labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    names = {index: str(index) for index in range(NUM_CLASSES)}
    config = type(backbone.config)(**{**backbone.config.to_dict(), "id2label": names, "label2id": None})
    probe = ViTForImageClassification(config).eval()
    probe.vit = backbone
    with torch.no_grad():
        probe.classifier.weight.copy_(weight / std)
        probe.classifier.bias.copy_(bias - weight @ (mean / std))
    return probe


def train_prompts(name: str, backbone: Any, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> Any:
    torch.manual_seed(0)
    model = get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=NUM_CLASSES, prompt_dropout=0.0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    backbone.set_attn_implementation("eager")  # with bf16 the fastest for so few tokens
    for _ in tqdm(range(steps), desc=f"{name}: prompts"):
        chosen = torch.randint(len(labels), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixels[chosen], labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    backbone.set_attn_implementation("sdpa")
    return model.eval()


def roll_out(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Attention rollout (arXiv 2005.00928): the product of half attention, half identity; row of the class token."""
    backbone.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = backbone(pixels, output_attentions=True).attentions
    backbone.set_attn_implementation("sdpa")
    total = eye = torch.eye(attentions[0].shape[-1])
    for attention in attentions:
        total = (0.5 * attention.mean(1) + 0.5 * eye) @ total
    return total[:, 0, 1:].unflatten(1, (8, 8))


def interval(values: torch.Tensor) -> tuple[float, float, float]:
    """Mean and its 95 percent interval over images, by bootstrap."""
    assert len(values), "no image is left to average over"
    values = values.double()
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (2_000, len(values)), generator=generator)].mean(1)
    return values.mean().item(), means.quantile(0.025).item(), means.quantile(0.975).item()


def summarise(row: Row, samples: dict[str, torch.Tensor]) -> Row:
    for metric, values in samples.items():
        row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = interval(values)
    return row


@torch.no_grad()
def measure_edits(name: str, kind: str, model: Any, pixels: dict[str, torch.Tensor], labels: torch.Tensor) -> Row:
    """One row: accuracy, and how often a right prediction goes when the trait goes."""
    guesses = {
        which: torch.cat([model(part).logits.argmax(1) for part in images.split(100)])
        for which, images in pixels.items()
    }
    right = guesses["images"] == labels
    samples = {
        "accuracy": right,
        "flip_if_erased": (guesses["erased"] != labels)[right],
        "sister_if_swapped": (guesses["swapped"] == (labels ^ 1))[right],
    }
    return summarise({"backbone": name, "kind": kind, "n": len(right), "n_right": int(right.sum())}, samples)


def measure_maps(name: str, kind: str, model: Any, images: torch.Tensor, maps: torch.Tensor, data: Any) -> Row:
    """One row: energy on the part that tells the sister apart, on any of the six trait parts; insertion, deletion."""
    row: Row = {"backbone": name, "kind": kind, "n": len(maps)}
    maps, labels = upsample_maps(maps, (SIZE, SIZE), None), data["labels"]
    regions = {"on_its_trait": data["masks"], "on_any_trait": data["parts"]}
    samples = {metric: energy_in_region(maps, region) for metric, region in regions.items()}
    if model is not None:
        scores = compute_faithfulness(model, images, maps, labels, labels ^ 1, ratios=[], num_steps=CURVE_STEPS)
        samples |= {"insertion": scores.insertion, "deletion": scores.deletion}
        row |= {"curve_steps": CURVE_STEPS, "fill": scores.fill, "insertion_fill": scores.insertion_fill}
    return summarise(row, samples)


def run_backbone(name: str, train_set: Any, data: dict[str, Any], steps: int) -> list[Row]:
    path = dio.model_path(name)
    processor = AutoImageProcessor.from_pretrained(path)
    backbone = AutoModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32).eval()
    shown, labels = processor(train_set["image"][:], return_tensors="pt")["pixel_values"], train_set["species"][:]
    pixels = {
        which: processor(data[which], return_tensors="pt")["pixel_values"] for which in ("images", "swapped", "erased")
    }
    probe = fit_probe(backbone, shown, torch.tensor(labels))
    model = train_prompts(name, backbone, shown, torch.tensor(labels), steps)
    images, classes = pixels["images"], data["labels"]
    maps, order = model.maps(images, classes), model.rank_heads(images, classes).order
    cam = FinerCAM(probe, gamma=0.0, normalize=None)
    found = {
        "prompt-cam, top head": (model, aggregate_heads(maps, order, 1)),
        "prompt-cam, all heads": (model, aggregate_heads(maps, order, maps.shape[1])),
        "grad-cam on the probe": (probe, cam(images, target=classes.tolist()).raw),
        "rollout": (probe, roll_out(backbone, images)),
        "even": (None, torch.ones(len(images), 8, 8)),
    }
    rows = [
        measure_edits(name, kind, one, pixels, classes)
        for kind, one in (("prompt-cam", model), ("linear probe", probe))
    ]
    return rows + [measure_maps(name, kind, one, images, grid, data) for kind, (one, grid) in found.items()]


def find_kept(name: str, data: dict[str, Any], steps: int) -> Path:
    """The file that keeps the rows of a backbone; another one if weights, data or code change."""
    sources = sorted(path for module in (finer_cam, prompt_cam) for path in Path(module.__file__).parent.rglob("*.py"))
    weights = sorted(Path(dio.model_path(name)).glob("*.safetensors"))
    digest = hashlib.sha256(f"{steps}".encode() + data["masks"].numpy().tobytes())
    for path in (Path(__file__), *sources, *weights):
        digest.update(path.read_bytes())
    return Path(tempfile.gettempdir()) / "prompt-cam-traits" / f"{name}-{digest.hexdigest()[:16]}.json"


def run(*, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    train_set = load_split("train", 600 if quick else 20_000)
    data = read_traits(load_split("heldout", 200 if quick else 3_000), 20 if quick else NUM_IMAGES)
    rows, steps = [], 5 if quick else STEPS
    for name in BACKBONES[:1] if quick else BACKBONES:
        kept = find_kept(name, data, steps)
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            found = json.dumps(run_backbone(name, train_set, data, steps))
            kept.with_suffix(".part").write_text(found, encoding="utf-8")
            kept.with_suffix(".part").replace(kept)
        rows += json.loads(kept.read_text(encoding="utf-8"))
    return rows
