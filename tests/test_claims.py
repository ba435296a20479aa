"""benchmarks-hf/claims.py says what the result files say, and the README has its table."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
from transformers import ViTConfig

import hf_diorama

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks-hf"))
import claims  # noqa: E402
from claim_rows import ava_fingerprints, paired  # noqa: E402
from given import Given, load_images, match_classes  # noqa: E402


def claim(low: float, high: float, **changes: str) -> claims.Claim:
    fields = {
        "system": "X",
        "claim": "a beats b",
        "here": "accuracy",
        "unit": "points",
        "differs": "digits",
        "case": "x",
    }
    return claims.Claim(gain=(low + high) / 2, low=low, high=high, **fields | changes)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.0, 3.0, "holds"), (-3.0, -1.0, "does not hold here"), (-1.0, 3.0, "open here"), (0.0, 3.0, "open here")],
)
def test_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert claim(low, high).verdict == verdict


def test_experiments_of_one_claim_share_a_row() -> None:
    table = claims.format_table([claim(1.0, 3.0), claim(-1.0, 3.0, differs="photos"), claim(1.0, 3.0, claim="other")])
    lines = table.splitlines()
    assert len(lines) == 4
    first = "[+2.0 [+1.0, +3.0] points](benchmarks-hf/results/x.json) (digits)"
    second = "[+1.0 [-1.0, +3.0] points](benchmarks-hf/results/x.json) (photos)"
    assert lines[2] == f"| X | a beats b | - | accuracy: {first}; {second} | holds, open here |"


def test_paired_difference_of_right_answers() -> None:
    found = paired("1111", "1010")
    assert found["gain"] == 50.0
    # Differences 0, 1, 0, 1: standard deviation 0.577, of the mean of four 0.289.
    assert found["high"] - found["gain"] == pytest.approx(1.96 * 100 * 0.28868, rel=1e-4)


def test_fingerprints_differ_by_the_widest_gap_and_heads_agree_by_their_orders() -> None:
    def ability(head: str, tower: str, ability: str, score: float, seconds: float) -> dict[str, Any]:
        ends = {"low": score - 0.03, "high": score + 0.03}
        names = {"row": "ability", "head": head, "tower": f"vfm-nano-{tower}", "ability": ability}
        return {**names, "score": score, "train_cpu_s": seconds, **ends}

    rows = [
        ability(head, tower, name, score + 0.1 * (name == "scene") * (tower == "masked"), seconds)
        for head, seconds in (("s", 2.0), ("m", 5.0))
        for tower, score in (("supervised", 0.5), ("contrastive", 0.45), ("masked", 0.2), ("random", 0.0))
        for name in ("scene", "texture")
    ]
    rows.append({"row": "ranking", "ability": "mean rank", "n": 4, "tau_b": 1.0, "low": 0.3, "high": None})
    small, large, order, cost = ava_fingerprints(rows)
    assert (small.differs, large.differs) == (
        "s, three abilities of mini-AVA",
        "m, three abilities of mini-AVA",
    )
    assert small.gain == pytest.approx(30.0)  # supervised and masked in texture; the random tower is left out
    # Half of a gap: 3 * sqrt(2) points; of six gaps at once: z is 2.638 in place of 1.960.
    assert small.high - small.gain == pytest.approx(3 * 2**0.5 * 2.638 / 1.960, rel=1e-3)
    assert (order.gain, order.low, order.verdict) == (1.0, 0.3, "holds")
    assert (cost.gain, cost.low, cost.high) == (1.5, 1.5, 1.5)


def test_readme_and_file_have_the_claims_of_the_results() -> None:
    found = claims.read_claims()
    assert claims.format_table(found) in (ROOT / "README.md").read_text(encoding="utf-8"), "run nox -s claims"
    stored = json.loads((ROOT / "benchmarks-hf" / "results" / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [row["verdict"] for row in stored] == [one.verdict for one in found]
    assert {one.case for one in found} == set(filter(claims.is_measured, claims.CASES))


def test_readme_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected '<!-- claims"):
        claims.replace_between_marks("nothing", "table")


def test_missing_result_says_how_to_make_it() -> None:
    with pytest.raises(ValueError, match="nox -s bench -- nothing"):
        claims.read_rows("nothing")


@pytest.fixture
def creatures(tmp_path: Path) -> Path:
    """A folder with a few labelled images, as `datasets.load_dataset` reads it."""
    rows = hf_diorama.load("creatures", split="heldout", n=6, image_size=64).select_columns(["image", "label"])
    folder = tmp_path / "creatures"
    folder.mkdir()
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_full_form_measures_what_was_given_and_lists_the_rest(
    creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("finer_cam_planted", "finer_cam_masking", "meda_decode")
    monkeypatch.setattr(claims, "CASES", {name: claims.CASES[name] for name in chosen})
    given = Given(classifier=str(hf_diorama.model_path("vit-nano")), data=str(creatures))
    table = claims.measure_given(given, tmp_path / "mine", quick=True)
    (row,) = (line for line in table.splitlines() if "](finer_cam_masking.json)" in line)
    assert f"({given.classifier}, {given.data})" in row
    measured, left_out = table.split("\n\n")
    assert len(measured.splitlines()) == 3
    assert "needs masks of the part" in left_out
    assert "needs `--llm`" in left_out
    result = json.loads((tmp_path / "mine" / "finer_cam_masking.json").read_text(encoding="utf-8"))
    base, finer = result["rows"]
    assert (base["images"], base["gamma"], finer["gamma"]) == (4, 0.0, 0.6)
    assert base["relative_drop_5_gain"] == 0.0
    assert finer["relative_drop_5"] - base["relative_drop_5"] == pytest.approx(finer["relative_drop_5_gain"])


def test_full_form_goes_on_from_its_results(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (case := ModuleType("cases.x")).NEEDS = ("data",)
    counts: list[bool] = []
    case.run_given = lambda given, *, quick: [{"runs": counts.append(quick) or len(counts)}]
    monkeypatch.setitem(sys.modules, "cases.x", case)
    given = Given(data=str(creatures))
    assert claims.measure_case("x", given, tmp_path, quick=True) == [{"runs": 1}]
    assert claims.measure_case("x", given, tmp_path, quick=True) == [{"runs": 1}]
    assert claims.measure_case("x", Given(data="other"), tmp_path, quick=True) == [{"runs": 2}]
    assert claims.measure_case("x", Given(data="other"), tmp_path, quick=False) == [{"runs": 3}]


def test_every_case_takes_models_and_images_or_says_why_not() -> None:
    for name in claims.CASES:
        case = importlib.import_module(f"cases.{name}")
        assert hasattr(case, "run_given") == (name not in claims.LEFT_OUT)
        assert hasattr(case, "run_given") == hasattr(case, "NEEDS")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "README.md", "--llm", "x"], "which is part of the repository"),
        (["--full", "benchmarks-hf/results/mine.md", "--llm", "x"], "which is part of the repository"),
        (["--full", "OUT/a.md"], "expected models or images"),
        (["--full", "OUT/a.md", "--llm", "OUT"], "OUT"),
        (["--full", "OUT/a.md", "--classifier", "x", "--data", "OUT"], "--data to have a split 'test'"),
        (["--llm", "x"], "want --full FILE"),
    ],
)
def test_what_the_full_form_cannot_do_is_one_error(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["claims.py", *(part.replace("OUT", str(tmp_path)) for part in arguments)])
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        claims.main()
    assert message.replace("OUT", str(tmp_path)) in f"{stopped.value}{capsys.readouterr().err}"
    assert (ROOT / "README.md").read_text(encoding="utf-8") == before


def test_images_need_a_column_of_labels_with_names(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="expected a column of kind Image"):
        load_images(str(tmp_path), "test", 4)


def test_classes_are_matched_by_name() -> None:
    config = ViTConfig(id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2})
    assert match_classes(config, ["owl", "cat"]) == [2, 0]
    with pytest.raises(ValueError, match="a classifier that knows 'fox'"):
        match_classes(config, ["owl", "fox"])
