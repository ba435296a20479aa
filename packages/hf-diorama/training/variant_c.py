"""Stage 2 of llava-nano: trains projector and language model on questions about cached features of the frozen tower.

python train_llava_nano.py --photos DIR --work-dir DIR --output-dir DIR      (after train_llava_nano_tower.py)
"""

import argparse
import json
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from llava_nano_checkpoint import load_checkpoint, one_cycle, save_checkpoint
from llava_nano_data import NAMES, build_pool, load_photos
from llava_nano_model import build_model, build_processor, build_tokenizer, save_pretrained
from safetensors.torch import load_file
from train_llava_nano_tower import to_pixel_values
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast, set_seed

from hf_diorama.draws import Draws
from hf_diorama.questions import MAX_IMAGES, Content, ask, build_prompt, build_turn, draw_contents, multi_image_questions

KIND_WEIGHTS = {"color": 2, "shape": 2, "side": 3, "which": 6, "count": 6, "list": 3, "photo": 2}
TURN_KINDS = [kind for kind, weight in KIND_WEIGHTS.items() for _ in range(weight)]
IMAGE_TOKENS = 16
VALUES = {*NAMES["color"], *NAMES["category"]}
SEARCH_LAYER, SEARCH_HEADS = 2, 2
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


def index_pool(pool: dict[str, np.ndarray], photo_labels: list[str]) -> dict[Content, list[int]]:
    """Returns the images of the pool that show a content."""
    index: dict[Content, list[int]] = defaultdict(list)
    columns = (pool[name].tolist() for name in ("color", "category", "num_objects", "photo"))
    for i, (colors, shapes, num_objects, photo) in enumerate(zip(*columns, strict=True)):
        pairs = list(zip(colors, shapes, strict=True))[:num_objects]
        objects = tuple((NAMES["color"][color], NAMES["category"][shape]) for color, shape in pairs)
        index[Content(objects, None if num_objects else photo_labels[photo])].append(i)
    return index


class Sequences:
    """Draws training sequences: images of the pool, and turns of questions and answers about them."""

    def __init__(self, index: dict[Content, list[int]], tokenizer: PreTrainedTokenizerFast, labels: list[str]):
        self.index, self.labels, self.eos = index, labels, tokenizer.eos_token_id
        self.encode = lambda text: tokenizer.backend_tokenizer.encode(text).ids

    def draw(self, draws: Draws, num_images: int, num_turns: int = 12) -> tuple[list[int], list[int], list[bool]]:
        """Returns rows of the pool, token ids after the images, and which of the tokens belong to an answer."""
        contents = draw_contents(draws, num_images, self.labels)
        while any(content not in self.index for content in contents):
            contents = draw_contents(draws, num_images, self.labels)
        ids: list[int] = []
        is_answer: list[bool] = []
        searches: list[tuple[int, list[tuple[int, int]]]] = []
        while num_turns:
            question = ask(contents, draws.choice(TURN_KINDS), draws)
            if question is not None:
                turn, answer = self.encode(build_turn(question.question)), [*self.encode(question.answer), self.eos]
                if question.kind in ("which", "count"):
                    wanted = VALUES.intersection(re.findall(r"\w+", question.question))
                    objects = [(j, place, item) for j, c in enumerate(contents) for place, item in enumerate(c.objects, 1)]
                    found = [(j, place) for j, place, item in objects if wanted <= set(item)]
                    searches.append((len(ids) + len(turn) - 1, found))
                ids += turn + answer
                is_answer += [False] * len(turn) + [True] * len(answer)
                num_turns -= 1
        return [draws.choice(self.index[content]) for content in contents], ids, is_answer, searches


def answer_logits(model, features, ids, is_answer, numbers):
    """Returns logits (num_answer_tokens, vocab_size) and targets of the answers of sequences with equally many images.

    Args:
        features (`torch.Tensor` of shape `(batch_size, num_images, 16, width)`): features of the tower.
        ids, is_answer (`torch.Tensor` of shape `(batch_size, seq_len)`): text after the images, padded on the right.
        numbers (`torch.Tensor` of shape `(num_images, 2)`): the tokens before each image.
    """
    llava = model.model
    embed = llava.language_model.embed_tokens
    images = llava.multi_modal_projector(features)  # (B, K, 16, D)
    prefix = torch.cat([embed(numbers).to(images.dtype).expand(len(ids), -1, -1, -1), images], dim=2).flatten(1, 2)
    embeds = torch.cat([prefix, embed(ids).to(images.dtype)], dim=1)
    out = llava.language_model(inputs_embeds=embeds, use_cache=False, output_attentions=model.training)
    logits = model.lm_head(out.last_hidden_state[:, prefix.shape[1] - 1 : -1][is_answer])
    return (logits, ids[is_answer], out.attentions[SEARCH_LAYER]) if model.training else (logits, ids[is_answer])


def search_loss(attention, searches, places):
    """Returns how little of some heads' attention the last word of a prompt gives to the objects that it asks for.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, seq_len)`): attention of one layer.
        searches (`list` of one list a sequence): pairs of position in the text and (image, place) of what is asked for.
        places (`torch.Tensor` of shape `(batch_size, num_images, 16)`): place of the object that covers a patch.
    """
    num_images, rows, positions, targets = places.shape[1], [], [], []
    for row, found_in_row in enumerate(searches):
        for position, found in found_in_row:
            target = torch.zeros(num_images, IMAGE_TOKENS + 2, dtype=torch.bool)
            for image, place in found:
                target[image, 2:] |= places[row, image] == place
            target[0, 0] |= not target.any()  # nothing to be found: the first word of all
            rows.append(row), positions.append(position), targets.append(target.flatten())
    prefix = num_images * (IMAGE_TOKENS + 2)
    share = attention[rows, :SEARCH_HEADS, [prefix + p for p in positions], :prefix].float()  # (n, heads, prefix)
    return -((share * torch.stack(targets)[:, None]).sum(-1) + 1e-3).log().mean()


def alignment_loss(model, features, places, labels, words) -> torch.Tensor:
    """Returns how badly projected patches of an object point to the embeddings of its color and of its shape.

    Questions such as "which image shows the red star?" match words with patches: both have to live in one space first.

    Args:
        features (`torch.Tensor` of shape `(..., 16, width)`): features of the tower.
        places (`torch.Tensor` of shape `(..., 16)`): 0, or 1 or 2 where the left or the right object covers the patch.
        labels (`dict` of `torch.Tensor` of shape `(..., 2)`): color and category of the left and the right object.
        words (`dict` of `torch.Tensor`): token ids of the colors and of the categories.
    """
    patches = model.model.multi_modal_projector(features[places > 0])
    embeddings = model.get_input_embeddings().weight.detach()
    loss = torch.zeros(())
    for name, tokens in words.items():
        target = labels[name].gather(-1, (places - 1).clamp(min=0))[places > 0]
        cosine = F.normalize(patches.float(), dim=-1) @ F.normalize(embeddings[tokens], dim=-1).T
        loss = loss + F.cross_entropy(8 * cosine, target)
    return loss


def collate(texts: list[tuple[list[int], list[bool]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and answer mask, padded on the right, where causal attention makes padding harmless."""
    length = max(len(ids) for ids, _ in texts)
    ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in texts])
    return ids, torch.tensor([mask + [False] * (length - len(mask)) for _, mask in texts])


def validate(model, rows, features, sequences: Sequences, numbers, pad: int) -> dict[str, float]:
    """Returns exact match by kind: greedy decoding is exact where the most likely token is right at every place."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, feature in zip(rows, features, strict=True):
        turn, answer = sequences.encode(build_turn(row["question"])), [*sequences.encode(row["answer"]), sequences.eos]
        ids, mask = collate([(turn + answer, [False] * len(turn) + [True] * len(answer))], pad)
        with torch.no_grad():
            logits, target = answer_logits(model, feature[None].float(), ids, mask, numbers[: row["num_images"]])
        hits[row["kind"]].append(bool((logits.argmax(-1) == target).all()))
    return {kind: round(float(np.mean(hit)), 3) for kind, hit in sorted(hits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="folder with CIFAR-10 as Parquet, columns image and label")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of the pool, the tower, the checkpoints")
    parser.add_argument("--output-dir", type=Path, required=True, help="where the model is saved, at every validation")
    parser.add_argument("--num-scenes", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--tokens-per-step", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    photos = load_photos(args.photos)
    labels = photos.features["label"].names
    tokenizer = build_tokenizer(labels)
    model, processor = build_model(tokenizer), build_processor(tokenizer)
    model.set_attn_implementation("eager")  # on the CPU, faster than sdpa at these lengths
    tower = load_file(args.work_dir / "tower.safetensors")
    model.model.vision_tower.load_state_dict({name: x.half().float() for name, x in tower.items()})
    pool = build_pool(args.work_dir / "pool", photos, args.num_scenes, args.seed)
    cache = args.work_dir / "features.npy"
    if not cache.exists():
        np.save(cache, cache_features(model, pool["pixels"]).numpy())
    features = torch.from_numpy(np.load(cache, mmap_mode="c"))
    sequences = Sequences(index_pool(pool, labels), tokenizer, labels)
    words = {name: torch.tensor(tokenizer.convert_tokens_to_ids(list(NAMES[name]))) for name in ("color", "category")}
    names = {name: torch.from_numpy(pool[name]).long() for name in words}
    places = torch.from_numpy(pool["patches"]).long()
    model.model.vision_tower.requires_grad_(False)
    init_projector(model.model.multi_modal_projector, features[::50].float().flatten(0, 1))
    held = [*multi_image_questions(140, split="validation", seed=args.seed, photos=photos),
            *multi_image_questions(42, split="validation", seed=args.seed + 1, photos=photos, num_images=12)]  # fmt: skip
    held_features = [cache_features(model, np.stack([np.asarray(image) for image in row["images"]])) for row in held]
    numbers = torch.tensor([sequences.encode(f"image {i + 1}") for i in range(MAX_IMAGES)])
    assert build_prompt(1, "").startswith("image 1 <image>")  # the layout that `answer_logits` builds

    parameters = [x for x in model.parameters() if x.requires_grad]
    projector = {"params": [*model.model.multi_modal_projector.parameters()], "scale": 0.3}  # else it forgets color
    rest = {"params": [*model.model.language_model.parameters()], "scale": 1.0}  # with the tied output layer
    optimizer = torch.optim.AdamW([projector, rest], weight_decay=0.02, betas=(0.9, 0.98))
    checkpoint = args.work_dir / "llava_checkpoint.safetensors"
    trained = {"projector": model.model.multi_modal_projector, "language_model": model.model.language_model}
    first_step, seconds = load_checkpoint(checkpoint, trained, optimizer)
    started, recent = time.perf_counter() - seconds, []
    for step in range(first_step, args.steps + 1):
        if step % 125 == 0 or step == args.steps:
            model.eval()
            line = {"step": step, "seconds": round(time.perf_counter() - started), "loss": round(np.mean(recent or 0), 4)}
            print(aligned_recent if recent else "", flush=True)
            for name, part in (("1-8", slice(0, 140)), ("12", slice(140, None))):
                line[name] = validate(model, held[part], held_features[part], sequences, numbers, tokenizer.pad_token_id)
            print(json.dumps(line), flush=True)
            model.train()
            save_checkpoint(checkpoint, trained, optimizer, step, time.perf_counter() - started)
            save_pretrained(model, processor, args.output_dir)
            recent = []
        if step == args.steps:
            break
        draws = Draws("llava-nano", args.seed, step)
        largest = min(MAX_IMAGES, 2 + int((MAX_IMAGES - 1) * step / (CURRICULUM * args.steps)))
        num_images = draws.integer(1, min(6, largest) + 1) if draws.chance(0.7) else draws.integer(1, largest + 1)
        batch_size = max(4, args.tokens_per_step // (num_images * (IMAGE_TOKENS + 2) + 215))
        drawn = [sequences.draw(draws, num_images) for _ in range(batch_size)]
        ids, is_answer = collate([(ids, mask) for _, ids, mask, _ in drawn], tokenizer.pad_token_id)
        rows = torch.tensor([rows for rows, _, _, _ in drawn])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, target, attention = answer_logits(model, features[rows].float(), ids, is_answer, numbers[:num_images])
            aligned = alignment_loss(model, features[rows].float(), places[rows], {k: names[k][rows] for k in words}, words)
        loss = F.cross_entropy(logits.float(), target) + 0.3 * aligned
        found = search_loss(attention, [x for *_, x in drawn], places[rows]) if any(x for *_, x in drawn) else torch.zeros(())
        loss = loss + 0.3 * found
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * group["scale"] * one_cycle(step, args.steps, 0.02, 0.5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append((loss - 0.3 * aligned - 0.3 * found).item())
        aligned_recent = (aligned.item(), found.item())


if __name__ == "__main__":
    main()
