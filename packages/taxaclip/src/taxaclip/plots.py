"""Pictures of the geometry of embeddings. They need matplotlib: `pip install "taxaclip[plots]"`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from taxaclip.geometry import VariationGeometry, species_subspace


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
    count = int(species.max()) + 1
    if count < 3:
        raise ValueError(f"Expected at least three species, got {count}.")
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


def plot_traits(features: torch.Tensor, traits: Mapping[str, Sequence[float] | Sequence[str]]) -> Any:
    """Returns a figure with a panel for each trait: the first two principal components, coloured by the trait.

    Args:
        features (`torch.Tensor` of shape `(num_species, dim)`): mean embedding of each species.
        traits (mapping from `str` to sequences): name and values of each trait, numbers or names.

    Raises:
        ValueError: for no trait, or one of another length.

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
    x = features.double() - features.double().mean(dim=0)
    points = (x @ torch.linalg.svd(x, full_matrices=False)[2][:2].T).numpy()
    figure, axes = plt.subplots(1, len(traits), figsize=(4.5 * len(traits), 4), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes[0], traits.items(), strict=True):
        if isinstance(values[0], str):
            for label in dict.fromkeys(values):
                chosen = [value == label for value in values]
                axis.scatter(*points[chosen].T, s=24, label=str(label))
            axis.legend()
        else:
            figure.colorbar(axis.scatter(*points.T, c=list(values), s=24), ax=axis)
        axis.set(title=name, xlabel="1st component", ylabel="2nd component")
    return figure


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
