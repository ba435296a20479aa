"""The main job of hf-ava-bench: fingerprints of vision models that ship with hf-diorama, offline, on rendered items.

    python packages/hf-ava-bench/examples/demo.py --out demo/hf-ava-bench

Probe heads stand in for language models, so that it takes seconds: two transformers, of which one has learnt nothing,
and two encoders made by hand, of which one knows edges and no colour and the other colours and no edges. Writes
`section.html` and `result.json`.
"""

import argparse
import base64
import html
import json
from pathlib import Path

import datasets
import torch

import hf_ava_bench as ava
import hf_diorama
from hf_ava_bench.constants import fit_constant
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.probe import score_probe
from hf_ava_bench.runner.towers import Tower, VisionTower

ABILITIES = ("color", "orientation", "scene", "counting")
TRAIN, TEST = 240, 120


def build_towers() -> list[Tower]:
    """Returns a transformer that was trained, one that was not, and two encoders made by hand."""
    models = [VisionTower(hf_diorama.model_path(f"vfm-nano-{name}")) for name in ("supervised", "random")]
    return [*models, KnownEncoder("edge-hist"), KnownEncoder("patch-colour")]


def measure(
    ability: str, tower: Tower, tables: list[datasets.Dataset], steps: int
) -> tuple[ava.Score, ava.AbilityResult]:
    """Returns score and result of a probe head on one ability."""
    train, test = tables
    tokens = [compute_features(table, tower, progress=False) for table in tables]
    score = score_probe(ability, train, test, *tokens, steps=steps, batch_size=32)
    constant = fit_constant(ability, list(train["answer_struct"]), list(train["answer"]))
    m0 = ava.score_items(test, [constant] * len(test)).value
    return score, ava.AbilityResult.from_score(score, test, m0)


def embed(path: Path, about: str) -> str:
    """Returns a picture as a part of a page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{data}">'


def build_table(ranking: ava.TowerRanking, fingerprints: list[ava.Fingerprint]) -> str:
    """Returns scores and mean ranks as an HTML table."""
    head = "".join(f"<th>{name}</th>" for name in ABILITIES)
    rows = "".join(
        f"<tr><td>{html.escape(f.tower)}</td>"
        + "".join(f"<td>{f.abilities[name].score:.2f}</td>" for name in ABILITIES)
        + f"<td>{ranking.mean_ranks[f.tower]:.2f}</td></tr>"
        for f in fingerprints
    )
    return f'<div class="scroll"><table><tr><th>encoder</th>{head}<th>mean rank</th></tr>{rows}</table></div>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150, help="training steps of each probe")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    towers = build_towers()
    counts: dict[str, ava.Score] = {}
    results: dict[str, dict[str, ava.AbilityResult]] = {tower.name: {} for tower in towers}
    for ability in ABILITIES:
        splits = (("train", TRAIN), ("test", TEST))
        tables = [ava.load_ability(ability, "mini", split, n=n, image_size=64) for split, n in splits]
        for tower in towers:
            score, results[tower.name][ability] = measure(ability, tower, tables, args.steps)
            if ability == "counting":
                counts[tower.name] = score
    fingerprints = [
        ava.Fingerprint(tower=name, llm="probe head", profile={"name": "demo"}, seed=0, num_tokens=64, abilities=own)
        for name, own in results.items()
    ]
    ranking = ava.rank_towers(fingerprints)
    print(ranking.table())
    radar = embed(ava.plot_fingerprints(fingerprints, args.out / "radar.png"), "radar of the scores")
    bins = embed(ava.plot_bins(counts, args.out / "bins.png"), "error of counts by the true count")
    section = (
        "<p>Anchored scores of four encoders on rendered items: 0 is the best answer without an image, 1 is no "
        "mistake. Heads are probes on their tokens; towers that the items do not tell apart share a rank. Synthetic: "
        f"nothing is said about photos.</p>{radar}{build_table(ranking, fingerprints)}"
        f"<p>The same counts in bins of the true number.</p>{bins}"
    )
    (args.out / "section.html").write_text(section, encoding="utf-8")
    summary = {
        f"{f.tower}: {name}": f"{result.score:.2f} ({result.metric} {result.value:.3f})"
        for f in fingerprints
        for name, result in f.abilities.items()
    }
    result = {"summary": summary, "fingerprints": [f.to_dict() for f in fingerprints]}
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
