"""Prompt-CAM on frozen nano backbones: accuracy, and whether its heads lie on the trait that tells a species apart.

16 species of `creatures` (8 pairs of sisters, which differ in one part). Beside it, on the same backbone: a linear
probe on the class token, Grad-CAM on that probe, and attention rollout. Everything is measured on held-out images.
Trained adapters are kept in a temporary folder under a key of backbone and settings, so an interrupted run goes on.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel
from transformers.utils.logging import tqdm

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import TRAITS
from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, aggregate_heads, get_prompt_cam_model

Row = dict[str, Any]
NUM_CLASSES, SIZE = 16, 64
BACKBONES = ("vit-nano", *(f"vfm-nano-{kind}" for kind in ("supervised", "contrastive", "masked", "random")))
STEPS, BATCH, LEARNING_RATE = 300, 24, 5e-3
MIN_AREA = 12  # pixels of the trait below which an image says nothing about it
CURVE_STEPS, CURVE_IMAGES = 8, 300  # of insertion and deletion
PLOT = None


def load_split(split: str, n: int) -> Any:
    ds = dio.load("creatures", split=split, n=n, image_size=SIZE)
    return ds.filter(lambda species: species < NUM_CLASSES, input_columns="species")


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    values = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(values.astype(np.float32) / 127.5 - 1)


class Probe(nn.Module):
    """A linear classifier on the class token of a frozen backbone."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.linear = backbone, nn.Linear(backbone.config.hidden_size, NUM_CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(self.backbone(pixels).last_hidden_state[:, 0])

    def fit(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """Logistic regression to its optimum, lightly regularised, on standardised features."""
        with torch.no_grad():
            tokens = torch.cat([self.backbone(part).last_hidden_state[:, 0] for part in pixels.split(256)])
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
        with torch.no_grad():
            self.linear.weight.copy_(weight / std)
            self.linear.bias.copy_(bias - weight @ (mean / std))


def grad_cam(probe: Probe, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Grad-CAM of the probe at the first norm of the last layer, whose patches reach the class token; (B, 8, 8)."""
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = probe.backbone.layers[-1].layernorm_before.register_forward_hook(keep)
    score = probe(pixels).gather(1, classes[:, None]).sum()
    handle.remove()
    gradient = torch.autograd.grad(score, kept[0])[0][:, 1:]
    weights = gradient.mean(dim=1, keepdim=True)
    return (weights * kept[0].detach()[:, 1:]).sum(-1).relu().unflatten(1, (8, 8))


def rollout(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Attention rollout (arXiv 2005.00928): the product of half attention, half identity; row of the class token."""
    backbone.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = backbone(pixels, output_attentions=True).attentions
    backbone.set_attn_implementation("sdpa")
    eye = torch.eye(attentions[0].shape[-1])
    total = eye
    for attention in attentions:
        total = (0.5 * attention.mean(1) + 0.5 * eye) @ total
    return total[:, 0, 1:].unflatten(1, (8, 8))


def train(name: str, backbone: Any, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> Any:
    """A trained Prompt-CAM model, from the temporary folder if it was trained there before."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in backbone.state_dict().values())
    settings = f"{NUM_CLASSES} {steps} {BATCH} {LEARNING_RATE} {len(labels)}".encode()
    key = hashlib.sha256(weights + settings).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "prompt-cam-traits" / f"{name}-{key}"
    if folder.is_dir():
        return PromptCAMForImageClassification.from_pretrained(folder, backbone)
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
    model.eval().save_pretrained(folder)
    return model


def enlarge(maps: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]


def energy(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The part of each map that lies in its mask; an empty map has none."""
    maps = enlarge(maps)
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-12)


@torch.no_grad()
def curve(
    score_fn: Any, pixels: torch.Tensor, maps: torch.Tensor, classes: torch.Tensor, insert: bool
) -> torch.Tensor:
    """Area under the probability of the class while pixels go (to grey) or come (onto a blurred image)."""
    order = enlarge(maps).flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    order = order.view(-1, 1, SIZE, SIZE)
    axis = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 5**2))
    window = (axis[:, None] * axis / axis.sum() ** 2).expand(3, 1, 11, 11)
    start = nn.functional.conv2d(nn.functional.pad(pixels, (5,) * 4, "replicate"), window, groups=3)
    values = []
    for step in range(CURVE_STEPS + 1):
        changed = order < step * SIZE * SIZE // CURVE_STEPS
        image = torch.where(changed, pixels, start) if insert else pixels.masked_fill(changed, 0.0)
        values.append(score_fn(image).softmax(1).gather(1, classes[:, None])[:, 0])
    curve = torch.stack(values, dim=1)
    return ((curve[:, 1:] + curve[:, :-1]) / 2).mean(dim=1)


def interval(values: torch.Tensor) -> tuple[float, float, float]:
    """Mean and its 95 percent interval over images, by bootstrap."""
    values = values.double()
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (2_000, len(values)), generator=generator)].mean(1)
    return values.mean().item(), means.quantile(0.025).item(), means.quantile(0.975).item()


def read_traits(ds: Any) -> dict[str, Any]:
    """Held-out images with the mask of the part that tells each from its sister, and two edits of it.

    `swapped` has the part as the sister has it. `erased` has it painted over with the mean colour around it.
    """
    images, labels, masks, parts, swapped, erased = [], [], [], [], [], []
    for row in tqdm(ds, desc="traits"):
        (part,) = dio.discriminating_parts(row["species"], row["species"] ^ 1)
        names, label_map = [entry["name"] for entry in row["parts"]], np.asarray(row["part_masks"])
        mask = torch.from_numpy(label_map == 1 + names.index(part))
        if mask.sum() < MIN_AREA:
            continue
        ring = nn.functional.max_pool2d(mask[None].float(), 5, 1, 2)[0].bool() & ~mask
        pixels = np.array(row["image"])
        pixels[mask.numpy()] = pixels[ring.numpy()].mean(0)
        images.append(row["image"])
        labels.append(row["species"])
        masks.append(mask)
        parts.append(torch.from_numpy(np.isin(label_map, [1 + names.index(name) for name in TRAITS])))
        swapped.append(dio.counterfactual(row, part, row["species"] ^ 1)["image"])
        erased.append(Image.fromarray(pixels))
    return {
        "pixels": to_pixels(images),
        "labels": torch.tensor(labels),
        "masks": torch.stack(masks),
        "parts": torch.stack(parts),
        "swapped": to_pixels(swapped),
        "erased": to_pixels(erased),
    }


def measure(name: str, kind: str, score_fn: Any, maps: torch.Tensor, data: dict[str, Any]) -> Row:
    """One row: energy on the part that tells the sister apart, on any of the six trait parts; insertion, deletion."""
    row: Row = {"backbone": name, "maps": kind, "n": len(data["labels"])}
    samples = {"on_its_trait": energy(maps, data["masks"]), "on_any_trait": energy(maps, data["parts"])}
    few = (data["pixels"][:CURVE_IMAGES], maps[:CURVE_IMAGES], data["labels"][:CURVE_IMAGES])
    if kind != "even":
        samples["insertion"] = curve(score_fn, *few, insert=True)
        samples["deletion"] = curve(score_fn, *few, insert=False)
    for metric, values in samples.items():
        row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = interval(values)
    return row


@torch.no_grad()
def classify(name: str, kind: str, score_fn: Any, data: dict[str, Any]) -> Row:
    """One row: accuracy, and how often a right prediction goes when the trait goes."""
    guesses = {which: score_fn(data[which]).argmax(1) for which in ("pixels", "swapped", "erased")}
    right = guesses["pixels"] == data["labels"]
    row: Row = {"backbone": name, "maps": kind, "n": len(right)}
    samples = {
        "accuracy": right,
        "flip_if_erased": (guesses["erased"] != data["labels"])[right],
        "sister_if_swapped": (guesses["swapped"] == (data["labels"] ^ 1))[right],
    }
    for metric, values in samples.items():
        row[metric], row[f"{metric}_low"], row[f"{metric}_high"] = interval(values)
    return row


def run_backbone(name: str, train_set: Any, data: dict[str, Any], steps: int) -> list[Row]:
    path = dio.model_path(name)
    processor = AutoImageProcessor.from_pretrained(path)
    assert {*processor.image_mean, *processor.image_std} == {0.5}, "to_pixels is not what the processor does"
    backbone = AutoModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32).eval()
    pixels, labels = train_set
    probe = Probe(backbone)
    probe.fit(pixels, labels)
    model = train(name, backbone, pixels, labels, steps)

    def scores(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part).logits for part in images.split(100)])

    def probe_scores(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([probe(part) for part in images.split(100)])

    images, classes = data["pixels"], data["labels"]
    maps, order = model.maps(images, classes), model.rank_heads(images, classes).order
    found = {
        "prompt-cam, top head": (scores, aggregate_heads(maps, order, 1)),
        "prompt-cam, all heads": (scores, aggregate_heads(maps, order, maps.shape[1])),
        "grad-cam on the probe": (probe_scores, grad_cam(probe, images, classes)),
        "rollout": (probe_scores, rollout(backbone, images)),
        "even": (probe_scores, torch.ones(len(images), 8, 8)),
    }
    rows = [classify(name, "prompt-cam", scores, data), classify(name, "linear probe", probe_scores, data)]
    return rows + [measure(name, kind, *pair, data) for kind, pair in found.items()]


def run(*, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    train_ds = load_split("train", 600 if quick else 20_000)
    train_set = to_pixels(train_ds["image"][:]), torch.tensor(train_ds["species"][:])
    data = read_traits(load_split("heldout", 200 if quick else 3_000))
    names = [name for name in BACKBONES if name in dio.list_models()]
    rows = []
    for name in names[:1] if quick else names:
        rows += run_backbone(name, train_set, data, steps=5 if quick else STEPS)
    return rows
