"""Threads that share a model: each gets its own maps, and the model trains again when the last is done."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from finer_cam import FinerCAM
from finer_cam.heads import record_head
from finer_cam.tail import undisturbed
from support.tiny_classifiers import build, pixels


def run_in_threads(work: Callable[[int], Any], count: int) -> dict[int, Any]:
    """What the work gives for 0, 1, ... in threads of their own; a thread that raises leaves no entry."""
    results: dict[int, Any] = {}

    def keep(number: int) -> None:
        results[number] = work(number)

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(("family", "path"), [("vit", "autograd"), ("convnext", "analytic")])
def test_maps_of_threads_are_those_of_one(family: str, path: str, is_training: bool) -> None:
    model = build(family)
    cam = FinerCAM(model)
    cam(pixels())  # learns the head
    expected = {seed: cam(pixels(seed=seed)).maps for seed in range(4)}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5  # shows in the maps, were it active
    model.train(is_training)
    results = run_in_threads(lambda seed: [cam(pixels(seed=seed)) for _ in range(10)], 4)
    assert results.keys() == expected.keys()
    for seed, outs in results.items():
        for out in outs:
            assert out.path == path
            torch.testing.assert_close(out.maps, expected[seed], atol=1e-5, rtol=0)
    assert {module.training for module in model.modules()} == {is_training}


def test_model_trains_again_after_the_last_thread_only() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay() -> None:
        with undisturbed(model):
            is_inside.set()
            may_leave.wait(timeout=10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert is_inside.wait(timeout=10)
    with undisturbed(model[0]):  # a part of the same model
        pass
    assert [module.training for module in model.modules()] == [False] * 3
    may_leave.set()
    thread.join()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_head_of_another_thread_is_not_recorded() -> None:
    layer, x = nn.Linear(2, 2), torch.randn(3, 2)
    with record_head([layer]) as calls:
        run_in_threads(lambda number: layer(x), 1)
        assert calls == []
        layer(x)
    assert [call.module for call in calls] == [layer]


def test_compiled_models_do_not_disturb_each_other() -> None:
    model = build("vit")
    expected = FinerCAM(model)(pixels()).maps
    model.compile(backend="eager")
    results = run_in_threads(lambda number: FinerCAM(model)(pixels()).maps, 3)
    assert len(results) == 3
    for maps in results.values():
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)
    assert torch._dynamo.eval_frame._stance.stance == "default"
