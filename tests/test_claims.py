"""benchmarks-hf/claims.py says what the result files say, and the README has its table."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks-hf"))
import claims  # noqa: E402


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
    found = claims.paired("1111", "1010")
    assert found["gain"] == 50.0
    # Differences 0, 1, 0, 1: standard deviation 0.577, of the mean of four 0.289.
    assert found["high"] - found["gain"] == pytest.approx(1.96 * 100 * 0.28868, rel=1e-4)


def test_readme_and_file_have_the_claims_of_the_results() -> None:
    found = [one for system in claims.SYSTEMS for one in system()]
    assert claims.format_table(found) in (ROOT / "README.md").read_text(encoding="utf-8"), "run nox -s claims"
    stored = json.loads((ROOT / "benchmarks-hf" / "results" / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [row["verdict"] for row in stored] == [one.verdict for one in found]
    assert {one.case for one in found} <= set(claims.CASES)


def test_readme_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected '<!-- claims"):
        claims.replace_between_marks("nothing", "table")


def test_missing_result_says_how_to_make_it() -> None:
    with pytest.raises(ValueError, match="nox -s bench -- nothing"):
        claims.read_rows("nothing")
