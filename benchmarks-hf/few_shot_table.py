"""Writes what the few-shot cases found, number by number and claim by claim, into the pages of both papers.

python benchmarks-hf/few_shot_table.py            # prints
python benchmarks-hf/few_shot_table.py --write    # between the marks `results: begin` and `results: end`
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
CASES = ("digits", "creatures", "photos")
# For each page the numbers, by what they are called in the results and here, and the claims.
V_PET = {
    "member/lora on 0": "labelled-only, LoRA on backbone 0",
    "member/adaptformer on 0": "labelled-only, AdaptFormer on 0",
    "member/lora on 1": "labelled-only, LoRA on backbone 1",
    "member/adaptformer on 1": "labelled-only, AdaptFormer on 1",
    "baseline/fixmatch": "FixMatch",
    "baseline/softmatch": "SoftMatch",
    "student/st": "student of ST",
    "student/pet": "student of PET",
    "student/v_pet/mean_labels": "student of V-PET, mean labels",
    "student/v_pet/mean_probs": "the same, mean probs",
    "student/v_pet/mean_logits": "the same, mean logits",
    "student/v_pet/dawid_skene": "the same, Dawid-Skene",
    "student/v_pet/softmax_counts": "the same, softmax of counts",
    "student/true labels": "student of the true labels of the pool",
    "rule/mean_labels/pool": "pseudo-labels: mean labels",
    "rule/weighted/pool": "pseudo-labels: votes weighted by agreement",
    "rule/dawid_skene/pool": "pseudo-labels: Dawid-Skene",
    "rule/mean_probs/pool": "pseudo-labels: mean probs",
    "rule/mean_logits/pool": "pseudo-labels: mean logits",
    "selection/oracle candidate": "the best learning rate, mean over members",
    "selection/regret/mean_sq_rank": "regret of the mean squared rank",
    "selection/regret/mean_rank": "regret of the mean rank",
    "selection/regret/vote": "regret of the vote",
    "selection/regret/bnm": "regret of BNM alone",
    "selection/regret/random": "regret of a random choice",
}
STUDY = {
    "team/v_pet/mean_member": "V-PET's members, mean",
    "team/v_pet/mean_probs": "V-PET's members together, mean probs",
    "team/4 methods on 0/mean_member": "4 methods on backbone 0, mean",
    "team/4 methods on 0/majority_vote": "4 methods together, vote",
    "team/4 methods on 0/mean_logits": "4 methods together, mean logits",
    "team/4 seeds on 0/mean_member": "4 seeds of LoRA on backbone 0, mean",
    "team/4 seeds on 0/mean_logits": "4 seeds together, mean logits",
    "team/4 methods on 0/agreement": "agreement, 4 methods",
    "team/4 seeds on 0/agreement": "agreement, 4 seeds",
    "team/v_pet/agreement": "agreement, V-PET's members",
    "team/4 methods on 0/normalised_agreement": "normalised agreement, 4 methods",
    "team/4 seeds on 0/normalised_agreement": "normalised agreement, 4 seeds",
    "team/4 methods on 0/confident_jaccard": "overlap of the confident fifth, 4 methods",
    "team/4 seeds on 0/confident_jaccard": "overlap of the confident fifth, 4 seeds",
    "team/4 methods on 0/oracle": "some member right, 4 methods",
    "team/4 seeds on 0/oracle": "some member right, 4 seeds",
    **{
        f"wise/{key}/{alpha}/{where}": f"{name}, alpha {alpha}, {where}"
        for key, name in (("lora", "LoRA"), ("adaptformer", "AdaptFormer"))
        for where in ("target", "shifted")
        for alpha in ("0", "0.25", "0.5", "0.75", "1")
    },
}
STUDY_CLAIMS = ("4 methods", "4 seeds", "halfway", "together")
Found = dict[str, dict[str, dict[str, Any]]]


def format_interval(row: dict[str, Any], sign: str) -> str:
    """A mean in percent with its interval."""
    value, low, high = (f"{100 * row[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def format_tables(found: Found, names: dict[str, str], claims: list[str]) -> str:
    """Numbers, then differences with verdicts; a column for each case that has a result."""
    heads = [f"{case} ({next(iter(rows.values()))['seeds']} seeds)" for case, rows in found.items()]
    rule = "|---" * (len(found) + 1) + "|"
    lines = [f"| percent | {' | '.join(heads)} |", rule]
    for key, name in names.items():
        cells = [format_interval(rows[key], "") if key in rows else "" for rows in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| difference in points | {' | '.join(heads)} |", rule]
    for key in claims:
        rows = [case[key] for case in found.values()]
        cells = [f"{format_interval(row, '+')}, up in {row['ups']}: {row['verdict']}" for row in rows]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_results() -> Found:
    """The rows of each case that has a result, by what they measure."""
    found = {}
    for case in CASES:
        path = ROOT / "benchmarks-hf" / "results" / f"peft_ensemble_{case}.json"
        if path.exists():
            found[case] = {row["what"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="change docs/papers/v-pet.md and petl-study.md")
    args = parser.parse_args()
    found = read_results()
    if not found:
        raise SystemExit("few_shot_table.py: no result of peft_ensemble_digits, _creatures or _photos yet")
    every = [key for key, row in next(iter(found.values())).items() if "verdict" in row]
    study = [key for key in every if any(word in key for word in STUDY_CLAIMS)]
    pages = {"v-pet": (V_PET, [key for key in every if key not in study]), "petl-study": (STUDY, study)}
    for page, (names, claims) in pages.items():
        table = format_tables(found, names, claims)
        print(f"{page}\n{table}\n")
        path = ROOT / "docs" / "papers" / f"{page}.md"
        text = path.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        if args.write:
            path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
