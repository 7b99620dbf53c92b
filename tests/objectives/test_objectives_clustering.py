import numpy as np
import pytest
import torch
from ranks import clusters, results
from reference.clustering_reference import lloyd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from jointembed.objectives.clustering import Assignments, kmeans, pca_whiten
from jointembed.objectives.statistics import BatchError


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(count: int = 4, each: int = 30, d: int = 5) -> tuple[Tensor, Tensor]:
    """Rows around far corners, in mixed order, and the corner of each."""
    corners = 10 * torch.eye(d, dtype=torch.float64)[:count]
    corner = torch.arange(count).repeat(each)
    return corners[corner] + 0.3 * rows(len(corner), d), corner


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_equals_the_equations(spherical: bool, iterations: int) -> None:
    z = rows(40, 3)
    start = kmeans(z, torch.arange(40), 5, iterations=0, spherical=spherical)
    found = kmeans(z, torch.arange(40), 5, iterations=iterations, spherical=spherical)
    centroids, own = lloyd(z, start.centroids, iterations, spherical)
    torch.testing.assert_close(found.centroids, centroids, rtol=1e-10, atol=1e-12)
    if spherical:
        z = z / z.norm(dim=1, keepdim=True)
    assert found.assignment.tolist() == lloyd(z, start.centroids, iterations, spherical)[1] == own


def test_equals_scikit_learn_from_the_same_start() -> None:
    z = rows(300, 6)
    start = kmeans(z, torch.arange(300), 8, iterations=0, spherical=False)
    found = kmeans(z, torch.arange(300), 8, iterations=10, spherical=False)
    theirs = KMeans(8, init=start.centroids.numpy(), n_init=1, max_iter=10, tol=0, algorithm="lloyd").fit(z.numpy())
    torch.testing.assert_close(found.centroids, torch.from_numpy(theirs.cluster_centers_), rtol=1e-10, atol=1e-10)
    assert np.array_equal(found.assignment.numpy(), theirs.predict(z.numpy()))


@pytest.mark.parametrize("spherical", [True, False])
def test_separated_blobs_are_found(spherical: bool) -> None:
    z, corner = blobs()
    found = next(  # of all starts, one with a sample in each blob
        result
        for seed in range(50)
        if len(set(corner[kmeans_start(z, seed)].tolist())) == 4
        for result in [kmeans(z, torch.arange(len(z)), 4, seed=seed, spherical=spherical)]
    )
    pairs = {(int(a), int(b)) for a, b in zip(found.assignment, corner, strict=True)}
    assert len(pairs) == 4
    theirs = KMeans(4, n_init=3, random_state=0).fit(z.numpy())
    assert len({(int(a), int(b)) for a, b in zip(found.assignment, theirs.labels_, strict=True)}) == 4
    norms = found.centroids.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 1.0 if spherical else 10.0), rtol=0.05, atol=0)


def kmeans_start(z: Tensor, seed: int) -> list[int]:
    """Numbers of the rows that are drawn as start."""
    start = kmeans(z, torch.arange(len(z)), 4, iterations=0, seed=seed, spherical=False).centroids
    return [int((z == row).all(1).nonzero()[0]) for row in start]


def test_start_is_drawn_by_sample_numbers_and_seed() -> None:
    z, index, order = rows(20, 3), torch.arange(20) * 3 + 1, torch.randperm(20)
    first = kmeans(z, index, 4, seed=5)
    again = kmeans(z[order], index[order], 4, seed=5)
    torch.testing.assert_close(again.centroids, first.centroids, rtol=1e-12, atol=1e-12)
    assert torch.equal(again.assignment, first.assignment[order])
    assert not torch.equal(kmeans_start_rows(z, 5), kmeans_start_rows(z, 6))


def kmeans_start_rows(z: Tensor, seed: int) -> Tensor:
    return kmeans(z, torch.arange(len(z)), 4, iterations=0, seed=seed, spherical=False).centroids


@pytest.mark.parametrize("spherical", [True, False])
def test_empty_clusters_go_on_from_the_farthest_samples(spherical: bool) -> None:
    """Of 5 places, one of which holds nearly all samples, the start finds few."""
    place = torch.tensor([0] * 60 + [1, 2, 3, 4])
    z = torch.eye(5, dtype=torch.float64)[place] * torch.arange(1.0, 6, dtype=torch.float64)
    index = torch.arange(64)
    start = kmeans(z, index, 5, iterations=0, spherical=spherical)
    assert len(start.assignment.unique()) < 4
    found = kmeans(z, index, 5, spherical=spherical)
    assert len({(int(a), int(b)) for a, b in zip(found.assignment, place, strict=True)}) == 5
    one = kmeans(z, index, 5, iterations=1, spherical=False)
    assert (one.centroids == z[63]).all(1).any()  # the farthest of all


def test_collapsed_rows_are_one_cluster() -> None:
    found = kmeans(torch.ones(10, 3), torch.arange(10), 4)
    assert torch.isfinite(found.centroids).all() and len(set(found.assignment.tolist())) == 1


def test_bad_samples_are_refused() -> None:
    with pytest.raises(BatchError, match="5 clusters need as many samples, found 4"):
        kmeans(rows(4, 2), torch.arange(4), 5)
    with pytest.raises(BatchError, match="a sample occurs twice"):
        kmeans(rows(3, 2), torch.tensor([0, 1, 0]), 2)
    with pytest.raises(BatchError, match="at least 2 samples, found 1"):
        pca_whiten(rows(1, 2), 2)


def test_whitening_is_that_of_scikit_learn() -> None:
    z = rows(50, 6) @ rows(6, 6, seed=1) + 3
    for components in (6, 4):
        found = pca_whiten(z, components)
        theirs = torch.from_numpy(PCA(components, whiten=True, svd_solver="full").fit_transform(z.numpy()))
        signs = torch.sign((found * theirs).sum(0))
        torch.testing.assert_close(found * signs, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.cov(found.T), torch.eye(components, dtype=torch.float64))
    assert pca_whiten(z, 100).shape == (50, 6)


def test_whitening_leaves_out_what_has_no_variance() -> None:
    z = torch.cat([rows(30, 2), torch.full((30, 2), 0.1, dtype=torch.float64)], 1).float()
    variance = pca_whiten(z, 4).var(0)
    torch.testing.assert_close(variance, torch.tensor([1.0, 1, 0, 0]))


def test_assignments_are_those_of_their_samples() -> None:
    found = Assignments(2, 5)
    found.put(0, torch.tensor([4, 0, 2]), torch.tensor([7, 8, 9]))
    found.put(1, torch.arange(5), torch.arange(5))
    assert found.of(torch.tensor([2, 4])).tolist() == [[9, 7], [2, 4]]
    with pytest.raises(BatchError, match="sample 1 has no cluster: start_epoch did not see it"):
        found.of(torch.tensor([0, 1]))
    with pytest.raises(BatchError, match="needs the numbers of the samples"):
        found.of(None)
    found.put(0, torch.tensor([1]), torch.tensor([3]))
    assert found.cluster[0].tolist() == [-1, 3, -1, -1, -1]
    again = Assignments(2, 5)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.cluster, found.cluster)


@pytest.mark.ddp
@pytest.mark.parametrize("world", [2, 4])
def test_clusters_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    expected = clusters()
    for found in (result["clusters"] for result in results(world)):
        for case in ("spherical", "euclidean", "repeated"):
            torch.testing.assert_close(found[case], expected[case], rtol=1e-10, atol=1e-12)
            assert torch.equal(found[f"{case} all"], expected[f"{case} all"])
        torch.testing.assert_close(found["whitened"].abs(), expected["whitened"].abs(), rtol=1e-9, atol=1e-9)
