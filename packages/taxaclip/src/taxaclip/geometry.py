"""Where variation within species lies in embedding space, against the differences between species.

BioCLIP 2 (arXiv 2505.23883) reports that, with more training data, variation within a species becomes orthogonal to
the differences between species. Its code for this is not published; the definitions here follow its description.
Features are given as they are to be measured, usually normalised.
"""

from dataclasses import asdict, dataclass

import torch


def species_subspace(means: torch.Tensor, energy: float = 1.0) -> torch.Tensor:
    """Returns an orthonormal basis of the differences between species.

    Args:
        means (`torch.Tensor` of shape `(num_species, dim)`): mean feature of each species.
        energy (`float`, defaults to 1.0): share of the squared differences to explain, in (0, 1]; 1 means all
            directions with a singular value above 1e-8 of the largest.

    Returns:
        `torch.Tensor` of shape `(dim, rank)`, with `rank < num_species`.

    Raises:
        ValueError: for fewer than two species, or an energy out of range.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.geometry import species_subspace
    >>> species_subspace(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])).abs().squeeze()
    tensor([1., 0., 0.])

    ```
    """
    if means.ndim != 2 or len(means) < 2:
        raise ValueError(f"`means` must have shape (num_species >= 2, dim), got {tuple(means.shape)}.")
    if not 0 < energy <= 1:
        raise ValueError(f"`energy` must be in (0, 1], got {energy}.")
    _, values, vectors = torch.linalg.svd(means - means.mean(dim=0), full_matrices=False)
    rank = int((values > 1e-8 * values[0]).sum().clamp(max=len(means) - 1))
    if energy < 1:
        explained = values.square().cumsum(0) / values.square().sum()
        rank = min(rank, int((explained < energy).sum()) + 1)
    basis: torch.Tensor = vectors[:rank].T
    return basis


@dataclass(frozen=True)
class VariationGeometry:
    """How variation within species lies to the differences between them.

    `explained_variance_ratio` is the share of the variants' differences inside the species' subspace, in [0, 1];
    `chance` is that of random directions, rank / dim; `p_value` is the share of permutations (variants shuffled within
    species) with a ratio as small or smaller; `fisher_ratio` holds one number a species: squared distance of its two
    variants over the sum of their variances; `principal_angle` is the mean angle of the two subspaces, in degrees.

    Example:

    ```python
    >>> from taxaclip import VariationGeometry
    >>> VariationGeometry(0.25, 0.5, 0.01, [1.0], 60.0).to_dict()["chance"]
    0.5

    ```
    """

    explained_variance_ratio: float
    chance: float
    p_value: float
    fisher_ratio: list[float]
    principal_angle: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """Returns the numbers under their names."""
        return asdict(self)


def variation_geometry(
    features: torch.Tensor,
    species: torch.Tensor,
    variants: torch.Tensor,
    *,
    energy: float = 1.0,
    num_permutations: int = 0,
    generator: torch.Generator | None = None,
) -> VariationGeometry:
    """Returns how the variants of species (adult and juvenile, female and male) lie to the species' differences.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): embeddings; computed with in float64.
        species (`torch.Tensor` of shape `(num_images,)`): number of the species, from 0.
        variants (`torch.Tensor` of shape `(num_images,)`): 0 or 1.
        energy (`float`, defaults to 1.0): as of `species_subspace`.
        num_permutations (`int`, defaults to 0): permutations for the p-value, which is NaN without any.
        generator (`torch.Generator`, *optional*): where the permutations come from.

    Raises:
        ValueError: if shapes do not fit, features are not finite, a species lacks one of the variants, the means of
            all variants are equal, or `num_permutations` is below 0.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import variation_geometry
    >>> x = torch.tensor([[5.0, 0, 1], [5, 0, -1], [-5, 0, 1], [-5, 0, -1]])
    >>> variation_geometry(x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])).explained_variance_ratio
    0.0

    ```
    """
    if features.ndim != 2 or species.shape != variants.shape or species.shape != features.shape[:1]:
        raise ValueError(
            "Expected features (num_images, dim), species and variants (num_images,), got "
            f"{tuple(features.shape)}, {tuple(species.shape)} and {tuple(variants.shape)}."
        )
    if not bool(features.isfinite().all()):
        raise ValueError("Expected finite features, got others; check model and dtype.")
    if num_permutations < 0:
        raise ValueError(f"`num_permutations` must be at least 0, got {num_permutations}.")
    x = features.double()
    cells = species * 2 + variants
    counts = torch.bincount(cells, minlength=2 * int(species.max() + 1))
    if bool(((variants != 0) & (variants != 1)).any()) or not bool((counts > 0).all()):
        raise ValueError("Expected variants 0 and 1, both of them in every species; leave incomplete species out.")
    means = _cell_means(x, cells, counts)  # (S, 2, D)
    if torch.equal(means[:, 0], means[:, 1]):
        raise ValueError("Expected features whose means differ between variants, but they are equal in every species.")
    basis = species_subspace(means.mean(dim=1), energy)
    ratio = _explained(means, basis)
    spread = (x - means.flatten(0, 1)[cells]).square().sum(dim=1)
    variance = torch.zeros(len(counts), dtype=x.dtype).index_add_(0, cells, spread) / counts
    fisher = (means[:, 1] - means[:, 0]).square().sum(dim=1) / variance.unflatten(0, (-1, 2)).sum(dim=1)
    smaller = 0
    for _ in range(num_permutations):
        order = torch.argsort(species + torch.rand(len(species), generator=generator, dtype=torch.double), stable=True)
        shuffled = torch.empty_like(cells)
        shuffled[torch.argsort(species, stable=True)] = species[order] * 2 + variants[order]
        smaller += int(_explained(_cell_means(x, shuffled, counts), basis) <= ratio)
    differences = means[:, 1] - means[:, 0]
    inside = torch.linalg.svdvals(basis.T @ torch.linalg.qr(differences.T)[0]).clamp(max=1)
    return VariationGeometry(
        explained_variance_ratio=float(ratio),
        chance=basis.shape[1] / x.shape[1],
        p_value=(smaller + 1) / (num_permutations + 1) if num_permutations else float("nan"),
        fisher_ratio=fisher.tolist(),
        principal_angle=float(inside.acos().rad2deg().mean()),
    )


def _cell_means(x: torch.Tensor, cells: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, cells, x)
    means: torch.Tensor = (sums / counts[:, None]).unflatten(0, (-1, 2))
    return means


def _explained(means: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Share of the squared differences of variants that lies inside the basis."""
    differences = means[:, 1] - means[:, 0]
    return (differences @ basis).square().sum() / differences.square().sum()


def class_separability(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the Fisher ratio of classes at any rank: variance between class means over mean variance within classes.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): embeddings; computed with in float64.
        labels (`torch.Tensor` of shape `(num_images,)`): number of the class, from 0, none empty.

    Returns:
        `float`: tr(S_b) / tr(S_w), both weighted by the images; higher is better separated.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.geometry import class_separability
    >>> class_separability(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))
    9.0

    ```
    """
    x = features.double()
    counts = torch.bincount(labels)
    means = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, labels, x) / counts[:, None]
    between = (means[labels] - x.mean(dim=0)).square().sum()
    within = (x - means[labels]).square().sum()
    return float(between / within)
