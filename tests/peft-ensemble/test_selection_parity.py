"""Cluster measures against scikit-learn and numpy, and the choice among candidates on hand-made ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from peft_ensemble.clustering import (
    adjusted_mutual_info,
    adjusted_rand,
    calinski_harabasz,
    fowlkes_mallows,
    kmeans,
    v_measure,
)
from peft_ensemble.selection import METRICS, UnsupervisedSelector, average_ranks, bnm, rankme

sklearn_metrics = pytest.importorskip("sklearn.metrics")
PAIRS = [
    (adjusted_rand, "adjusted_rand_score"),
    (adjusted_mutual_info, "adjusted_mutual_info_score"),
    (v_measure, "v_measure_score"),
    (fowlkes_mallows, "fowlkes_mallows_score"),
]
PARTITIONS = {
    "random": (torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]), torch.tensor([0, 1, 1, 0, 2, 2, 1, 0])),
    "identical": (torch.tensor([0, 1, 2, 0]), torch.tensor([5, 3, 4, 5])),
    "one cluster": (torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 0])),
    "both one cluster": (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])),
    "singletons": (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])),
    "gaps in the names": (torch.tensor([7, 7, 0, 0, 3]), torch.tensor([9, 2, 2, 9, 9])),
}


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[name for _, name in PAIRS])
def test_cluster_measures_equal_sklearn(ours, theirs, partition):
    first, second = PARTITIONS[partition]
    expected = getattr(sklearn_metrics, theirs)(first.numpy(), second.numpy())
    assert ours(first, second) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[name for _, name in PAIRS])
@given(seed=st.integers(0, 10_000), length=st.integers(2, 60), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_cluster_measures_equal_sklearn_on_random_partitions(ours, theirs, seed, length, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(rows, (length,), generator=generator)
    second = torch.randint(columns, (length,), generator=generator)
    assume(max(len(first.unique()), len(second.unique())) < length)  # versions of scikit-learn differ on singletons
    expected = getattr(sklearn_metrics, theirs)(first.numpy(), second.numpy())
    assert ours(first, second) == pytest.approx(expected, abs=1e-8)


@given(seed=st.integers(0, 10_000), clusters=st.integers(2, 5))
def test_calinski_harabasz_equals_sklearn(seed, clusters):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(30, 4, generator=generator)
    labels = torch.cat([torch.arange(clusters), torch.randint(clusters, (30 - clusters,), generator=generator)])
    expected = sklearn_metrics.calinski_harabasz_score(features.double().numpy(), labels.numpy())
    assert calinski_harabasz(features, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(20, 6), (6, 20)])
def test_rankme_and_bnm_equal_numpy(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    assert rankme(features) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    probabilities = features.double().softmax(-1).numpy()
    assert bnm(features) == pytest.approx(np.linalg.norm(probabilities, "nuc") / shape[0], rel=1e-9)


def test_kmeans_finds_blobs_and_depends_on_the_seed_alone():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat_interleave(25)
    features = 10 * torch.eye(4)[truth] + torch.randn(100, 4, generator=generator)
    state = torch.get_rng_state()
    labels = kmeans(features, 4)
    assert adjusted_rand(labels, truth) == 1
    assert torch.equal(labels, kmeans(features, 4))
    assert torch.equal(state, torch.get_rng_state())


def test_kmeans_with_equal_rows_and_bounds():
    assert len(kmeans(torch.zeros(5, 2), 3)) == 5
    with pytest.raises(ValueError, match="from 1 to the number of rows, 2, got 3"):
        kmeans(torch.zeros(2, 2), 3)


def test_ranks_of_equal_values_are_shared():
    assert average_ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [1.5, 4.0, 1.5, 3.0]


# Ranks over metrics x candidates: a = (1, 1, 4), b = (2, 2, 2), c = (3, 3, 1), d = (4, 4, 3).
ROWS = [
    {"ami": 4.0, "ari": 4.0, "bnm": 1.0},
    {"ami": 3.0, "ari": 3.0, "bnm": 3.0},
    {"ami": 2.0, "ari": 2.0, "bnm": 4.0},
    {"ami": 1.0, "ari": 1.0, "bnm": 2.0},
]


@pytest.mark.parametrize(
    ("combine", "index", "values"),
    [
        ("mean_rank", 0, [2, 2, 7 / 3, 11 / 3]),  # a tie: the first
        ("mean_sq_rank", 1, [6, 4, 19 / 3, 41 / 3]),
        ("vote", 0, [-2, 0, -1, 0]),
    ],
)
def test_combined_ranks(combine, index, values):
    selection = UnsupervisedSelector(metrics=("ami", "ari", "bnm"), combine=combine).select(ROWS)
    assert selection.index == index
    assert list(selection.combined.values()) == pytest.approx(values)


def test_diverged_and_collapsed_candidates_are_left_out():
    best, nan = {"ami": 9.0, "num_predicted_classes": 1.0}, {"ami": math.nan, "num_predicted_classes": 0.0}
    selector = UnsupervisedSelector(metrics=("ami",))
    selection = selector.select([best, nan, {"ami": 0.1, "num_predicted_classes": 3.0}])
    assert (selection.index, list(selection.combined)) == (2, [2])
    assert selector.select([best, nan]).index == 0
    with pytest.raises(ValueError, match="a candidate with finite scores"):
        selector.select([nan])


def test_regret_is_measured_against_oracle_and_random():
    selection = UnsupervisedSelector(metrics=("ami", "ari", "bnm")).select(ROWS)
    regret = selection.regret([0.5, 0.7, 0.9, 0.1])
    expected = {"oracle": 0.9, "selected": 0.7, "random": 0.55, "regret": 0.2, "random_regret": 0.35}
    assert regret == pytest.approx(expected)


def test_scores_of_clear_and_of_random_features():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat(20)
    clear = torch.eye(3)[truth] + 0.05 * torch.randn(60, 3, generator=generator)
    noise = torch.randn(60, 3, generator=generator)
    selector = UnsupervisedSelector()
    good, bad = selector.score(clear, 9 * clear), selector.score(noise, noise.roll(1, 0))
    assert set(good) == {*METRICS, "num_predicted_classes"}
    assert all(good[metric] > bad[metric] for metric in ("ami", "ari", "v_measure", "fmi", "chi", "bnm"))
    assert math.isnan(selector.score(clear, torch.full((60, 3), math.inf))["ami"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("silhouette",)}, "metrics must be among"),
        ({"combine": "median"}, "combine must be one of"),
        ({"weights": (1.0, 2.0)}, "expected 7 weights"),
        ({"metrics": ("ami",), "weights": (0.0,)}, "at least 0 and not all 0"),
        ({"num_folds": 1}, "num_folds must be at least 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UnsupervisedSelector(**options)


def test_agreement_is_with_the_vote_of_all_finite_candidates():
    votes = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 0, 2]])
    answers = [{"features": torch.eye(4), "logits": torch.nn.functional.one_hot(row, 3).float()} for row in votes]
    answers.append({"features": torch.eye(4), "logits": torch.full((4, 3), math.nan)})
    scores = UnsupervisedSelector(metrics=("agreement",)).score_all(answers)
    # The last image is a tie of all three; equal mean probabilities, so the lowest class.
    assert [row["agreement"] for row in scores[:3]] == [1.0, 0.75, 0.5]
    assert math.isnan(scores[3]["agreement"])


def test_weights_change_the_combined_ranks():
    selector = UnsupervisedSelector(metrics=("ami", "ari", "bnm"), combine="mean_rank", weights=(1, 0, 3))
    values = [(1 + 3 * 4) / 4, (2 + 3 * 2) / 4, (3 + 3 * 1) / 4, (4 + 3 * 3) / 4]
    assert list(selector.select(ROWS).combined.values()) == pytest.approx(values)
    votes = UnsupervisedSelector(metrics=("ami", "ari", "bnm"), combine="vote", weights=(1, 0, 3)).select(ROWS)
    assert votes.combined == {0: -1, 1: 0, 2: -3, 3: 0}


@pytest.mark.parametrize("metric", ["agreement", "cv_accuracy"])
def test_metrics_say_what_they_need(metric):
    with pytest.raises(ValueError, match=f"the metric '{metric}' needs what it is named after"):
        UnsupervisedSelector(metrics=(metric,)).score(torch.eye(3), torch.eye(3))
