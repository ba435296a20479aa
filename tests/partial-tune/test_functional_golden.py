"""Values of the official functions and of an independent exact sweep; see golden/README.md."""

import numpy as np
import pytest
import torch

from partial_tune import average_logit_gap, group_accuracies, seen_absent_sweep
from partial_tune.functional import (
    ausuc_by_auroc,
    ncm_scores,
    reduce_logits,
    sweep_curve_by_loop,
)
from support.partial_models import Golden, load_golden

OURS = {
    "All/All": "Y/Y",
    "Visible/All": "S/Y",
    "Invisible/All": "U/Y",
    "Visible/Visible": "S/S",
    "Invisible/Invisible": "U/U",
    "Remaining/All": "R/Y",
    "Remaining/Remaining": "R/R",
}


def compare(golden: Golden, key: str, logits: torch.Tensor, gamma: float = 0.0) -> None:
    for top_k in (1, 5):
        found = group_accuracies(logits, golden.labels, golden.partition, gamma=gamma, top_k=top_k)
        for theirs, ours in OURS.items():
            expected = golden.values["official"][key][f"{theirs} Accuracy"][f"Top- {top_k} Accuracy"]
            value = found.get(ours)
            if expected is None:
                assert value is None
            else:
                assert value is not None
                assert 100 * value == pytest.approx(expected, abs=1e-4), (ours, top_k)


def test_accuracies_are_the_official_ones(golden: Golden) -> None:
    compare(golden, "accuracies", golden.logits)


def test_nearest_class_mean_accuracies_are_the_official_ones(golden: Golden) -> None:
    scores = ncm_scores(golden.features, golden.features, golden.labels, golden.partition.num_classes)
    compare(golden, "nmc", scores)


def test_average_logit_gap_and_its_accuracies_are_the_official_ones(golden: Golden) -> None:
    gamma = average_logit_gap(golden.logits, golden.labels, golden.partition, strict=False).gamma
    assert gamma == pytest.approx(golden.values["official"]["alg_gamma"], abs=2e-6)
    compare(golden, "alg_calibrated", golden.logits, gamma)


def test_curve_and_area_are_exact(golden_curve: Golden) -> None:
    result = seen_absent_sweep(golden_curve.logits, golden_curve.labels, golden_curve.partition)
    exact = golden_curve.values["exact"]
    curve = np.stack([result.curve[name] for name in ("gamma", "seen", "absent", "overall")], axis=1)
    np.testing.assert_allclose(curve, golden_curve.curve, rtol=0, atol=1e-9)
    assert result.ausuc == pytest.approx(exact["ausuc"], abs=1e-12)
    assert 100 * result.at(result.gamma_star).overall == pytest.approx(exact["acc_YY"], abs=1e-9)
    assert len(result.breakpoints) == exact["n_breakpoints"]


def test_area_is_the_product_of_its_factors(golden_curve: Golden) -> None:
    reduced = reduce_logits(golden_curve.logits, golden_curve.labels, golden_curve.partition.absent_mask)
    gap, seen_correct, absent_correct, is_absent, _ = (np.asarray(values) for values in reduced)
    product, seen_seen, absent_absent, separability = ausuc_by_auroc(gap, seen_correct, absent_correct, is_absent)
    exact = golden_curve.values["exact"]
    assert product == pytest.approx(exact["ausuc"], abs=1e-12)
    assert (seen_seen, absent_absent) == pytest.approx((exact["acc_SS"], exact["acc_UU"]), abs=1e-12)
    assert separability == pytest.approx(exact["auroc"], abs=1e-12)


def test_loop_over_breakpoints_gives_the_same_curve(golden_curve: Golden) -> None:
    curve = sweep_curve_by_loop(golden_curve.logits, golden_curve.labels, golden_curve.partition.absent_mask)
    is_absent = golden_curve.partition.absent_mask[golden_curve.labels]
    counts = [int((~is_absent).sum()), int(is_absent.sum())]
    np.testing.assert_allclose(curve.seen_hits / counts[0], golden_curve.curve[:, 1], atol=1e-9)
    np.testing.assert_allclose(curve.absent_hits / counts[1], golden_curve.curve[:, 2], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "official", "exact"),
    [("small", 0.7225, 0.7324), ("medium", 0.48512, 0.48519), ("one_absent", 0.8003, 0.8022)],
)
def test_the_official_area_is_wrong_by_its_row_order(name: str, official: float, exact: float) -> None:
    golden = load_golden(name)
    assert golden.values["official"]["ausuc"] == pytest.approx(official, abs=6e-6 if name == "medium" else 5e-5)
    found = seen_absent_sweep(golden.logits, golden.labels, golden.partition).ausuc
    assert found == pytest.approx(exact, abs=6e-6 if name == "medium" else 5e-5)
