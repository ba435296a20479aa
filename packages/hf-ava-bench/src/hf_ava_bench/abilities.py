"""The fourteen abilities: names, answer forms, metrics, sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AnswerKind = Literal["number", "box", "rgb", "text", "class"]


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One atomic visual ability.

    Args:
        id (`str`): our name for it.
        hub_name (`str`): name of its configuration, and of its folder, in the dataset on the Hub.
        answer (`str`): form of an answer: `"number"`, `"box"`, `"rgb"`, `"text"` or `"class"`.
        metric (`str`): key of the headline metric in a result.
        higher_is_better (`bool`): whether more of the metric is better.
        perfect (`float`): the metric of a model that makes no mistake.
        max_new_tokens (`int`): longest answer that is generated, in tokens.
        sources (`tuple[str, ...]`): data sets that the released items come from.
        aliases (`tuple[str, ...]`): other spellings found in released code and files.

    Example:

    ```python
    >>> from hf_ava_bench import ABILITIES
    >>> ABILITIES["counting"].metric, ABILITIES["counting"].higher_is_better
    ('mae_gt', False)

    ```
    """

    id: str
    hub_name: str
    answer: AnswerKind
    metric: str
    higher_is_better: bool = True
    perfect: float = 1.0
    max_new_tokens: int = 32
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def _class(id: str, hub_name: str, sources: str, aliases: tuple[str, ...] = ()) -> Ability:
    return Ability(
        id=id,
        hub_name=hub_name,
        answer="class",
        metric="accuracy",
        sources=tuple(sources.split("; ")),
        aliases=aliases,
    )


_ALL = (
    Ability(
        id="abs_depth",
        hub_name="Absolute_depth",
        answer="number",
        metric="mae_gt",
        higher_is_better=False,
        perfect=0.0,
        max_new_tokens=16,
        sources=("NYU-Depth", "KITTI"),
        aliases=("absolute_depth",),
    ),
    _class("action", "Action", "Moments in Time"),
    Ability(
        id="color",
        hub_name="Color",
        answer="rgb",
        metric="ciede2000",
        higher_is_better=False,
        perfect=0.0,
        max_new_tokens=24,
        sources=("Objects365",),
        aliases=("colour",),
    ),
    Ability(
        id="counting",
        hub_name="Counting",
        answer="number",
        metric="mae_gt",
        higher_is_better=False,
        perfect=0.0,
        max_new_tokens=8,
        sources=("VQAv2", "FSC-147", "CARPK", "Crowd Surveillance", "LVIS"),
    ),
    _class("emotion", "Emotion", "RAF-DB; ExpW"),
    _class("fine_grained", "Fine-grained", "CUB; iNaturalist; FGVC-Aircraft", ("finegrained",)),
    Ability(
        id="localization",
        hub_name="Localization",
        answer="box",
        metric="giou",
        max_new_tokens=48,
        sources=("Objects365", "LVIS", "iNaturalist", "DIOR"),
        aliases=("location", "localisation"),
    ),
    Ability(
        id="ocr",
        hub_name="OCR",
        answer="text",
        metric="anls",
        max_new_tokens=64,
        sources=("COCO-Text", "IIIT5K", "TextVQA"),
    ),
    _class("orientation", "Orientation", "EgoOrientBench; CURE-OR"),
    _class("recognition", "Recognition", "Objects365; LVIS; iNaturalist; DIOR", ("object_recognition",)),
    _class("rel_depth", "Relative_depth", "KITTI; NYU-Depth", ("relative_depth",)),
    _class("scene", "Scene_Classification", "Places365; AID", ("scene_classification", "scene_cls")),
    _class("spatial", "Spatial", "NYU-Depth; LVIS; Objects365", ("spatial_bbox",)),
    _class("texture", "Texture", "DTD; Kylberg; KTH-TIPS; KTH-TIPS2"),
)

ABILITIES: Mapping[str, Ability] = {ability.id: ability for ability in _ALL}
"""Our name of an ability -> what it is, in alphabetical order."""

_SPELLINGS = {
    spelling.lower().replace("-", "_"): ability
    for ability in _ALL
    for spelling in (ability.id, ability.hub_name, *ability.aliases)
}


def find_ability(name: str) -> Ability:
    """Returns the ability of that name, in any of the spellings of the paper's data and code.

    Args:
        name (`str`): e.g. `"counting"`, `"Scene_Classification"`, `"scene_cls"`. Case, hyphens and underscores do not
            matter.

    Raises:
        ValueError: for an unknown name; the message lists the abilities.

    Example:

    ```python
    >>> from hf_ava_bench import find_ability
    >>> find_ability("Fine-grained").id, find_ability("location").metric
    ('fine_grained', 'giou')

    ```
    """
    ability = _SPELLINGS.get(str(name).lower().replace("-", "_").replace(" ", "_"))
    if ability is None:
        raise ValueError(f"Expected an ability ({', '.join(ABILITIES)}), got {name!r}.")
    return ability
