import math

import pytest
import torch
from ranks import views
from reference.moco_reference import moco, unit
from torch import Tensor
from torch.autograd import grad

from jointembed.errors import RecipeError
from jointembed.objectives.moco import MoCo
from jointembed.objectives.objective import ViewShape

BRANCHES = {"view1": "net", "view2": "net"}


def rows(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def attached(**arguments: object) -> MoCo:
    module = MoCo(**({"queue": 8} | arguments))  # type: ignore[arg-type]
    module.attach({view: ViewShape(branch, 8, 5) for view, branch in BRANCHES.items()}, samples=100)
    return module.double()


def same_value_and_gradient(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grad(found, inputs), grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_equals_the_equations_over_several_steps(temperature: float) -> None:
    module = attached(temperature=temperature)
    queue = list(module.queue.rows.clone())
    for step in range(4):
        query, key = rows(seed=step), rows(seed=10 + step)
        terms = module(views(view1=query), views(view2=key))
        same_value_and_gradient(terms["loss"], moco(query, key, torch.stack(queue), temperature), query)
        assert terms.keys() == {"loss"}
        module.end_step(0.5)
        queue = (queue + [unit(row.detach()) for row in key])[-8:]
        oldest = int(module.queue.count) % 8
        torch.testing.assert_close(module.queue.rows.roll(-oldest, 0), torch.stack(queue), rtol=1e-12, atol=1e-12)


def test_symmetric_form_sums_both_ways_and_keeps_all_keys() -> None:
    module = attached(symmetric=True, queue=12)
    names = ["view1", "view2"]
    assert module.online_views(names) == names and module.target_views(names) == names
    start = module.queue.rows.clone()
    a, b, of_a, of_b = (rows(seed=seed) for seed in range(4))
    terms = module(views(view1=a, view2=b), views(view1=of_a, view2=of_b))
    first, second = moco(a, of_b, start), moco(b, of_a, start)
    torch.testing.assert_close(terms["view1_to_view2"], first.detach())
    torch.testing.assert_close(terms["view2_to_view1"], second.detach())
    same_value_and_gradient(terms["loss"], first + second, a, b)
    module.end_step(0.5)
    expected = torch.stack([unit(row) for pair in zip(of_a.detach(), of_b.detach(), strict=True) for row in pair])
    torch.testing.assert_close(module.queue.rows, expected)


def test_closed_forms() -> None:
    module = attached(temperature=0.5)
    z = torch.eye(5, dtype=torch.float64)
    module.queue.rows.copy_(z[4].expand(8, 5))
    found = module(views(view1=z[:4]), views(view2=z[:4]))["loss"]
    assert float(found) == pytest.approx(math.log(1 + 8 * math.exp(-2)))  # own key at 1, all others at 0
    found = module(views(view1=z[4:]), views(view2=z[4:]))["loss"]
    assert float(found) == pytest.approx(math.log(9))  # collapse: a blind choice


def test_a_refused_or_evaluated_step_leaves_the_queue() -> None:
    module = attached()
    start = module.queue.rows.clone()
    module(views(view1=rows()), views(view2=rows()))
    assert torch.equal(module.queue.rows, start)
    module.eval()
    other = attached().eval()
    other(views(view1=rows()), views(view2=rows()))
    other.end_step(0.5)
    assert torch.equal(other.queue.rows, start) and int(other.queue.count) == 0


def test_only_the_queries_take_a_gradient() -> None:
    module = attached()
    query, key = rows(), rows(seed=1)
    module(views(view1=query), views(view2=key))["loss"].backward()
    assert query.grad is not None and key.grad is None and not list(module.parameters())


def test_views_needs_and_momentum() -> None:
    module = MoCo()
    assert module.needs == {"target", "shuffle"} and MoCo(shuffle_batch_norm=False).needs == {"target"}
    assert module.online_views(["view1", "view2"]) == ["view1"] and module.target_views(["view1", "view2"]) == ["view2"]
    assert module.momentum(0.0) == module.momentum(1.0) == 0.999
    module.attach({view: ViewShape("net", 2048, 128) for view in BRANCHES}, samples=1)
    assert module.queue.rows.shape == (65536, 128)


def test_bfloat16_under_autocast_gives_float32() -> None:
    query, key = rows().detach().bfloat16(), rows(seed=1).detach().bfloat16()
    module = attached().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(views(view1=query), views(view2=key))["loss"]
    assert found.dtype == torch.float32
    assert torch.equal(found, module(views(view1=query.float()), views(view2=key.float()))["loss"])
    module.end_step(1.0)
    assert module.queue.rows.dtype == torch.float32


def test_it_refuses_what_it_cannot_train() -> None:
    MoCo().check_branches(BRANCHES)
    with pytest.raises(RecipeError, match="MoCo needs one branch for all views .* view1: left, view2: right"):
        MoCo().check_branches({"view1": "left", "view2": "right"})
    for arguments in ({"queue": 0}, {"temperature": 0.0}, {"momentum": 1.5}):
        with pytest.raises(RecipeError, match="queue must be at least 1, temperature positive, momentum within"):
            MoCo(**arguments)
