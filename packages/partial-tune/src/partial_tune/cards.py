"""The model card that goes with a calibrator where there is none yet."""

from partial_tune.gamma import GammaEstimate
from partial_tune.partition import ClassPartition

CARD = """---
library_name: partial-tune
pipeline_tag: image-classification
tags: [partial-tune, calibration]
---

# A logit calibrator

Adds {gamma:.4g} to the logits of {num_absent} of {num_classes} classes: those that were absent when the model was
fine-tuned on the other {num_seen} ("Fine-tuning is fine, if calibrated", arXiv 2409.16223). The offset was found by
`{method}` on {num_samples} images{labels}.

```python
from partial_tune import LogitCalibrator

calibrator = LogitCalibrator.from_pretrained("this folder or repository")
calibrator.attach(model)  # the fine-tuned classifier
```

A model that `partial-tune apply` wrote has the offset in its head already.

Absent: {absent}.
"""


def build_card(partition: ClassPartition, gamma: float, estimate: GammaEstimate) -> str:
    """Returns the text of `README.md`: what is added to which logits, how it was found, how to use it.

    Args:
        partition ([`ClassPartition`]): the classes, seen and absent.
        gamma (`float`): what is added to the logits of absent classes, in logit units.
        estimate ([`GammaEstimate`]): how it was found.

    Returns:
        `str`: Markdown with the metadata block of the Hub
    """
    return CARD.format(
        gamma=gamma,
        num_absent=len(partition.absent),
        num_seen=len(partition.seen),
        num_classes=len(partition.names),
        method=estimate.method,
        num_samples=estimate.num_samples,
        labels=", with labels of absent classes" if estimate.uses_absent_labels else "",
        absent=", ".join(partition.absent_names),
    )
