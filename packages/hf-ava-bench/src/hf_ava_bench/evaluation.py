"""The metrics as modules of `evaluate`: what their scripts under `metrics/` share."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from hf_ava_bench.abilities import ABILITIES, find_ability
from hf_ava_bench.scoring import compute_score

if TYPE_CHECKING:
    import evaluate

CITATION = """@inproceedings{mai2026avabench,
  title={AVA-Bench: Atomic Visual Ability Benchmark for Vision Foundation Models},
  author={Mai, Zheda and Chowdhury, Arpita and Wang, Zihe and Jeon, Sooyoung and Wang, Lemeng and Hou, Jiacheng and
          Kil, Jihyung and Chao, Wei-Lun},
  booktitle={CVPR},
  year={2026},
  note={arXiv 2506.09082}
}
"""
INPUTS = """
Args:
    predictions (list of str or None): what the model wrote.
    references (list of str): the true answers as text.
    unparsable (str, defaults to "worst"): "worst" charges answers that cannot be read, "skip" leaves them out, "raise"
        raises.
    questions, options, image_sizes, sources, coords, boundary, prefer, clip_rel, parity: see
        `hf_ava_bench.compute_score`.
Returns:
    the headline metric under its name, n, n_missing, n_unparsable, n_repaired, n_out_of_range, coverage, policy,
    charged, figures and bins.
"""


def list_metrics() -> list[str]:
    """Returns the names of the modules of `evaluate` that ship with the package, sorted.

    Example:

    ```python
    >>> from hf_ava_bench import list_metrics
    >>> list_metrics()
    ['ability_accuracy', 'anls', 'ava_bench', 'ciede2000', 'counting_error', 'depth_error', 'giou']

    ```
    """
    folder = resources.files("hf_ava_bench") / "metrics"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("_"))


def metric_path(name: str) -> str:
    """Returns the folder of a metric, for `evaluate.load`; nothing is downloaded.

    `ability_accuracy` and `ava_bench` need the ability as `config_name`.

    Args:
        name (`str`): one of [`list_metrics`].

    Raises:
        ValueError: for an unknown name.

    Example:

    ```python
    >>> import evaluate
    >>> from hf_ava_bench import metric_path
    >>> giou = evaluate.load(metric_path("giou"))
    >>> giou.compute(predictions=["[0, 0, 1, 1]"], references=["[0, 0, 1, 0.5]"])["giou"]
    0.5

    ```
    """
    if name not in list_metrics():
        raise ValueError(f"Expected a metric ({', '.join(list_metrics())}), got {name!r}.")
    return str(Path(str(resources.files("hf_ava_bench"))) / "metrics" / name)


def describe_metric(description: str) -> "evaluate.MetricInfo":
    """Returns what `evaluate` wants to know about a metric of ours: strings in, so that parsing is part of it."""
    import evaluate  # brings torch and transformers along where they are: scoring a file needs none of them

    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description=INPUTS,
        features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        reference_urls=["https://arxiv.org/abs/2506.09082"],
    )


def compute_metric(
    ability: str, predictions: Sequence[str | None], references: Sequence[str], **options: Any
) -> dict[str, Any]:
    """Returns the score as `evaluate` reports it: the headline under its own name."""
    score = compute_score(ability, predictions, references, **options)
    rest = score.to_dict()
    return {rest.pop("metric"): rest.pop("value"), **rest}


def find_config(config_name: str, *, classes_only: bool) -> str:
    """Returns the ability that a `config_name` names.

    Raises:
        ValueError: if it names none; the message lists the choices.
    """
    choices = [name for name, ability in ABILITIES.items() if ability.answer == "class" or not classes_only]
    name = find_ability(config_name).id if config_name not in (None, "default") else None
    if name not in choices:
        raise ValueError(f"Pass one of the abilities {', '.join(choices)} as `config_name`, got {config_name!r}.")
    return name
