"""Classifiers fitted on a few embeddings of each class: nearest mean, ridge regression, and means mixed with texts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

METHODS = ("simpleshot", "ridge", "text+image")


class FewShotClassifier:
    """A linear classifier of image embeddings, made by `FewShotClassifier.fit`.

    Args:
        labels (sequence of `str`): names of the classes.
        weight (`torch.Tensor` of shape `(num_classes, dim)`): one vector for each class.
        bias (`torch.Tensor` of shape `(num_classes,)`): one number for each class.
        mean (`torch.Tensor` of shape `(dim,)`): subtracted from embeddings before they are normalised.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip import FewShotClassifier
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> classifier = FewShotClassifier.fit(features, ["bee", "bee", "wasp", "wasp"])
    >>> classifier.predict(torch.tensor([[0.9, 0.0]]))
    ['bee']

    ```
    """

    def __init__(self, labels: Sequence[str], weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor):
        self.labels, self.weight, self.bias, self.mean = list(labels), weight, bias, mean

    @classmethod
    def fit(
        cls,
        features: torch.Tensor,
        labels: Sequence[str],
        method: str = "simpleshot",
        *,
        text_embeds: torch.Tensor | None = None,
        alpha: float = 0.5,
        strength: float = 1.0,
    ) -> "FewShotClassifier":
        """Returns a classifier fitted on labelled embeddings.

        Args:
            features (`torch.Tensor` of shape `(num_images, dim)`): image embeddings of the support set.
            labels (sequence of `str`): class of each.
            method (`str`, defaults to `"simpleshot"`): `"simpleshot"`, nearest class mean after subtracting the mean
                of the support set and normalising (the protocol of BioCLIP's few-shot tasks); `"ridge"`, ridge
                regression on one-hot labels of the same features; `"text+image"`, nearest mix of class mean and text.
            text_embeds (`torch.Tensor` of shape `(num_classes, dim)`, *optional*): text embedding of each class, in
                alphabetical order of the classes; for `"text+image"`.
            alpha (`float`, defaults to 0.5): share of the image mean in the mix, in [0, 1].
            strength (`float`, defaults to 1.0): of the ridge penalty, above 0.

        Raises:
            ValueError: for shapes that do not fit, features that are not finite, an unknown method, or a number out of
                range.
        """
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise ValueError(f"Expected one label for each feature, got {len(labels)} for {tuple(features.shape)}.")
        _check_finite(features)
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}; choose from {list(METHODS)}.")
        if not 0 <= alpha <= 1 or strength <= 0:
            raise ValueError(f"Expected alpha in [0, 1] and strength above 0, got {alpha} and {strength}.")
        names = sorted(set(labels))
        number = {name: place for place, name in enumerate(names)}
        classes = torch.tensor([number[label] for label in labels])
        x = F.normalize(features.float(), dim=-1)
        if method == "text+image":
            if text_embeds is None or text_embeds.shape != (len(names), x.shape[1]):
                shape = None if text_embeds is None else tuple(text_embeds.shape)
                raise ValueError(f"Expected `text_embeds` of shape ({len(names)}, {x.shape[1]}), got {shape}.")
            images, texts = F.normalize(_means(x, classes), dim=-1), F.normalize(text_embeds.float(), dim=-1)
            weight = F.normalize(alpha * images + (1 - alpha) * texts, dim=-1)
            return cls(names, weight, torch.zeros(len(names)), torch.zeros(x.shape[1]))
        mean = x.mean(dim=0)
        centered = F.normalize(x - mean, dim=-1)
        weight, bias = _nearest(centered, classes) if method == "simpleshot" else _ridge(centered, classes, strength)
        return cls(names, weight, bias, mean)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the score of each class, higher is likelier.

        Args:
            features (`torch.Tensor` of shape `(num_images, dim)`): image embeddings of any length.

        Returns:
            `torch.Tensor` of shape `(num_images, num_classes)`, classes in alphabetical order.

        Raises:
            ValueError: for embeddings of another size, or that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"Expected features (num_images, {len(self.mean)}), got {tuple(features.shape)}.")
        _check_finite(features)
        x = F.normalize(features.float(), dim=-1) - self.mean
        return F.normalize(x, dim=-1) @ self.weight.T + self.bias

    def predict(self, features: torch.Tensor) -> list[str]:
        """Returns the likeliest class of each embedding, the first in alphabetical order on ties.

        Args:
            features (`torch.Tensor` of shape `(num_images, dim)`): image embeddings of any length.
        """
        return [self.labels[number] for number in self.score(features).argmax(dim=1).tolist()]


def _check_finite(features: torch.Tensor) -> None:
    if bad := torch.nonzero(~features.isfinite().all(dim=1)).flatten().tolist():
        raise ValueError(f"Expected finite features, but rows {bad[:10]} are not; check model and dtype.")


def _means(x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    counts = torch.bincount(classes)
    return torch.zeros(len(counts), x.shape[1]).index_add_(0, classes, x) / counts[:, None]


def _nearest(x: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest mean: -|z - m|^2 / 2 = z m - |m|^2 / 2, and a part that all classes share."""
    means = _means(x, classes)
    return means, -means.square().sum(dim=1) / 2


def _ridge(x: torch.Tensor, classes: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    target = F.one_hot(classes).float()
    bias = target.mean(dim=0)
    kernel = x @ x.T + strength * torch.eye(len(x))
    return (x.T @ torch.linalg.solve(kernel, target - bias)).T, bias
