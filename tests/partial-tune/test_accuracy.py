"""Group accuracies by hand: groups, macro averages, ties, empty groups."""

import pytest
import torch

from partial_tune import ClassPartition, group_accuracies
from partial_tune.accuracy import format_accuracies

PARTITION = ClassPartition(("ant", "bee", "cat"), (0, 2))


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 3)
    found = group_accuracies(logits, torch.tensor([0, 1, 2]), PARTITION)
    assert (found["Y/Y"], found["S/Y"], found["U/Y"], found["S/S"], found["U/U"]) == (1 / 3, 0.5, 0, 0.5, 1)
    assert group_accuracies(logits, torch.tensor([0, 1, 2]), PARTITION, top_k=2)["Y/Y"] == pytest.approx(2 / 3)


def test_macro_averages_classes() -> None:
    logits = torch.eye(3)[[0, 0, 0, 0]]
    labels = torch.tensor([0, 0, 0, 2])
    assert group_accuracies(logits, labels, PARTITION)["S/Y"] == 0.75
    assert group_accuracies(logits, labels, PARTITION, average="macro")["S/Y"] == 0.5


def test_empty_groups_are_none_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = group_accuracies(torch.eye(3)[:1], torch.tensor([0]), PARTITION)
    assert (found["U/Y"], found["U/U"], found["H"]) == (None, None, None)
    assert "no samples for U/Y, U/U" in caplog.text


def test_harmonic_mean_of_zeros_is_zero() -> None:
    assert group_accuracies(torch.eye(3)[[2, 0]], torch.tensor([0, 1]), PARTITION)["H"] == 0


def test_offset_is_added_in_float32() -> None:
    logits = torch.tensor([[8.0, 7.0, 0.0]], dtype=torch.bfloat16)
    assert group_accuracies(logits, torch.tensor([1]), PARTITION, gamma=1.001)["U/Y"] == 1
    assert group_accuracies(logits, torch.tensor([1]), PARTITION, gamma=0.999)["U/Y"] == 0


@pytest.mark.parametrize(("options", "message"), [({"average": "mean"}, "micro"), ({"top_k": 4}, "from 1 to the 3")])
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_accuracies(torch.eye(3), torch.tensor([0, 1, 2]), PARTITION, **options)  # type: ignore[arg-type]


def test_table_shows_percent_and_missing_values() -> None:
    table = format_accuracies({"source": {"U/Y": 0.5, "H": None}})
    assert table.splitlines()[-1] == "| source | 50.0 | - |"


def test_a_masked_class_is_never_right_not_even_alone_in_its_group() -> None:
    """The sweep says the same: the sample never flips to its absent class."""
    partition = ClassPartition(("ant", "bee"), (0,))
    found = group_accuracies(torch.tensor([[1.0, -torch.inf]]), torch.tensor([1]), partition)
    assert (found["U/U"], found["U/Y"]) == (0.0, 0.0)
