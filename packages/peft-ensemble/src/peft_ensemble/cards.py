"""Model cards of members and students."""

from collections.abc import Sequence

from datasets import Dataset

from .members import MemberSpec

CARD = """---
library_name: peft
pipeline_tag: image-classification
base_model: {backbone}
tags: [peft-ensemble, {method}]
---

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


def member_card(spec: MemberSpec, label_names: Sequence[str], num_labeled: int) -> str:
    """The card of a member."""
    about = (
        f"Trained on {num_labeled} labelled images ({spec.augmentation} views, seed {spec.seed}, {_training(spec)})."
    )
    return _card(spec, label_names, about)


def student_card(spec: MemberSpec, members: Sequence[MemberSpec], label_names: Sequence[str], pool: Dataset) -> str:
    """The card of a student: its teachers and what it was taught."""
    certain = sum(max(target) >= 0.999 for target in pool["soft_labels"]) / len(pool)
    teachers = ", ".join(member.id for member in members)
    about = (
        f"A student of {len(members)} members ({teachers}), trained on {len(pool)} images with their pseudo-labels "
        f"(seed {spec.seed}, {_training(spec)}). {certain:.0%} of the targets are unanimous or true labels."
    )
    return _card(spec, label_names, about)


def _training(spec: MemberSpec) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.training.items()) or "options of the ensemble"


def _card(spec: MemberSpec, label_names: Sequence[str], about: str) -> str:
    return CARD.format(
        backbone=spec.backbone,
        method=spec.method_name,
        about=about,
        classes=", ".join(label_names),
        num_labels=len(label_names),
        pooling=spec.pooling,
    )
