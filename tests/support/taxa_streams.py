"""Files of small images with taxa or captions, a tiny CLIP, and a training that can be killed."""

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from support.taxa import TAXA
from taxaclip import RANKS, ReplayCLIPModel
from taxaclip.taxonomy import TEXT_TYPES


def draw(number: int) -> bytes:
    """A PNG of noise around the colour of a taxon."""
    generator = np.random.default_rng(number)
    color = np.random.default_rng(number % len(TAXA) + 1000).integers(0, 200, 3)
    pixels = (color + generator.integers(0, 50, (16, 16, 3))).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def write_parquet(folder: Path, files: int = 4, rows: int = 6, text: str = "taxa") -> list[str]:
    """Parquet files whose images are numbered, in the column `number`, over all files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in range(files):
        numbers = range(file * rows, (file + 1) * rows)
        columns: dict[str, Any] = {"image": [draw(number) for number in numbers], "number": list(numbers)}
        taxa = [TAXA[number % len(TAXA)] for number in numbers]
        if text == "taxa":
            columns |= {rank: [taxon.names[column] for taxon in taxa] for column, rank in enumerate(RANKS)}
            columns["common_name"] = [taxon.common_name for taxon in taxa]
        else:
            columns["text"] = [f"general {number}" for number in numbers]
        paths.append(str(folder / f"{text}-{file}.parquet"))
        pq.write_table(pa.table(columns), paths[-1])
    return paths


def write_tar(path: Path, numbers: range, layout: str) -> str:
    """A webdataset tar: with `json`, with the text files of BioCLIP's tars, or with one caption."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            taxon = TAXA[number % len(TAXA)]
            parts = {"png": draw(number)}
            if layout == "json":
                record = {**dict(zip(RANKS, taxon.names, strict=True)), "common_name": taxon.common_name}
                parts["json"] = json.dumps(record).encode()
            elif layout == "texts":
                tag = " ".join(f"{rank} {name}" for rank, name in zip(RANKS, taxon.names, strict=True) if name)
                parts |= {f"{kind}.txt": taxon.caption(kind).encode() for kind in TEXT_TYPES}
                parts["taxonTag.txt"] = f"a photo of {tag}.".encode()
            else:
                parts["txt"] = f"general {number}".encode()
            for suffix, data in parts.items():
                entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return str(path)


def build_processor() -> CLIPProcessor:
    """Images of 16 pixels, and bytes as tokens."""
    symbols = sorted(ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate([*symbols, *(f"{symbol}</w>" for symbol in symbols)])}
    tokenizer = CLIPTokenizer(vocab={**vocab, "<|startoftext|>": 598, "<|endoftext|>": 599}, merges=[])
    size = {"height": 16, "width": 16}
    return CLIPProcessor(CLIPImageProcessorPil(size=size, do_center_crop=False), tokenizer)


def build_model(replay: bool = False, dropout: float = 0.0) -> CLIPModel:
    """A CLIP of 30 thousand weights, always the same."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower["attention_dropout"] = dropout
    text = {**tower, "vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "max_position_embeddings": 77}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, logit_scale_init_value=2.0)
    return (ReplayCLIPModel if replay else CLIPModel)(config)


def train(folder: Path, steps: int, **options: Any) -> Any:
    """Trains with replay on the files in a folder, from its last whole checkpoint, and returns the trainer."""
    from taxaclip.streams import ImageTextStream
    from taxaclip.training import ContrastiveArguments, ContrastiveTrainer

    values = {"per_device_train_batch_size": 4, "replay_batch_size": 2, "save_steps": 2, "learning_rate": 1e-2}
    values["lr_scheduler_type"] = "constant"  # of any number of steps
    quiet = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 2, "report_to": []}
    args = ContrastiveArguments(str(folder / "out"), max_steps=steps, **{**values, **quiet, **options})
    taxa = ImageTextStream(sorted(folder.glob("taxa-*.parquet")), buffer_size=8, seed=3)
    general = ImageTextStream(sorted(folder.glob("captions-*.parquet")), text="captions", buffer_size=5)
    trainer = ContrastiveTrainer(build_model(replay=True, dropout=0.2), args, build_processor(), taxa, general)
    trainer.train(resume_from_checkpoint=True)
    return trainer


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), dataloader_num_workers=int(sys.argv[3]))
