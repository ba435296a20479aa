"""Pictures of the geometry of embeddings. They need matplotlib: `pip install "taxaclip[plots]"`; UMAP is `[umap]`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from taxaclip.geometry import VariationGeometry, species_subspace

METHODS = ("pca", "umap")


def plot_variation(features: torch.Tensor, species: torch.Tensor, variants: torch.Tensor) -> Any:
    """Returns a figure of two panels: differences between species, and variation within species across them.

    Both panels have the first principal component of the species' means to the right. The left one has their second
    component upwards, the right one the leading direction of variation within species that is orthogonal to all
    differences between species.

    Args:
        features (`torch.Tensor` of shape `(num_images, dim)`): embeddings.
        species (`torch.Tensor` of shape `(num_images,)`): number of the species, from 0; three of them at least.
        variants (`torch.Tensor` of shape `(num_images,)`): 0 or 1; filled and open marks.

    Raises:
        ValueError: for fewer than three species, or shapes that do not fit.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.plots import plot_variation
    >>> figure = plot_variation(torch.randn(12, 5), torch.arange(12) % 3, torch.arange(12) % 2)
    >>> len(figure.axes)
    2

    ```
    """
    if features.ndim != 2 or species.shape != variants.shape or species.shape != features.shape[:1]:
        raise ValueError(
            "Expected features (num_images, dim), species and variants (num_images,), got "
            f"{tuple(features.shape)}, {tuple(species.shape)} and {tuple(variants.shape)}."
        )
    images = torch.bincount(species)
    if len(images) < 3 or bool((images == 0).any()):
        raise ValueError(f"Expected three species or more, numbered from 0, all with images, got {images.tolist()}.")
    count = len(images)
    x = features.double() - features.double().mean(dim=0)
    means = torch.stack([x[species == number].mean(dim=0) for number in range(count)])
    basis = species_subspace(means)
    within = x - means[species]
    across = within - within @ basis @ basis.T
    direction = torch.linalg.svd(across, full_matrices=False)[2][0]
    panels = {"2nd component of species' means": basis[:, 1], "variation within species, across them": direction}
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, layout="constrained")
    colors = plt.get_cmap("tab20")(np.arange(count) % 20)
    for axis, (label, vector) in zip(axes, panels.items(), strict=True):
        for variant in (0, 1):
            chosen = variants == variant
            edges = colors[species[chosen].numpy()]
            faces = edges if variant == 0 else "none"
            points = (x[chosen] @ basis[:, 0]).numpy(), (x[chosen] @ vector).numpy()
            axis.scatter(*points, s=18, facecolors=faces, edgecolors=edges, linewidths=1)
        axis.set(xlabel="1st component of species' means", ylabel=label)
    return figure


def plot_traits(
    features: torch.Tensor,
    traits: Mapping[str, Sequence[float] | Sequence[str]],
    *,
    method: str = "pca",
    seed: int = 0,
) -> Any:
    """Returns a figure with a panel for each trait: the species in a plane, coloured by the trait.

    Args:
        features (`torch.Tensor` of shape `(num_species, dim)`): mean embedding of each species.
        traits (mapping from `str` to sequences): name and values of each trait, numbers or names.
        method (`str`, defaults to `"pca"`): the plane: `"pca"`, the first two principal components; or `"umap"`, which
            keeps neighbours together, while its distances and directions mean nothing.
        seed (`int`, defaults to 0): of UMAP.

    Raises:
        ValueError: for no trait, one of another length, fewer than four species, or an unknown method.
        ImportError: for `"umap"` without umap-learn.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.plots import plot_traits
    >>> figure = plot_traits(torch.randn(4, 5), {"beak": [1.0, 2, 3, 4], "water": ["lake", "sea", "sea", "lake"]})
    >>> [axis.get_title() for axis in figure.axes[:2]]
    ['beak', 'water']

    ```
    """
    if not traits or any(len(values) != len(features) for values in traits.values()):
        lengths = {name: len(values) for name, values in traits.items()}
        raise ValueError(f"Expected traits with a value for each of {len(features)} species, got {lengths}.")
    if method not in METHODS or features.ndim != 2 or len(features) < 4:
        raise ValueError(
            f"Expected a method of {METHODS} and features (num_species >= 4, dim), "
            f"got {method!r} and {tuple(features.shape)}."
        )
    points = _project_by_umap(features, seed) if method == "umap" else _project_by_pca(features)
    figure, axes = plt.subplots(1, len(traits), figsize=(4.5 * len(traits), 4), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes[0], traits.items(), strict=True):
        if isinstance(values[0], str):
            for label in dict.fromkeys(values):
                chosen = [value == label for value in values]
                axis.scatter(*points[chosen].T, s=24, label=str(label))
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the points, not on them
        else:
            figure.colorbar(axis.scatter(*points.T, c=list(values), s=24), ax=axis)
        labels = ("1st component", "2nd component") if method == "pca" else ("", "")
        axis.set(title=name, xlabel=labels[0], ylabel=labels[1])
    return figure


def _project_by_pca(features: torch.Tensor) -> Any:
    x = features.double() - features.double().mean(dim=0)
    return (x @ torch.linalg.svd(x, full_matrices=False)[2][:2].T).numpy()


def _project_by_umap(features: torch.Tensor, seed: int) -> Any:
    try:
        from umap import UMAP
    except ImportError:
        raise ImportError('method="umap" needs umap-learn: pip install "taxaclip[umap]".') from None
    neighbors = min(15, len(features) - 1)
    # One job, since a seed allows no more; the usual first places need more points than there may be species.
    return UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1, init="pca").fit_transform(features.numpy())


def plot_scaling(num_images: Sequence[int], results: Sequence[VariationGeometry]) -> Any:
    """Returns a figure of explained-variance ratio and Fisher ratio against the number of training images.

    Args:
        num_images (sequence of `int`): training images of each checkpoint.
        results (sequence of `VariationGeometry`): of each, on the same images.

    Raises:
        ValueError: if there is none, or not one for each number.

    Example:

    ```python
    >>> from taxaclip import VariationGeometry
    >>> from taxaclip.plots import plot_scaling
    >>> results = [VariationGeometry(ratio, 0.1, 0.01, [1.0, 2.0], 60.0) for ratio in (0.3, 0.2)]
    >>> len(plot_scaling([1_000, 4_000], results).axes)
    2

    ```
    """
    if not results or len(num_images) != len(results):
        raise ValueError(f"Expected a result for each number of images, got {len(results)} for {len(num_images)}.")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(num_images, [result.explained_variance_ratio for result in results], "o-", label="measured")
    left.plot(num_images, [result.chance for result in results], "--", label="chance")
    left.set(ylabel="explained-variance ratio", ylim=(0, None))
    left.legend()
    fisher = [np.mean(result.fisher_ratio) for result in results]
    right.plot(num_images, fisher, "o-")
    right.set(ylabel="Fisher ratio, mean over species")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="training images")
    return figure
