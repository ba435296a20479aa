import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from taxaclip.taxonomy import RANKS, TEXT_TYPES, TaxonPath, clean_text, normalise, parse_underscore_label, sort_taxa

GOLDEN = Path(__file__).parent / "golden"
BEAR = TaxonPath(("Animalia", "Chordata", "Mammalia", "Carnivora", "Ursidae", "Ursus", "arctos"), "Kodiak bear")
GOLDFISH = TaxonPath(("Animalia", "Chordata", "", "Cypriniformes", "Cyprinidae", "Carassius", "auratus"))


def test_captions_are_those_of_the_training_shards() -> None:
    tax = "Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos"
    assert {text_type: BEAR.caption(text_type) for text_type in TEXT_TYPES} == {
        "sci": "a photo of Ursus arctos.",
        "com": "a photo of Kodiak bear.",
        "taxon": f"a photo of {tax}.",
        "sci_com": "a photo of Ursus arctos with common name Kodiak bear.",
        "taxon_com": f"a photo of {tax} with common name Kodiak bear.",
    }
    golden = [entry["text"] for entry in json.loads((GOLDEN / "tokenizer.json").read_text())]
    assert BEAR.caption("taxon_com") in golden
    assert BEAR.describe("index") == f"{tax} Kodiak bear"


def test_holes_and_missing_common_names_leave_no_trace() -> None:
    assert GOLDFISH.taxonomic_name == "Animalia Chordata Cypriniformes Cyprinidae Carassius auratus"
    assert GOLDFISH.caption("com") == "a photo of Carassius auratus."
    family = TaxonPath(("Plantae", "", "", "", "Poaceae", "", ""))
    assert (family.scientific_name, family.lowest_rank) == ("Poaceae", "family")
    assert (
        TaxonPath((*BEAR.names[:-1], "arctos"), subspecies="horribilis").scientific_name == "Ursus arctos horribilis"
    )


@pytest.mark.parametrize("names", [("Animalia",), ("",) * 7, (1,) * 7, ["Animalia"] * 7])
def test_broken_paths_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        TaxonPath(names)


def test_unknown_text_type_is_refused() -> None:
    with pytest.raises(ValueError, match="taxon_com"):
        BEAR.caption("haiku")


def test_labels_of_folders_are_parsed_with_their_holes() -> None:
    assert parse_underscore_label("02987_" + "_".join(BEAR.names)).names == BEAR.names
    assert parse_underscore_label("1_" + "_".join(GOLDFISH.names)).names == GOLDFISH.names
    for label in ("Ursus_arctos", "x_" + "_".join(BEAR.names)):
        with pytest.raises(ValueError, match="seven names"):
            parse_underscore_label(label)


@pytest.mark.parametrize(
    ("genus", "epithet", "expected"),
    [
        ("URSUS", "Arctos", ("Ursus", "arctos")),
        ("Apis", "mellifera Linnaeus, 1758", ("Apis", "mellifera")),
        ("Apis", "mellifera (Linnaeus, 1758)", ("Apis", "mellifera")),
        ("Apis", "Mellifera L.", ("Apis", "mellifera")),
        ("Poa Smith, 1900", "annua", ("Poa", "annua")),
        ("x Chitalpa", "tashkentensis", ("\u00d7 Chitalpa", "tashkentensis")),
        ("Bacillus", "sp. BOLD:AAA1234", ("Bacillus", "sp. BOLD:AAA1234")),
        (" Poa  ", "cf. annua", ("Poa", "cf. annua")),
    ],
)
def test_names_are_normalised(genus: str, epithet: str, expected: tuple[str, str]) -> None:
    path = normalise(TaxonPath(("", "", "", "", "", genus, epithet)))
    assert path.names[-2:] == expected
    assert normalise(path) == path


def test_text_is_cleaned_as_open_clip_does() -> None:
    assert clean_text("  Aedes  (Stegomyia)\taegypti ") == "Aedes (Stegomyia) aegypti"
    assert clean_text("a &amp;amp; b &lt;c&gt;") == "a & b <c>"


def test_tokens_are_those_of_open_clip_once_texts_are_cleaned() -> None:
    bpe = json.loads((GOLDEN / "bpe.json").read_text())
    tokenizer = CLIPTokenizer(vocab=bpe["vocab"], merges=[tuple(merge.split()) for merge in bpe["merges"]])
    for entry in json.loads((GOLDEN / "tokenizer.json").read_text()):
        cleaned, raw = (
            tokenizer(text, truncation=True, max_length=77)["input_ids"]
            for text in (clean_text(entry["text"]), entry["text"])
        )
        assert [*cleaned, *[0] * (77 - len(cleaned))] == entry["ids"], entry["text"]  # open_clip fills up with zeros
        assert (raw == cleaned) == ("&amp;" not in entry["text"])


def test_sorting_makes_every_clade_an_interval() -> None:
    taxa = [BEAR, GOLDFISH, TaxonPath(("Animalia", "Chordata", "", "", "", "", "")), BEAR]
    order = sort_taxa(taxa)
    assert order == [2, 1, 0, 3]
    assert len(RANKS) == 7
