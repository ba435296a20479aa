"""Exact match of llava-nano on held-out multi-image questions, by preset and keep ratio.

Question-aware: the cache is compressed after it has read images and question. Question-agnostic: it is compressed
after the images, and the question comes as a second turn. Presets are taken as they are shipped: nothing protects the
question but the preset itself. `over_meda` and `over_h2o` are paired differences on the same questions, with 95
percent intervals. Variants say what of a difference is due to what; the depth ramp is the control of the entropy.
Questions are about one image among them, by its number or by what it shows, about two that are compared, or about all:
counts and lists.
"""

import hashlib
import itertools
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import tqdm

import hf_diorama
from hf_diorama.questions import KINDS, build_prompt, build_turn
from meda_cache import PRESETS, MedaCache, attach

NUM_IMAGES = (4, 8, 12, 16)
NUM_QUESTIONS = 140  # for each number of images
SEED = (
    2_001  # of held-out questions that nobody looked at while llava-nano was trained, nor when `balanced` was chosen
)
KEEP_RATIOS = (0.8, 0.5, 0.2, 0.1, 0.05)
BATCH_SIZE = 50
MAX_NEW_TOKENS = 64
MODES = ("question-aware", "question-agnostic")
BASES = ("meda", "h2o")


def ramp(entropy: torch.Tensor) -> torch.Tensor:
    """The control of the entropy claim: weights that fall with depth, whatever the attention is."""
    return torch.linspace(1.5, 0.5, len(entropy), dtype=torch.float64)


def invert(entropy: torch.Tensor) -> torch.Tensor:
    """The opposite of MEDA's allocation: most to the layer of lowest entropy."""
    return (-entropy).softmax(dim=0)


def stride(scores: torch.Tensor, visual_mask: torch.Tensor, budget: int) -> torch.Tensor:
    """The last text in half of the budget; visual tokens at equal distances in the rest, as many of every image."""
    text, visual = (mask[0].nonzero()[:, 0] for mask in (~visual_mask, visual_mask))
    num_text = min(len(text), max(budget - budget // 2, budget - len(visual)))
    places = (torch.arange(budget - num_text) + 0.5) * len(visual) / max(1, budget - num_text)
    kept = torch.cat([text[len(text) - num_text :], visual[places.long()]]).sort().values
    return kept.expand(len(scores), -1)


VARIANTS: dict[str, dict[str, Any]] = {
    "meda, depth ramp": {"preset": "meda", "allocation": ramp},
    "meda, inverted entropy": {"preset": "meda", "allocation": invert},
    "meda, no merging": {"preset": "meda", "merge": "none"},
    "balanced, entropy": {"preset": "balanced", "allocation": "entropy", "normalize": True},
    "balanced, average": {"preset": "balanced", "merge": "average"},
    "per-image stride": {"preset": "uniform", "merge": "none", "per_image": False, "select": stride},
}
POLICIES = {name: {"preset": name} for name in PRESETS if name != "none"} | VARIANTS


def build_batches(processor: Any, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups rows whose prompts have as many tokens, so that none needs padding."""
    groups = defaultdict(list)
    for row in rows:
        turn = build_turn(row["question"])
        row["question_length"] = len(processor.tokenizer(turn, add_special_tokens=False)["input_ids"])
        groups[row["num_images"], row["question_length"]].append(row)
    return [group[at : at + BATCH_SIZE] for group in groups.values() for at in range(0, len(group), BATCH_SIZE)]


@torch.no_grad()
def answer(model: Any, processor: Any, cache: MedaCache, logits: torch.Tensor, answers: list[str]) -> list[bool]:
    """Whether each greedy answer is exactly right; `logits` are those of the last token read."""
    end = model.generation_config.eos_token_id
    tokens: list[torch.Tensor] = []
    while len(tokens) < MAX_NEW_TOKENS:
        tokens.append(logits[:, -1].argmax(dim=-1, keepdim=True))
        if bool((torch.cat(tokens, dim=1) == end).any(dim=1).all()):
            break
        logits = model(input_ids=tokens[-1], past_key_values=cache).logits
    output = torch.cat(tokens, dim=1)
    output[((output == end).cumsum(dim=1) > 0)] = end
    texts = processor.batch_decode(output, skip_special_tokens=True)
    return [text.strip() == answer for text, answer in zip(texts, answers, strict=True)]


@torch.no_grad()
def ask(
    model: Any, processor: Any, batch: list[dict[str, Any]], policy: str, options: dict[str, Any], ratios: Any
) -> Iterator[tuple[tuple[str, str, float], list[bool]]]:
    """Whether each answer is right, for every mode and ratio; a prompt is read once for all ratios."""
    prompts = [build_prompt(row["num_images"], row["question"]) for row in batch]
    images = [image for row in batch for image in row["images"]]
    inputs = processor(images=images, text=prompts, return_tensors="pt")
    tokens, pixels = inputs["input_ids"], inputs["pixel_values"]
    assert bool(inputs["attention_mask"].all()), "a batch has padding"
    context = tokens.shape[1] - batch[0]["question_length"]
    turns = processor.tokenizer([build_turn(row["question"]) for row in batch], return_tensors="pt")["input_ids"]
    assert torch.equal(turns, tokens[:, context:]), "the question is not the end of the prompt"
    answers = [row["answer"] for row in batch]
    for mode in MODES:
        read = MedaCache(model.config, **options, **({} if options["preset"] == "none" else {"keep_ratio": 0.5}))
        length = tokens.shape[1] if mode == "question-aware" else context
        logits = model(input_ids=tokens[:, :length], pixel_values=pixels, past_key_values=read).logits
        for ratio in ratios_of(options, ratios):
            cache = read.clone()
            cache.compress(ratio)
            if mode == "question-agnostic":
                logits = model(input_ids=tokens[:, length:], past_key_values=cache).logits
            yield (mode, policy, ratio), answer(model, processor, cache, logits, answers)


def load_parts(path: Path) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return parts


def save_parts(parts: dict[str, list[int]], path: Path) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(parts), encoding="utf-8")
    partial.replace(path)


def describe_answers(model_path: Path, count: int, seed: int) -> str:
    """What answers depend on: weights, questions, options and code."""
    weights = hashlib.sha256((model_path / "model.safetensors").read_bytes()).hexdigest()
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    sources = ["packages/meda-cache/src", "packages/hf-diorama/src", "benchmarks-hf/cases/meda_*.py"]
    code = subprocess.run([*git, "log", "-1", "--format=%H", "--", *sources], capture_output=True, check=True).stdout
    edits = subprocess.run([*git, "diff", "HEAD", "--", *sources], capture_output=True, check=True).stdout
    parts = [weights, str((count, seed, NUM_IMAGES, BATCH_SIZE)), code.decode(), edits.decode()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def collect(
    count: int, policies: dict[str, dict[str, Any]], ratios: Any, *, seed: int = SEED
) -> tuple[list[dict[str, Any]], dict[tuple[str, str, float], np.ndarray]]:
    """All questions, and for every mode, policy and ratio whether each was answered right.

    What has been answered is kept in the temporary folder, by weights, questions and code: a run that was stopped goes
    on.
    """
    model_path = Path(hf_diorama.model_path("llava-nano"))
    path = Path(tempfile.gettempdir()) / f"meda-quality-{describe_answers(model_path, count, seed)}.json"
    processor = AutoProcessor.from_pretrained(model_path)
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
    rows: list[dict[str, Any]] = []
    for number in NUM_IMAGES:
        rows += hf_diorama.multi_image_questions(count, split="heldout", seed=seed, num_images=number)
    batches, parts = build_batches(processor, rows), load_parts(path)
    right = defaultdict(list)
    with attach(model):
        for index, name in tqdm(list(itertools.product(range(len(batches)), policies)), desc="batches"):
            wanted = {
                f"{index}|{mode}|{name}|{ratio}" for mode in MODES for ratio in ratios_of(policies[name], ratios)
            }
            if not wanted <= set(parts):
                for (mode, _, ratio), values in ask(model, processor, batches[index], name, policies[name], ratios):
                    parts[f"{index}|{mode}|{name}|{ratio}"] = [int(value) for value in values]
                save_parts(parts, path)
            for mode, ratio in itertools.product(MODES, ratios_of(policies[name], ratios)):
                right[mode, name, ratio] += parts[f"{index}|{mode}|{name}|{ratio}"]
    return [row for batch in batches for row in batch], {point: np.array(values) for point, values in right.items()}


def ratios_of(options: dict[str, Any], ratios: Any) -> Any:
    return (1.0,) if options["preset"] == "none" else ratios


def summarise(
    rows: list[dict[str, Any]], right: np.ndarray, bases: dict[str, np.ndarray]
) -> dict[str, float | int | str]:
    summary: dict[str, float | int | str] = {"exact_match": float(right.mean())}
    for name, base in bases.items():
        difference = right.astype(float) - base
        half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
        bounds = (difference.mean() - half, difference.mean(), difference.mean() + half)
        columns = (f"over_{name}_low", f"over_{name}", f"over_{name}_high")
        summary |= dict(zip(columns, (round(float(bound), 4) for bound in bounds), strict=True))
    kinds, numbers = (np.array([row[name] for row in rows]) for name in ("kind", "num_images"))
    summary["chance"] = round(float(np.mean([row["chance"] for row in rows])), 4)
    summary["questions"] = len(rows)
    summary |= {kind: round(float(right[kinds == kind].mean()), 4) for kind in KINDS if (kinds == kind).any()}
    return summary | {f"{number} images": float(right[numbers == number].mean()) for number in NUM_IMAGES}


def tabulate(
    rows: list[dict[str, Any]], right: dict[tuple[str, str, float], np.ndarray], bases: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for every mode, policy and ratio, with its difference to the bases."""
    return [
        {
            "mode": mode,
            "policy": policy,
            "keep_ratio": ratio,
            **summarise(rows, values, {name: right[mode, name, ratio] for name in bases if ratio < 1}),
            "samples": {"right": "".join(map(str, values.astype(int)))},
        }
        for (mode, policy, ratio), values in right.items()
    ]


def run(*, quick: bool) -> list[dict[str, Any]]:
    ratios = KEEP_RATIOS[2:3] if quick else KEEP_RATIOS
    policies = {"full cache": {"preset": "none"}} | POLICIES
    return tabulate(*collect(5 if quick else NUM_QUESTIONS, policies, ratios), BASES)


PLOT = {"x": "keep_ratio", "y": "exact_match", "line": "policy", "panel": "mode"}
