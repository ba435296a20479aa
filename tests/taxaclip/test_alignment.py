import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from support.taxa import TAXA
from taxaclip import TaxonPath, taxonomy_alignment, trait_alignment
from taxaclip.alignment import rank_distances


def make_taxa(families: int = 6, species: int = 5) -> list[TaxonPath]:
    return [TaxonPath(("A", "", "", "", f"F{f}", f"G{f}", f"s{s}")) for f in range(families) for s in range(species)]


def test_rank_distances_count_the_ranks_to_the_common_clade() -> None:
    # Brown and polar bear share the genus, bear and goldfish the phylum, wheatear and hemlock only a genus' name.
    distances = rank_distances(TAXA)
    assert [distances[0, 0], distances[0, 1], distances[0, 2], distances[3, 4]] == [0, 1, 5, 7]
    assert torch.equal(distances, distances.T)


def test_taxonomy_alignment_is_the_correlation_of_distances() -> None:
    taxa, x = make_taxa(), torch.randn(30, 8)
    expected = pearsonr(pdist(x.numpy()), squareform(rank_distances(taxa).numpy())).statistic
    result = taxonomy_alignment(x, taxa, num_permutations=99, generator=torch.Generator().manual_seed(0))
    assert result.correlation == pytest.approx(expected, abs=1e-6)
    families = torch.arange(30) // 5
    clustered = torch.randn(6, 8)[families] + 0.1 * x
    strong = taxonomy_alignment(clustered, taxa, num_permutations=99, generator=torch.Generator().manual_seed(0))
    assert (strong.correlation > 0.5, strong.p_value) == (True, 0.01)


def test_numbers_are_those_of_scipy_and_scikit_learn() -> None:
    taxa, x, y = make_taxa(), torch.randn(30, 8, dtype=torch.double), torch.randn(30, dtype=torch.double)
    result = trait_alignment(x, y.tolist(), taxa, strength=2.0)
    embedding, trait = pdist(x.numpy()), pdist(y.numpy()[:, None])
    ancestry = squareform(rank_distances(taxa).numpy())[:, None]
    left, right = (d - LinearRegression().fit(ancestry, d).predict(ancestry) for d in (embedding, trait))
    assert result.mantel.correlation == pytest.approx(pearsonr(embedding, trait).statistic)
    assert result.partial.correlation == pytest.approx(pearsonr(left, right).statistic)
    predicted = cross_val_predict(Ridge(alpha=2.0), x.numpy(), y.numpy(), cv=LeaveOneOut())
    expected = 1 - ((y.numpy() - predicted) ** 2).sum() / ((y.numpy() - y.numpy().mean()) ** 2).sum()
    # The mean that is subtracted in a fold is that of the fold: the hat matrix has it but for centering, exactly so.
    assert result.loo_r2 == pytest.approx(expected, abs=1e-9)
    centered = (x - x.mean(dim=0)).numpy()
    component = centered @ np.linalg.svd(centered, full_matrices=False)[2][0]
    assert result.pc_spearman == pytest.approx(abs(spearmanr(component, y.numpy()).statistic))
    assert np.isnan(result.partial.p_value)


def test_a_trait_of_families_is_nothing_beyond_ancestry() -> None:
    taxa, families = make_taxa(), torch.arange(30) // 5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 8, generator=generator)[families] + 0.3 * torch.randn(30, 8, generator=generator)
    water = ["lake" if family % 2 else "sea" for family in families.tolist()]
    result = trait_alignment(x, water, taxa, num_permutations=199, generator=generator)
    assert result.mantel.p_value <= 0.05
    assert result.partial.p_value > 0.5
    assert np.isnan(result.loo_r2)
    assert np.isnan(result.pc_spearman)


def test_a_trait_within_families_is_found_beyond_ancestry() -> None:
    taxa, families = make_taxa(), torch.arange(30) // 5
    generator = torch.Generator().manual_seed(2)
    beak = torch.randn(30, generator=generator)
    x = torch.randn(6, 8, generator=generator)[families] + beak[:, None] * torch.randn(8, generator=generator)
    result = trait_alignment(x, beak.tolist(), taxa, num_permutations=199, generator=generator)
    assert result.partial.p_value <= 0.01
    assert result.partial.correlation > result.mantel.correlation
    assert result.loo_r2 > 0.5


def test_p_values_are_uniform_without_a_relation() -> None:
    taxa, generator, values = make_taxa(4, 3), torch.Generator().manual_seed(3), []
    for _ in range(150):
        x, trait = torch.randn(12, 4, generator=generator), torch.randn(12, generator=generator).tolist()
        result = trait_alignment(x, trait, taxa, num_permutations=19, generator=generator)
        values.append(result.partial.p_value)
    assert 0.42 < np.mean(values) < 0.62
    assert np.mean(np.array(values) <= 0.25) == pytest.approx(0.25, abs=0.11)


def test_what_has_no_answer_is_refused() -> None:
    taxa, x = make_taxa(2, 2), torch.randn(4, 3)
    for features, trait, message in (
        (x[:3], [1.0] * 4, "as many taxa"),
        (x, [1.0] * 3, "a trait of each"),
        (x, [1.0] * 4, "differs"),
        (x, [1.0, 2.0, 3.0, float("nan")], "finite trait"),
        (torch.full((4, 3), torch.nan), [1.0, 2, 3, 4], "finite features"),
        (torch.ones(4, 3), [1.0, 2, 3, 4], "distances that differ"),
    ):
        with pytest.raises(ValueError, match=message):
            trait_alignment(features, trait, taxa)
    with pytest.raises(ValueError, match="strength"):
        trait_alignment(x, [1.0, 2, 3, 4], taxa, strength=0)
    with pytest.raises(ValueError, match="num_permutations"):
        taxonomy_alignment(x, taxa, num_permutations=-1)
