"""Creatures: do more images and hierarchical captions do for a small CLIP what BioCLIP 2 reports of a large one?

A CLIP of 64 pixels is trained from scratch by `ContrastiveTrainer`: the same number of steps on 1k, 4k, 16k or 64k
images of 96 species, so that only their variety differs. `hierarchical` captions are the five texts of BioCLIP, `flat`
ones name the epithet alone, which relatives do not share. Held-out images of these species are named by the text
embeddings of all 96, probabilities of higher ranks are sums; geometry and alignment are those of image embeddings, of
the sexes and life stages within species, and of the niche, which decides the beak and which background is frequent.
Values are means over seeds (weights and order of the data; the images are the same) with a 95 percent t-interval. A
claim is a difference seed by seed; it holds if its interval is above 0. Trainings are kept in the temporary folder, so
that a stopped run goes on with the next one; remove them there to train again.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.logging import tqdm

import hf_diorama as dio
from taxaclip import RANKS, TaxonIndex, TaxonPath, taxonomy_alignment, trait_alignment
from taxaclip.geometry import class_separability, variation_geometry
from taxaclip.images import embed_pixels
from taxaclip.streams import ImageTextStream, Sample, parse_taxon
from taxaclip.taxonomy import TEXT_TYPES
from taxaclip.texts import embed_names
from taxaclip.training import ContrastiveArguments, ContrastiveTrainer

SIZES = (1_000, 4_000, 16_000, 64_000)
KINDS = ("hierarchical", "flat")
SEEDS = (0, 1, 2)
STEPS, BATCH = 300, 128  # 38,400 images a training
NUM_TEST = 4_800
PIXELS = 64
T_95 = {2: 12.706, 3: 4.303}  # Student's t by the number of seeds

Row = dict[str, Any]


def read_taxon(row: Row) -> TaxonPath:
    return TaxonPath((*(row[rank] for rank in RANKS[:-1]), row["epithet"]), row["common_name"])


def describe(taxon: TaxonPath, kind: str) -> str:
    """What names a taxon in the captions of a kind."""
    return taxon.taxonomic_name if kind == "hierarchical" else taxon.names[-1]


def parse_flat(row: Any) -> Sample:
    """A creature whose caption has nothing in common with that of its relatives."""
    sample = parse_taxon(row)
    assert sample.taxon is not None
    return Sample(sample.image, sample.taxon, {"sci": f"a photo of {describe(sample.taxon, 'flat')}."})


def write_creatures(folder: Path, sizes: tuple[int, ...]) -> Row:
    """Parquet files of at most 4,000 creatures; the first ones of a data set are all of a smaller one."""
    rows = dio.load("creatures", split="train", n=sizes[-1], image_size=PIXELS)
    columns = rows.remove_columns("species").rename_column("epithet", "species")
    columns = columns.select_columns(["image", "common_name", *RANKS])
    for low, high in itertools.pairwise((0, *sizes)):
        for at in range(low, high, 4_000):
            path = folder / f"creatures-{at:06d}.parquet"
            columns.select(range(at, min(at + 4_000, high))).to_parquet(path)
    return {"images": sizes[-1]}


def find_files(folder: Path, num_images: int) -> list[Path]:
    """The files of the first images."""
    return [path for path in folder.glob("creatures-*.parquet") if int(path.stem[-6:]) < num_images]


@lru_cache(maxsize=1)
def build_processor() -> CLIPProcessor:
    """64 pixels as they are, and a vocabulary of 1,024 made from all captions."""
    rows = dio.load("creatures", split="train", n=2_000, image_size=PIXELS).remove_columns(["image", "part_masks"])
    captions = [taxon.caption(kind) for taxon in dict.fromkeys(map(read_taxon, rows)) for kind in TEXT_TYPES]
    letters = sorted(ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    plain = CLIPTokenizer(vocab={**vocab, "<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}, merges=[])
    tokenizer = plain.train_new_from_iterator(sorted(captions), vocab_size=1_024)
    return CLIPProcessor(CLIPImageProcessorPil(do_resize=False, do_center_crop=False), tokenizer)


def build_model(seed: int) -> CLIPModel:
    set_seed(seed)
    tokenizer = build_processor().tokenizer
    shared = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "projection_dim": 64}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**shared, **ids, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 48}
    vision = {**shared, "num_hidden_layers": 4, "image_size": PIXELS, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    model.set_attn_implementation("eager")  # faster than sdpa at so few tokens
    return model


def train(
    model: CLIPModel,
    stream: ImageTextStream,
    steps: int,
    seed: int,
    replay_stream: ImageTextStream | None = None,
    **options: Any,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            warmup_steps=steps // 10,
            seed=seed,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=max(steps // 5, 1),
            **{"learning_rate": 1.5e-3, **options},
        )
        ContrastiveTrainer(model, args, build_processor(), stream, replay_stream).train()
    model.eval()


@lru_cache(maxsize=1)
def load_test(count: int) -> Row:
    """Held-out creatures: pixels, taxa, and what varies within species."""
    rows = dio.load("creatures", split="heldout", n=count, seed=3_000, image_size=PIXELS)
    taxa = list(map(read_taxon, rows.remove_columns(["image", "part_masks"])))
    known = sorted(set(taxa), key=lambda taxon: taxon.names)
    order = {taxon: number for number, taxon in enumerate(known)}
    niches, beaks = rows.features["niche"].int2str(rows["niche"][:]), np.array(rows["beak_length"][:])
    labels = np.array([order[taxon] for taxon in taxa])
    return {
        "pixels": build_processor().image_processor(rows["image"][:], return_tensors="pt")["pixel_values"],
        "taxa": known,
        "labels": torch.from_numpy(labels),
        "variants": {name: torch.tensor(rows[name][:]) for name in ("sex", "life_stage")},
        "niche": [next(n for n, label in zip(niches, labels, strict=True) if label == k) for k in range(len(known))],
        "beak": [float(beaks[labels == number].mean()) for number in range(len(known))],
    }


def embed(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([embed_pixels(model, part) for part in pixels.split(200)])


def name_ranks(model: CLIPModel, embeds: torch.Tensor, test: Row, kind: str) -> Row:
    """The share of images named rightly at each rank that has several groups."""
    texts = embed_names(model, build_processor(), [describe(taxon, kind) for taxon in test["taxa"]])
    index = TaxonIndex(test["taxa"], texts, logit_scale=model.logit_scale.exp().item(), dtype="float32")
    scores, found = index.score(embeds), {}
    for rank in ("order", "family", "genus", "species"):
        truth = torch.bucketize(test["labels"], scores.offsets[rank][1:], right=True)  # taxa are sorted by path
        found[rank] = float((scores.probs[rank].argmax(dim=1) == truth).double().mean())
    return found


def measure_geometry(embeds: torch.Tensor, test: Row) -> Row:
    """Variation within species: mean over families, of whose eight species the subspace is that of the differences."""
    families = [taxon.names[:5] for taxon in test["taxa"]]
    found: Row = {"species separability": class_separability(embeds, test["labels"])}
    for name, variants in test["variants"].items():
        ratios, chances, fishers, nulls = [], [], [], []
        for family in dict.fromkeys(families):
            members = [number for number, other in enumerate(families) if other == family]
            rows = torch.isin(test["labels"], torch.tensor(members))
            species, x = test["labels"][rows] - members[0], embeds[rows]
            result = variation_geometry(x, species, variants[rows])
            shuffled = variants[rows].clone()
            generator = torch.Generator().manual_seed(0)
            for number in range(len(members)):
                mine = torch.nonzero(species == number).flatten()
                shuffled[mine] = shuffled[mine[torch.randperm(len(mine), generator=generator)]]
            ratios.append(result.explained_variance_ratio)
            chances.append(result.chance)
            fishers += result.fisher_ratio
            nulls += variation_geometry(x, species, shuffled).fisher_ratio
        found[f"{name}: explained-variance ratio"] = float(np.mean(ratios))
        found[f"{name}: chance"] = float(np.mean(chances))
        found[f"{name}: Fisher ratio"] = float(np.mean(fishers))
        found[f"{name}: Fisher ratio, variants shuffled"] = float(np.mean(nulls))
    return found


def measure_alignment(embeds: torch.Tensor, test: Row) -> Row:
    means = torch.stack([embeds[test["labels"] == number].mean(dim=0) for number in range(len(test["taxa"]))])
    found = {"taxonomy alignment": taxonomy_alignment(means, test["taxa"]).correlation}
    for trait in ("niche", "beak"):
        options: Row = {"num_permutations": 199, "generator": torch.Generator().manual_seed(0)}
        result = trait_alignment(means, test[trait], test["taxa"], **options)
        found |= {f"{trait} alignment": result.mantel.correlation}
        found |= {f"{trait} beyond ancestry": result.partial.correlation, f"{trait}: p": result.partial.p_value}
    return found


def train_scaling(folder: Path, kind: str, num_images: int, seed: int, *, steps: int, num_test: int) -> Row:
    """What a CLIP has learned from so many images; 0 for one of random weights."""
    model = build_model(seed)
    if num_images:
        stream = ImageTextStream(find_files(folder, num_images), seed=seed)
        stream.parse = parse_taxon if kind == "hierarchical" else parse_flat
        mix = None if kind == "hierarchical" else {"sci": 1.0}
        train(model, stream, steps, seed, targets="multi", text_mix=mix)
    model.eval()
    test = load_test(num_test)
    embeds = embed(model, test["pixels"])
    return name_ranks(model, embeds, test, kind) | measure_geometry(embeds, test) | measure_alignment(embeds, test)


def keep(folder: Path, name: str, compute: Callable[[], Row]) -> Row:
    """The result of a training, from its file if there is one."""
    path = folder / f"{name}.json"
    if not path.exists():
        path.with_suffix(".part").write_text(json.dumps(compute()), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def average(values: list[float], **about: Any) -> Row:
    mean, spread = float(np.mean(values)), 0.0
    if len(values) > 1:
        spread = T_95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return {
        **about,
        "value": mean,
        "low": mean - spread,
        "high": mean + spread,
        "seeds": len(values),
        "samples": values,
    }


def measure_pixels(test: Row) -> Row:
    """The same geometry and alignment of the images themselves, at 8 x 8 pixels."""
    small = torch.nn.functional.adaptive_avg_pool2d(test["pixels"], 8).flatten(1)
    embeds = torch.nn.functional.normalize(small, dim=1)
    return measure_geometry(embeds, test) | measure_alignment(embeds, test)


def compare(claim: str, left: list[float], right: list[float]) -> Row:
    """Differences seed by seed; the claim holds if all of their interval is above 0."""
    row = average([one - other for one, other in zip(left, right, strict=True)], claim=claim)
    return row | {"holds": row["low"] > 0}


def judge(found: dict[tuple[str, int], list[Row]], sizes: tuple[int, ...]) -> list[Row]:
    """What the paper claims, each as a difference that should be positive."""

    def get(name: str, kind: str = "hierarchical", size: int = sizes[-1]) -> list[float]:
        return [one[name] for one in found[kind, size]]

    few, rows = sizes[0], []
    for rank in ("species", "genus", "family"):
        rows.append(compare(f"{rank}: more images, more right", get(rank), get(rank, size=few)))
        rows.append(compare(f"{rank}: more right than with flat captions", get(rank), get(rank, "flat")))
    for name in ("sex", "life_stage"):
        ratio, fisher, chance = (f"{name}: {what}" for what in ("explained-variance ratio", "Fisher ratio", "chance"))
        rows.append(compare(f"{name}: more images, more orthogonal to species", get(ratio, size=few), get(ratio)))
        rows.append(compare(f"{name}: more orthogonal than by chance", get(chance), get(ratio)))
        rows.append(compare(f"{name}: more orthogonal than with flat captions", get(ratio, "flat"), get(ratio)))
        rows.append(compare(f"{name}: more images, higher Fisher ratio", get(fisher), get(fisher, size=few)))
        rows.append(compare(f"{name}: higher Fisher ratio than random weights", get(fisher), get(fisher, size=0)))
    for name in ("niche beyond ancestry", "beak beyond ancestry"):
        rows.append(compare(f"{name}: above 0", get(name), [0.0] * len(get(name))))
        rows.append(compare(f"{name}: above random weights", get(name), get(name, size=0)))
        rows.append(compare(f"{name}: more images, more", get(name), get(name, size=few)))
        rows.append(compare(f"{name}: above flat captions", get(name), get(name, "flat")))
    name = "taxonomy alignment"
    rows.append(compare(f"{name}: more images, more", get(name), get(name, size=few)))
    rows.append(compare(f"{name}: above flat captions", get(name), get(name, "flat")))
    return rows


def find_folder(name: str, *about: Any) -> Path:
    """Where trainings with these numbers are kept."""
    digest = hashlib.sha256(repr((STEPS, BATCH, PIXELS, *about)).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / name / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(*, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    sizes, seeds, num_test = ((100, 200), (0, 1), 3_200) if quick else (SIZES, SEEDS, NUM_TEST)
    folder = find_folder("taxaclip-creatures", sizes, num_test)
    keep(folder, "files", lambda: write_creatures(folder, sizes))
    found: dict[tuple[str, int], list[Row]] = {}
    plan = [(kind, size, seed) for seed in seeds for size in (0, *sizes) for kind in KINDS[: 2 if size else 1]]
    for kind, size, seed in tqdm(plan, desc="trainings"):
        train_this = partial(train_scaling, folder, kind, size, seed, steps=2 if quick else STEPS, num_test=num_test)
        found.setdefault((kind, size), []).append(keep(folder, f"{kind}-{size}-{seed}", train_this))
    rows = [
        average(
            [one[name] for one in ones], captions=kind if size else "random weights", num_images=size, measure=name
        )
        for (kind, size), ones in found.items()
        for name in ones[0]
    ]
    test = load_test(num_test)
    small = torch.nn.functional.adaptive_avg_pool2d(test["pixels"], 8).flatten(1)
    embeds = torch.nn.functional.normalize(small, dim=1)
    pixels = measure_geometry(embeds, test) | measure_alignment(embeds, test)
    rows += [average([value], captions="8 x 8 pixels", num_images=0, measure=name) for name, value in pixels.items()]
    for row in rows:
        if row["measure"] in ("species", "genus", "family"):  # for the figure
            row |= {"accuracy": row["value"], "line": f"{row['captions']}, {row['measure']}"}
    return rows + judge(found, sizes)


PLOT = {"x": "num_images", "y": "accuracy", "low": "low", "high": "high", "line": "line"}
