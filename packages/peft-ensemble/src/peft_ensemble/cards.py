"""Model cards of members, students and ensembles."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from .members import MemberSpec
from .selection import Selection

CARD = """{metadata}
# {method} on {backbone}

{about}

Classes: {classes}.

```python
import peft_ensemble  # makes the method known to peft
from peft import PeftModel

base = peft_ensemble.load_classifier({backbone!r}, num_labels={num_labels}, pooling={pooling!r})
model = PeftModel.from_pretrained(base, "this folder")
```
"""


IMPORT = """
## How to load it

```python
import peft_ensemble  # makes the method known to peft, and comes first
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder")
```
"""


def add_import(folder: Path) -> None:
    """Say in the card that `save_pretrained` of peft wrote what a reader must import, unless it says so."""
    card = next((path for path in (folder / "README.md", folder.parent / "README.md") if path.exists()), None)
    text = card.read_text(encoding="utf-8") if card is not None else ""
    if card is not None and "library_name: peft" in text and "import peft_ensemble" not in text:
        partial = card.with_name(f"{card.name}.{os.getpid()}.part")  # every process may come here
        partial.write_text(f"{text.rstrip()}\n{IMPORT}", encoding="utf-8")
        partial.replace(card)


def member_card(spec: MemberSpec, label_names: Sequence[str], num_labeled: int) -> str:
    """The card of a member."""
    about = (
        f"Trained on {num_labeled} labelled images ({spec.augmentation} views, seed {spec.seed}, {_training(spec)})."
    )
    return _card(spec, label_names, about)


def student_card(spec: MemberSpec, members: Sequence[MemberSpec], label_names: Sequence[str], pool: Dataset) -> str:
    """The card of a student: its teachers and what it was taught."""
    largest = [max(target) for target in pool["soft_labels"]]
    certain, mean = sum(value >= 0.999 for value in largest) / len(pool), sum(largest) / len(pool)
    teachers = ", ".join(member.id for member in members)
    about = (
        f"A student of {len(members)} members ({teachers}), trained on {len(pool)} images with their pseudo-labels "
        f"(seed {spec.seed}, {_training(spec)}). {certain:.0%} of the targets are unanimous or true labels; the "
        f"largest probability of a target is {mean:.2f} in the mean."
    )
    return _card(spec, label_names, about)


def ensemble_card(
    members: Sequence[MemberSpec],
    candidates: Mapping[str, Sequence[MemberSpec]],
    selections: Mapping[str, Selection],
    label_names: Sequence[str],
    num_labeled: int,
) -> str:
    """The card of an ensemble: its members, and the scores of the candidates that they were selected from."""
    lines = [
        _metadata({spec.backbone for spec in members}, ["peft-ensemble"]),
        f"# An ensemble of {len(members)} adapters",
        "",
        f"Trained on {num_labeled} labelled images by `PeftEnsemble`. Classes: {', '.join(label_names)}.",
        "",
        "| member | method | backbone | seed | training |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| [{spec.id}](members/{spec.id}) | {spec.method_name} | {spec.backbone} | {spec.seed} | {_training(spec)} |"
        for spec in members
    ]
    for group, selection in selections.items():
        names = list(selection.scores[0])
        lines += [
            "",
            f"## Selection without labels: {group}",
            "",
            f"| candidate | {' | '.join(names)} | combined rank |",
        ]
        lines += ["|---" * (len(names) + 2) + "|"]
        for index, (spec, scores) in enumerate(zip(candidates[group], selection.scores, strict=True)):
            combined = f"{selection.combined[index]:.4g}" if index in selection.combined else "left out"
            shown = " | ".join(f"{scores[name]:.4g}" for name in names)
            lines.append(f"| {spec.id}{' (selected)' if index == selection.index else ''} | {shown} | {combined} |")
    return "\n".join(lines) + "\n"


def _metadata(backbones: Iterable[str], tags: list[str]) -> str:
    """The block of a card that the Hub reads; it refuses one whose `base_model` is a folder."""
    known = sorted(filter(_is_hub_id, backbones))
    task = "image-classification"
    data = ModelCardData(library_name="peft", pipeline_tag=task, base_model=known or None, tags=tags)
    return f"---\n{data.to_yaml()}\n---\n"


def _is_hub_id(backbone: str) -> bool:
    try:
        validate_repo_id(backbone)
    except HFValidationError:
        return False
    return not Path(backbone).is_dir()


def _training(spec: MemberSpec) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.training.items()) or "options of the ensemble"


def _card(spec: MemberSpec, label_names: Sequence[str], about: str) -> str:
    return CARD.format(
        metadata=_metadata({spec.backbone}, ["peft-ensemble", spec.method_name]),
        backbone=spec.backbone,
        method=spec.method_name,
        about=about,
        classes=", ".join(label_names),
        num_labels=len(label_names),
        pooling=spec.pooling,
    )
