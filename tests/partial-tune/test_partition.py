"""ClassPartition: what it accepts, what it refuses, and the traps of labels that were numbered anew."""

import datasets
import numpy as np
import pytest
import torch
from transformers import ViTConfig

from partial_tune import ClassPartition

NAMES = ("ant", "bee", "cat", "dog")


def test_groups_are_sorted_and_cover_all_classes() -> None:
    partition = ClassPartition(NAMES, (3, 0))
    assert (partition.seen, partition.absent, partition.remaining) == ((0, 3), (1, 2), ())
    assert (partition.seen_names, partition.absent_names) == (("ant", "dog"), ("bee", "cat"))
    assert partition.absent_mask.tolist() == [False, True, True, False]


def test_remaining_classes_are_in_no_group() -> None:
    assert ClassPartition(NAMES, (0,), (1,)).remaining == (2, 3)


@pytest.mark.parametrize(
    ("seen", "absent", "message"),
    [
        ((), (1,), "at least one seen class"),
        ((0, 1, 2, 3), (), "at least one absent class"),
        ((0, 0), (1,), "different seen ids"),
        ((0, 4), (1,), "from 0 to 3"),
        ((0, 1), (1, 2), "['bee'] are seen and absent"),
    ],
)
def test_impossible_groups_are_refused(seen: tuple[int, ...], absent: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        ClassPartition(NAMES, seen, absent)


def test_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match="different class names, got \\['ant'\\]"):
        ClassPartition(("ant", "bee", "ant"), (0,))


def test_mask_names_and_ids_give_the_same_partition() -> None:
    expected = ClassPartition(NAMES, (0, 3))
    assert ClassPartition.from_mask(NAMES, np.array([False, True, True, False])) == expected
    assert ClassPartition.from_names(dict(enumerate(NAMES)), ["dog", "ant"]) == expected
    with pytest.raises(ValueError, match="boolean mask of shape"):
        ClassPartition.from_mask(NAMES, np.array([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="got \\['cow'\\]"):
        ClassPartition.from_names(NAMES, ["cow"])


def test_json_round_trip() -> None:
    partition = ClassPartition(NAMES, (0, 3), (1,))
    assert ClassPartition.from_json(partition.to_json()) == partition
    with pytest.raises(ValueError, match="'absent'\\] is missing"):
        ClassPartition.from_dict({"names": NAMES, "seen": [0]})


def test_hash_depends_on_names_and_order_only() -> None:
    assert ClassPartition(NAMES, (0,)).hash == ClassPartition(NAMES, (1, 2)).hash
    assert ClassPartition(NAMES, (0,)).hash != ClassPartition(NAMES[::-1], (0,)).hash


def config(names: tuple[str, ...] | None = NAMES) -> ViTConfig:
    if names is None:
        return ViTConfig(num_labels=4)
    return ViTConfig(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})


def with_labels(labels: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"label": labels}, features=features)


def test_seen_classes_come_from_the_data() -> None:
    expected = ClassPartition(NAMES, (1, 3))
    assert ClassPartition.from_dataset(config(), with_labels([3, 1, 3], list(NAMES))) == expected
    assert ClassPartition.from_dataset(config(), datasets.Dataset.from_dict({"y": [3, 1]}), "y") == expected
    assert ClassPartition.from_dataset(config(), datasets.Dataset.from_dict({"label": ["dog", "bee"]})) == expected
    assert ClassPartition.from_dataset(config(), [{"label": torch.tensor(3)}, {"label": 1}]) == expected
    assert ClassPartition.from_dataset(config(), torch.tensor([3, 1, 1])) == expected


def test_unnamed_classes_are_matched_by_their_number() -> None:
    partition = ClassPartition.from_dataset(config(None), with_labels([3, 1], list(NAMES)))
    assert partition.seen_names == ("LABEL_1", "LABEL_3")
    with pytest.raises(ValueError, match="align_labels_with_mapping"):
        ClassPartition.from_dataset(config(None), with_labels([0, 1], ["bee", "dog"]))


def test_labels_that_were_numbered_anew_are_refused_and_the_fix_works() -> None:
    anew = with_labels([0, 1, 1], ["bee", "dog"])
    with pytest.raises(ValueError, match="ids mean other classes") as error:
        ClassPartition.from_dataset(config(), anew)
    assert 'align_labels_with_mapping(model.config.label2id, "label")' in str(error.value)
    assert str(error.value).count("...") == 2
    fixed = anew.align_labels_with_mapping(config().label2id, "label")
    assert fixed["label"][:] == [1, 3, 3]
    assert ClassPartition.from_dataset(config(), fixed).seen == (1, 3)


def test_ids_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 3 in 'label', got \[4\]"):
        ClassPartition.from_dataset(config(), [0, 4])
    with pytest.raises(ValueError, match="column 'label' in the data set, got"):
        ClassPartition.from_dataset(config(), datasets.Dataset.from_dict({"y": [0]}))
