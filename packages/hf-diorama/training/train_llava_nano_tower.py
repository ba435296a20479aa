"""Stage 1 of llava-nano: trains its CLIP vision tower to name what every patch and each side of an image shows.

python train_llava_nano_tower.py --photos DIR --work-dir DIR
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from llava_nano_checkpoint import load_checkpoint, one_cycle, save_checkpoint
from llava_nano_data import GRID, IMAGE_SIZE, NAMES, build_pool, load_photos
from llava_nano_model import VISION_CONFIG
from llava_nano_tower import Heads, init_filters, init_mimetic, losses_and_hits, to_pixel_values
from safetensors.torch import save_file
from transformers import CLIPVisionModel, set_seed


def mirror(pixels: np.ndarray, labels: dict[str, torch.Tensor], flips: np.ndarray) -> None:
    """Mirrors the chosen scenes in place, with all that their labels say about left and right."""
    pixels[flips] = pixels[flips][:, :, ::-1]
    chosen = torch.from_numpy(flips)
    for name in NAMES:
        labels[name][chosen] = labels[name][chosen].flip(1)
    places = labels["patches"][chosen].unflatten(1, (GRID, GRID)).flip(2).flatten(1)
    is_pair = (labels["num_objects"][chosen] == 2)[:, None]
    labels["patches"][chosen] = torch.where(is_pair & (places > 0), 3 - places, places)


def augment(pixels: np.ndarray, rng: np.random.Generator, pad: int = 6) -> np.ndarray:
    """Flips and shifts photos, each in its own way."""
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    shifts, flips = rng.integers(0, 2 * pad + 1, (len(pixels), 2)), rng.integers(0, 2, len(pixels)) * 2 - 1
    cut = (image[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] for image, (y, x) in zip(padded, shifts, strict=True))
    return np.stack([image[:, ::flip] for image, flip in zip(cut, flips, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="folder with CIFAR-10 as Parquet, columns image and label")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for the pool and the checkpoints")
    parser.add_argument("--num-scenes", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=11_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    pool = build_pool(args.work_dir / "pool", load_photos(args.photos), args.num_scenes, args.seed)
    labels = {name: torch.from_numpy(array).long() for name, array in pool.items() if name != "pixels"}
    tower = CLIPVisionModel._from_config(VISION_CONFIG, attn_implementation="eager")  # faster than sdpa at 17 tokens
    heads = Heads()
    init_mimetic(tower)
    init_filters(tower, pool["pixels"][::50])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    modules, checkpoint = {"tower": tower, "heads": heads}, args.work_dir / "tower_checkpoint.safetensors"
    first, seconds = load_checkpoint(checkpoint, modules, optimizer)
    started = time.perf_counter() - seconds
    train_scenes = args.num_scenes - 2000  # the last ones, and the last photos, tell how well it goes
    train_photos = len(pool["photo"]) - args.num_scenes - 2000
    for step in range(first, args.steps + 1):
        rng = np.random.default_rng((args.seed, step))
        if step % 500 == 0:
            held = np.r_[train_scenes : args.num_scenes, args.num_scenes + train_photos : len(pool["photo"])]
            tower.eval()
            with torch.no_grad():
                features = torch.cat([
                    tower(to_pixel_values(pool["pixels"][rows])).last_hidden_state[:, 1:]
                    for rows in np.array_split(held, 16)
                ])  # fmt: skip
                _, hits = losses_and_hits(heads, features, {name: x[held] for name, x in labels.items()}, 0.0)
            tower.train()
            line = {"step": step, "seconds": round(time.perf_counter() - started)}
            print(
                json.dumps(line | {name: round(hit.float().mean().item(), 4) for name, hit in hits.items()}),
                flush=True,
            )
            save_checkpoint(checkpoint, modules, optimizer, step, time.perf_counter() - started)
        if step == args.steps:
            break
        quarter = args.batch_size // 4
        scenes = rng.integers(0, train_scenes, 3 * quarter)
        photos = args.num_scenes + rng.integers(0, train_photos, quarter)
        pixels = np.concatenate([pool["pixels"][scenes], augment(pool["pixels"][photos], rng)])
        rows = torch.from_numpy(np.concatenate([scenes, photos]))
        batch = {name: x[rows] for name, x in labels.items()}
        mirror(pixels, batch, np.flatnonzero(rng.integers(0, 2, len(scenes))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = tower(to_pixel_values(pixels)).last_hidden_state[:, 1:]
        loss, _ = losses_and_hits(heads, features.float(), batch, 0.1)
        optimizer.param_groups[0]["lr"] = args.learning_rate * one_cycle(step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    save_file(tower.state_dict(), args.work_dir / "tower.safetensors")


if __name__ == "__main__":
    main()
