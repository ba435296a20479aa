"""The modules for `evaluate.load`."""

import pytest

from finer_cam import metric_path

evaluate = pytest.importorskip("evaluate")


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        (
            "relative_drop",
            {"references": [[0.75, 0.25], [0.5, 0.5]], "predictions": [[0.25, 0.5], [0.5, 0.5]]},
            {"relative_drop": 0.375, "target_drop": 0.25, "reference_drop": -0.125},
        ),
        ("deletion", {"predictions": [[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]}, {"deletion": 0.75}),
        ("insertion", {"predictions": [[0.0, 0.0, 1.0]]}, {"insertion": 0.25}),
        (
            "energy_in_region",
            {"predictions": [[[1.0, 3.0]], [[1.0, 0.0]]], "references": [[[0.0, 1.0]], [[1.0, 1.0]]]},
            {"energy_in_region": 0.875},
        ),
        (
            "pointing_game",
            {"predictions": [[[1.0, 3.0, 0.0]], [[1.0, 0.0, 0.0]]], "references": [[[1.0, 0.0, 0.0]]] * 2},
            {"pointing_game": 0.5},
        ),
    ],
)
def test_metric_by_hand(name: str, inputs: dict[str, object], expected: dict[str, float]) -> None:
    metric = evaluate.load(metric_path(name))
    assert type(metric).__name__ == "".join(part.capitalize() for part in name.split("_"))  # not what it is built on
    assert metric.compute(**inputs) == pytest.approx(expected)


def test_pointing_game_takes_a_tolerance() -> None:
    metric = evaluate.load(metric_path("pointing_game"))
    inputs = {"predictions": [[[1.0, 3.0, 0.0]]], "references": [[[1.0, 0.0, 0.0]]]}
    assert metric.compute(**inputs, tolerance=1) == {"pointing_game": 1.0}


def test_unknown_metric_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="deletion, energy_in_region"):
        metric_path("accuracy")
