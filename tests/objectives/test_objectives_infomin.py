import math

import pytest
import torch
from reference.infomin_reference import infomin
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.infomin import InfoMin, infomin_loss
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import BatchError

VIEWS = {view: ViewShape("net", 6, 4) for view in ("view1", "view2", "patches")}


def rows(n: int, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows(3).requires_grad_(), rows(3, seed=1).requires_grad_(), rows(3, seed=2), rows(5, seed=3)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 0.15), (0.2, 0.6)])
def test_equals_the_equations(weight: float, temperature: float) -> None:
    query, jigsaw, key, queue = inputs()
    found = infomin_loss(query, jigsaw, key, queue, weight=weight, temperature=temperature)["loss"]
    expected = infomin(query, jigsaw, key, queue, weight, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss, (query, jigsaw)) for loss in (found, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    query, jigsaw, key, queue = inputs()
    assert gradcheck(lambda q, j: infomin_loss(q, j, key, queue, temperature=0.4)["loss"], (query, jigsaw))


def test_no_gradient_goes_to_the_key() -> None:
    query, jigsaw, key, queue = inputs()
    assert not infomin_loss(query.detach(), jigsaw.detach(), key.requires_grad_(), queue)["loss"].requires_grad


def test_full_collapse_is_a_blind_choice() -> None:
    z = torch.ones(2, 3)
    assert float(infomin_loss(z, z, z, torch.ones(7, 3))["loss"]) == pytest.approx(math.log(8), rel=1e-5)


def test_an_orthogonal_queue() -> None:
    z, queue = torch.eye(9)[:2], torch.eye(9)[2:]
    terms = infomin_loss(z, -z, z, queue, weight=0.25, temperature=0.5)
    assert float(terms["picture"]) == pytest.approx(math.log(1 + 7 * math.exp(-2)), rel=1e-5)
    assert float(terms["jigsaw"]) == pytest.approx(math.log(1 + 7 * math.exp(2)), rel=1e-5)
    torch.testing.assert_close(terms["loss"], 0.75 * terms["picture"] + 0.25 * terms["jigsaw"])


def test_the_module_contrasts_both_queries_with_key_and_queue() -> None:
    torch.manual_seed(0)
    objective = InfoMin(queue=5)
    objective.attach(VIEWS, samples=100)
    query, key, patches = rows(3).float(), rows(3, seed=1).float(), rows(27, 6, 2).float().unflatten(0, (3, 9))
    online = {"view1": Embedding(query, query), "patches": Embedding(patches, patches)}
    before = objective.queue.rows.clone()
    terms = objective(online, {"view2": Embedding(key, key)})
    jigsaw = objective.jigsaw_head(patches)
    expected = infomin(query.double(), jigsaw.double(), key.double(), before.double())
    torch.testing.assert_close(terms["loss"].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(objective.queue.rows, before)
    objective.end_step(0.1)
    torch.testing.assert_close(objective.queue.rows[:3], key / key.norm(dim=1, keepdim=True))
    assert torch.equal(objective.queue.rows[3:], before[3:])


def test_defaults_are_the_authors() -> None:
    objective = InfoMin()
    objective.attach({view: ViewShape("net", 2048, 128) for view in VIEWS}, samples=100)
    assert (objective.temperature, objective.weight, objective.momentum(0.3)) == (0.15, 0.5, 0.999)
    assert objective.queue.rows.shape == (65536, 128)
    assert [tuple(one.shape) for name, one in objective.named_parameters() if "weight" in name] == [
        (2048, 2048),
        (128, 2048),
        (128, 9 * 128),
    ]
    assert objective.online_views(VIEWS) == ["view1", "patches"] and objective.target_views(VIEWS) == ["view2"]


def test_recipes_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="InfoMin needs the views view1, view2, patches, found view1, view2"):
        InfoMin().check_views(["view1", "view2"])
    with pytest.raises(RecipeError, match="one branch for all views"):
        InfoMin().check_branches({"view1": "a", "view2": "a", "patches": "b"})
    with pytest.raises(RecipeError, match="must be positive"):
        InfoMin(temperature=0.0)
    with pytest.raises(BatchError, match="EMA target"):
        InfoMin(queue=3)({})
