"""World `scenes`: small renderers with full annotations over shared primitives, one module a topic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from hf_diorama.arguments import check_bounds
from hf_diorama.worlds.base import RowKey, World
from hf_diorama.worlds.scenes.action import render_action
from hf_diorama.worlds.scenes.attribute import render_attribute
from hf_diorama.worlds.scenes.color import render_color
from hf_diorama.worlds.scenes.counting import render_counting
from hf_diorama.worlds.scenes.depth import render_depth
from hf_diorama.worlds.scenes.emotion import render_emotion
from hf_diorama.worlds.scenes.existence import render_existence
from hf_diorama.worlds.scenes.expression import render_expression
from hf_diorama.worlds.scenes.fine_grained import render_fine_grained
from hf_diorama.worlds.scenes.localization import render_localization
from hf_diorama.worlds.scenes.objects import MAX_OBJECTS, render_objects
from hf_diorama.worlds.scenes.ocr import render_ocr
from hf_diorama.worlds.scenes.orientation import render_orientation
from hf_diorama.worlds.scenes.palette import COLORS
from hf_diorama.worlds.scenes.quality import render_quality
from hf_diorama.worlds.scenes.quantity import render_quantity
from hf_diorama.worlds.scenes.recognition import render_recognition
from hf_diorama.worlds.scenes.scene import render_scene
from hf_diorama.worlds.scenes.shapes import SHAPES
from hf_diorama.worlds.scenes.spatial import render_spatial
from hf_diorama.worlds.scenes.spatial_pair import render_spatial_pair
from hf_diorama.worlds.scenes.state import render_state
from hf_diorama.worlds.scenes.surfaces import TEXTURES
from hf_diorama.worlds.scenes.temporal import render_temporal
from hf_diorama.worlds.scenes.texture import render_texture

__all__ = ["COLORS", "SCENES", "SHAPES", "TEXTURES", "TOPICS"]

TOPICS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "objects": render_objects,
    "localization": render_localization,
    "counting": render_counting,
    "spatial": render_spatial,
    "orientation": render_orientation,
    "color": render_color,
    "texture": render_texture,
    "emotion": render_emotion,
    "depth": render_depth,
    "fine_grained": render_fine_grained,
    "recognition": render_recognition,
    "scene": render_scene,
    "action": render_action,
    "ocr": render_ocr,
    "attribute": render_attribute,
    "existence": render_existence,
    "state": render_state,
    "expression": render_expression,
    "temporal": render_temporal,
    "spatial_pair": render_spatial_pair,
    "quantity": render_quantity,
    "quality": render_quality,
}
"""Name of a topic -> its renderer `(RowKey, image_size, *, photos, photo_ratio) -> row`.

A new topic is a module with one such function, and a line here. A renderer returns `image`, `mask` and the columns
that it has; `photos` are for its background, and a topic whose background means something leaves them out.
"""

WITH_BOXES = ("spatial", "color", "emotion", "depth", "recognition", "ocr")
"""Topics that draw a red box around what is asked about, and a blue one around the second thing; `boxes=False` leaves
them out."""


def _features(**options: Any) -> datasets.Features:
    """Returns the row that all topics share; what a topic does not have is empty or None."""
    del options  # every topic and option has the same row
    string, number = datasets.Value("string"), datasets.Value("float32")
    box = datasets.List(datasets.Value("int32"), length=4)
    return datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "topic": string,
            "scene_type": string,
            "objects": datasets.List(
                {
                    "category": string,
                    "subcategory": string,
                    "color_srgb": datasets.List(datasets.Value("uint8"), length=3),
                    "color_lab": datasets.List(number, length=3),
                    "color_name": string,
                    "texture": string,
                    "size": number,
                    "position": datasets.List(number),
                    "distance": number,
                    "azimuth": number,
                    "bbox": box,
                    "occlusion": number,
                }
            ),
            "texts": datasets.List({"string": string, "bbox": box}),
            "figures": datasets.List({"action": string, "bbox": box}),
            "faces": datasets.List({"emotion": string, "smile": number, "brow": number, "bbox": box}),
            "states": datasets.List(string),
            "levels": datasets.List({"name": string, "value": number}),
            "quality": datasets.List(
                {"blur_sigma": number, "noise_sigma": number, "jpeg_quality": number, "exposure": number}
            ),
            "group_id": string,
            "time_step": datasets.Value("int32"),
        }
    )


def _check_pinned(pinned: Any) -> None:
    if not isinstance(pinned, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pinned
    ):
        raise ValueError(f"`pinned` must be a list of (color, category) pairs, got {pinned!r}.")
    if not 1 <= len(pinned) <= MAX_OBJECTS:
        raise ValueError(f"`pinned` must hold 1..{MAX_OBJECTS} (color, category) pairs, got {len(pinned)}.")
    for color, category in pinned:
        if color not in COLORS:
            raise ValueError(f"Unknown color {color!r} in `pinned`; choose from {list(COLORS)}.")
        if category not in SHAPES:
            raise ValueError(f"Unknown category {category!r} in `pinned`; choose from {list(SHAPES)}.")


def _check_photos(photos: Any, photo_ratio: object) -> None:
    if photos is not None and (not hasattr(photos, "__len__") or not hasattr(photos, "__getitem__")):
        raise ValueError(f"`photos` must be a sequence of images or a dataset, got {type(photos).__name__}.")
    if photos is not None and len(photos) == 0:
        raise ValueError("`photos` is empty; pass at least one photo, or None for rendered backgrounds only.")
    if not isinstance(photo_ratio, (int, float)) or not 0 <= photo_ratio <= 1:
        raise ValueError(f"`photo_ratio` must be in [0, 1], got {photo_ratio!r}.")


def _render(
    key: RowKey,
    image_size: int,
    *,
    topic: str = "objects",
    num_objects: int | Sequence[int] = (1, MAX_OBJECTS),
    pinned: Sequence[tuple[str, str]] | None = None,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row of the topic."""
    if topic not in (*TOPICS, "mixed"):
        raise ValueError(f"Unknown topic {topic!r} of world 'scenes'; choose from {[*TOPICS, 'mixed']}.")
    bounds = check_bounds("num_objects", num_objects, MAX_OBJECTS)
    if topic != "objects" and (pinned is not None or bounds != SCENES.options["num_objects"]):
        raise ValueError(f"`num_objects` and `pinned` are for topic 'objects', got them with topic {topic!r}.")
    if pinned is not None:
        _check_pinned(pinned)
    _check_photos(photos, photo_ratio)
    if not isinstance(boxes, bool):
        raise ValueError(f"`boxes` must be True or False, got {boxes!r}.")
    if topic == "mixed":
        topic = key.draws("topic").choice(tuple(TOPICS))
    own: dict[str, Any] = {"boxes": boxes} if topic in WITH_BOXES else {}
    if topic == "objects":
        own = {"num_objects": bounds, "pinned": pinned}
    row = TOPICS[topic](key, image_size, photos=photos, photo_ratio=photo_ratio, **own)
    absent: dict[str, Any] = {
        name: [] for name in ("objects", "texts", "figures", "faces", "states", "levels", "quality")
    }
    absent |= {"scene_type": "", "group_id": f"{key.split}-{key.seed}-{key.index}", "time_step": 0}
    return {**absent, **row, "topic": topic}


SCENES = World(
    name="scenes",
    version=1,
    image_size=128,
    options={
        "topic": "objects",
        "num_objects": (1, MAX_OBJECTS),
        "pinned": None,
        "photos": None,
        "photo_ratio": 0.5,
        "boxes": True,
    },
    features=_features,
    render=_render,
)
