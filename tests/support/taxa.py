"""A few real taxa: a hole in a path, one genus name in two families, a missing common name."""

from taxaclip import TaxonPath

BEAR = ("Animalia", "Chordata", "Mammalia", "Carnivora", "Ursidae", "Ursus")
TAXA = [
    TaxonPath((*BEAR, "arctos"), "brown bear"),
    TaxonPath((*BEAR, "maritimus"), "polar bear"),
    TaxonPath(("Animalia", "Chordata", "", "Cypriniformes", "Cyprinidae", "Carassius", "auratus"), "goldfish"),
    TaxonPath(("Animalia", "Chordata", "Aves", "Passeriformes", "Muscicapidae", "Oenanthe", "oenanthe"), "wheatear"),
    TaxonPath(("Plantae", "Tracheophyta", "Magnoliopsida", "Apiales", "Apiaceae", "Oenanthe", "crocata"), "hemlock"),
    TaxonPath(("Plantae", "Tracheophyta", "Liliopsida", "Poales", "Poaceae", "Poa", "annua")),
]
