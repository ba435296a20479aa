"""Targets from votes: the paper's rule, the released code's, and the others, on hand-computed cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_ensemble.aggregation import aggregate, break_ties, dawid_skene, vote_counts

RULES = ["mean_labels", "softmax_counts", "mean_logits", "mean_probs", "dawid_skene"]


def votes_as_logits(votes, num_classes, scale=5.0):
    return scale * torch.nn.functional.one_hot(torch.tensor(votes), num_classes).float()


@pytest.mark.parametrize(("num_classes", "mass"), [(4, 0.948), (45, 0.554), (47, 0.543), (397, 0.121)])
def test_unanimous_vote_of_four_under_both_rules(num_classes, mass):
    logits = votes_as_logits([[2]] * 4, num_classes)
    assert aggregate(logits, "mean_labels")[0, 2] == 1
    assert aggregate(logits, "softmax_counts")[0, 2].item() == pytest.approx(mass, abs=5e-4)
    assert math.exp(4) / (math.exp(4) + num_classes - 1) == pytest.approx(mass, abs=5e-4)


def test_split_vote_at_397_classes():
    logits = votes_as_logits([[0], [0], [1], [1]], 397)
    assert aggregate(logits, "softmax_counts")[0, :2].tolist() == pytest.approx([0.018, 0.018], abs=5e-4)
    assert aggregate(logits, "mean_labels")[0, :2].tolist() == [0.5, 0.5]


def test_loud_member_wins_logits_but_not_votes():
    logits = torch.tensor([[[50.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    assert aggregate(logits, "mean_logits").argmax() == 0
    assert aggregate(logits, "mean_labels").argmax() == 1
    expected = (torch.tensor([1.0, 0.0]) + 2 * torch.tensor([1 / (1 + math.e), math.e / (1 + math.e)])) / 3
    torch.testing.assert_close(aggregate(logits, "mean_probs")[0], expected.double(), rtol=0, atol=1e-6)


def test_weights_change_the_vote():
    logits = votes_as_logits([[0], [1], [1]], 2)
    assert aggregate(logits, "weighted", torch.tensor([3.0, 1, 1])).tolist() == [[0.6, 0.4]]


def test_dawid_skene_outvotes_a_poor_majority():
    # Members 0 and 1 are always right; 2, 3 and 4 guess independently.
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (300,), generator=generator)
    votes = torch.stack([truth, truth, *torch.randint(3, (3, 300), generator=generator)])
    majority = torch.nn.functional.one_hot(votes, 3).sum(0).argmax(-1)
    assert (dawid_skene(votes, 3).argmax(-1) == truth).float().mean() > (majority == truth).float().mean()
    assert (dawid_skene(votes, 3).argmax(-1) == truth).all()


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 1000), members=st.integers(1, 5), images=st.integers(1, 6), classes=st.integers(2, 5))
def test_targets_are_probabilities_that_ignore_the_order_of_members(rule, seed, members, images, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(members, images, classes, generator=generator)
    targets = aggregate(logits, rule)
    assert targets.shape == (images, classes)
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(-1), torch.ones(images, dtype=torch.float64))
    shuffled = logits[torch.randperm(members, generator=generator)]
    torch.testing.assert_close(aggregate(shuffled, rule), targets, rtol=1e-9, atol=1e-9)


def test_empty_pool_gives_empty_targets():
    assert aggregate(torch.zeros(2, 0, 3)).shape == (0, 3)
    assert vote_counts(torch.zeros(2, 0, 3)).shape == (0, 3)


def test_ties_go_to_the_larger_mean_probability_then_the_lowest_class():
    logits = torch.tensor([[[1.0, 0, -9]], [[0, 4.0, -9]]])
    assert break_ties(aggregate(logits), logits).tolist() == [1]
    even = torch.tensor([[[1.0, 0, 0]], [[0.0, 1, 0]]])
    assert break_ties(aggregate(even), even).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate(torch.zeros(2, 3)), r"shape \(members, images, classes\), got \(2, 3\)"),
        (lambda: aggregate(torch.zeros(0, 3, 2)), "members, images, classes"),
        (lambda: aggregate(torch.zeros(1, 1, 2), "median"), "rule must be one of mean_labels"),
        (lambda: aggregate(torch.full((1, 1, 2), math.nan)), "expected finite logits"),
        (lambda: aggregate(torch.zeros(2, 1, 2), "weighted"), "weights belong to rule='weighted'"),
        (lambda: aggregate(torch.zeros(2, 1, 2), weights=torch.ones(2)), "weights belong to rule='weighted'"),
        (lambda: aggregate(torch.zeros(2, 1, 2), "weighted", torch.zeros(2)), "expected 2 weights, at least 0"),
        (lambda: aggregate(torch.zeros(2, 1, 2), "weighted", torch.ones(3)), "expected 2 weights"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
