"""Metrics of runners whose scores are known by formula, intervals, and the `evaluate` modules."""

import evaluate
import numpy as np
import pytest

from hf_compbench import compare, metric_path, score, wilson_interval
from hf_compbench.baselines import image_prior, option_prior, question_prior
from hf_compbench.functional import apply_swap, build_swap_map, debias, rotate_options
from hf_compbench.intervals import (
    bootstrap_macro_mean,
    clustered_standard_error,
    draw_means,
    holm,
    mcnemar_exact,
)

SIDES = ["Left", "Right"]


def make_rows(n, options=SIDES, source="vaw", relativity="state", prefix=""):
    """Rows whose answers go through the options in turn."""
    return [
        {
            "id": f"{prefix}{source}-{i}",
            "relativity": relativity,
            "source": source,
            "question": "Which cup is fuller?",
            "options": list(options),
            "answer": i % len(options),
            "group_id": f"{source}-{i // 2}",
        }
        for i in range(n)
    ]


def ask(rows, answer):
    """Replies of `answer(row, order, gold)`, where `gold` is the right text in that order."""
    replies = []
    for row in rows:
        for order in ("12", "21"):
            gold = row["answer"] if order == "12" else build_swap_map(row["options"])[row["answer"]]
            replies.append({"id": row["id"], "order": order, "reply": answer(row, order, row["options"][gold])})
    return replies


def test_oracle():
    rows = make_rows(40)
    column = score(rows, ask(rows, lambda row, order, gold: gold), num_bootstrap=200).columns["VA-s"]
    assert [column[name] for name in ("accuracy", "pair_accuracy", "consistency", "bias", "side_gap")] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_constant_side():
    rows = make_rows(40)
    column = score(rows, ask(rows, lambda row, order, gold: "Left"), num_bootstrap=200).columns["VA-s"]
    names = ("accuracy", "pair_accuracy", "consistency", "bias", "side_gap", "coverage")
    assert [column[name] for name in names] == [0.5, 0, 0, 0.5, 1, 1]


def test_constant_side_on_one_sided_gold_looks_good_without_swapping():
    rows = [{**row, "answer": 0} for row in make_rows(40)]
    first = [reply for reply in ask(rows, lambda row, order, gold: "Left") if reply["order"] == "12"]
    assert score(rows, first, num_bootstrap=10).columns["VA-s"]["accuracy"] == 1.0
    column = score(rows, ask(rows, lambda row, order, gold: "Left"), num_bootstrap=10).columns["VA-s"]
    assert (column["accuracy"], column["pair_accuracy"], column["bias"]) == (0.5, 0.0, 0.5)


def test_coin():
    rows = make_rows(8_000)
    generator = np.random.default_rng(0)
    replies = ask(rows, lambda row, order, gold: SIDES[generator.integers(2)])
    column = score(rows, replies, num_bootstrap=10).columns["VA-s"]
    # Five standard errors: at most 5 * 0.5 / sqrt(8000) = 0.028.
    expected = {"accuracy": 0.5, "pair_accuracy": 0.25, "consistency": 0.5, "bias": 0.0, "side_gap": 0.0}
    assert {name: column[name] for name in expected} == pytest.approx(expected, abs=0.028)


def test_partly_biased_runner():
    # Sees the answer on 3 of 4 pairs, else says Left: accuracy 7/8, pairs 3/4, bias 1/2 * 1/4.
    rows = make_rows(80)
    replies = ask(rows, lambda row, order, gold: gold if int(row["id"][4:]) % 4 else "Left")
    column = score(rows, replies, num_bootstrap=10).columns["VA-s"]
    assert (column["accuracy"], column["pair_accuracy"], column["consistency"]) == (0.875, 0.75, 0.75)
    assert column["bias"] == pytest.approx(0.125)


def test_same_and_named_options_stay_when_images_are_exchanged():
    rows = make_rows(30, ["Left", "Right", "Same"], "vqav2", "quantity")
    rows += make_rows(30, ["None", "dog", "hat"], "magic_brush", "existence")
    columns = score(rows, ask(rows, lambda row, order, gold: gold), num_bootstrap=10).columns
    assert columns["VQ"]["consistency"] == columns["MB"]["pair_accuracy"] == 1
    assert columns["VQ"]["chance"] == pytest.approx(1 / 3)
    assert "bias" in columns["VQ"]
    assert "bias" not in columns["MB"]


def test_table_keeps_its_columns_where_a_number_is_missing():
    rows = make_rows(4) + make_rows(4, ["None", "dog"], "magic_brush", "existence")
    table = str(score(rows, ask(rows, lambda row, order, gold: gold), num_bootstrap=10)).splitlines()
    header, brush = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (table[0], table[3]))
    assert len({len(line) for line in table}) == 1
    cells = dict(zip(header, brush, strict=True))
    assert (cells["column"], cells["n"], cells["bias"], cells["coverage"]) == ("MB", "4", "", "100.0%")


def test_unparsed_is_wrong_and_errors_are_missing():
    rows = make_rows(4)
    replies = ask(rows, lambda row, order, gold: gold)
    replies[0]["reply"] = "no idea"
    replies[1]["status"] = "error"
    scores = score(rows, replies, num_bootstrap=10)
    assert scores.missing == 1
    assert scores.columns["VA-s"]["accuracy"] == pytest.approx((0 + 1 + 1 + 1) / 4)
    assert scores.columns["VA-s"]["coverage"] == pytest.approx(6 / 7)
    assert scores.steps == {"exact": 6, "unparsed": 1}


@pytest.mark.parametrize("reply", ["???", "Left", "Right"])
def test_a_label_that_is_no_option_is_never_right(reply):
    rows = [{**row, "answer": -1} for row in make_rows(4)] + make_rows(4, prefix="good-")
    replies = [{"id": row["id"], "order": order, "reply": reply} for row in rows[:4] for order in ("12", "21")]
    scores = score(rows, replies, num_bootstrap=10)
    column = scores.columns["VA-s"]
    assert (column["accuracy"], column["pair_accuracy"], column["accuracy_first"], column["majority"]) == (0, 0, 0, 0)
    assert {answer["right"] for answer in scores.answers.values()} == {0.0}
    tie = [{"id": row["id"], "order": order, "scores": [0.0, 0.0]} for row in rows[:4] for order in ("12", "21")]
    assert score(rows, tie, num_bootstrap=10).columns["VA-s"]["debiased_accuracy"] == 0


def test_priors_learn_nothing_from_labels_that_are_no_option():
    train = [{**row, "answer": -1} for row in make_rows(9)] + [{**make_rows(1)[0], "answer": 0}]
    for prior in (question_prior, option_prior):
        assert prior(train, make_rows(1)) == [0]
        assert prior(train[:-1], make_rows(1)) == [-1]
    keyed = [{**row, "image_1_key": "a", "image_2_key": "b"} for row in train]
    assert image_prior(keyed[:-1], keyed) == [-1] * 10
    assert image_prior(keyed, keyed[:1]) == [0]


def test_priors_of_the_val_split_stand_beside_the_accuracy():
    val = [{**row, "answer": 0} for row in make_rows(10, ["dog", "hat"], "magic_brush", "existence")]
    rows = [
        {**row, "answer": i % 4 == 0} for i, row in enumerate(make_rows(8, ["dog", "hat"], "magic_brush", "existence"))
    ]
    scores = score(rows, ask(rows, lambda row, order, gold: gold), train=val, num_bootstrap=10)
    column = scores.columns["MB"]
    assert (column["option_prior"], column["question_prior"]) == (0.75, 0.75)
    header = [cell.strip() for cell in str(scores).splitlines()[0].split("|")]
    assert {"option_prior", "question_prior"} <= set(header)
    assert "option_prior" not in str(score(rows, ask(rows, lambda row, order, gold: gold), num_bootstrap=10))


def test_composites_have_one_order_and_are_not_missing():
    rows = [{**row, "image_2_key": "b"} for row in make_rows(2)]
    rows += [{**row, "image_2_key": ""} for row in make_rows(2, ["First", "Second"], "q_bench2", "quality")]
    replies = [
        reply for reply in ask(rows, lambda row, order, gold: gold) if "vaw" in reply["id"] or reply["order"] == "12"
    ]
    scores = score(rows, replies, num_bootstrap=10)
    assert (scores.missing, scores.columns["QB"]["n"]) == (0, 2)
    assert score(rows, replies[1:], num_bootstrap=10).missing == 1
    assert "Missing: 1 replies" in str(score(rows, replies[1:], num_bootstrap=10))


def test_accuracy_is_over_all_shifts_of_the_options():
    rows = make_rows(2, ["None", "dog", "hat"], "magic_brush", "existence")
    replies = [{"id": row["id"], "reply": row["options"][row["answer"]]} for row in rows]
    replies += [{"id": row["id"], "reply": "hat", "shift": 1} for row in rows]
    column = score(rows, replies, num_bootstrap=10).columns["MB"]
    assert (column["accuracy"], column["option_consistency"]) == (0.5, 0.0)
    silent = [{**reply, "reply": "?"} for reply in replies]
    assert score(rows, silent, num_bootstrap=10).columns["MB"]["option_consistency"] == 0


def test_baselines_stand_in_the_table():
    rows = make_rows(4)
    good, blind = (ask(rows, answer) for answer in (lambda row, order, gold: gold, lambda row, order, gold: "Left"))
    table = score(rows, good, num_bootstrap=10).to_table({"blank": score(rows, blind, num_bootstrap=10)})
    assert table.splitlines()[0].rstrip(" |").endswith("blank")
    assert table.splitlines()[2].rstrip(" |").endswith("50.0%")


def test_macro_means_weigh_columns_and_kinds_alike():
    rows = make_rows(10, relativity="attribute") + make_rows(30, source="cub_200_2011", relativity="attribute")
    rows += make_rows(20, source="celeba", relativity="emotion")
    right = {"vaw": True, "cub_200_2011": False, "celeba": True}
    replies = ask(rows, lambda row, order, gold: gold if right[row["source"]] else "?")
    metrics = score(rows, replies, num_bootstrap=50).to_metrics()
    expected = {"acc/VA-a": 1.0, "acc/CU": 0.0, "acc/CE": 1.0, "acc/attribute": 0.5, "acc/emotion": 1.0}
    assert metrics == pytest.approx({**expected, "macro": 2 / 3, "macro8": 0.75, "micro": 0.5})


def test_scores_of_options_and_shifted_options():
    rows = make_rows(3, ["None", "dog", "hat"], "magic_brush", "existence")
    replies = [{"id": row["id"], "scores": [float(i == row["answer"]) for i in range(3)]} for row in rows]
    for row in rows:
        shown, _ = rotate_options(row["options"], 1)
        letter = "ABC"[shown.index(row["options"][row["answer"]])]
        replies.append({"id": row["id"], "reply": letter, "shift": 1})
    column = score(rows, replies, num_bootstrap=10).columns["MB"]
    assert (column["accuracy"], column["option_consistency"]) == (1, 1)
    tie = score(rows, [{"id": row["id"], "scores": [0.0, 0.0, -1.0]} for row in rows], num_bootstrap=10)
    assert tie.columns["MB"]["coverage"] == 0


def test_option_shifts_are_bijections():
    for shift in range(7):
        shown, origin = rotate_options(["a", "b", "c", "d", "e"], shift)
        assert sorted(origin) == list(range(5))
        assert [["a", "b", "c", "d", "e"][i] for i in origin] == shown


def test_swapping_twice_is_identity():
    for options in (SIDES, ["Left", "Right", "Same"], ["None", "dog"], ["Right", "None", "Left"]):
        mapping = build_swap_map(options)
        answers = np.array([*range(len(options)), -1])
        assert (apply_swap(apply_swap(answers, [mapping] * len(answers)), [mapping] * len(answers)) == answers).all()


def test_debiasing_removes_a_constant_liking_for_a_side():
    truth, liking = np.array([-1.0, -0.5]), np.array([2.0, 0.0])  # Right is right, Left is liked
    assert (truth + liking).argmax() == 0
    assert debias(truth + liking, truth[::-1] + liking, [1, 0]) == 1
    assert debias(np.array([-1.0, -1.0]), np.array([-1.0, -1.0]), [1, 0]) == -1


def test_paper_mode_shows_its_defects():
    rows = [{**row, "answer": 0} for row in make_rows(2)]
    replies = [{"id": row["id"], "reply": "The answer is Left, not Right"} for row in rows]
    assert score(rows, replies, num_bootstrap=10).micro == 1
    assert score(rows, replies, mode="paper", num_bootstrap=10).micro == 0


def test_wilson_interval_of_the_specification():
    assert wilson_interval(73, 146) == pytest.approx((0.420, 0.580), abs=5e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(0, 0) == (0, 1)


def test_bootstrap_covers_where_wilson_does_not():
    """Clusters of 8 with correlation 0.3: the cluster bootstrap reaches 93 percent, Wilson falls short."""
    generator = np.random.default_rng(0)
    runs, clusters, size, p, correlation = 600, 80, 8, 0.7, 0.3
    names = [str(i // size) for i in range(clusters * size)]
    # A beta-binomial cluster: its rate has mean p, and two of its members correlate by 1 / (a + b + 1).
    a, b = p * (1 / correlation - 1), (1 - p) * (1 / correlation - 1)
    hits = {"bootstrap": 0, "wilson": 0}
    for run in range(runs):
        values = generator.random((clusters, size)) < generator.beta(a, b, (clusters, 1))
        values = values.astype(float).ravel()
        low, high = bootstrap_macro_mean([(values, names)], replicates=500, seed=run)
        hits["bootstrap"] += low <= p <= high
        low, high = wilson_interval(values.sum(), len(values))
        hits["wilson"] += low <= p <= high
    assert hits["bootstrap"] / runs >= 0.93
    assert hits["wilson"] / runs < 0.85


def test_bootstrap_of_independent_columns_is_reproducible_and_centred():
    values = np.array([0.0, 1.0] * 50)
    columns = [(values, [str(i) for i in range(100)]), (1 - values, [str(i) for i in range(100)])]
    low, high = bootstrap_macro_mean(columns, replicates=2_000)
    assert (low, high) == bootstrap_macro_mean(columns, replicates=2_000)
    # Standard error of the mean of two independent means: 0.5 / 10 / sqrt(2) = 0.0354.
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.0354, 0.5 + 1.96 * 0.0354), abs=0.006)


def test_draws_in_chunks_are_means_of_whole_clusters(monkeypatch):
    monkeypatch.setattr("hf_compbench.intervals._CELLS", 10)
    means = draw_means(np.array([2.0, 4.0]), np.array([2.0, 4.0]), 100, np.random.default_rng(0))
    assert (means == 1).all()


def test_clustered_standard_error_of_equal_members_is_that_of_clusters():
    values = np.repeat([0.0, 1.0, 1.0, 0.0], 5)
    names = [str(i // 5) for i in range(20)]
    assert clustered_standard_error(values, names) == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)


def test_mcnemar_and_holm_by_hand():
    assert mcnemar_exact(0, 8) == pytest.approx(2 / 2**8)
    assert mcnemar_exact(3, 7) == pytest.approx(2 * (1 + 10 + 45 + 120) / 2**10)
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_comparison_is_paired():
    rows = make_rows(60)
    good = ask(rows, lambda row, order, gold: gold)
    worse = ask(rows, lambda row, order, gold: gold if int(row["id"][4:]) % 3 else "?")
    result = compare(rows, worse, good, num_bootstrap=500)
    assert result["difference"] == pytest.approx(1 / 3)
    assert result["low"] > 0.15
    assert result["columns"]["VA-s"]["p"] == pytest.approx(2 / 2**20)


def test_metrics_load_by_path():
    metric = evaluate.load(metric_path("compbench_accuracy"))
    result = metric.compute(
        predictions=["the left one", "Right", "brighter", "dog"],
        references=["Left", "Left", "Right", "dog"],
        options=[SIDES, SIDES, SIDES, ["None", "dog"]],
        columns=["CE", "CE", "CE", "MB"],
        relativities=["emotion"] * 3 + ["existence"],
    )
    assert result["acc/CE"] == pytest.approx(1 / 3)
    assert (result["acc/MB"], result["macro"], result["micro"]) == pytest.approx((1, 2 / 3, 1 / 2))
    assert result["coverage"] == 0.75
    darker = {
        "predictions": ["The right one is darker"],
        "references": ["Left"],
        "options": [SIDES],
        "columns": ["CE"],
    }
    assert metric.compute(**darker)["coverage"] == 1
    assert metric.compute(**darker, questions=["Which is brighter?"])["coverage"] == 0
    metric = evaluate.load(metric_path("swap_consistency"))
    swap = {"predictions": ["Left", "Left"], "references": SIDES, "swapped_predictions": ["Left", "Left"]}
    result = metric.compute(**swap, options=[SIDES] * 2)
    assert [result[name] for name in ("accuracy", "pair_accuracy", "consistency", "bias")] == [0.5, 0, 0, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: score(rows, []), "got none"),
        (lambda rows: score(rows, [{"id": "x", "reply": "Left"}]), "1 replies are to other rows"),
        (lambda rows: score(rows, [{"id": rows[0]["id"], "order": "13", "reply": ""}]), "got '13'"),
        (lambda rows: score(rows, [], mode="lenient"), "'strict' or 'paper', got 'lenient'"),
        (lambda rows: score(rows, [{"id": rows[0]["id"], "scores": [1.0]}]), "Expected 2 scores"),
        (
            lambda rows: score(rows, [{"id": rows[0]["id"]}]),
            "text `reply` or `scores` in the response to row 'vaw-0', got None",
        ),
        (lambda rows: score([{"id": "a"}], []), "relativity, source, .* is missing"),
        (lambda rows: score(rows, [{"id": rows[0]["id"], "reply": ""}] * 2), "two to row 'vaw-0' in order 12"),
        (lambda rows: metric_path("bleu"), "compbench_accuracy, swap_consistency.*got 'bleu'"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_rows(2))
