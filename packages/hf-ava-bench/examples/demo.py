"""The main job of hf-ava-bench: fingerprints of encoders whose abilities are known, offline, on rendered items.

    python packages/hf-ava-bench/examples/demo.py --out demo/hf-ava-bench

Probe heads stand in for language models, so that it takes seconds: patch colours should know colours and no texture,
oriented edges textures and no colour, zeros nothing. Writes `section.html` and `result.json`.
"""

import argparse
import base64
import html
import json
from pathlib import Path

import hf_ava_bench as ava
from hf_ava_bench.constants import fit_constant
from hf_ava_bench.fingerprint import anchor
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.probe import score_probe
from hf_ava_bench.statistics import bootstrap_interval

TOWERS = ("patch-colour", "edge-hist", "blind")
ABILITIES = ("color", "texture", "orientation", "scene")
TRAIN, TEST = 300, 150


def measure(ability: str, tower: str, steps: int) -> ava.AbilityResult:
    """Returns the result of a probe head on one ability."""
    train, test = (
        ava.load_ability(ability, "mini", split, n=n, image_size=64) for split, n in (("train", TRAIN), ("test", TEST))
    )
    tokens = [compute_features(table, KnownEncoder(tower), progress=False) for table in (train, test)]
    score = score_probe(ability, train, test, *tokens, steps=steps, batch_size=32)
    constant = fit_constant(ability, list(train["answer_struct"]), list(train["answer"]))
    m0 = ava.compute_score(ability, [constant] * TEST, list(test["answer"])).value
    m1 = ava.ABILITIES[ability].perfect
    low, high = bootstrap_interval(score.values, samples=500)
    ends = sorted((anchor(low, m0, m1), anchor(high, m0, m1)))
    return ava.AbilityResult(
        metric=score.metric,
        value=score.value,
        interval=(low, high),
        n=score.n,
        coverage=score.coverage,
        n_unparsable=score.n_unparsable,
        m0=m0,
        m1=m1,
        score=anchor(score.value, m0, m1),
        score_interval=(ends[0], ends[1]),
        split_origin="source",
        synthetic=True,
        values=dict(zip(test["id"], score.values, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each probe")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    fingerprints = []
    for tower in TOWERS:
        results = {ability: measure(ability, tower, args.steps) for ability in ABILITIES}
        fingerprints.append(
            ava.Fingerprint(
                tower=tower, llm="probe head", profile={"name": "demo"}, seed=0, num_tokens=64, abilities=results
            )
        )
        print(f"{tower}: " + ", ".join(f"{name} {result.score:.2f}" for name, result in results.items()))
    picture = ava.plot_fingerprints(fingerprints, args.out / "radar.png").read_bytes()
    rows = "".join(
        f"<tr><td>{html.escape(f.tower)}</td>"
        + "".join(f"<td>{f.abilities[name].score:.2f}</td>" for name in ABILITIES)
        + "</tr>"
        for f in fingerprints
    )
    head = "".join(f"<th>{name}</th>" for name in ABILITIES)
    section = (
        "<p>Anchored scores of three encoders whose abilities are known, on rendered items: 0 is the best answer "
        "without an image, 1 is no mistake. Heads are probes on their tokens. Synthetic: nothing is said about "
        "photos.</p>"
        f'<img alt="radar of the scores" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        f"<table><tr><th>encoder</th>{head}</tr>{rows}</table>"
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
