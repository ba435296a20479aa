"""Lets a small CLIP name drawn creatures it has never seen: as a tree with probabilities, and at every rank.

    python packages/taxaclip/examples/demo.py --out demo/taxaclip

The model is `clip-nano` of hf-diorama, which learned 96 species from their captions; taxonomy, sexes, life stages and
ways of living of the creatures are all known.
"""

import argparse
import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from PIL import Image

import hf_diorama as dio
import taxaclip
from taxaclip import (
    RANKS,
    FewShotClassifier,
    RankScores,
    TaxonClassifier,
    TaxonIndex,
    TaxonPath,
    embed_images,
    taxonomy_alignment,
    trait_alignment,
    variation_geometry,
)

LEAST = 0.02  # branches that are less likely are left out of the tree
SHOTS = 300  # labelled images for few-shot
Summary = dict[str, str]


def read_taxon(row: dict[str, Any]) -> TaxonPath:
    """The taxon of a drawn creature."""
    return TaxonPath((*(row[rank] for rank in RANKS[:-1]), row["epithet"]), row["common_name"])


def to_html(image: Any, caption: str) -> str:
    """A figure of matplotlib, or a picture, as a piece of HTML."""
    buffer = io.BytesIO()
    if isinstance(image, Image.Image):
        image.resize((128, 128), Image.Resampling.NEAREST).save(buffer, "png")
    else:
        image.savefig(buffer, format="png", dpi=72)
    data = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def draw_tree(index: TaxonIndex, scores: RankScores, image: int, truth: TaxonPath) -> str:
    """The branches of the tree that an image may belong to, with their probabilities, as nested lists."""

    def draw(depth: int, low: int, high: int) -> str:
        rank, items = RANKS[depth], []
        starts = scores.offsets[rank].tolist()
        inside = [group for group, start in enumerate(starts[:-1]) if low <= start < high]
        for group in sorted(inside, key=lambda group: -float(scores.probs[rank][image, group])):
            prob = float(scores.probs[rank][image, group])
            names = index.names(scores.first_rows[rank][group])[: depth + 1]
            if prob < LEAST:
                continue
            name = f"<b>{escape(names[-1])}</b>" if names == truth.names[: depth + 1] else escape(names[-1])
            below = draw(depth + 1, starts[group], starts[group + 1]) if depth < len(RANKS) - 1 else ""
            items.append(f"<li>{rank} {name} <meter value={prob:.3f}></meter> {prob:.1%}{below}</li>")
        return f"<ul>{''.join(items)}</ul>"

    return draw(2, 0, len(index))  # all creatures are of one kingdom and phylum


def score_ranks(classifier: TaxonClassifier, embeds: torch.Tensor, truth: list[TaxonPath]) -> Summary:
    """The share of images named rightly at each rank, and at the rank that is certain enough."""
    summary = {}
    for depth, rank in enumerate(RANKS, start=1):
        found = [row for (row,) in classifier.rows(embeds, rank=rank, top_k=1)]
        columns = [*RANKS[:-1], "species_epithet"][:depth]
        right = [tuple(row[c] for c in columns) == t.names[:depth] for row, t in zip(found, truth, strict=True)]
        groups = len({taxon.names[:depth] for taxon in truth})
        if groups > 1:
            summary[f"right {rank}, of {groups}"] = f"{sum(right) / len(right):.1%} of {len(right)} images"
    certain = classifier.rows(embeds, rank="auto", min_confidence=0.9)
    named = [(rows[0], taxon) for rows, taxon in zip(certain, truth, strict=True) if rows]
    right = [row[row["rank"]] in (*taxon.names, taxon.scientific_name) for row, taxon in named]
    summary["right at the lowest rank with 90% confidence"] = f"{sum(right)} of {len(right)}"
    return summary


def measure_geometry(embeds: torch.Tensor, test: Any, truth: list[TaxonPath]) -> tuple[Summary, str]:
    """Where variation within species lies, what species' places follow, and pictures of both."""
    from taxaclip.plots import plot_traits, plot_variation

    order = {taxon: number for number, taxon in enumerate(sorted(set(truth), key=lambda taxon: taxon.names))}
    species, sex = torch.tensor([order[taxon] for taxon in truth]), torch.tensor(test["sex"][:])
    family = [taxon.names[:5] for taxon in order]
    chosen = torch.tensor([name == family[0] for name in family])[species]  # one family: all span the whole space
    seeded = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"num_permutations": 199, "generator": seeded}
    geometry = variation_geometry(embeds[chosen], species[chosen], sex[chosen], **options)
    name = "the sexes' difference inside the subspace of a family's species"
    summary = {name: f"{geometry.explained_variance_ratio:.2f} (chance {geometry.chance:.2f})"}
    means = torch.stack([embeds[species == number].mean(dim=0) for number in range(len(order))])
    niches, beaks = test.features["niche"].int2str(test["niche"][:]), torch.tensor(test["beak_length"][:])
    niche_of = dict(zip(truth, niches, strict=True))
    traits: dict[str, Any] = {"niche": [niche_of[taxon] for taxon in order]}
    traits["beak length"] = [float(beaks[species == number].mean()) for number in range(len(order))]
    taxonomy = taxonomy_alignment(means, list(order), **options)
    trait = trait_alignment(means, traits["niche"], list(order), **options)
    for name, result in (("taxonomy", taxonomy), ("niches", trait.mantel), ("niches beyond ancestry", trait.partial)):
        summary[f"alignment with {name}"] = f"{result.correlation:.2f} (p {result.p_value:.3f})"
    html = to_html(
        plot_variation(embeds[chosen], species[chosen], sex[chosen]),
        "Species of one family by colour, females filled.",
    )
    return summary, html + to_html(
        plot_traits(means, traits), "Mean embeddings of all species, coloured by niche and by beak length."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/taxaclip"))
    parser.add_argument("--n", type=int, default=1_600, help="creatures to name")
    args = parser.parse_args()
    mpl.use("Agg")
    model, processor = taxaclip.from_pretrained(dio.model_path("clip-nano"))
    model.float()
    test = dio.load("creatures", split="heldout", n=args.n, seed=3_000, image_size=64)
    truth = [read_taxon(row) for row in test.remove_columns(["image", "part_masks", "parts"])]
    index = TaxonIndex.build(model, processor, list(dict.fromkeys(truth)))
    classifier = TaxonClassifier(model, processor, index)
    embeds = torch.cat([embed_images(model, processor, batch["image"]) for batch in test.iter(100)])
    summary = score_ranks(classifier, embeds, truth)
    few = FewShotClassifier.fit(embeds[:SHOTS], [taxon.scientific_name for taxon in truth[:SHOTS]])
    right = [a == b.scientific_name for a, b in zip(few.predict(embeds[SHOTS:]), truth[SHOTS:], strict=True)]
    summary[f"right species from {SHOTS / len(few.labels):.0f} images of each"] = f"{sum(right) / len(right):.1%}"
    measured, pictures = measure_geometry(embeds, test, truth)

    scores = index.score(embeds)
    least = scores.probs["species"].amax(dim=1).argsort()[:2].tolist()  # and the two that it is least certain of
    section = "<h2>taxaclip</h2><p>A small CLIP names creatures it has never seen; bold is right.</p>"
    for number in (0, *least):
        section += to_html(test[number]["image"], truth[number].scientific_name)
        section += draw_tree(index, scores, number, truth[number])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "section.html").write_text(section + pictures, encoding="utf-8")
    summary |= measured
    (args.out / "result.json").write_text(json.dumps({"summary": summary}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


if __name__ == "__main__":
    main()
