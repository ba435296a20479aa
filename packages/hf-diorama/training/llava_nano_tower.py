"""What the tower of llava-nano is trained with: how it starts, the heads that read it, and their losses."""

import numpy as np
import torch
import torch.nn.functional as F
from llava_nano_data import GRID, NAMES, PATCH_SIZE
from llava_nano_model import VISION_CONFIG
from transformers import CLIPVisionModel


def to_pixel_values(pixels: np.ndarray) -> torch.Tensor:
    """Returns what the processor makes of these images: (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def init_mimetic(tower: CLIPVisionModel) -> None:
    """Starts queries as copies of keys, so that alike patches attend to each other, and positions as sines."""
    width = VISION_CONFIG.hidden_size
    for name, module in tower.named_modules():
        if name.endswith("self_attn"):
            torch.nn.init.normal_(module.k_proj.weight, std=width**-0.5)
            module.q_proj.weight.data.copy_(module.k_proj.weight)
            module.v_proj.weight.data.copy_(torch.eye(width) * 0.4 + torch.randn(width, width) * 0.4 * width**-0.5)
            module.out_proj.weight.data.copy_(-torch.eye(width) * 0.4 + torch.randn(width, width) * 0.4 * width**-0.5)
        if name.endswith("position_embedding"):
            waves = torch.outer(torch.arange(GRID), 4.0 ** -torch.linspace(0, 1, width // 4))
            waves = torch.cat([waves.sin(), waves.cos()], dim=1) * 0.5  # (GRID, width / 2)
            rows, columns = waves.repeat_interleave(GRID, 0), waves.repeat(GRID, 1)
            module.weight.data[1:] = torch.cat([rows, columns], dim=1)


def init_filters(tower: CLIPVisionModel, pixels: np.ndarray) -> None:
    """Starts the patch filters as whitened principal components of the patches of these images."""
    filters = tower.embeddings.patch_embedding
    patches = F.unfold(to_pixel_values(pixels), PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    values, vectors = values[-VISION_CONFIG.hidden_size :], vectors[:, -VISION_CONFIG.hidden_size :]
    rotation = torch.linalg.qr(torch.randn(len(values), len(values)))[0]
    filters.weight.data.copy_(((vectors / (values + 1e-2).sqrt()) @ rotation * 0.5).T.reshape(filters.weight.shape))


class Heads(torch.nn.Module):
    """Reads patch features: each patch, a left and a right object by attention pooling, and the class of a photo."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.queries = torch.nn.Parameter(torch.randn(2, width) * width**-0.5)
        self.key = torch.nn.Linear(width, width)
        self.patch = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(v) + 1) for name, v in NAMES.items()})
        self.side = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(v)) for name, v in NAMES.items()})
        self.photo = torch.nn.Linear(width, 10)

    def forward(self, features: torch.Tensor) -> tuple[dict, dict, torch.Tensor]:
        x = self.norm(features)  # (B, N, D)
        pooled = (self.key(x) @ self.queries.T).softmax(dim=1).transpose(1, 2) @ x  # (B, 2, D)
        patch = {name: head(x) for name, head in self.patch.items()}
        return patch, {name: head(pooled) for name, head in self.side.items()}, self.photo(x.mean(dim=1))


def losses_and_hits(heads: Heads, features: torch.Tensor, batch: dict[str, torch.Tensor], smoothing: float):
    """Returns the sum of the losses, and which images each task got right."""
    patch, side, photo = heads(features)
    is_scene = batch["photo"] < 0
    loss = F.cross_entropy(photo[~is_scene], batch["photo"][~is_scene], label_smoothing=smoothing)
    hits = {"photo": (photo.argmax(-1) == batch["photo"])[~is_scene]}
    place = batch["patches"][is_scene]
    for name in NAMES:
        target, weight = batch[name][is_scene], 0.3 if name == "texture" else 1.0
        loss = loss + weight * F.cross_entropy(side[name][is_scene].flatten(0, 1), target.flatten())
        here = torch.where(place > 0, target.gather(1, (place - 1).clamp(min=0)) + 1, 0)
        loss = loss + weight * F.cross_entropy(patch[name][is_scene].flatten(0, 1), here.flatten())
        hits[name] = (side[name].argmax(-1)[is_scene] == target).all(dim=1)
    return loss, hits
