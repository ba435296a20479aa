"""The mining engine: search, rules, caps, balance, groups; and the audit, above all that it can fail."""

from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_compbench import PairRule, audit_pairs, mine_pairs
from hf_compbench.balance import balance_sides, rebalance_in_file_order, swap_row
from hf_compbench.groups import connect, split_groups
from hf_compbench.mining import Comparison, PixelEmbedder, TransformersEmbedder, embed_images, find_candidates
from hf_compbench.mining.pairs import cap_reuse
from hf_compbench.mining.search import _search_exact

SIDES = ("Left", "Right")


def lighter(a, b):
    if a["light"] == b["light"]:
        return None
    return Comparison(question="Which is lighter?", options=SIDES, answer_text=SIDES[a["light"] < b["light"]])


RULE = PairRule(source="mini_photos", relativity="attribute", block=lambda row: row["kind"], compare=lighter)


def make_pool(n=24):
    images = [Image.new("RGB", (16, 16), (10 * i % 256, 5 * i % 256, 100)) for i in range(n)]
    columns = {"image": images, "light": list(range(n)), "kind": ["ab"[i % 2] for i in range(n)]}
    features = {"image": datasets.Image(), "light": datasets.Value("int32"), "kind": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def clustered(n, size=16, clusters=20, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, size))
    vectors = centres[rng.integers(clusters, size=n)] + 0.5 * rng.normal(size=(n, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_exact_search_is_brute_force():
    vectors = clustered(60)
    blocks = ["x" if i % 3 else "y" for i in range(60)]
    pairs, report = find_candidates(
        {"block": blocks, "embedding": vectors}, neighbours=3, low=-0.5, high=0.9, index="exact"
    )
    wanted = set()
    for i in range(60):
        near = [(float(vectors[i] @ vectors[j]), j) for j in range(60) if j != i and blocks[i] == blocks[j]]
        near = sorted([item for item in near if -0.5 <= item[0] <= 0.9], reverse=True)[:3]
        wanted |= {(min(i, j), max(i, j)) for _, j in near}
    assert set(zip(pairs["first"].tolist(), pairs["second"].tolist(), strict=True)) == wanted
    similarity = (vectors[pairs["first"]] * vectors[pairs["second"]]).sum(axis=1)
    assert pairs["similarity"] == pytest.approx(similarity, abs=1e-5)
    assert report == {"pairs_scored": 40**2 + 20**2, "num_blocks": 2, "recall": 1.0}


def test_cost_is_the_sum_of_squared_blocks():
    vectors = clustered(1000)
    for size in (10, 100):
        blocks = [str(i // size) for i in range(1000)]
        _, report = find_candidates({"block": blocks, "embedding": vectors})
        assert report["pairs_scored"] == 1000 // size * size**2


def test_faiss_finds_what_exact_search_finds():
    vectors = clustered(4000)
    pairs, report = find_candidates({"block": ["all"] * 4000, "embedding": vectors}, neighbours=10, index="faiss")
    assert report["recall"] >= 0.98
    exact, _ = find_candidates({"block": ["all"] * 4000, "embedding": vectors}, neighbours=10, index="exact")
    sets = [set(zip(table["first"].tolist(), table["second"].tolist(), strict=True)) for table in (pairs, exact)]
    assert len(sets[0] & sets[1]) / len(sets[1]) >= 0.96
    assert report["pairs_scored"] < 4000**2


def test_faiss_looks_past_near_duplicates_for_the_band():
    """Each image has 12 near copies above the band, which fill the first places of any index."""
    centres = clustered(300, clusters=300)
    noise = np.random.default_rng(1).normal(size=(300, 13, 16)) * 1e-3
    vectors = (centres[:, None] + noise).reshape(-1, 16)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    table = {"block": ["all"] * len(vectors), "embedding": vectors}
    pairs, exact = (find_candidates(table, neighbours=3, low=0.2, high=0.99, index=i)[0] for i in ("faiss", "exact"))
    sets = [set(zip(t["first"].tolist(), t["second"].tolist(), strict=True)) for t in (pairs, exact)]
    assert len(sets[1]) > 3000
    assert len(sets[0] & sets[1]) / len(sets[1]) >= 0.9
    assert pairs["similarity"].max() <= 0.99


def test_mining_says_what_its_search_found(caplog):
    with caplog.at_level("INFO", logger="hf_compbench"):
        pairs = mine_pairs(make_pool(), RULE, image_cap=1, check=False, index="exact")
    assert "2 blocks, 288 similarities, recall@10 1.000" in pairs.info.description
    assert pairs.info.description in caplog.text


def test_search_in_chunks_is_search(monkeypatch):
    vectors = clustered(50)
    whole, work = _search_exact(vectors, 5, -1, 1)
    monkeypatch.setattr("hf_compbench.mining.search._CHUNK", 7)
    chunks, same = _search_exact(vectors, 5, -1, 1)
    assert work == same == 50 * 50
    assert sorted(map(tuple, whole[:, :2].tolist())) == sorted(map(tuple, chunks[:, :2].tolist()))


class CountingEmbedder(PixelEmbedder):
    def __init__(self, fail_after=None):
        self.seen = 0
        self.fail_after = fail_after

    def __call__(self, images):
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise RuntimeError("power cut")
        self.seen += len(images)
        return super().__call__(images)


def test_each_image_is_embedded_once_and_a_crash_costs_one_shard(tmp_path):
    pool = make_pool(40)
    whole = embed_images(pool, PixelEmbedder())
    first = CountingEmbedder(fail_after=20)
    with pytest.raises(RuntimeError, match="power cut"):
        embed_images(pool, first, cache_dir=tmp_path, shard_size=10, batch_size=10)
    second = CountingEmbedder()
    resumed = embed_images(pool, second, cache_dir=tmp_path, shard_size=10, batch_size=10)
    assert (first.seen, second.seen) == (20, 20)
    assert resumed == pytest.approx(whole, abs=2e-3)  # float16 on disk
    third = CountingEmbedder()
    embed_images(pool, third, cache_dir=tmp_path, shard_size=10)
    assert third.seen == 0


def test_towers_of_transformers_embed(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    import hf_diorama

    images = make_pool(3)["image"][:]
    embedder = TransformersEmbedder(hf_diorama.model_path("vit-nano"))
    embeddings = embedder(images)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 10},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert TransformersEmbedder(str(tmp_path))(images).shape == (3, 12)


def test_mined_pairs_keep_rule_block_and_caps():
    pool = make_pool()
    pairs = mine_pairs(pool, RULE, image_cap=2, check=False)
    light = {}
    for row in pairs:
        for side in ("image_1", "image_2"):
            light[row[f"{side}_key"]] = np.asarray(row[side])[0, 0, 0] // 10
    used = Counter()
    for row in pairs:
        a, b = light[row["image_1_key"]], light[row["image_2_key"]]
        assert (a > b) == (row["answer_text"] == "Left")
        assert a % 2 == b % 2  # the same block
        used.update((row["image_1_key"], row["image_2_key"]))
    assert max(used.values()) <= 2
    answers = Counter(pairs["answer"])
    assert abs(answers[0] - answers[1]) <= 1


def test_mining_is_reproducible_and_seeded():
    pool = make_pool()
    first, again, other = (mine_pairs(pool, RULE, image_cap=1, seed=seed, check=False) for seed in (0, 0, 1))
    assert first["id"][:] == again["id"][:]
    assert first["answer"][:] == again["answer"][:]
    assert set(first["id"]) != set(other["id"])


def test_shares_and_question_caps_hold():
    pairs = [
        {
            "id": str(i),
            "question": "ab"[i % 2],
            "answer_text": ["Left", "Same"][i % 3 == 0],
            "image_1_key": f"{i}a",
            "image_2_key": f"{i}b",
        }
        for i in range(300)
    ]
    kept = cap_reuse(pairs, question_cap=None, num_pairs=60, shares={"Same": 0.2})
    assert Counter(pair["answer_text"] for pair in kept) == {"Same": 12, "Left": 48}
    assert max(Counter(pair["question"] for pair in cap_reuse(pairs, question_cap=7)).values()) == 7


def test_shares_are_of_the_pairs_that_caps_leave():
    # 30 equal pairs of images of their own, and 90 of one image, of which the cap leaves four.
    equal = [{"id": f"s{i}", "answer_text": "Same", "image_1_key": f"{i}a", "image_2_key": f"{i}b"} for i in range(30)]
    sided = [{"id": f"l{i}", "answer_text": "Left", "image_1_key": "hub", "image_2_key": f"{i}c"} for i in range(90)]
    pairs = [{"question": "q", **pair} for pair in (*equal, *sided)]
    kept = cap_reuse(pairs, image_cap=4, question_cap=None, shares={"Same": 1 / 3})
    assert Counter(pair["answer_text"] for pair in kept) == {"Left": 4, "Same": 2}


def test_groups_are_connected_components():
    assert connect([("a", "b"), ("c", "d"), ("d", "e"), ("b", "f"), ("x", "")]) == ["a", "c", "c", "a", "x"]
    rows = [{"group_id": str(i // 4)} for i in range(100)]
    splits = split_groups(rows, {"test": 0.8, "val": 0.2}, seed=0)
    assert (len(splits["test"]), len(splits["val"])) == (80, 20)
    assert not {row["group_id"] for row in splits["test"]} & {row["group_id"] for row in splits["val"]}


def sided_rows(n=200):
    """Rows as the authors' Fashionpedia labels: two questions in turn of blocks, the winner first in the file."""
    return [
        {
            "id": str(i),
            "relativity": "attribute",
            "source": "fashionpedia",
            "group_id": str(i),
            "question": ["Which neckline is deeper?", "Which hem is longer?"][i * 2 // n],
            "options": list(SIDES),
            "answer": 0,
            "answer_text": "Left",
            "image_1_key": f"{i}a",
            "image_2_key": f"{i}b",
        }
        for i in range(n)
    ]


def test_audit_refuses_sequentially_rebalanced_labels():
    rows = rebalance_in_file_order(sided_rows())
    assert Counter(row["answer_text"] for row in rows) == {"Left": 100, "Right": 100}  # balanced as a whole
    report = audit_pairs(rows)
    assert {check.name for check in report.failures} == {"question prior"}
    assert report.failures[0].value == 1.0
    with pytest.raises(ValueError, match=r"question prior 1\.000, limit 0\.606"):
        report.require_clean()


def test_audit_passes_the_same_labels_balanced_by_hash():
    report = audit_pairs(balance_sides(sided_rows()))
    assert report.passed, str(report)


def test_mining_refuses_a_leaky_set():
    pool = make_pool(200)
    ordered = PairRule(
        source="mini_photos",
        relativity="attribute",
        block=lambda row: "all",
        compare=lambda a, b: Comparison(question="Which is later?", options=SIDES, answer_text="Right"),
    )
    with pytest.raises(ValueError, match="without comparing images"):
        mine_pairs(pool, ordered, balance=False, image_cap=1)
    assert mine_pairs(pool, ordered, image_cap=1).num_rows > 20


def test_audit_finds_leaks_between_splits():
    train, test = sided_rows(40), sided_rows(40)
    for row in test:
        row["id"] += "-test"
        row["image_2_key"] += "-new"
    report = audit_pairs(balance_sides(test), balance_sides(train))
    failed = {check.name: check.value for check in report.failures}
    assert failed["images in both"] == 40
    assert failed["image prior"] == 1.0  # which image won before tells which wins now
    assert "pairs in both" not in failed
    assert {check.name for check in audit_pairs(train, train).failures} >= {"pairs in both", "images in both"}


def test_audit_finds_option_priors_duplicates_self_pairs_and_bad_labels():
    rows = [
        {
            **row,
            "source": "spot_the_diff",
            "relativity": "existence",
            "options": ["None", "people", "car", "van"],
            "answer": 1,
        }
        for row in sided_rows(60)
    ]
    rows.append({**rows[0], "id": "again", "image_1_key": "0b", "image_2_key": "0a"})
    rows.append({**rows[0], "id": "self", "image_2_key": "0a"})
    rows.append({**rows[1], "id": "bad", "answer": -1, "image_1_key": "z"})
    failed = {check.name: check.value for check in audit_pairs(rows).failures}
    assert failed["option prior"] > 0.9
    assert (failed["self pairs"], failed["repeated pairs"], failed["answers that are no option"]) == (1, 1, 1)


def test_audit_says_where_it_cannot_tell():
    details = {check.name: check.detail for check in audit_pairs(sided_rows(8)).checks}
    assert details["question prior"].startswith("too few to tell")
    assert not any("too few" in check.detail for check in audit_pairs(sided_rows(60)).checks)


def test_composites_keep_their_sides():
    rows = [{**row, "image_2_key": ""} for row in sided_rows(10)]
    assert balance_sides(rows) == rows


def test_audit_report_as_html_and_dict(mini):
    report = audit_pairs(mini)
    assert report.passed, str(report)
    assert report.to_dict()["passed"]
    assert report.to_html().count("<tr>") == len(report.checks) + 1


def test_swapping_a_row_twice_is_identity():
    row = sided_rows(1)[0]
    once = swap_row(row)
    assert (once["image_1_key"], once["answer"], once["answer_text"]) == ("0b", 1, "Right")
    assert swap_row(once) == row


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool: mine_pairs(pool.remove_columns("image"), RULE), "column 'image', got light, kind"),
        (lambda pool: find_candidates({"block": ["a"], "embedding": np.eye(2)}, index="exact"), "got 1 and 2"),
        (lambda pool: find_candidates({"block": [], "embedding": np.eye(0)}, index="hnsw"), "got 'hnsw'"),
        (lambda pool: audit_pairs([{"id": "a"}]), "image_1_key, image_2_key is missing"),
        (lambda pool: mine_pairs(pool.map(lambda row: {"light": 1}), RULE), "got none; widen"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_pool(6))
