"""Pool of labelled images that both stages of llava-nano's training draw from; rendered once, shard by shard."""

from concurrent.futures import ProcessPoolExecutor
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
SHARD = 2_500  # images in a file of the pool


def load_photos(folder: str, split: str = "train") -> datasets.Dataset:
    """Returns the photos of a folder of Parquet files named by split, with the columns `image` and `label`."""
    return datasets.load_dataset("parquet", data_files=str(Path(folder) / f"{split}-*.parquet"), split="train")


def _patch_objects(mask: np.ndarray, rank: list[int]) -> np.ndarray:
    """Returns for each patch the place (1 = left, 2 = right) of the object that covers a tenth of it, else 0."""
    patches = mask.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2).reshape(GRID * GRID, -1)
    areas = np.stack([(patches == place + 1).sum(axis=1) for place in rank])
    return np.where(areas.max(axis=0) * 10 >= PATCH_SIZE**2, areas.argmax(axis=0) + 1, 0)


def _empty(size: int) -> dict[str, np.ndarray]:
    arrays = {name: np.full((size, 2), -1, np.int8) for name in NAMES}
    arrays |= {"num_objects": np.zeros(size, np.int8), "photo": np.full(size, -1, np.int8)}
    arrays["patches"] = np.zeros((size, GRID * GRID), np.int8)
    arrays["pixels"] = np.empty((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return arrays


def _save(arrays: dict[str, np.ndarray], file: Path) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)
    partial.replace(file)


def _render_shard(file: Path, start: int, size: int, seed: int, photos: datasets.Dataset) -> None:
    """Renders scenes of one or two objects, half of them on photos, and their labels."""
    arrays = _empty(size)
    for i in range(size):
        draws = Draws("llava-nano pool", seed, start + i)
        pinned = [(draws.choice(NAMES["color"]), draws.choice(SHAPES)) for _ in range(1 + ((start + i) % 5 > 1))]
        key = RowKey(world="scenes", version=SCENES.version, split="train", seed=seed, index=start + i)
        row = SCENES.render(key, IMAGE_SIZE, pinned=pinned, photos=photos)
        arrays["pixels"][i] = row["image"]
        arrays["num_objects"][i] = len(pinned)
        arrays["patches"][i] = _patch_objects(np.asarray(row["mask"]), list(range(len(pinned))))
        for name, column in (("color", "color_name"), ("category", "category"), ("texture", "texture")):
            values = [NAMES[name].index(item[column]) for item in row["objects"]]
            arrays[name][i] = values[0], values[-1]
    _save(arrays, file)


def _fit_photos(file: Path, photos: datasets.Dataset) -> None:
    arrays = _empty(len(photos))
    for i, photo in enumerate(tqdm(photos["image"], desc="photos")):
        arrays["pixels"][i] = ImageOps.fit(photo.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    arrays["photo"][:] = photos["label"][:]
    _save(arrays, file)


def build_pool(
    folder: Path, photos: datasets.Dataset, num_scenes: int, seed: int, with_pixels: bool = True, num_workers: int = 1
) -> dict[str, np.ndarray]:
    """Returns the pool, scenes first, then the photos; renders the shards that the folder does not hold yet.

    Returns:
        `dict` of arrays, one row an image: `pixels` (uint8, height x width x 3), `color`, `category`, `texture` (of
        the left and the right object, equal if there is one, -1 in photos), `num_objects`, `patches` (see above) and
        `photo` (class, -1 in scenes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, num_scenes, SHARD)
    files = {folder / f"scenes-{start:06d}.npz": (start, min(SHARD, num_scenes - start)) for start in starts}
    missing = {file: span for file, span in files.items() if not file.exists()}
    with ProcessPoolExecutor(num_workers) as workers:
        jobs = [workers.submit(_render_shard, file, *span, seed, photos) for file, span in missing.items()]
        for job in tqdm(jobs, desc=f"shards of {SHARD} scenes"):
            job.result()
    if not (folder / "photos.npz").exists():
        _fit_photos(folder / "photos.npz", photos)
    shards = [np.load(file) for file in (*files, folder / "photos.npz")]
    names = [name for name in shards[0].files if with_pixels or name != "pixels"]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in names}
