"""Pool of labelled images that both stages of llava-nano's training draw from; rendered once, kept in memory maps."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes import COLORS, SCENES, SHAPES, TEXTURES

IMAGE_SIZE, PATCH_SIZE = 64, 16
GRID = IMAGE_SIZE // PATCH_SIZE
NAMES = {"color": tuple(COLORS), "category": SHAPES, "texture": TEXTURES}


def load_photos(folder: str, split: str = "train") -> datasets.Dataset:
    """Returns the photos of a folder of Parquet files named by split, with the columns `image` and `label`."""
    return datasets.load_dataset("parquet", data_files=str(Path(folder) / f"{split}-*.parquet"), split="train")


def _patch_objects(mask: np.ndarray, rank: list[int]) -> np.ndarray:
    """Returns for each patch the place (1 = left, 2 = right) of the object that covers a tenth of it, else 0."""
    patches = mask.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2).reshape(GRID * GRID, -1)
    areas = np.stack([(patches == place + 1).sum(axis=1) for place in rank])
    return np.where(areas.max(axis=0) * 10 >= PATCH_SIZE**2, areas.argmax(axis=0) + 1, 0)


def build_pool(folder: Path, photos: datasets.Dataset, num_scenes: int, seed: int) -> dict[str, np.ndarray]:
    """Renders the pool if the folder does not hold it: scenes of one or two objects, half on photos, then the photos.

    Returns:
        `dict` of arrays, one row an image: `pixels` (uint8, height x width x 3), `color`, `category`, `texture` (of
        the left and the right object, equal if there is one, -1 in photos), `num_objects`, `patches` (see above) and
        `photo` (class, -1 in scenes).
    """
    names = ("pixels", "color", "category", "texture", "num_objects", "patches", "photo")
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        size = num_scenes + len(photos)
        pixels = np.lib.format.open_memmap(
            folder / "pixels.npy", "w+", dtype=np.uint8, shape=(size, IMAGE_SIZE, IMAGE_SIZE, 3)
        )
        labels = {name: np.full((size, 2), -1, np.int8) for name in NAMES}
        rest = {"num_objects": np.zeros(size, np.int8), "photo": np.full(size, -1, np.int8)}
        patches = np.zeros((size, GRID * GRID), np.int8)
        backgrounds = [photo["image"].convert("RGB") for photo in photos]
        for i in tqdm(range(num_scenes), desc="scenes"):
            draws = Draws("llava-nano pool", seed, i)
            pinned = [(draws.choice(NAMES["color"]), draws.choice(SHAPES)) for _ in range(1 + (i % 5 > 1))]
            key = RowKey(world="scenes", version=SCENES.version, split="train", seed=seed, index=i)
            row = SCENES.render(key, IMAGE_SIZE, pinned=pinned, photos=backgrounds)
            pixels[i] = row["image"]
            rest["num_objects"][i] = len(pinned)
            patches[i] = _patch_objects(np.asarray(row["mask"]), list(range(len(pinned))))
            for name, column in (("color", "color_name"), ("category", "category"), ("texture", "texture")):
                values = [NAMES[name].index(item[column]) for item in row["objects"]]
                labels[name][i] = values[0], values[-1]
        for i, photo in enumerate(tqdm(backgrounds, desc="photos"), start=num_scenes):
            pixels[i] = ImageOps.fit(photo, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        rest["photo"][num_scenes:] = photos["label"][:]
        pixels.flush()
        for name, array in {**labels, **rest, "patches": patches}.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "done").touch()
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "pixels" else None) for name in names}
