"""Scoring 45,000 free-text predictions of all abilities, the size of the whole test set, on one core.

The bar is 4,500 predictions a second: 45,000 in ten seconds.
"""

import numpy as np

import harness
from hf_ava_bench import ABILITIES, compute_score

N = 45_000
ANSWERS = {
    "number": lambda rng: str(rng.integers(1, 40)),
    "box": lambda rng: "[" + ", ".join(f"{value:.6f}" for value in np.sort(rng.random(4))) + "]",
    "rgb": lambda rng: str(rng.integers(0, 256, 3).tolist()),
    "text": lambda rng: "".join(rng.choice(list("abcdefghij"), rng.integers(2, 16))),
    "class": lambda rng: str(rng.choice(["left", "right", "above", "below"])),
}
FORMS = ("{}", "It is {}.", "The answer is: {}", "I cannot tell.")


def setup():
    rng = np.random.default_rng(0)
    each = N // len(ABILITIES) + 1
    inputs = {}
    for name, ability in ABILITIES.items():
        truth = [ANSWERS[ability.answer](rng) for _ in range(each)]
        texts = [FORMS[i % len(FORMS)].format(ANSWERS[ability.answer](rng)) for i in range(each)]
        inputs[name] = (texts, truth)
    return inputs


def check(inputs):
    scores = {name: compute_score(name, *pair) for name, pair in inputs.items()}
    assert sum(score.n for score in scores.values()) >= N
    # A quarter of the answers says nothing.
    for name in ("counting", "localization", "color"):
        assert abs(scores[name].coverage - 0.75) < 0.01
    perfect = {name: compute_score(name, truth, truth).value for name, (_, truth) in inputs.items()}
    assert all(abs(value - ABILITIES[name].perfect) < 1e-9 for name, value in perfect.items())


def ours(inputs):
    return [compute_score(name, *pair) for name, pair in inputs.items()]


CASE = harness.Timing(
    sizes=[{"bar": 4_500}],
    setup=setup,
    check=check,
    ours=ours,
    items=N,
    unit="predictions",
)
