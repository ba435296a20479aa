"""Candidates are judged on labelled images that they have not seen."""

import json

import pytest
import torch

from peft_ensemble import AdaptFormerConfig, MemberSpec, PeftEnsemble, UnsupervisedSelector
from peft_ensemble.cross_validation import cross_validate, split_folds
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones


def test_folds_are_even_in_size_and_in_classes():
    labels = torch.tensor([2, 0, 1, 0, 1, 2, 0, 0, 1, 2, 1, 2, 0])
    folds = split_folds(labels, 3)
    assert torch.bincount(folds).tolist() == [5, 4, 4]
    for name in range(3):
        assert max(counts := torch.bincount(folds[labels == name], minlength=3).tolist()) - min(counts) <= 1


def test_a_learning_rate_that_learns_nothing_is_not_chosen(tmp_path):
    backbone = save_backbones(tmp_path)[0]
    specs = MemberSpec.grid([backbone], [AdaptFormerConfig(bottleneck=4)], {"learning_rate": [1e-6, 1e-2]})
    ensemble = PeftEnsemble(specs, LABEL_NAMES, tmp_path / "ensemble")
    selector = UnsupervisedSelector(metrics=("cv_accuracy",), num_folds=2)
    labeled, pool = draw_images(12, seed=0), draw_images(6, seed=1)
    ensemble.fit(labeled, arguments(), pool, selector)
    (selection,) = ensemble.selections.values()
    accuracies = [row["cv_accuracy"] for row in selection.scores]
    assert accuracies[1] > max(accuracies[0], 0.6)
    assert ensemble.members == [specs[1]]
    kept = ensemble.output_dir / "folds" / specs[1].id
    assert json.loads((kept / "accuracy.json").read_text()) == {"accuracy": accuracies[1], "num_folds": 2}
    assert [path.name for path in kept.iterdir()] == ["accuracy.json"]
    with pytest.raises(ValueError, match="'cv_accuracy' needs whole trainings; leave it or halving out"):
        ensemble.fit(labeled, arguments(), pool, selector, halving=2)
    with pytest.raises(ValueError, match="at least 13 labelled images, one for each fold, got 12"):
        cross_validate(specs[0], LABEL_NAMES, labeled, arguments(), tmp_path / "folds", num_folds=13)
