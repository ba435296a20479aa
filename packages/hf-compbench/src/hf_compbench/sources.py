"""The sources of MLLM-CompBench: what each is, how it is reported, and on which terms its images can be had."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

RELATIVITIES = ("attribute", "existence", "state", "emotion", "temporality", "spatiality", "quantity", "quality")
"""The eight kinds of comparison of the paper, in its order."""

SIDES = ("Left", "Right")
"""Options where one of the images is asked for: `Left` is the first image, `Right` the second."""

SIDES_OR_SAME = ("Left", "Right", "Same")
NONE = "None"
"""The option that says that nothing differs."""


Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the data sets whose images are compared.

    Args:
        name: as in the column `source`.
        code: prefix of its column codes in reports.
        label_folder: folder of its labels in the authors' release.
        relativity: what is compared; `attribute` or `state` by row where the labels have a `type`.
        terms: on which terms the images are given out, to be agreed to with `accept_terms`.
    """

    name: str
    code: str
    label_folder: str
    relativity: str
    terms: str


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mit_states",
            code="ST",
            label_folder="st_label",
            relativity="attribute",
            terms="MIT-States states no licence for its images; get them from its authors' page.",
        ),
        Source(
            name="fashionpedia",
            code="FA",
            label_folder="fashion_label",
            relativity="attribute",
            terms="Fashionpedia images carry the licences of their photographers; annotations are CC BY 4.0.",
        ),
        Source(
            name="vaw",
            code="VA",
            label_folder="vaw_label",
            relativity="attribute",
            terms="VAW is under the Adobe research licence; Visual Genome images carry their Flickr terms.",
        ),
        Source(
            name="cub_200_2011",
            code="CU",
            label_folder="cub_label",
            relativity="attribute",
            terms="CUB-200-2011 is for non-commercial research and education.",
        ),
        Source(
            name="wildfish",
            code="WF",
            label_folder="Wildfish_label",
            relativity="attribute",
            terms="WildFish++ is given out by its authors on request.",
        ),
        Source(
            name="magic_brush",
            code="MB",
            label_folder="mb_label",
            relativity="existence",
            terms="MagicBrush is CC BY 4.0 on images of COCO, which carry their Flickr terms.",
        ),
        Source(
            name="spot_the_diff",
            code="SD",
            label_folder="spot_difference_label",
            relativity="existence",
            terms="Spot-the-diff shows frames of the VIRAT videos, whose terms apply.",
        ),
        Source(
            name="celeba",
            code="CE",
            label_folder="celebA_label",
            relativity="emotion",
            terms="CelebA is for non-commercial research; images must not be passed on.",
        ),
        Source(
            name="fer_2013",
            code="FE",
            label_folder="fer2013_label",
            relativity="emotion",
            terms="FER-2013 is under the terms of its Kaggle page.",
        ),
        Source(
            name="soccernet",
            code="SN",
            label_folder="soccernet_label",
            relativity="temporality",
            terms="SoccerNet videos need its signed non-disclosure agreement; frames must not be passed on.",
        ),
        Source(
            name="comp_cars",
            code="CC",
            label_folder="car_label",
            relativity="temporality",
            terms="CompCars is for non-commercial research; images must not be passed on.",
        ),
        Source(
            name="nyu_depth_v2",
            code="ND",
            label_folder="depth_label",
            relativity="spatiality",
            terms="NYU-Depth V2 states no explicit licence; get it from its authors' page.",
        ),
        Source(
            name="vqav2",
            code="VQ",
            label_folder="vqav2_label",
            relativity="quantity",
            terms="VQAv2 annotations are CC BY 4.0 on images of COCO, which carry their Flickr terms.",
        ),
        Source(
            name="q_bench2",
            code="QB",
            label_folder="qbench2_label",
            relativity="quality",
            terms="Q-Bench2 is on the Hub under its own licence.",
        ),
    )
}
"""The fourteen sources of the paper by name."""

MINI_SOURCES = {"mini_scenes": "MS", "mini_photos": "MP"}
"""Sources of mini-CompBench and the prefix of their column codes: rendered scenes, and edited photos."""

SOURCE_NAMES = (*SOURCES, *MINI_SOURCES)


def column_of(source: str, relativity: str) -> str:
    """Returns the code of the reporting column that a row belongs to: `ST-a`, `ST-s`, `FA`, ..., `MS-quantity`.

    MIT-States and VAW are reported twice, for attributes and for states, which makes 16 columns of 14 sources; the
    sources of mini-CompBench have a column for each kind of comparison.

    Example:

    ```python
    >>> from hf_compbench.sources import column_of
    >>> column_of("vaw", "state"), column_of("celeba", "emotion"), column_of("mini_scenes", "quality")
    ('VA-s', 'CE', 'MS-quality')

    ```
    """
    if source in MINI_SOURCES:
        return f"{MINI_SOURCES[source]}-{relativity}"
    if source not in SOURCES:
        raise ValueError(f"Expected `source` to be one of {', '.join(SOURCE_NAMES)}, got {source!r}.")
    code = SOURCES[source].code
    return f"{code}-{relativity[0]}" if code in ("ST", "VA") else code


def group_by_column(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns the rows by the code of their reporting column, columns in order of first appearance."""
    columns: dict[str, list[Row]] = {}
    for row in rows:
        columns.setdefault(column_of(row["source"], row["relativity"]), []).append(row)
    return columns
