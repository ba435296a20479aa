"""How the embeddings of species follow their taxonomy, and their traits beyond it.

Related species look alike and live alike, so that an embedding that knows the family alone would seem to know what
its species eat. Ancestry is partialled out: the partial Mantel test correlates what distances of embeddings and of
traits have in common beyond the distances in the taxonomy. BioCLIP 2 (arXiv 2505.23883) shows such alignments as
pictures; its code for them is not published, and these measures are standard ones chosen here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from taxaclip.taxonomy import RANKS, TaxonPath


def rank_distances(taxa: Sequence[TaxonPath]) -> torch.Tensor:
    """Returns how many ranks up the lowest common clade of two taxa is.

    Args:
        taxa (sequence of `TaxonPath`): the taxa.

    Returns:
        `torch.Tensor` of shape `(num_taxa, num_taxa)`, float64: 0 for one species, 1 for one genus, ... 7 for
        different kingdoms.

    Example:

    ```python
    >>> from taxaclip import TaxonPath
    >>> from taxaclip.alignment import rank_distances
    >>> bees = [TaxonPath(("Animalia", "", "", "", "Apidae", "Apis", name)) for name in ("cerana", "mellifera")]
    >>> rank_distances(bees)[0]
    tensor([0., 1.], dtype=torch.float64)

    ```
    """
    shared = torch.ones(len(taxa), len(taxa), dtype=torch.bool)
    distances = torch.full((len(taxa), len(taxa)), float(len(RANKS)), dtype=torch.double)
    for rank in range(len(RANKS)):
        numbers: dict[str, int] = {}
        ids = torch.tensor([numbers.setdefault(taxon.names[rank], len(numbers)) for taxon in taxa])
        shared &= ids[:, None] == ids[None, :]
        distances[shared] = float(len(RANKS) - 1 - rank)
    return distances


@dataclass(frozen=True)
class Alignment:
    """A correlation of distances over all pairs of species, in [-1, 1], and the share of permutations that reach it.

    `p_value` is NaN without permutations.

    Example:

    ```python
    >>> from taxaclip import Alignment
    >>> Alignment(0.5, 0.01).to_dict()
    {'correlation': 0.5, 'p_value': 0.01}

    ```
    """

    correlation: float
    p_value: float

    def to_dict(self) -> dict[str, float]:
        """Returns the numbers under their names."""
        return asdict(self)


@dataclass(frozen=True)
class TraitAlignment:
    """How embeddings follow a trait: over all pairs, and beyond what ancestry explains.

    `mantel` is the correlation of embedding and trait distances, `partial` that of what ancestry does not explain.
    `loo_r2` is the share of the trait's variance that ridge regression predicts for a species it was not fitted on
    (below 0: worse than the mean), `pc_spearman` the rank correlation, without sign, of the trait with the first
    principal component; both are NaN for traits that are names.

    Example:

    ```python
    >>> from taxaclip import Alignment, TraitAlignment
    >>> TraitAlignment(Alignment(0.5, 0.01), Alignment(0.1, 0.3), 0.2, 0.4).to_dict()["loo_r2"]
    0.2

    ```
    """

    mantel: Alignment
    partial: Alignment
    loo_r2: float
    pc_spearman: float

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers under their names."""
        return asdict(self)


def taxonomy_alignment(
    features: torch.Tensor,
    taxa: Sequence[TaxonPath],
    *,
    num_permutations: int = 0,
    generator: torch.Generator | None = None,
) -> Alignment:
    """Returns the cophenetic correlation: of embedding distances with distances in the taxonomy.

    Args:
        features (`torch.Tensor` of shape `(num_species, dim)`): mean embedding of each species.
        taxa (sequence of `TaxonPath`): the species.
        num_permutations (`int`, defaults to 0): permutations of the species, for a one-sided p-value.
        generator (`torch.Generator`, *optional*): where they come from.

    Raises:
        ValueError: for fewer than three species, shapes that do not fit, or distances that are all equal.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import TaxonPath, taxonomy_alignment
    >>> names = [("Apis", "cerana"), ("Apis", "mellifera"), ("Bombus", "terrestris")]
    >>> taxa = [TaxonPath(("Animalia", "", "", "", "Apidae", *name)) for name in names]
    >>> round(taxonomy_alignment(torch.tensor([[0.0, 0], [0, 1], [2, 0.5]]), taxa).correlation, 2)
    1.0

    ```
    """
    _check(features, len(taxa))
    embedding, taxonomy = _pairwise(features.double()), rank_distances(taxa)
    return _mantel(embedding, taxonomy, None, num_permutations, generator)


def trait_alignment(
    features: torch.Tensor,
    trait: Sequence[float] | Sequence[str],
    taxa: Sequence[TaxonPath],
    *,
    strength: float = 1.0,
    num_permutations: int = 0,
    generator: torch.Generator | None = None,
) -> TraitAlignment:
    """Returns how embeddings of species follow a trait, and whether they do beyond ancestry.

    Args:
        features (`torch.Tensor` of shape `(num_species, dim)`): mean embedding of each species.
        trait (sequence of `float` or of `str`): one value for each: beak length, or `"lake"` and `"river"`, which are
            0 or 1 apart.
        taxa (sequence of `TaxonPath`): the species, whose distances in the taxonomy stand for ancestry.
        strength (`float`, defaults to 1.0): of the ridge penalty, above 0.
        num_permutations (`int`, defaults to 0): permutations of the species, for one-sided p-values.
        generator (`torch.Generator`, *optional*): where they come from.

    Raises:
        ValueError: for fewer than three species, shapes that do not fit, or a trait that is the same everywhere.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import TaxonPath, trait_alignment
    >>> taxa = [TaxonPath(("Animalia", "", "", "", family, "", name)) for family, name in zip("AABB", "wxyz")]
    >>> result = trait_alignment(torch.tensor([[0.0], [1.0], [0.1], [1.1]]), ["lake", "river", "lake", "river"], taxa)
    >>> round(result.partial.correlation, 2)
    0.99

    ```
    """
    _check(features, len(taxa))
    if len(trait) != len(taxa):
        raise ValueError(f"Expected a trait of each of {len(taxa)} species, got {len(trait)}.")
    if strength <= 0:
        raise ValueError(f"`strength` must be above 0, got {strength}.")
    x, ancestry = features.double(), rank_distances(taxa)
    is_name = any(isinstance(value, str) for value in trait)
    if is_name:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(trait))}
        y = torch.tensor([float(numbers[value]) for value in trait], dtype=torch.double)
        distances = (y[:, None] != y[None, :]).double()
    else:
        y = torch.tensor([float(value) for value in trait], dtype=torch.double)
        distances = (y[:, None] - y[None, :]).abs()
    if not bool(y.isfinite().all()) or not bool((y != y[0]).any()):
        raise ValueError("Expected a finite trait that differs between species.")
    embedding = _pairwise(x)
    return TraitAlignment(
        mantel=_mantel(embedding, distances, None, num_permutations, generator),
        partial=_mantel(embedding, distances, ancestry, num_permutations, generator),
        loo_r2=float("nan") if is_name else _loo_r2(x, y, strength),
        pc_spearman=float("nan") if is_name else abs(_spearman(_first_component(x), y)),
    )


def _check(features: torch.Tensor, num_taxa: int) -> None:
    if features.ndim != 2 or len(features) != num_taxa or num_taxa < 3:
        raise ValueError(
            f"Expected features (num_species >= 3, dim) and as many taxa, got {tuple(features.shape)} and {num_taxa}."
        )
    if not bool(features.isfinite().all()):
        raise ValueError("Expected finite features.")


def _pairwise(x: torch.Tensor) -> torch.Tensor:
    distances: torch.Tensor = (x[:, None] - x[None, :]).norm(dim=2)
    return distances


def _mantel(
    left: torch.Tensor,
    right: torch.Tensor,
    given: torch.Tensor | None,
    num_permutations: int,
    generator: torch.Generator | None,
) -> Alignment:
    """(Partial) Mantel test: the species of the right residuals are permuted (Legendre 2000)."""
    if num_permutations < 0:
        raise ValueError(f"`num_permutations` must be at least 0, got {num_permutations}.")
    pairs = torch.triu_indices(len(left), len(left), 1).unbind()
    one, other = _residual(left, given, pairs), _residual(right, given, pairs)
    value = _correlation(one[pairs], other[pairs])
    reached = 0
    for _ in range(num_permutations):
        order = torch.randperm(len(left), generator=generator)
        reached += int(_correlation(one[pairs], other[order][:, order][pairs]) >= value - 1e-12)
    p_value = (reached + 1) / (num_permutations + 1) if num_permutations else float("nan")
    return Alignment(float(value), p_value)


def _residual(distances: torch.Tensor, given: torch.Tensor | None, pairs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a line in the given distances does not explain, as a symmetric matrix."""
    if given is None:
        return distances
    x, y = given[pairs], distances[pairs]
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else torch.zeros(())
    return distances - y.mean() - slope * (given - x.mean())


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    one, other = one - one.mean(), other - other.mean()
    scale = one.norm() * other.norm()
    if scale <= 1e-12 * len(one):
        raise ValueError("Expected distances that differ between pairs of species, beyond what ancestry explains.")
    value: torch.Tensor = (one * other).sum() / scale
    return value


def _loo_r2(x: torch.Tensor, y: torch.Tensor, strength: float) -> float:
    """Leave-one-out predictions of ridge regression with a free intercept, from its hat matrix."""
    centered = x - x.mean(dim=0)
    kernel = centered @ centered.T
    identity = torch.eye(len(x), dtype=x.dtype)
    hat = torch.linalg.solve(kernel + strength * identity, kernel) + 1 / len(x)
    left_out = (y - hat @ y) / (1 - hat.diagonal())
    return float(1 - left_out.square().sum() / (y - y.mean()).square().sum())


def _first_component(x: torch.Tensor) -> torch.Tensor:
    left, values, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    component: torch.Tensor = left[:, 0] * values[0]
    return component


def _spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(_correlation(_ranks(one), _ranks(other)))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0; those of equal values are their mean."""
    below = (values[None, :] < values[:, None]).sum(dim=1)
    return (below + ((values[None, :] == values[:, None]).sum(dim=1) - 1) / 2).double()
