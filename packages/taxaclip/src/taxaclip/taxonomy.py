"""Taxa: paths of seven ranks, in which any name may be unknown, and the texts that describe them."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
"""The ranks of a path, from the root; `species` is the epithet."""

TEXT_TYPES = ("sci", "com", "taxon", "sci_com", "taxon_com")
"""The five captions of BioCLIP's training: scientific, common and taxonomic name, and two mixes."""


@dataclass(frozen=True)
class TaxonPath:
    """A taxon: its names from kingdom to the species' epithet, `""` where unknown, and what it is called.

    Unknown names may stand inside a path: the goldfish has no class in the GBIF backbone.

    Args:
        names (`tuple` of seven `str`): kingdom, phylum, class, order, family, genus, epithet.
        common_name (`str`, defaults to `""`): common name.
        subspecies (`str`, defaults to `""`): epithet of the subspecies.

    Raises:
        ValueError: if there are not seven names, or none is known.

    Example:

    ```python
    >>> from taxaclip import TaxonPath
    >>> names = ("Animalia", "Chordata", "", "Cypriniformes", "Cyprinidae", "Carassius", "auratus")
    >>> goldfish = TaxonPath(names, "goldfish")
    >>> goldfish.scientific_name, goldfish.lowest_rank
    ('Carassius auratus', 'species')
    >>> goldfish.caption("sci_com")
    'a photo of Carassius auratus with common name goldfish.'

    ```
    """

    names: tuple[str, ...]
    common_name: str = ""
    subspecies: str = ""

    def __post_init__(self) -> None:
        """Checks the names."""
        is_tuple = isinstance(self.names, tuple)
        if not is_tuple or len(self.names) != len(RANKS) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(
                f"Expected a tuple of seven names ({', '.join(RANKS)}; '' where unknown), got {self.names!r}."
            )
        if not any(self.names):
            raise ValueError("Expected at least one known name in a taxon's path, got seven empty ones.")

    @property
    def lowest_rank(self) -> str:
        """The lowest rank with a known name."""
        return next(rank for rank, name in zip(reversed(RANKS), reversed(self.names), strict=True) if name)

    @property
    def scientific_name(self) -> str:
        """Genus, epithet and subspecies; the lowest known name where the species is unknown."""
        genus, epithet = self.names[-2:]
        if epithet:
            return " ".join(name for name in (genus, epithet, self.subspecies) if name)
        return self.names[RANKS.index(self.lowest_rank)]

    @property
    def taxonomic_name(self) -> str:
        """All known names, from the kingdom on."""
        return " ".join(name for name in self.names if name)

    def describe(self, text_type: str) -> str:
        """Returns what the taxon is called, to be put into a prompt.

        Args:
            text_type (`str`): one of `TEXT_TYPES`, or `"index"` for the text of the published TreeOfLife embeddings,
                all names and the common name. A missing common name falls back to the scientific one.

        Raises:
            ValueError: for an unknown type.
        """
        common = self.common_name or self.scientific_name
        texts = {
            "sci": self.scientific_name,
            "com": common,
            "taxon": self.taxonomic_name,
            "sci_com": f"{self.scientific_name} with common name {common}",
            "taxon_com": f"{self.taxonomic_name} with common name {common}",
            "index": f"{self.taxonomic_name} {self.common_name}".strip(),
        }
        if text_type not in texts:
            raise ValueError(f"Unknown text type {text_type!r}; choose from {list(texts)}.")
        return texts[text_type]

    def caption(self, text_type: str) -> str:
        """Returns a caption of BioCLIP's training shards.

        Args:
            text_type (`str`): one of `TEXT_TYPES`.

        Raises:
            ValueError: for an unknown type.
        """
        return f"a photo of {self.describe(text_type)}."


def parse_underscore_label(label: str) -> TaxonPath:
    """Returns the taxon of a folder name such as `02987_Animalia_Chordata_Aves_..._Ursus_arctos`.

    Args:
        label (`str`): a number and seven names, joined by underscores; an unknown name is empty.

    Raises:
        ValueError: if it does not have these parts.

    Example:

    ```python
    >>> from taxaclip.taxonomy import parse_underscore_label
    >>> parse_underscore_label("7_Animalia_Chordata__Cypriniformes_Cyprinidae_Carassius_auratus").names[2:4]
    ('', 'Cypriniformes')

    ```
    """
    number, *names = label.split("_")
    if not number.isdigit() or len(names) != len(RANKS):
        raise ValueError(f"Expected a number and seven names joined by underscores, got {label!r}.")
    return TaxonPath(tuple(names))


_AUTHORSHIP = re.compile(r"(?<=\S)\s+(\(?[A-Z][^()]*?,? (?:18|19|20|17)\d\d\)?|L\.)\s*$")
_HYBRID = re.compile(r"(^|\s)[xX](?=\s)")


def normalise(path: TaxonPath) -> TaxonPath:
    """Returns the path with its names in standard writing.

    Ranks down to the genus are capitalised, the epithet is in lower case, white space is folded, a hybrid's `x`
    becomes the multiplication sign, and an author with a year behind a name is removed. `sp.`, `cf.` and barcode
    numbers stay as they are.

    Args:
        path (`TaxonPath`): any path.

    Example:

    ```python
    >>> from taxaclip import TaxonPath, normalise
    >>> normalise(TaxonPath(("ANIMALIA", "", "", "", "", "apis ", "Mellifera Linnaeus, 1758"))).names[-2:]
    ('Apis', 'mellifera')

    ```
    """
    cleaned = [_AUTHORSHIP.sub("", _HYBRID.sub("\\1\u00d7", " ".join(name.split()))) for name in path.names]
    higher = [name[:1].upper() + (name[1:].lower() if name.isupper() else name[1:]) for name in cleaned[:-1]]
    epithet = cleaned[-1]
    if not re.search(r"[\d.:]", epithet):
        epithet = epithet.lower()
    return replace(path, names=(*higher, epithet))


def clean_text(text: str) -> str:
    """Returns a text as open_clip's tokenizer reads it, so that transformers' gives the same ids.

    HTML entities are unescaped twice and white space is folded.

    Args:
        text (`str`): any text.

    Example:

    ```python
    >>> from taxaclip.taxonomy import clean_text
    >>> clean_text("St. John's-wort &amp;amp;  hypericum")
    "St. John's-wort & hypericum"

    ```
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def sort_taxa(taxa: Sequence[TaxonPath]) -> list[int]:
    """Returns the order that makes each clade of every rank one contiguous interval: by path, unknown names first.

    Args:
        taxa (sequence of `TaxonPath`): the taxa; equal paths keep their order.
    """
    return sorted(range(len(taxa)), key=lambda i: (*taxa[i].names, taxa[i].subspecies))
