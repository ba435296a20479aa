"""Embeds each image of a pool once, resumably."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets.utils import tqdm
from PIL import Image

from hf_compbench.fingerprints import hash_texts, hash_weights

Floats = npt.NDArray[np.float32]
Embedder = Callable[[Sequence[Image.Image]], Floats]
"""Images -> embeddings of shape `(num_images, size)`; its `name` stands for its weights and processor in the cache."""


class PixelEmbedder:
    """Embeds by colour histogram and gradient directions on a grid: small, deterministic, and no network at all.

    It sees composition and colour, not meaning. It is there for tests and for pools whose metadata do the work.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_compbench.mining import PixelEmbedder
    >>> PixelEmbedder()([Image.new("RGB", (64, 64), "red")]).shape
    (1, 192)

    ```
    """

    name = "pixel-v1"

    def __call__(self, images: Sequence[Image.Image]) -> Floats:
        """Returns one embedding for each image, of unit length."""
        return np.stack([self._embed(image) for image in images])

    def _embed(self, image: Image.Image) -> Floats:
        pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).astype(np.int64)
        bins = (pixels // 64 * np.array([16, 4, 1])).sum(axis=-1).ravel()
        color = np.sqrt(np.bincount(bins, minlength=64) / bins.size)
        gray = pixels.sum(axis=-1) / 765
        dy, dx = np.gradient(gray)
        direction = ((np.arctan2(dy, dx) + np.pi) / (2 * np.pi) * 8).astype(int) % 8
        cell = np.arange(32)[:, None] // 8 * 4 + np.arange(32)[None, :] // 8
        shape = np.bincount((cell * 8 + direction).ravel(), weights=np.hypot(dx, dy).ravel(), minlength=128)
        shape = shape / (np.linalg.norm(shape) + 1e-9)
        return normalise_embeddings(np.concatenate([color, shape]).astype(np.float32))


class TransformersEmbedder:
    """Embeds by any image tower of transformers: CLIP and SigLIP by their image features, others by pooled output.

    Args:
        model: Hub id or folder. The paper used `openai/clip-vit-large-patch14`.
        device: where it runs.

    Example:

    ```python
    >>> from hf_compbench.mining import TransformersEmbedder
    >>> import hf_diorama
    >>> from PIL import Image
    >>> embedder = TransformersEmbedder(hf_diorama.model_path("vit-nano"))
    >>> embedder([Image.new("RGB", (64, 64), "red")]).shape[0]
    1

    ```
    """

    def __init__(self, model: str, device: str = "cpu"):
        try:
            from transformers import AutoImageProcessor, AutoModel
            from transformers.utils import logging as transformers_logging
        except ImportError:
            raise ImportError('Image towers need the extra "mining": pip install "hf-compbench[mining]".') from None

        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # heads that an image tower does not use
        try:
            self.model = AutoModel.from_pretrained(model, dtype="float32").eval().to(device)
        finally:
            transformers_logging.set_verbosity(verbosity)
        self.processor = AutoImageProcessor.from_pretrained(model)
        commit = str(getattr(self.model.config, "_commit_hash", None) or "")
        self.name = f"{model}:{hash_texts(commit, hash_weights(str(model)), self.processor.to_json_string())}"
        self.device = device

    def __call__(self, images: Sequence[Image.Image]) -> Floats:
        """Returns one embedding for each image, of unit length."""
        import torch

        inputs = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            if hasattr(self.model, "get_image_features"):
                output = self.model.get_image_features(pixel_values=inputs["pixel_values"])
            else:
                output = self.model(**inputs)
        if not isinstance(output, torch.Tensor):
            pooled = getattr(output, "pooler_output", None)
            output = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return normalise_embeddings(output.flatten(1).float().cpu().numpy())


def normalise_embeddings(embeddings: Floats) -> Floats:
    """Returns the embeddings scaled to unit length; zero stays zero."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    scaled: Floats = (embeddings / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled


def embed_images(
    dataset: datasets.Dataset,
    embedder: Any,
    *,
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
    shard_size: int = 1024,
) -> Floats:
    """Returns the embedding of each row's `image`, every row embedded once.

    Args:
        dataset: has a column `image`.
        embedder: as [`PixelEmbedder`] or [`TransformersEmbedder`].
        cache_dir: folder where finished shards are kept (Parquet, float16); a second call, also after a crash, only
            embeds what is missing. None keeps nothing and loses nothing to float16.
        batch_size: images embedded at once.
        shard_size: images of a shard.

    Returns:
        `numpy.ndarray` of shape `(num_rows, size)`, float32, rows of unit length.
    """
    folder = None
    if cache_dir is not None:
        name = datasets.fingerprint.Hasher.hash([dataset._fingerprint, embedder.name, shard_size])
        folder = Path(cache_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with tqdm(total=len(dataset), desc="Embedding", unit=" images", disable=None) as progress:
        for start in range(0, len(dataset), shard_size):
            stop = min(start + shard_size, len(dataset))
            parts.append(_embed_shard(dataset, embedder, start, stop, folder, batch_size))
            progress.update(stop - start)
    return np.concatenate(parts)


def _embed_shard(
    dataset: datasets.Dataset, embedder: Any, start: int, stop: int, folder: Path | None, batch_size: int
) -> Floats:
    path = folder / f"{start:09d}.parquet" if folder else None
    if path and path.exists():
        stored = datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / ".read"), keep_in_memory=True)
        return normalise_embeddings(np.asarray(stored["embedding"][:], dtype=np.float32))
    batches = [embedder(dataset[low : min(low + batch_size, stop)]["image"]) for low in range(start, stop, batch_size)]
    embeddings = np.concatenate(batches)
    if path:
        features = datasets.Features({"embedding": datasets.List(datasets.Value("float16"))})
        halves = embeddings.astype(np.float16)
        partial = path.with_suffix(".part")
        datasets.Dataset.from_dict({"embedding": list(halves)}, features=features).to_parquet(str(partial))
        partial.replace(path)
        return normalise_embeddings(halves.astype(np.float32))
    return embeddings
