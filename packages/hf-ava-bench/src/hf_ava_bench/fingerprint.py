"""The fingerprint of a vision model: fourteen scores with their intervals, and all that made them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets

from hf_ava_bench.abilities import ABILITIES
from hf_ava_bench.data import hash_image
from hf_ava_bench.files import write_text
from hf_ava_bench.formats import read_json
from hf_ava_bench.scoring import Score
from hf_ava_bench.statistics import bootstrap_interval

SCHEMA = "hf-ava-bench/fingerprint/1"


def anchor(metric: float, m0: float, m1: float) -> float:
    """Returns `(m - m0) / (m1 - m0)` within [0, 1]: 0 is the best answer without an image, 1 is no mistake.

    Example:

    ```python
    >>> from hf_ava_bench.fingerprint import anchor
    >>> anchor(0.3, m0=0.6, m1=0.0), anchor(0.1, m0=0.25, m1=1.0)
    (0.5, 0.0)

    ```
    """
    return min(max((metric - m0) / (m1 - m0), 0.0), 1.0) if m1 != m0 else 0.0


@dataclass(frozen=True, kw_only=True)
class AbilityResult:
    """What a tower reached in one ability.

    `value` is the metric, `interval` its 95 percent bootstrap interval over images, `m0` the metric of the best
    constant answer and `m1` that of no mistake, `score` the anchored score with its `score_interval`, `controls` the
    anchored scores of heads that saw no image or a wrong one, `items` a sha256 of the ids, questions and answers of
    each split, `values` the metric of each test item under its id, and `images` the image of each, where some items
    share one.

    Example:

    ```python
    >>> from hf_ava_bench import AbilityResult
    >>> result = AbilityResult(metric="accuracy", value=0.5, interval=(0.4, 0.6), n=9, coverage=1, n_unparsable=0,
    ...                        m0=0.1, m1=1.0, score=0.44, score_interval=(0.3, 0.6), split_origin="source",
    ...                        synthetic=True)
    >>> result.controls
    {}

    ```
    """

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    coverage: float
    n_unparsable: int
    m0: float
    m1: float
    score: float
    score_interval: tuple[float, float]
    split_origin: str
    synthetic: bool
    controls: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict, repr=False)
    images: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_score(cls, score: Score, table: datasets.Dataset, m0: float, **more: Any) -> "AbilityResult":
        """Returns the result of a score on the items of a table; intervals are over images.

        Args:
            score (`Score`): of answers to the rows of the table, in their order.
            table (`datasets.Dataset`): test items.
            m0 (`float`): the metric of the best constant answer.
            **more: `controls`, `cost` and `items`.
        """
        ids = list(table["id"])
        stored = table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        images = [hash_image(row["image"])[:16] for row in stored]
        shared = len(set(images)) < len(images)
        low, high = bootstrap_interval(score.values, clusters=images if shared else None)
        m1 = ABILITIES[score.ability].perfect
        ends = sorted((anchor(low, m0, m1), anchor(high, m0, m1)))
        meta = json.loads(table[0]["meta"])
        return cls(
            metric=score.metric,
            value=score.value,
            interval=(low, high),
            n=score.n,
            coverage=score.coverage,
            n_unparsable=score.n_unparsable,
            m0=m0,
            m1=m1,
            score=anchor(score.value, m0, m1),
            score_interval=(ends[0], ends[1]),
            split_origin=meta.get("split_origin", "source"),
            synthetic=bool(meta.get("synthetic", False)),
            values=dict(zip(ids, score.values, strict=True)),
            images=dict(zip(ids, images, strict=True)) if shared else {},
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The abilities of one vision model, seen through one language model.

    Args:
        tower (`str`): name of the vision model.
        llm (`str`): name of the language model that was its head.
        profile (`dict`): how much was trained on how many items.
        seed (`int`): seed of the run.
        num_tokens (`int`): visual tokens of an image.
        resolution (`int`, *optional*): side in pixels of the square that all of an image is squashed to.
        abilities (`dict`): ability -> [`AbilityResult`].
        versions (`dict`): library -> version.

    Example:

    ```python
    >>> from hf_ava_bench import Fingerprint
    >>> fingerprint = Fingerprint(tower="vit", llm="llama", profile={}, seed=0, num_tokens=16, abilities={})
    >>> fingerprint.save("vit.json").name, Fingerprint.load("vit.json") == fingerprint
    ('vit.json', True)

    ```
    """

    tower: str
    llm: str
    profile: Mapping[str, Any]
    seed: int
    num_tokens: int
    abilities: Mapping[str, AbilityResult]
    resolution: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the scores has to know."""
        found = []
        results = self.abilities.values()
        if any(result.synthetic for result in results):
            found.append("synthetic items: these scores say nothing about photos and are no scores of the paper")
        if any(result.split_origin == "holdout" for result in results):
            found.append("items held out from train: not comparable with the paper's test split")
        if any("blind" not in result.controls for result in results):
            found.append("no blind control: what the head knows without an image is unknown")
        if len(self.abilities) < len(ABILITIES):
            found.append(f"{len(self.abilities)} of {len(ABILITIES)} abilities")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {"schema": SCHEMA, **asdict(self), "warnings": self.warnings}

    def save(self, path: str | Path) -> Path:
        """Writes the fingerprint as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Fingerprint":
        """Returns the fingerprint of a file.

        Raises:
            ValueError: if the file holds something else, or another version of it.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"Expected a fingerprint ({SCHEMA}) in {path}, got {found!r}.")
        data = {key: value for key, value in data.items() if key not in ("schema", "warnings")}
        data["abilities"] = {name: read_result(result) for name, result in data["abilities"].items()}
        return cls(**data)

    def table(self) -> str:
        """Returns the scores as a Markdown table, with what has to be known about them."""
        lines = [
            f"{self.tower} through {self.llm} "
            f"({self.num_tokens} tokens an image of {self.resolution or 'unknown'} pixels, "
            f"profile {self.profile.get('name')})",
            "",
            "| ability | metric | value | 95 % interval | constant | score | controls |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, result in sorted(self.abilities.items()):
            low, high = result.interval
            controls = ", ".join(f"{key} {value:.2f}" for key, value in result.controls.items())
            lines.append(
                f"| {name} | {result.metric} | {result.value:.3f} | {low:.3f} to {high:.3f} | {result.m0:.3f} "
                f"| {result.score:.2f} | {controls} |"
            )
        return "\n".join([*lines, *(["", *(f"Note: {text}." for text in self.warnings)] if self.warnings else [])])


def read_result(data: Mapping[str, Any]) -> AbilityResult:
    """Returns the result of an ability from plain JSON types."""
    fields = dict(data)
    for key in ("interval", "score_interval"):
        fields[key] = tuple(fields[key])
    return AbilityResult(**fields)
