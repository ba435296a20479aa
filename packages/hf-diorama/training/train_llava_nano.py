"""Stage 2 of llava-nano: trains projector and language model on questions about cached features of the frozen tower.

python train_llava_nano.py --photos DIR --work-dir DIR --output-dir DIR      (after train_llava_nano_tower.py)

With `--start MODEL_DIR` it goes on from a trained model instead, tower included: to learn a new kind of question.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from llava_nano_checkpoint import load_checkpoint, one_cycle, save_checkpoint
from llava_nano_data import NAMES, build_pool, load_photos
from llava_nano_forward import BLOCK, run
from llava_nano_losses import LOSSES, all_losses
from llava_nano_model import build_model, build_processor, build_tokenizer, load_model, save_pretrained
from llava_nano_sequences import Sequences, index_pool
from llava_nano_tower import to_pixel_values
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, set_seed

from hf_diorama.draws import Draws
from hf_diorama.questions import MAX_IMAGES, Question, multi_image_questions

CURRICULUM = 0.45  # share of the steps over which the largest number of images grows from 2 to 16


def cache_features(model: LlavaForConditionalGeneration, pixels: np.ndarray) -> torch.Tensor:
    """Returns what the frozen tower sees: (num_images, 16, width), fp16."""
    with torch.no_grad():
        chunks = (pixels[i : i + 500] for i in range(0, len(pixels), 500))
        tower = model.model.vision_tower
        return torch.cat([tower(to_pixel_values(chunk)).last_hidden_state[:, 1:].half() for chunk in chunks])


def init_projector(projector: torch.nn.Module, features: torch.Tensor) -> None:
    """Starts the projector on whitened features: what varies little, as color does, is as loud as what varies much."""
    values, vectors = torch.linalg.eigh(features.T.cov())
    rotation = torch.linalg.qr(torch.randn(len(values), len(values)))[0]
    projector.linear_1.weight.data.copy_(rotation @ (vectors / (values + 1e-3 * values.max()).sqrt()).T)
    projector.linear_1.bias.data.copy_(-projector.linear_1.weight.data @ features.mean(dim=0))
    torch.nn.init.normal_(projector.linear_2.weight, std=0.5 * len(values) ** -0.5)


def validate(model, sequences: Sequences, numbers: torch.Tensor, n: int, **questions) -> dict[str, float]:
    """Returns exact match by kind: greedy decoding is exact where the most likely token is right at every place."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row in multi_image_questions(n, split="validation", **questions):
        features = cache_features(model, np.stack([np.asarray(image) for image in row["images"]]))[None].float()
        turn = sequences.encode_turn(row["contents"], Question(*(row[name] for name in Question._fields)))
        ids, is_answer = torch.tensor(turn.ids), torch.tensor(turn.is_answer)
        with torch.no_grad():
            k = row["num_images"]
            hidden = run(model, features, numbers[:k], ids[None, None], torch.float32).hidden[0, 0]
            best = model.lm_head(hidden).argmax(-1)
        hits[row["kind"]].append(bool((best[:-1] == ids[1:])[is_answer[1:]].all()))
    return {kind: round(float(np.mean(hit)), 3) for kind, hit in sorted(hits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="folder with CIFAR-10 as Parquet, columns image and label")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of the pool, the tower, the checkpoints")
    parser.add_argument("--output-dir", type=Path, required=True, help="where the model is saved, at every validation")
    parser.add_argument("--start", type=Path, help="folder of a trained model to go on from")
    parser.add_argument("--num-scenes", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=11_000)
    parser.add_argument("--tokens-per-step", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    torch.set_num_threads(1)  # faster than two that share their cores with anybody
    photos = load_photos(args.photos)
    labels = photos.features["label"].names
    if args.start:
        model, tokenizer = load_model(args.start, labels)
    else:
        tokenizer = build_tokenizer(labels)
        model = build_model(tokenizer)
        tower = load_file(args.work_dir / "tower.safetensors")
        model.model.vision_tower.load_state_dict({name: x.half().float() for name, x in tower.items()})
    processor = build_processor(tokenizer)
    model.model.vision_tower.requires_grad_(False)
    cache = args.work_dir / "features.npy"
    pool = build_pool(args.work_dir / "pool", photos, args.num_scenes, args.seed, with_pixels=not cache.exists())
    if not cache.exists():
        np.save(cache, cache_features(model, pool["pixels"]).numpy())
    features = torch.from_numpy(np.load(cache))
    if not args.start:
        init_projector(model.model.multi_modal_projector, features[::50].float().flatten(0, 1))
    sequences = Sequences(index_pool(pool, labels), tokenizer, labels)
    words = {name: torch.tensor(tokenizer.convert_tokens_to_ids(list(NAMES[name]))) for name in ("color", "category")}
    names = {name: torch.from_numpy(pool[name]).long() for name in words}
    places = torch.from_numpy(pool["patches"]).long()
    numbers = torch.tensor([sequences.encode(f"image {i + 1}") for i in range(MAX_IMAGES)])
    projector, language_model = model.model.multi_modal_projector, model.model.language_model
    parameters = [*projector.parameters(), *language_model.parameters()]  # the output layer is tied
    groups = [
        {"params": [*projector.parameters()], "scale": 0.3},  # faster, it soon shouts one attribute and drops the rest
        {"params": [*language_model.parameters()], "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    checkpoint = args.work_dir / f"llava_checkpoint{'_2' if args.start else ''}.safetensors"
    trained = {"projector": projector, "language_model": language_model}
    first_step, seconds = load_checkpoint(checkpoint, trained, optimizer)
    started, recent = time.process_time() - seconds, []
    for step in range(first_step, args.steps + 1):
        if recent and (step % 50 == 0 or step == args.steps):
            line = {"step": step, "cpu_seconds": round(time.process_time() - started)}
            line["losses"] = np.nanmean(recent, axis=0).round(3).tolist()
            save_checkpoint(checkpoint, trained, optimizer, step, time.process_time() - started)
            if step % 500 == 0 or step == args.steps:
                for name, n, num_images in (("1-8", 240, (1, 8)), ("12", 96, 12)):
                    asked = {"seed": args.seed, "photos": photos, "num_images": num_images}
                    line[name] = validate(model, sequences, numbers, n, **asked)
                save_pretrained(model, processor, args.output_dir)
            print(json.dumps(line), flush=True)
            recent = []
        if step == args.steps:
            break
        draws = Draws("llava-nano", args.seed, step)
        grown = 1.0 if args.start else step / (CURRICULUM * args.steps)
        largest = min(MAX_IMAGES, 2 + int((MAX_IMAGES - 1) * grown))
        num_images = draws.integer(1, min(8, largest) + 1) if draws.chance(0.5) else draws.integer(1, largest + 1)
        tokens = num_images * BLOCK + 10 * max(32, 12 + 3 * num_images)
        batch = sequences.draw(draws, num_images, max(4, args.tokens_per_step // tokens), 10)
        seen, there = features[batch.rows].float(), places[batch.rows]
        there_labels = {name: x[batch.rows] for name, x in names.items()}
        losses = all_losses(model, seen, numbers[:num_images], batch, there, there_labels, words)
        guide = 0.5 * min(1.0, 2 - 2 * step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * group["scale"] * one_cycle(step, args.steps, 0.02, 0.5)
        optimizer.zero_grad()
        (losses.nan_to_num() @ torch.tensor([1.0, 0.2] + [guide] * (len(LOSSES) - 2))).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(losses.tolist())


if __name__ == "__main__":
    main()
