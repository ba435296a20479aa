"""Seeded worlds with exact ground truth, and nano models trained in them."""

from hf_diorama.api import list_worlds, load, render, stream
from hf_diorama.checkpoints import list_models, model_path
from hf_diorama.domains import shift
from hf_diorama.questions import multi_image_questions
from hf_diorama.real_images import load_photos
from hf_diorama.worlds.creatures import counterfactual, discriminating_parts

__version__ = "0.1.0"

__all__ = [
    "counterfactual",
    "discriminating_parts",
    "list_models",
    "list_worlds",
    "load",
    "load_photos",
    "model_path",
    "multi_image_questions",
    "render",
    "shift",
    "stream",
]
