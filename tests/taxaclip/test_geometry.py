import json
import math
from pathlib import Path

import pytest
import torch

from taxaclip.geometry import class_separability, species_subspace, variation_geometry

GOLDEN = Path(__file__).parent / "golden"
SPECIES, DIM, SAMPLES = 8, 64, 200


def make_features(inside: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Species with two variants each, whose difference has this share of its square inside the species' subspace."""
    means = torch.randn(SPECIES, DIM, dtype=torch.double)
    basis = species_subspace(means)
    features, species, variants = [], [], []
    for number in range(SPECIES):
        within = basis @ torch.randn(basis.shape[1], dtype=torch.double)
        across = torch.randn(DIM, dtype=torch.double)
        across = across - basis @ (basis.T @ across)
        step = 2 * (math.sqrt(inside) * within / within.norm() + math.sqrt(1 - inside) * across / across.norm())
        for variant in (0, 1):
            noise = 0.05 * torch.randn(SAMPLES, DIM, dtype=torch.double)
            features.append(10 * means[number] + (variant - 0.5) * step + noise)
            species += [number] * SAMPLES
            variants += [variant] * SAMPLES
    return torch.cat(features), torch.tensor(species), torch.tensor(variants)


@pytest.mark.parametrize(("name", "inside"), [("orth", 0.0), ("mixed", 0.5), ("aligned", 1.0)])
def test_planted_geometry_is_recovered(name: str, inside: float) -> None:
    golden = json.loads((GOLDEN / "geometry_structure_check.json").read_text())[name]
    result = variation_geometry(*make_features(inside))
    assert result.explained_variance_ratio == pytest.approx(golden["rho"], abs=0.01)
    assert result.fisher_ratio == pytest.approx([sum(golden["fdr"]) / SPECIES] * SPECIES, rel=0.05)
    assert result.chance == pytest.approx((SPECIES - 1) / DIM)
    assert {"orth": 85 < result.principal_angle <= 90, "mixed": True, "aligned": result.principal_angle < 5}[name]


def test_fisher_ratio_is_its_formula() -> None:
    x = torch.tensor([[0.0, 5], [2, 5], [10, 5], [14, 5], [0, -5], [2, -5], [4, -5], [6, -5]])
    result = variation_geometry(x, torch.tensor([0] * 4 + [1] * 4), torch.tensor([0, 0, 1, 1] * 2))
    assert result.fisher_ratio == pytest.approx([11**2 / (1 + 4), 4**2 / (1 + 1)])


def test_only_variation_between_captions_is_penalised() -> None:
    """What a class' loss does to variation around an image, to second order: the covariance of the captions."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator, dtype=torch.double), dim=1)
    image, scale = torch.randn(6, generator=generator, dtype=torch.double), 10.0

    def loss(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scale * captions @ image, torch.tensor(1))

    probs = (scale * captions @ image).softmax(dim=0)
    centered = captions - probs @ captions
    hessian = torch.autograd.functional.hessian(loss, image)
    torch.testing.assert_close(hessian, scale**2 * centered.T @ (probs[:, None] * centered), rtol=0, atol=1e-12)
    across = torch.eye(6, dtype=torch.double) - (basis := species_subspace(captions)) @ basis.T
    torch.testing.assert_close(hessian @ across, torch.zeros(6, 6, dtype=torch.double), rtol=0, atol=1e-12)


def test_permutations_give_uniform_p_values_where_there_is_no_variation() -> None:
    generator = torch.Generator().manual_seed(1)
    values = []
    for _ in range(200):
        x = torch.randn(48, 10, generator=generator, dtype=torch.double)
        species, variants = torch.arange(48) % 3, torch.arange(48) // 3 % 2
        values.append(variation_geometry(x, species, variants, num_permutations=39, generator=generator).p_value)
    values_ = torch.tensor(values)
    assert 0.43 < values_.mean() < 0.57
    assert 0.16 < (values_ <= 0.25).double().mean() < 0.34


def test_variation_outside_the_species_subspace_is_significant() -> None:
    result = variation_geometry(*make_features(0.0), num_permutations=99, generator=torch.Generator().manual_seed(1))
    assert result.p_value <= 0.05


def test_subspace_can_be_cut_by_energy() -> None:
    means = torch.diag(torch.tensor([10.0, 1.0, 0.1, 0.0]))
    assert species_subspace(means).shape == (4, 3)
    assert species_subspace(means, energy=0.9).shape == (4, 1)


def test_class_separability_is_its_formula() -> None:
    x, labels = torch.randn(30, 5, dtype=torch.double), torch.arange(30) % 4
    between = within = 0.0
    for label in range(4):
        part = x[labels == label]
        between += len(part) * float((part.mean(dim=0) - x.mean(dim=0)).square().sum())
        within += float((part - part.mean(dim=0)).square().sum())
    assert class_separability(x, labels) == pytest.approx(between / within)


@pytest.mark.parametrize(
    ("species", "variants", "message"),
    [([0, 0, 1], [0, 1, 0], "both of them"), ([0, 0, 0], [0, 1, 2], "0 and 1"), ([0, 0], [0, 1], "num_images")],
)
def test_incomplete_species_are_refused(species: list[int], variants: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variation_geometry(torch.randn(3, 4), torch.tensor(species), torch.tensor(variants))


def test_one_species_has_no_subspace() -> None:
    with pytest.raises(ValueError, match="num_species"):
        species_subspace(torch.ones(1, 3))
    with pytest.raises(ValueError, match="energy"):
        species_subspace(torch.ones(2, 3), energy=0)


def test_what_has_no_answer_is_refused() -> None:
    species, variants = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="equal in every species"):
        variation_geometry(torch.ones(4, 3), species, variants)
    with pytest.raises(ValueError, match="num_permutations"):
        variation_geometry(torch.randn(4, 3), species, variants, num_permutations=-1)


def test_features_must_be_finite() -> None:
    x = torch.ones(4, 3)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        variation_geometry(x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
