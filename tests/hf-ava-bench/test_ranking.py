"""Statistics by simulation and against brute force, constants, rankings, pictures."""

import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import concatenate_datasets

from hf_ava_bench import (
    AbilityResult,
    Fingerprint,
    compare_rankings,
    compute_score,
    load_ability,
    plot_bins,
    plot_fingerprints,
    plot_rankings,
    rank_towers,
    score_items,
    statistical_ranks,
)
from hf_ava_bench.cli import main
from hf_ava_bench.constants import fit_constant
from hf_ava_bench.fingerprint import anchor
from hf_ava_bench.plots import _name_bin, _spread
from hf_ava_bench.statistics import (
    bootstrap_interval,
    draw_means,
    friedman_test,
    holm,
    kendall_tau_b,
    nemenyi_difference,
    rank_average,
    sign_flip_test,
    spearman,
)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.random(150), samples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.92 < covered / 400 < 0.98  # four standard errors around 0.95, minus the percentile method's bias


def test_bootstrap_by_cluster_is_wider_where_items_share_an_image():
    values = np.repeat([0.0, 1.0] * 10, 5)
    clusters = [str(i // 5) for i in range(100)]
    plain, clustered = bootstrap_interval(values), bootstrap_interval(values, clusters=clusters)
    assert clustered[1] - clustered[0] > 1.8 * (plain[1] - plain[0])
    assert draw_means(values, samples=10, clusters=clusters).shape == (10,)


def test_sign_flip_test_has_its_size():
    rng = np.random.default_rng(1)
    rejected = sum(sign_flip_test(rng.normal(size=40), samples=400, seed=t) < 0.05 for t in range(400))
    assert 0.02 < rejected / 400 < 0.08


def brute_tau_b(a, b):
    concordant = discordant = ties_a = ties_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            concordant += x * y > 0
            discordant += x * y < 0
            ties_a += x == 0
            ties_b += y == 0
    pairs = len(a) * (len(a) - 1) / 2
    return (concordant - discordant) / math.sqrt((pairs - ties_a) * (pairs - ties_b))


def test_tau_b_and_spearman_equal_brute_force_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b = rng.integers(0, 6, 9), rng.integers(0, 6, 9)
        assert kendall_tau_b(a, b) == pytest.approx(brute_tau_b(a, b))
        assert kendall_tau_b(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(kendall_tau_b([1, 1], [1, 2]))
    assert rank_average([3, 1, 3, 2]).tolist() == [1.5, 4, 1.5, 3]


def test_friedman_equals_scipy_without_ties():
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(3).random((14, 4))
    statistic, p = friedman_test(scores, samples=2_000)
    expected = stats.friedmanchisquare(*scores.T)
    assert statistic == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.05)
    assert friedman_test(np.tile([4.0, 3.0, 2.0, 1.0], (14, 1)), samples=500)[1] < 0.01
    with pytest.raises(ValueError, match="2 to 10 towers"):
        nemenyi_difference(11, 14)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# The best constant: nothing constant is better on the items it was fitted on.


def test_constants_are_the_best_ones():
    counts = [1.0, 2.0, 2.0, 5.0, 9.0, 30.0]
    best = float(fit_constant("counting", [{"number": c} for c in counts], [""] * 6))
    errors = {c: np.mean([abs(c - g) / g for g in counts]) for c in np.arange(0, 31)}
    assert errors[best] == min(errors.values())
    assert fit_constant("scene", [{}] * 3, ["sea", "city", "sea"]) == "sea"
    texts = [{"text": text} for text in ("oberon", "oberan", "xyz")]
    assert fit_constant("ocr", texts, [""] * 3) in ("oberon", "oberan")
    boxes = np.random.default_rng(0).random((40, 4))
    boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    answers = [str(box.tolist()) for box in boxes]
    constant = fit_constant("localization", [{"box": box.tolist()} for box in boxes], answers)
    value = compute_score("localization", [constant] * 40, answers).value
    for other in ("[0, 0, 1, 1]", "[0.25, 0.25, 0.75, 0.75]", "[0.1, 0.1, 0.9, 0.9]"):
        assert value >= compute_score("localization", [other] * 40, answers).value - 1e-6
    colors = np.random.default_rng(0).integers(0, 256, (40, 3))
    answers = [str(color.tolist()) for color in colors]
    constant = fit_constant("color", [{"rgb": color.tolist()} for color in colors], answers)
    value = compute_score("color", [constant] * 40, answers).value
    assert value <= compute_score("color", ["[128, 128, 128]"] * 40, answers).value


def test_constant_of_relative_depth_is_a_box_where_that_is_better_than_a_name():
    pairs = [("car", "tree"), ("cone", "house"), ("dog", "bus"), ("house", "car")]
    questions = [f"Which is closer, the {a} (red box) or the {b} (blue box)?" for a, b in pairs]
    answers = ["tree", "house", "bus", "house"]  # blue three times, a name twice at most
    constant = fit_constant("rel_depth", [{}] * 4, answers, questions)
    assert constant == "blue"
    assert compute_score("rel_depth", [constant] * 4, answers, questions=questions).value == 0.75


def test_anchor_is_zero_without_vision_and_one_without_mistake():
    assert anchor(0.25, 0.25, 1) == 0
    assert anchor(1, 0.25, 1) == 1
    assert anchor(0, 0.6, 0) == 1
    assert anchor(0.9, 0.6, 0) == 0  # clipped


def fingerprint(tower, llm, shares, n=200, seed=0, cost=1.0):
    abilities = {}
    for name, share in shares.items():
        # The same items are hard for all towers.
        hardness = np.random.default_rng(len(name) + seed).random(n)
        values = {f"{i:04d}": float(h < share) for i, h in enumerate(hardness)}
        mean = float(np.mean(list(values.values())))
        abilities[name] = AbilityResult(
            metric="accuracy", value=mean, interval=bootstrap_interval(list(values.values()), samples=200), n=n,
            coverage=1.0, n_unparsable=0, m0=0.1, m1=1.0, score=anchor(mean, 0.1, 1.0), score_interval=(0.0, 1.0),
            split_origin="source", synthetic=True, controls={"blind": 0.0}, cost={"train_seconds": cost},
            values=values,
        )  # fmt: skip
    return Fingerprint(tower=tower, llm=llm, profile={}, seed=0, num_tokens=16, abilities=abilities)


SHARES = {
    "a": {"scene": 0.9, "action": 0.8, "texture": 0.7},
    "b": {"scene": 0.6, "action": 0.5, "texture": 0.72},
    "c": {"scene": 0.3, "action": 0.3, "texture": 0.2},
}


def test_rankings_that_agree_and_one_swap():
    small = [fingerprint(tower, "small", shares) for tower, shares in SHARES.items()]
    large = [fingerprint(tower, "large", shares, seed=1, cost=8.0) for tower, shares in SHARES.items()]
    same = compare_rankings(small, small)
    assert same.overall["tau_b"] == 1
    assert same.overall["top_1_agrees"]
    assert same.n == 3
    comparison = compare_rankings(small, large, samples=300)
    assert comparison.cost_ratio == pytest.approx(8)
    assert comparison.abilities["scene"]["tau_b"] == 1
    assert comparison.abilities["scene"]["swapped"] == []
    low, high = comparison.overall["tau_interval"]
    assert low <= comparison.overall["tau_b"] <= high
    turned = {**SHARES, "a": {**SHARES["a"], "texture": 0.1}}
    other = [fingerprint(tower, "other", shares) for tower, shares in turned.items()]
    swaps = compare_rankings(small, other, samples=300).abilities["texture"]["swapped"]
    pairs = {swap["pair"]: (swap["significant_in_first"], swap["significant_in_second"]) for swap in swaps}
    assert pairs[("a", "c")] == (True, True)
    with pytest.raises(ValueError, match="the same towers on both sides"):
        compare_rankings(small, small[:2])
    table = comparison.table()
    assert "| scene | 1.00 |" in table
    assert "3 towers: each of 3 pairs that swaps moves tau by 0.67" in table
    assert "8.00 times the seconds" in table


def test_all_abilities_together_are_ranked_by_mean_rank_and_not_by_mean_score():
    # `a` is last in two of three abilities by little, and first in one by much.
    shares = {
        "a": {"scene": 0.95, "action": 0.50, "texture": 0.50},
        "b": {"scene": 0.20, "action": 0.55, "texture": 0.55},
    }
    side = [fingerprint(tower, "m", own, n=1000) for tower, own in shares.items()]
    comparison = compare_rankings(side, side, samples=100)
    assert comparison.mean_ranks[0] == pytest.approx({"a": 5 / 3, "b": 4 / 3})
    assert comparison.overall["top_1_agrees"]
    turned = {"a": shares["a"], "b": {**shares["b"], "action": 0.3, "texture": 0.3}}
    other = compare_rankings(
        side, [fingerprint(tower, "o", own, n=1000) for tower, own in turned.items()], samples=100
    )
    assert other.overall["tau_b"] == -1  # by mean scores `a` is first on both sides


def test_items_of_two_kinds_are_not_ranked_together():
    side = [fingerprint(tower, "m", shares) for tower, shares in SHARES.items()]
    real = [replace(f, abilities={name: replace(r, synthetic=False) for name, r in f.abilities.items()}) for f in side]
    held = [
        replace(f, abilities={name: replace(r, split_origin="holdout") for name, r in f.abilities.items()})
        for f in side
    ]
    for others in (real, held):
        with pytest.raises(ValueError, match="not comparable"):
            compare_rankings(side, others)
        with pytest.raises(ValueError, match="not comparable"):
            rank_towers([side[0], others[1]])
    short = replace(side[1], abilities={n: replace(r, values={"0000": 1.0}) for n, r in side[1].abilities.items()})
    with pytest.raises(ValueError, match="the same items for all towers"):
        rank_towers([side[0], short])
    with pytest.raises(ValueError, match="each once, got a, a"):
        rank_towers([side[0], side[0]])
    with pytest.raises(ValueError, match="must be one of statistical, point"):
        rank_towers(side, rank="best")


def test_pairs_are_tested_with_holm_and_ranks_shared():
    shares = {"a": 0.8, "b": 0.799, "c": 0.3}
    towers = [fingerprint(tower, "m", {"scene": share, "action": share}) for tower, share in shares.items()]
    ranking = rank_towers(towers)
    assert ranking.ranks["scene"] == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert ranking.mean_ranks == {"a": 1.5, "b": 1.5, "c": 3.0}
    found = {pair["pair"]: pair for pair in ranking.pairs["action"]}
    assert found["a", "b"]["p_holm"] > 0.05
    assert found["a", "c"]["p_holm"] < 0.01
    assert found["a", "c"]["difference"] == pytest.approx(0.5, abs=0.1)
    assert all(pair["p_holm"] >= pair["p"] for pair in found.values())
    assert "4 of 6 pairs differ" in ranking.table()
    assert rank_towers(towers, rank="point").ranks["scene"] in ({"a": 1.0, "b": 2.0, "c": 3.0}, ranking.ranks["scene"])


def test_items_of_one_image_count_as_one_image():
    # Twenty images with five questions each: differences agree within an image and cancel over half of them.
    def side(images):
        found = []
        for tower, sign in (("a", 1), ("b", -1)):
            values = {f"{i:03d}": 0.5 + 0.25 * sign * (1 if i // 5 < 14 else -1) for i in range(100)}
            result = AbilityResult(
                metric="accuracy", value=0.5, interval=(0, 1), n=100, coverage=1.0, n_unparsable=0, m0=0.1, m1=1.0,
                score=0.5 + 0.1 * sign, score_interval=(0, 1), split_origin="source", synthetic=True, values=values,
                images={key: str(int(key) // 5) for key in values} if images else {},
            )  # fmt: skip
            found.append(
                Fingerprint(tower=tower, llm="m", profile={}, seed=0, num_tokens=1, abilities={"scene": result})
            )
        return found

    alone, shared = (rank_towers(side(images)) for images in (False, True))
    assert alone.pairs["scene"][0]["p"] < 0.01  # as if a hundred images agreed
    assert shared.pairs["scene"][0]["p"] > 0.05  # 14 of 20 images
    assert alone.ranks["scene"] == {"a": 1.0, "b": 2.0}


def test_results_know_which_items_share_an_image():
    table = load_ability("scene", "mini", "test", n=6, image_size=32)
    answers = [*table["answer"][:3], "x", "x", "x"]
    plain = AbilityResult.from_score(score_items(table, answers), table, 0.1)
    assert (plain.value, plain.images, plain.synthetic) == (0.5, {}, True)
    assert plain.score == pytest.approx((0.5 - 0.1) / 0.9)
    twice = concatenate_datasets([table, table.map(lambda row: {"id": f"{row['id']}-again"})])
    result = AbilityResult.from_score(score_items(twice, answers * 2), twice, 0.1, controls={"blind": 0.0})
    assert len(set(result.images.values())) == 6
    assert result.interval == pytest.approx(plain.interval, abs=0.1)  # no narrower for the second question
    assert result.controls == {"blind": 0.0}


def test_less_is_better_where_the_metric_is_an_error():
    errors = {"good": 0.1, "bad": 0.9}
    towers = []
    for tower, error in errors.items():
        values = dict.fromkeys(map(str, range(30)), error)
        result = AbilityResult(
            metric="mae_gt", value=error, interval=(0, 1), n=30, coverage=1.0, n_unparsable=0, m0=1.0, m1=0.0,
            score=1 - error, score_interval=(0, 1), split_origin="source", synthetic=True, values=values,
        )  # fmt: skip
        towers.append(
            Fingerprint(tower=tower, llm="m", profile={}, seed=0, num_tokens=1, abilities={"counting": result})
        )
    ranking = rank_towers(towers)
    assert ranking.ranks["counting"] == {"good": 1.0, "bad": 2.0}
    assert ranking.pairs["counting"][0]["difference"] == pytest.approx(0.8)


def test_command_ranks_and_compares(tmp_path, capsys):
    for head, seed in (("small", 0), ("large", 1)):
        for tower, shares in SHARES.items():
            fingerprint(tower, head, shares, seed=seed).save(tmp_path / head / tower / "fingerprint.json")
    small, large = ([str(tmp_path / head / tower) for tower in SHARES] for head in ("small", "large"))
    assert main(["rank", *small, "--plot", str(tmp_path / "radar.png")]) == 0
    assert "| a |" in capsys.readouterr().out
    slopes = tmp_path / "slopes.svg"
    assert main(["rank", *small, "--against", *large, "--plot", str(slopes)]) == 0
    assert "| mean rank |" in capsys.readouterr().out
    assert slopes.exists()
    assert main(["rank", *small, "--against", *large[:2]]) == 1
    assert "the same towers on both sides" in capsys.readouterr().err


def test_towers_that_the_items_do_not_tell_apart_share_a_rank():
    towers = [fingerprint(tower, "m", {"scene": share}) for tower, share in {"a": 0.8, "b": 0.799, "c": 0.3}.items()]
    ranks = statistical_ranks(towers, "scene")
    assert ranks["c"] == 3
    assert ranks["a"] == ranks["b"] == 1.5


def test_labels_of_equal_ranks_do_not_overlap():
    places = _spread({"a": 1.0, "b": 1.0, "c": 1.1, "d": 3.0}, 0.2)
    assert places == pytest.approx({"a": 1.0, "b": 1.2, "c": 1.4, "d": 3.0})


def test_bins_are_named_by_what_they_hold():
    names = [_name_bin(name, "number") for name in ("0_5", "5_10", "20_")]
    assert names == ["up to 5", "over 5 to 10", "over 20"]
    assert [_name_bin(name, "text") for name in ("1_5", "21_")] == ["1 to 5", "21 and more"]
    assert _name_bin("hot dog", "class") == "hot dog"


def test_pictures_are_drawn(tmp_path):
    small = [fingerprint(tower, "small", shares) for tower, shares in SHARES.items()]
    radar = plot_fingerprints(small, tmp_path / "radar.png")
    assert radar.read_bytes()[:4] == b"\x89PNG"
    slopes = plot_rankings(compare_rankings(small, small, samples=50), tmp_path / "slopes.svg")
    assert b"<svg" in slopes.read_bytes()
    counts = {name: compute_score("counting", [name], ["3"]) for name in ("3", "5")}
    assert plot_bins(counts, tmp_path / "bins.png").read_bytes()[:4] == b"\x89PNG"
    scenes = compute_score("scene", ["sea"], ["sea"])
    assert plot_bins({"m": scenes}, tmp_path / "classes.png").exists()
    with pytest.raises(ValueError, match="scores of one ability, got counting, scene"):
        plot_bins({**counts, "x": scenes}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="'color' has no bins"):
        plot_bins({"m": compute_score("color", ["red"], ["red"])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="with the same abilities"):
        plot_fingerprints([small[0], fingerprint("d", "m", {"scene": 0.5})], tmp_path / "x.png")
