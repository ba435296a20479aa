"""diagnose tells a lost bias from lost features."""

import json

import pytest
import torch
from torch import nn

from partial_tune import ClassPartition, diagnose
from support.partial_models import NAMES, build_llama, text_inputs

PARTITION = ClassPartition(tuple("abcd"), (0, 1))
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(4).repeat(100)
X = torch.eye(4)[LABELS] + 0.25 * torch.randn(400, 4, generator=GENERATOR)
LOADER = [(X[:150], LABELS[:150]), (X[150:], LABELS[150:])]


def classifier(bias: float = 0.0, *, mixed: bool = False) -> nn.Module:
    """The identity, with features of the two absent classes mixed up if asked, and a lower bias for them."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    features = torch.eye(4)
    if mixed:
        features[2:, 2:] = 0.5
    with torch.no_grad():
        model[0].weight.copy_(features)
        model[1].weight.copy_(4 * torch.eye(4))
        model[1].bias.copy_(torch.tensor([0, 0, -bias, -bias]))
    model[0].out_features = 5  # so that the head is the one layer with four outputs
    return model


@pytest.mark.parametrize(
    ("tuned", "verdict"),
    [
        (classifier(), "none"),
        (classifier(5.0), "bias"),
        (classifier(mixed=True), "features"),
        (classifier(5.0, mixed=True), "both"),
    ],
)
def test_verdicts(tuned: nn.Module, verdict: str) -> None:
    found = diagnose(classifier(), tuned, LOADER, PARTITION)
    assert found.verdict == verdict, str(found)
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == verdict
    assert str(found).startswith(f"{verdict}: absent accuracy")
    assert (found.ncm_loss > 0.1) == (verdict in ("features", "both"))
    assert 1 <= found.tuned["effective_rank"] <= 4


def test_decoder_language_models_are_refused() -> None:
    model, inputs = build_llama(), text_inputs(6)
    with pytest.raises(ValueError, match=r"one feature vector for each sample.*a head for every token"):
        diagnose(model, model, [{**inputs, "labels": torch.arange(6)}], ClassPartition(NAMES, (0, 2, 3)))


def test_class_means_may_come_from_other_samples() -> None:
    reference = [(torch.eye(4), torch.arange(4))]
    found = diagnose(classifier(), classifier(), LOADER, PARTITION, reference_loader=reference)
    nearest = (nn.functional.normalize(X, dim=1) @ torch.eye(4)).argmax(1)
    absent = LABELS >= 2
    assert found.source["ncm_absent"] == pytest.approx(float((nearest == LABELS)[absent].float().mean()))


def test_samples_of_both_groups_and_labels_are_needed() -> None:
    seen = LABELS < 2
    with pytest.raises(ValueError, match="got 200 and 0"):
        diagnose(classifier(), classifier(), [(X[seen], LABELS[seen])], PARTITION)
    with pytest.raises(ValueError, match="batches with `labels`"):
        diagnose(classifier(), classifier(), [X], PARTITION)
