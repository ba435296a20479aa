"""Which classes are compared, and how much each counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finer_cam import reference_weights, select_references
from finer_cam.references import nearest_by_matrix, nearest_by_weight, objective_coefficients, split_objective

SEEDS = st.integers(0, 2**16)


@given(seed=SEEDS, num_classes=st.integers(2, 9), num_references=st.integers(0, 12))
def test_nearest_logits_equal_a_sorted_list(seed: int, num_classes: int, num_references: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (3, num_classes), generator=generator).float()  # with ties
    target = torch.randint(0, num_classes, (3,), generator=generator)
    ours = select_references(logits, target, num_references)
    for i, c in enumerate(target.tolist()):
        row = logits[i].tolist()
        order = sorted((abs(row[j] - row[c]), j) for j in range(num_classes) if j != c)
        assert ours[i].tolist() == [j for _, j in order[:num_references]]


def test_tied_logits_still_explain_the_class_asked_for() -> None:
    logits = torch.zeros(1, 13)
    assert select_references(logits, torch.tensor([12]), 3).tolist() == [[0, 1, 2]]


def test_several_targets() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert select_references(logits, torch.tensor([[0, 2]]), 1).tolist() == [[[1], [1]]]


def test_nearest_weights_by_cosine() -> None:
    weight = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    assert nearest_by_weight(weight, torch.tensor([[0, 2]]), 2).tolist() == [[[1, 2], [1, 0]]]


def test_matrix_leaves_out_classes_that_are_never_confused() -> None:
    matrix = torch.tensor([[9.0, 0.0, 2.0], [1.0, 9.0, 1.0], [0.0, 0.0, 9.0]])
    assert nearest_by_matrix(matrix, torch.tensor([[0, 1]]), 2).tolist() == [[[2, -1], [0, 2]]]


def test_weights_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, 7.0]])
    references = torch.tensor([[1, 2, -1]])
    assert reference_weights(logits, references).tolist() == [[0.5, 0.5, 0.0]]
    expected = torch.tensor([1.0, 3.0]).softmax(0)
    torch.testing.assert_close(reference_weights(logits, references, "softmax")[0, :2], expected)
    assert reference_weights(logits, torch.tensor([[-1, -1, -1]]), "softmax").tolist() == [[0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="'uniform' or 'softmax'"):
        reference_weights(logits, references, "mean")


def test_softmax_weights_hold_at_large_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4 + 1]])
    weights = reference_weights(logits, torch.tensor([[1, 2]]), "softmax")
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]).softmax(1))


@given(seed=SEEDS)
def test_coefficients_of_the_published_objective(seed: int) -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    target, references = torch.tensor([[0], [4]]), torch.tensor([[[1, 2]], [[3, -1]]])
    weights = reference_weights(logits, references)
    main, reference = objective_coefficients(logits, target, references, weights)
    assert main[:, 0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert reference[:, 0].tolist() == [[0, 0.5, 0.5, 0, 0], [0, 0, 0, 1, 0]]


def test_objective_of_the_released_code() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    p = logits[0].softmax(0)
    main, reference = split_objective(logits, torch.tensor([[0]]), torch.tensor([[[1, 2]]]), None)
    total = p[1] + p[2] + 1e-9
    for gamma in (0.0, 0.6, 1.0):
        expected = (p[1] * (2.0 - gamma * 1.0) + p[2] * (2.0 - gamma * 0.0)) / total
        torch.testing.assert_close((main - gamma * reference)[0, 0], expected)


def test_coefficients_of_the_released_code_equal_finite_differences() -> None:
    logits = torch.tensor([[0.3, 0.1, -0.2, 0.5]], dtype=torch.float64)
    target, references = torch.tensor([[3]]), torch.tensor([[[0, 1]]])
    coefficients = objective_coefficients(logits, target, references, None)
    for part in (0, 1):
        for j in range(4):
            step = torch.zeros_like(logits)
            step[0, j] = 1e-4
            up = split_objective(logits + step, target, references, None)[part]
            down = split_objective(logits - step, target, references, None)[part]
            assert abs(float((up - down) / 2e-4) - float(coefficients[part][0, 0, j])) < 1e-4
