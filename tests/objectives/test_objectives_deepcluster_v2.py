import math

import pytest
import torch
from ranks import views
from reference import clustering_reference as reference
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.objectives.clustering import kmeans
from jointembed.objectives.deepcluster_v2 import DeepClusterV2, deepcluster_v2_loss
from jointembed.objectives.objective import EpochEmbeddings, ViewShape
from jointembed.objectives.statistics import BatchError

SHAPES = dict.fromkeys(["view1", "view2", "crop1"], ViewShape("net", 9, 5))


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads() -> tuple[Tensor, Tensor]:
    prototypes = functional.normalize(rows(6, 5), dim=1).view(2, 3, 5)
    return prototypes, torch.tensor([[0, 2, 1, 1], [1, 0, 2, 2]])


def attached() -> DeepClusterV2:
    module = DeepClusterV2(heads=2, n_prototypes=4, temperature=0.3)
    module.attach(SHAPES, samples=30)
    return module.double()


def embedded(seed: int = 0) -> EpochEmbeddings:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    return EpochEmbeddings(order, rows(30, 9)[order], rows(30, 5)[order])


def test_equals_the_equations() -> None:
    prototypes, cluster = heads()
    batch = [rows(4, 5, seed).requires_grad_() for seed in (1, 2, 3)]
    found = deepcluster_v2_loss(batch, prototypes, cluster, temperature=0.2)["loss"]
    expected = reference.deepcluster_v2(batch, prototypes, cluster, 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = torch.autograd.grad(found, batch), torch.autograd.grad(expected, batch)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    prototypes, cluster = heads()
    batch = rows(4, 5, 1).requires_grad_()
    assert gradcheck(lambda z: deepcluster_v2_loss([z, 2 * z + 1], prototypes, cluster)["loss"], batch)


def test_embeddings_at_orthogonal_prototypes() -> None:
    z = 3 * torch.eye(4, dtype=torch.float64)
    prototypes, cluster = torch.eye(4, dtype=torch.float64)[None], torch.arange(4)[None]
    terms = deepcluster_v2_loss([z, z], prototypes, cluster)
    assert float(terms["loss"]) == pytest.approx(math.log(1 + 3 * math.exp(-10)), rel=1e-6)
    assert float(terms["accuracy"]) == 1
    assert float(deepcluster_v2_loss([z, z], prototypes, cluster.roll(1))["accuracy"]) == 0


def test_prototypes_that_are_all_the_same_tell_nothing() -> None:
    loss = deepcluster_v2_loss([rows(3, 5)], rows(1, 5).expand(1, 7, 5), torch.tensor([[0, 3, 6]]))["loss"]
    assert float(loss) == pytest.approx(math.log(7))


def test_an_epoch_starts_with_a_clustering_for_each_head() -> None:
    module = attached()
    module.start_epoch(3, lambda: embedded())
    for head in range(2):
        expected = kmeans(rows(30, 5), torch.arange(30), 4, seed=6 + head)
        torch.testing.assert_close(module.prototypes[head], expected.centroids, rtol=1e-12, atol=1e-12)
        assert torch.equal(module.assignments.cluster[head], expected.assignment)
    assert not torch.equal(module.prototypes[0], module.prototypes[1])
    batch, index = views(view1=rows(4, 5, 1), view2=rows(4, 5, 2), crop1=rows(4, 5, 3)), torch.tensor([3, 29, 0, 3])
    found = module(batch, index=index)
    options = (module.prototypes, module.assignments.cluster[:, index])
    expected_terms = deepcluster_v2_loss([one.z for one in batch.values()], *options, temperature=0.3)
    assert torch.equal(found["loss"], expected_terms["loss"])
    assert not list(module.parameters())


def test_a_resumed_epoch_goes_on_with_its_clusters() -> None:
    module, again = attached(), attached()
    module.start_epoch(0, lambda: embedded())
    batch, index = views(view1=rows(5, 5, 1)), torch.arange(5)
    with pytest.raises(BatchError, match="sample 0 has no cluster"):
        again(batch, index=index)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(batch, index=index)["loss"], module(batch, index=index)["loss"])


def test_bfloat16_under_autocast_gives_float32() -> None:
    prototypes, cluster = heads()
    z = rows(4, 5, 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = deepcluster_v2_loss([z], prototypes.float(), cluster)["loss"]
    assert found.dtype == torch.float32
    assert torch.equal(found, deepcluster_v2_loss([z.float()], prototypes.float(), cluster)["loss"])


def test_more_prototypes_than_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match="objective.n_prototypes: 3000 clusters of only 30 samples"):
        DeepClusterV2().attach(SHAPES, samples=30)
