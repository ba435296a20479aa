"""Thresholds against hand-computed traces; resumed and distributed runs against plain ones."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_ensemble import SSFConfig, SSLTrainer
from peft_ensemble.data import ViewCollator, with_ids
from peft_ensemble.fitting import build_member, load_processor
from peft_ensemble.members import MemberSpec
from peft_ensemble.ssl_algorithms import ALGORITHMS, FineSSL, FixMatch, FlexMatch, FreeMatch, PseudoLabel, SoftMatch
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones

TESTS = Path(__file__).resolve().parents[1]
# Three images of three classes: sure of class 0, nearly sure of class 1, unsure.
PROBABILITIES = torch.tensor([[0.98, 0.01, 0.01], [0.06, 0.90, 0.04], [0.3, 0.3, 0.4]])
WEAK = PROBABILITIES.log()
STRONG = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]).log()
INDICES = torch.tensor([4, 0, 2])
CE = [math.log(1 / 0.5), math.log(1 / 0.6), math.log(1 / 0.8)]  # of the strong views


def test_fixmatch_averages_over_all_images():
    assert FixMatch(3, 6)(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(CE[0] / 3)


def test_pseudo_label_grows_with_progress():
    algorithm = PseudoLabel(3, 6)
    expected = math.log(1 / 0.98) / 3
    for progress, weight in ((0.0, 0), (0.1, 0.25), (0.4, 1), (0.9, 1)):
        assert algorithm(WEAK, STRONG, INDICES, progress).item() == pytest.approx(weight * expected)


def test_no_gradient_reaches_the_weak_view_but_for_pseudo_label():
    for name, algorithm in ALGORITHMS.items():
        weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
        algorithm(3, 6)(weak, strong, INDICES, 1.0).backward()
        assert (weak.grad is not None) == (name == "pseudo_label")
        assert (strong.grad is not None) == (name != "pseudo_label")


def test_flexmatch_lowers_thresholds_of_classes_learned_less():
    algorithm = FlexMatch(3, 6)
    # Nothing selected: the unused bucket holds all 6, every status is 0, every threshold 0.
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(sum(CE) / 3)
    assert algorithm.selected.tolist() == [3, 3, 3, 3, 0, 3]  # image 4 is sure of class 0
    algorithm.selected.copy_(torch.tensor([0, 0, 0, 0, 1, 1]))
    torch.testing.assert_close(algorithm.status(), torch.tensor([1.0, 0.5, 0.0]))
    # Thresholds 0.95, 0.95 * 0.5 / 1.5 = 0.317, 0: all three pass.
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(sum(CE) / 3)
    algorithm.selected.copy_(torch.tensor([1, 1, 1, 1, 2, 2]))
    # Class 1 at 0.95 fails with 0.90; class 2 at 0.317 passes with 0.4; class 0 has status 0.
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx((CE[0] + CE[2]) / 3)


def test_freematch_moves_its_means_and_thresholds():
    algorithm = FreeMatch(3, 6)
    loss = algorithm(WEAK, STRONG, INDICES, 0.0)
    mean = PROBABILITIES.mean(0)
    p_model = 0.999 / 3 + 0.001 * mean
    assert algorithm.tau.item() == pytest.approx(0.999 / 3 + 0.001 * (0.98 + 0.90 + 0.4) / 3)
    torch.testing.assert_close(algorithm.p_model, p_model)
    torch.testing.assert_close(algorithm.histogram, torch.full((3,), 1 / 3))  # one of each class
    # All confidences are above a third. Histograms of targets and of strong views are even, so they cancel.
    given = STRONG.exp().mean(0)
    fairness = (p_model / p_model.sum() * (given / given.sum()).log()).sum()
    assert loss.item() == pytest.approx(sum(CE) / 3 + 0.01 * fairness.item(), abs=1e-5)


def test_freematch_with_nothing_above_the_threshold():
    algorithm = FreeMatch(3, 6)
    algorithm.tau.fill_(1.0)
    strong = STRONG.clone().requires_grad_()
    loss = algorithm(torch.zeros(3, 3), strong, INDICES, 0.0)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(strong.grad).all()


def test_softmatch_weighs_by_confidence():
    algorithm = SoftMatch(3, 6)
    loss = algorithm(WEAK, STRONG, INDICES, 0.0)
    p_mean = 0.999 / 3 + 0.001 * PROBABILITIES.mean(0)
    aligned = PROBABILITIES * (1 / 3 + 1e-6) / (p_mean + 1e-6)
    confidence = (aligned / aligned.sum(1, keepdim=True)).max(1).values
    mu = 0.999 / 3 + 0.001 * confidence.mean()
    var = 0.999 + 0.001 * confidence.var()
    weights = torch.exp(-((confidence - mu).clamp(max=0) ** 2) / (2 * var / 4))
    assert algorithm.mu.item() == pytest.approx(mu.item())
    assert algorithm.var.item() == pytest.approx(var.item())
    assert loss.item() == pytest.approx((weights * torch.tensor(CE)).mean().item(), rel=1e-5)
    assert torch.equal(weights, torch.ones(3))  # all above the mean at the start
    algorithm.mu.fill_(0.95)
    algorithm.var.fill_(0.04)
    # 0.98 is above; 0.90 is a quarter of a standard deviation below; 0.40 is far below.
    expected = (CE[0] + math.exp(-(0.05**2) / (2 * 0.04 / 4)) * CE[1]) / 3
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(expected, rel=0.02)


def test_finessl_adds_margins_by_status():
    algorithm = FineSSL(3, 6)
    assert algorithm.margins().tolist() == [0, 0, 0]
    expected = 3 * (0.98 * CE[0] + 0.90 * CE[1]) / 3
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(expected)
    assert algorithm.selected.tolist() == [1, 3, 3, 3, 0, 3]
    algorithm.selected.copy_(torch.tensor([0, 0, 0, 0, 1, 1]))  # status 1, 1/2, 0
    torch.testing.assert_close(algorithm.margins(), torch.tensor([0.0, 8 / 3, 8.0]))
    logits, label = torch.zeros(1, 3), torch.tensor([1])
    expected = math.log(1 + 2 * math.exp(8 / 3))
    assert algorithm.supervised_loss(logits, label).item() == pytest.approx(expected, rel=1e-6)
    algorithm.start_epoch()
    assert algorithm.margins().tolist() == [0, 0, 0]


def test_freematch_with_a_quantile_and_a_clipped_threshold():
    algorithm = FreeMatch(3, 6, use_quantile=True)
    algorithm(WEAK, STRONG, INDICES, 0.0)
    assert algorithm.tau.item() == pytest.approx(0.999 / 3 + 0.001 * (0.90 + 0.6 * 0.08))  # of 0.40, 0.90, 0.98
    clipped = FreeMatch(3, 6, clip_threshold=True)
    clipped.tau.fill_(1.0)
    clipped(WEAK, STRONG, INDICES, 0.0)
    assert clipped.tau.item() == pytest.approx(0.95)


def test_finessl_of_the_released_code_learns_the_weak_view():
    algorithm = FineSSL(3, 6, weak_view=True)
    expected = 3 * (0.98 * math.log(1 / 0.98) + 0.90 * math.log(1 / 0.90)) / 3
    assert algorithm(WEAK, STRONG, INDICES, 0.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_state_goes_through_a_checkpoint(name):
    first, second = ALGORITHMS[name](3, 6), ALGORITHMS[name](3, 6)
    first(WEAK, STRONG, INDICES, 0.5)
    second.load_state_dict(first.state_dict())
    assert second(WEAK, STRONG, INDICES, 0.5) == first(WEAK, STRONG, INDICES, 0.5)


def build_trainer(name, folder, output, **options):
    spec = MemberSpec(backbone=str(folder / "tiny-vit"), method=SSFConfig())
    args = arguments(remove_unused_columns=False, **{"max_steps": 6, "save_steps": 3, **options})
    args.output_dir, args.save_strategy = str(output), "steps"
    return SSLTrainer(
        name,
        draw_images(20, seed=1).remove_columns("label"),
        model=build_member(spec, LABEL_NAMES),
        args=args,
        train_dataset=with_ids(draw_images(12, seed=0)),
        data_collator=ViewCollator(load_processor(spec), ("weak",)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbones")
    save_backbones(path)
    return path


def trained(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["flexmatch", "softmatch"])
def test_resumed_run_ends_like_an_uninterrupted_one(folder, tmp_path, name):
    whole = build_trainer(name, folder, tmp_path / "a")
    whole.train()
    resumed = build_trainer(name, folder, tmp_path / "a")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for key, value in whole.algorithm.state_dict().items():
        assert torch.equal(resumed.algorithm.state_dict()[key], value), key
    expected = trained(whole)
    assert all(torch.equal(value, expected[key]) for key, value in trained(resumed).items())


def test_pool_is_passed_over_without_repeats(folder, tmp_path):
    trainer = build_trainer("fixmatch", folder, tmp_path)
    trainer.unlabeled_batch_size = 5
    drawn = [trainer.draw_unlabeled()[0].tolist() for _ in range(8)]
    for half in (drawn[:4], drawn[4:]):
        assert sorted(index for batch in half for index in batch) == list(range(20))
    assert drawn[:4] != drawn[4:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mixmatch"}, "algorithm must be one of pseudo_label"),
        ({"pool": 0}, "got an empty data set"),
        ({"algorithm_options": {"weak_view": True}}, r"of fixmatch among none, got \['weak_view'\]"),
    ],
)
def test_wrong_options_are_refused(options, message):
    pool = draw_images(options.get("pool", 3), seed=0)
    with pytest.raises(ValueError, match=message):
        SSLTrainer(options.get("name", "fixmatch"), pool, algorithm_options=options.get("algorithm_options"))


@pytest.mark.slow
@pytest.mark.loopback
def test_two_processes_keep_equal_weights_and_thresholds(folder):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    script = str(TESTS / "support" / "ssl_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("flexmatch", "freematch", "softmatch", "finessl"):
        first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, msg=f"{name}: {key}")
    # Which images were selected is known to both, from both halves of the batches.
    assert (load_file(folder / "flexmatch-0.safetensors")["algorithm.selected"] != 3).sum() > 12
