import math

import pytest
import torch
from ranks import views
from reference import clustering_reference as reference
from torch import Tensor
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.objectives.clustering import kmeans
from jointembed.objectives.deepcluster import DeepCluster
from jointembed.objectives.objective import EpochEmbeddings, ViewShape
from jointembed.objectives.statistics import BatchError

SHAPES = {"view1": ViewShape("net", 9, 6), "view2": ViewShape("net", 9, 6)}


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attached(**options: int) -> DeepCluster:
    module = DeepCluster(**({"clusters": 4, "components": 3} | options))
    module.attach(SHAPES, samples=30)
    return module.double()


def started(epoch: int = 0, **options: int) -> DeepCluster:
    module = attached(**options)
    module.start_epoch(epoch, lambda: EpochEmbeddings(torch.arange(30), rows(30, 9), rows(30, 6)))
    return module


def test_equals_the_equations() -> None:
    module, index = started(), torch.tensor([4, 4, 29, 0, 17])
    batch = {"view1": rows(5, 6, 1).requires_grad_(), "view2": rows(5, 6, 2).requires_grad_()}
    with torch.no_grad():
        module.classifier.weight.mul_(100)
        module.classifier.bias.copy_(torch.arange(4) / 3)
    found = module(views(**batch), index=index)
    known = module.assignments.cluster[0]
    weight, bias = module.classifier.weight, module.classifier.bias
    expected = reference.deepcluster(list(batch.values()), weight, bias, known[index], known)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-10, atol=1e-12)
    leaves = [*batch.values(), weight, bias]
    ours, theirs = torch.autograd.grad(found["loss"], leaves), torch.autograd.grad(expected, leaves)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
        assert left.abs().max() > 1e-4


def test_clusters_are_those_of_whitened_rows_of_length_one() -> None:
    z = rows(30, 6)
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    whitened = functional.normalize((centred @ vectors / values.sqrt())[:, -3:], dim=1)
    expected = kmeans(whitened, torch.arange(30), 4, iterations=20, seed=2, spherical=False)
    assert torch.equal(started(epoch=2).assignments.cluster[0], expected.assignment)


def test_clusters_weigh_the_same() -> None:
    module = started()
    sizes = module.assignments.cluster[0].bincount(minlength=4)
    torch.testing.assert_close(module.weight * sizes, torch.full((4,), 30 / 4, dtype=torch.float64))
    assert int(sizes.sum()) == 30


def test_equal_logits_cost_log_of_the_clusters() -> None:
    module = started()
    with torch.no_grad():
        module.classifier.weight.zero_()
    whole = module(views(view1=rows(30, 6)), index=torch.arange(30))
    assert float(whole["loss"].detach()) == pytest.approx(math.log(4))


def test_collapsed_embeddings_are_one_class() -> None:
    module = attached()
    same = torch.full((30, 6), 0.3, dtype=torch.float64)
    module.start_epoch(0, lambda: EpochEmbeddings(torch.arange(30), same, same))
    assert len(module.assignments.cluster.unique()) == 1
    assert sorted(module.weight.tolist()) == [0, 0, 0, 1]


def test_classifier_starts_anew_each_epoch() -> None:
    module = started()
    start = module.classifier.weight.detach().clone()
    assert 0.005 < float(start.std()) < 0.02 and not module.classifier.bias.any()
    with torch.no_grad():
        module.classifier.weight.add_(1)
        module.classifier.bias.add_(1)
    embedded = EpochEmbeddings(torch.arange(30), rows(30, 9), rows(30, 6))
    module.start_epoch(1, lambda: embedded)
    assert not module.classifier.bias.any() and not torch.equal(module.classifier.weight, start)
    assert torch.equal(module.classifier.weight, started(epoch=1).classifier.weight)


def test_a_resumed_epoch_goes_on_with_its_clusters() -> None:
    module, again = started(), attached()
    batch, index = views(view1=rows(5, 6, 1)), torch.arange(5)
    with pytest.raises(BatchError, match="sample 0 has no cluster"):
        again(batch, index=index)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(batch, index=index)["loss"], module(batch, index=index)["loss"])


def test_more_clusters_than_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match="objective.clusters: 10000 clusters of only 30 samples"):
        DeepCluster().attach(SHAPES, samples=30)
