import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from taxaclip import FewShotClassifier

NAMES = ["wasp", "ant", "bee"]


def make_features(shots: int = 5) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Support features, their labels, and query features."""
    labels = [name for name in NAMES for _ in range(shots)]
    centers = torch.randn(3, 16)[[NAMES.index(label) for label in labels]]
    return centers + 0.8 * torch.randn(centers.shape), labels, centers + torch.randn(centers.shape)


def standardise(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.nn.functional.normalize(x, dim=1) - mean, dim=1)


def test_simpleshot_is_the_nearest_centroid_of_centered_unit_features() -> None:
    support, labels, query = make_features()
    mean = torch.nn.functional.normalize(support, dim=1).mean(dim=0)
    peer = NearestCentroid().fit(standardise(support, mean).numpy(), labels)
    assert FewShotClassifier.fit(support, labels).predict(query) == list(
        peer.predict(standardise(query, mean).numpy())
    )


def test_ridge_is_scikit_learn_s() -> None:
    support, labels, query = make_features()
    mean = torch.nn.functional.normalize(support, dim=1).mean(dim=0)
    names = sorted(NAMES)
    target = torch.tensor([[float(label == name) for name in names] for label in labels])
    x = standardise(support, mean)
    peer = Ridge(alpha=2.0, fit_intercept=False).fit(x.numpy(), (target - target.mean(dim=0)).numpy())
    expected = peer.predict(standardise(query, mean).numpy()) + target.mean(dim=0).numpy()
    actual = FewShotClassifier.fit(support, labels, "ridge", strength=2.0).score(query)
    torch.testing.assert_close(actual, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


def test_texts_alone_and_images_alone_are_the_ends_of_the_mix() -> None:
    support, labels, query = make_features(shots=1)
    texts = torch.randn(3, 16)
    unit = torch.nn.functional.normalize
    only_text = FewShotClassifier.fit(support, labels, "text+image", text_embeds=texts, alpha=0.0).score(query)
    torch.testing.assert_close(only_text, unit(query, dim=1) @ unit(texts, dim=1).T)
    order = [labels.index(name) for name in sorted(NAMES)]
    only_image = FewShotClassifier.fit(support, labels, "text+image", text_embeds=texts, alpha=1.0).score(query)
    torch.testing.assert_close(only_image, unit(query, dim=1) @ unit(support[order], dim=1).T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svm"}, "ridge"),
        ({"method": "text+image"}, "text_embeds"),
        ({"alpha": 2.0}, "alpha"),
        ({"strength": 0.0}, "strength"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    support, labels, _ = make_features()
    with pytest.raises(ValueError, match=message):
        FewShotClassifier.fit(support, labels, **options)  # type: ignore[arg-type]


def test_labels_must_fit_the_features() -> None:
    with pytest.raises(ValueError, match="one label"):
        FewShotClassifier.fit(torch.ones(3, 2), ["a"])
    with pytest.raises(ValueError, match=r"\(num_images, 3\), got \(2, 4\)"):
        FewShotClassifier.fit(torch.eye(3), ["a", "b", "c"]).predict(torch.ones(2, 4))


def test_features_must_be_finite() -> None:
    x = torch.eye(3)
    classifier = FewShotClassifier.fit(x, ["a", "b", "c"])
    x[1, 1] = torch.inf
    for call in (lambda: FewShotClassifier.fit(x, ["a", "b", "c"]), lambda: classifier.predict(x)):
        with pytest.raises(ValueError, match=r"rows \[1\] are not"):
            call()
