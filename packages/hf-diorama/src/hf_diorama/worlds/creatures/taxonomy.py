"""The synthetic tree of life: seven ranks, names, and what each branch decides about how a creature looks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hf_diorama.draws import Draws

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "epithet")
"""Ranks from broad to narrow, named as the columns of a row; genus and epithet together are the scientific name."""

TRAITS = ("legs", "wing_patch", "tail_spots", "crest", "beak", "eye_ring")
"""Parts that tell species apart."""

BODY_PLANS = ("songbird", "wader", "drake", "turtle", "fish", "merling")
"""How each order is built; orders of one class stand side by side."""

PATTERNS = ("belly", "stripes", "spots", "saddle", "bands", "chevrons")
TAILS = ("fan", "fork", "paddle")
NICHES = ("seeds", "insects", "fish", "nectar")
HABITATS = {"seeds": "meadow", "insects": "forest", "fish": "wetland", "nectar": "desert"}
BEAK_LENGTHS = {"seeds": 0.27, "insects": 0.33, "fish": 0.39, "nectar": 0.45}

Color = tuple[int, int, int]
BASE_COLORS: tuple[Color, ...] = (
    (46, 148, 142),  # teal
    (204, 92, 46),  # rust
    (92, 118, 196),  # slate blue
    (214, 164, 62),  # ochre
    (146, 84, 156),  # plum
    (116, 152, 60),  # moss
    (226, 124, 148),  # rose
    (136, 140, 152),  # ash
)
TRAIT_COLORS: dict[str, Color] = {
    "white": (252, 250, 242),
    "yellow": (255, 216, 32),
    "red": (220, 34, 42),
    "blue": (36, 84, 226),
    "black": (24, 22, 30),
    "mint": (96, 232, 172),
}
TRAIT_SHAPES = {"beak": ("cone", "hook", "spoon"), "crest": ("none", "plume", "fan", "horn")}
BRANCHING = (3, 2, 2, 2, 4)
"""Children of a phylum, class, order, family and genus: 3 classes, 6 orders, 12 families, 24 genera, 96 species."""

_ONSETS = "b c d f g l m n p r s t v z br fl tr".split()
_NUCLEI = "a a e e i o o u".split()
_CODAS = "l n r s t v nd ll rn st".split()
_ADJECTIVES = "hermit northern royal lesser dawn island southern common".split()
_NOUNS = {
    "songbird": "finch",
    "wader": "heron",
    "drake": "drake",
    "turtle": "turtle",
    "fish": "wrasse",
    "merling": "merling",
}
_SUFFIXES = {"class": "ia", "order": "iformes", "family": "idae", "genus": "us", "epithet": "ensis"}

PAIR_LOOKS: tuple[dict[int, int], ...] = ({}, {4: 1}, {5: 1}, {4: 2})
"""What tells each pair of sisters from the other pairs: place among the genus' parts -> which look of that part."""


@dataclass(frozen=True, kw_only=True)
class Species:
    """One leaf of the tree: its names, and all that its branches decide about its looks.

    Args:
        ranks (`tuple[str, ...]`): the names of `RANKS`.
        common_name (`str`): the English name.
        plan (`str`): body plan, decided by the order.
        pattern (`str`): coat pattern, decided by the family.
        tail (`str`): shape of the tail, decided by the family.
        proportions (`tuple[float, float, float, float]`): body height, head, legs and tail, decided by the family.
        color (`tuple[int, int, int]`): base colour, decided by the genus.
        accents (`tuple[Color, Color]`): colours of beak and crest, decided by the genus.
        body_size (`float`): relative to the largest species, decided by the genus.
        niche (`str`): way of living, shared across distant branches; decides beak length and preferred habitat.
        traits (`tuple[str, ...]`): the look of each part of `TRAITS`, the only thing two sister species differ in.
    """

    ranks: tuple[str, ...]
    common_name: str
    plan: str
    pattern: str
    tail: str
    proportions: tuple[float, float, float, float]
    color: Color
    accents: tuple[Color, Color]
    body_size: float
    niche: str
    traits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Scientific name: genus and epithet."""
        return f"{self.ranks[5]} {self.ranks[6]}"

    def look(self, part: str) -> tuple[str, ...]:
        """Returns all that the species decides about a trait part; a beak also has the length of its niche."""
        trait = self.traits[TRAITS.index(part)]
        return (trait, self.niche) if part == "beak" else (trait,)

    def captions(self) -> dict[str, str]:
        """Returns the five text types: scientific, common and taxonomic names and the two mixes."""
        taxonomic = " ".join(self.ranks)
        return {
            "common": self.common_name,
            "scientific": self.name,
            "taxonomic": taxonomic,
            "scientific_common": f"{self.name} with common name {self.common_name}",
            "taxonomic_common": f"{taxonomic} with common name {self.common_name}",
        }


def build_tree(branching: tuple[int, ...] = BRANCHING) -> tuple[Species, ...]:
    """Returns all species in the order of the tree, so that neighbours are relatives.

    The species of a genus come in sister pairs `(0, 1), (2, 3), ...`. Sisters differ in exactly one part; pairs differ
    in another part and in their niche.

    Args:
        branching (`tuple[int, ...]`): children of a phylum, class, order, family and genus, five numbers.

    Returns:
        `tuple[Species, ...]`

    Raises:
        ValueError: if a number is out of the range in which every branch still has a look of its own.
    """
    _check_branching(branching)
    return _grow(branching)


@lru_cache
def _grow(branching: tuple[int, ...]) -> tuple[Species, ...]:
    classes, orders, families, genera, species = branching
    used: set[str] = set()
    tree: list[Species] = []
    for order in range(classes * orders):
        if order % orders == 0:
            class_name = _name(used, "class", order // orders)
        order_name = _name(used, "order", order)
        patterns = Draws("tree", "patterns", order).sample(PATTERNS, families)
        niches = Draws("tree", "niches", order).sample(NICHES, len(NICHES))
        for family in range(order * families, (order + 1) * families):
            family_name = _name(used, "family", family)
            draws = Draws("tree", "family", family)
            # Neighbouring families are drawn from opposite halves, so that they look different at a glance.
            low = 0.88 if family % families % 2 else 1.02
            height, head, legs, tail_length = (draws.uniform(low, low + 0.12) for _ in range(4))
            colors = draws.sample(BASE_COLORS, genera)
            for genus in range(family * genera, (family + 1) * genera):
                # What a genus has from its branches; its species fill in the rest.
                ancestor = Species(
                    ranks=(
                        "Dioramalia",
                        "Pictozoa",
                        class_name,
                        order_name,
                        family_name,
                        _name(used, "genus", genus),
                        "",
                    ),
                    common_name="",
                    plan=BODY_PLANS[order],
                    pattern=patterns[family % families],
                    tail=TAILS[family % len(TAILS)],
                    proportions=(height, head, legs, tail_length),
                    color=colors[genus % genera],
                    accents=((0, 0, 0), (0, 0, 0)),
                    body_size=1.0,
                    niche="",
                    traits=(),
                )
                niche_pairs = [niches[(genus + pair) % len(niches)] for pair in range(4)]
                tree.extend(_radiate(ancestor, genus, species, niche_pairs, used))
    return tuple(tree)


def _radiate(ancestor: Species, genus: int, count: int, niches: list[str], used: set[str]) -> Iterator[Species]:
    """Yields the species of a genus: sisters differ in one part, pairs in another part and in their niche."""
    color, stem = ancestor.color, ancestor.ranks[5].removesuffix("us").lower()
    draws = Draws("tree", "genus", genus)
    options = {part: _options(part, color, draws) for part in TRAITS}
    parts = draws.sample(TRAITS, len(TRAITS))
    adjectives = draws.sample(_ADJECTIVES, len(_ADJECTIVES))
    beak_color, crest_color = (TRAIT_COLORS[name] for name in _contrasting(color, draws)[:2])
    body_size = draws.uniform(0.9, 1.0)
    for number in range(count):
        pair, sister = divmod(number, 2)
        # The first four parts each tell one pair of sisters apart, the last two tell the pairs apart.
        chosen = {part: options[part][0] for part in TRAITS}
        places = PAIR_LOOKS[pair] | ({pair: 1} if sister else {})
        for place, option in places.items():
            chosen[parts[place]] = options[parts[place]][option]
        epithet = _name(used, "epithet", genus * count + number).lower()
        yield replace(
            ancestor,
            ranks=(*ancestor.ranks[:6], epithet),
            common_name=f"{adjectives[number]} {stem}{_NOUNS[ancestor.plan]}",
            accents=(beak_color, crest_color),
            body_size=body_size,
            niche=niches[pair],
            traits=tuple(chosen.values()),
        )


def _check_branching(branching: tuple[int, ...]) -> None:
    names = ("classes", "orders in a class", "families in an order", "genera in a family", "species in a genus")
    limits = (6, 6, len(PATTERNS), len(BASE_COLORS), 8)
    if len(branching) != len(names) or not all(type(number) is int for number in branching):
        raise ValueError(f"`branching` must be five whole numbers ({', '.join(names)}), got {branching!r}.")
    for name, limit, number in zip(names, limits, branching, strict=True):
        if not 1 <= number <= limit:
            raise ValueError(f"`branching` allows 1 to {limit} {name}, got {number}.")
    if branching[0] * branching[1] > len(BODY_PLANS):
        raise ValueError(
            f"`branching` allows {len(BODY_PLANS)} orders in all, one for each body plan, "
            f"got {branching[0]} classes with {branching[1]} orders."
        )


def _name(used: set[str], rank: str, number: int) -> str:
    """Returns a Latin-looking name that is not taken."""
    draws = Draws("tree", "name", rank, number)
    while True:
        syllables = [draws.choice(_ONSETS) + draws.choice(_NUCLEI) for _ in range(draws.integer(1, 3))]
        name = ("".join(syllables) + draws.choice(_CODAS) + _SUFFIXES[rank]).capitalize()
        if name not in used:
            used.add(name)
            return name


def _options(part: str, color: Color, draws: Draws) -> list[str]:
    """Returns the looks of a part from the genus' own to the least used."""
    if part in TRAIT_SHAPES:
        return draws.sample(TRAIT_SHAPES[part], 3)
    names = _contrasting(color, draws)
    if part in ("eye_ring", "tail_spots"):  # black would melt into the pupil and into the dark tail
        names.remove("black")
    return names[:3]


def _contrasting(color: Color, draws: Draws) -> list[str]:
    """Returns names of trait colours that are far from the colour of the coat, in random order."""
    names = [name for name, trait in TRAIT_COLORS.items() if _distance(color, trait) > 170]
    return draws.sample(names, len(names))


def _distance(first: Color, second: Color) -> int:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))
