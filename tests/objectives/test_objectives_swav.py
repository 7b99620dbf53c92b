import math

import pytest
import torch
from ranks import views
from reference import swav_reference as reference
from torch import Tensor
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import sinkhorn
from jointembed.objectives.swav import SwAV, swav_loss


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    return functional.normalize(rows(n, d, seed), dim=1)


def crops(n: int = 5, d: int = 4, small: int = 2) -> dict[str, Tensor]:
    names = ["view1", "view2", *(f"crop{number + 1}" for number in range(small))]
    return {name: rows(n, d, seed).requires_grad_() for seed, name in enumerate(names)}


def attached(width: int = 4, **options: object) -> SwAV:
    torch.manual_seed(0)
    module = SwAV(n_prototypes=6, **options).double()  # type: ignore[arg-type]
    module.attach(dict.fromkeys(["view1", "view2", "crop1", "crop2"], ViewShape("net", 9, width)), samples=20)
    return module.double()


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("n", "k"), [(5, 3), (4, 4), (3, 7)])
def test_codes_equal_the_equations(n: int, k: int, iterations: int) -> None:
    scores = torch.tanh(rows(n, k))
    found = sinkhorn(scores, epsilon=0.2, iterations=iterations)
    torch.testing.assert_close(found, reference.sinkhorn(scores, 0.2, iterations), rtol=1e-10, atol=1e-12)


def test_codes_of_equal_scores_are_uniform() -> None:
    torch.testing.assert_close(sinkhorn(torch.full((6, 4), 0.3)), torch.full((6, 4), 0.25))


def test_codes_of_identical_samples_are_uniform_whatever_the_scores() -> None:
    torch.testing.assert_close(sinkhorn(rows(1, 5).expand(7, 5)), torch.full((7, 5), 0.2, dtype=torch.float64))


def test_prototypes_get_equal_shares() -> None:
    codes = sinkhorn(torch.tanh(rows(12, 4)), epsilon=0.3, iterations=200)
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_of_extreme_scores_are_finite(dtype: torch.dtype) -> None:
    scores = torch.diag(torch.full((5,), 1e4)).to(dtype)
    codes = sinkhorn(scores)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, torch.eye(5))
    torch.testing.assert_close(sinkhorn(scores - 3e4), torch.eye(5))


@pytest.mark.parametrize("queue", [0, 7])
@pytest.mark.parametrize("small", [0, 2])
def test_equals_the_equations(small: int, queue: int) -> None:
    batch, prototypes = crops(small=small), unit(3, 4).requires_grad_()
    assigned = ["view1", "view2"]
    queues = {view: unit(queue, 4, seed) for seed, view in enumerate(assigned)} if queue else None
    found = swav_loss(batch, prototypes, assigned=assigned, epsilon=0.2, queues=queues)
    expected = reference.swav(batch, prototypes, assigned, epsilon=0.2, queues=queues)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-10, atol=1e-12)
    leaves = [*batch.values(), prototypes]
    ours, theirs = torch.autograd.grad(found["loss"], leaves), torch.autograd.grad(expected, leaves)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((found["codes/view1"] + found["codes/view2"]) / 2, found["loss"].detach())


def test_full_collapse_gives_uniform_codes_that_nobody_can_predict() -> None:
    z, prototypes = torch.eye(3)[:1].expand(8, 3), torch.eye(3)
    loss = float(swav_loss({"a": z, "b": z}, prototypes, assigned=["a", "b"], temperature=0.5)["loss"])
    assert loss == pytest.approx(math.log(math.exp(2) + 2) - 2 / 3, rel=1e-6)


def test_identical_views_of_orthogonal_samples() -> None:
    z = 3 * torch.eye(4, dtype=torch.float64)
    loss = float(swav_loss({"a": z, "b": z}, torch.eye(4, dtype=torch.float64), assigned=["a", "b"])["loss"])
    code = math.exp(20) / (math.exp(20) + 3)
    assert loss == pytest.approx(math.log(math.exp(10) + 3) - 10 * code, rel=1e-9)


def test_bfloat16_under_autocast_gives_float32() -> None:
    batch = {view: z.detach().bfloat16() for view, z in crops().items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = swav_loss(batch, unit(3, 4).float(), assigned=["view1"])["loss"]
    wide = swav_loss({view: z.float() for view, z in batch.items()}, unit(3, 4).float(), assigned=["view1"])["loss"]
    assert found.dtype == torch.float32 and torch.equal(found, wide)


def test_prototypes_are_scaled_each_step_and_frozen_at_first() -> None:
    module, batch = attached(freeze_steps=2), crops()
    sizes = []
    for _ in range(3):
        with torch.no_grad():
            module.prototypes.weight.mul_(3)
        module.before_step({})
        torch.testing.assert_close(module.prototypes.weight.norm(dim=1), torch.ones(6, dtype=torch.float64))
        module.zero_grad()
        module(views(**batch))["loss"].backward()
        assert module.prototypes.weight.grad is not None
        sizes.append(float(module.prototypes.weight.grad.abs().max()))
        module.end_step(0.1)
    assert sizes[:2] == [0, 0] and sizes[2] > 1e-3
    again = attached(freeze_steps=2)
    again.load_state_dict(module.state_dict())
    assert int(again.step) == 3


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_no_optimizer_moves_frozen_prototypes(name: str) -> None:
    """A gradient of zeros and weight decay are a step of full size to Adam."""
    module, batch = attached(freeze_steps=5), crops()
    optimizer = getattr(torch.optim, name)(module.parameters(), lr=1e-2, weight_decay=1e-2)
    module.before_step({})
    start = module.prototypes.weight.detach().clone()
    for step in range(8):
        module.before_step({}) if step else None
        optimizer.zero_grad()
        module(views(**batch))["loss"].backward()
        optimizer.step()
        module.end_step(0.1)
        moved = float((module.prototypes.weight - start).detach().abs().max())
        assert moved < 1e-12 if step < 5 else moved > 1e-4


def test_module_is_the_function() -> None:
    module, batch = attached(freeze_steps=0, temperature=0.3, epsilon=0.2, iterations=2), crops()
    module.before_step({})
    found = module(views(**batch))
    options = {"assigned": ["view1", "view2"], "temperature": 0.3, "epsilon": 0.2, "iterations": 2}
    expected = swav_loss(batch, module.prototypes.weight, **options)  # type: ignore[arg-type]
    assert found.keys() == expected.keys() and torch.equal(found["loss"], expected["loss"])


def test_queue_is_filled_after_its_start_and_used_when_full() -> None:
    module, batch = attached(queue=10, queue_start=0.5, epsilon=0.2), crops()
    units = {view: functional.normalize(z.detach(), dim=1) for view, z in batch.items()}
    losses, counts = [], []
    for progress in (0.5, 0.6, 0.7, 0.8):
        module.before_step({})
        losses.append(module(views(**batch))["loss"].detach())
        module.end_step(progress)
        counts.append(int(module.queues["view1"].count))  # type: ignore[arg-type]
    assert counts == [0, 5, 10, 15] and set(module.queues) == {"view1", "view2"}
    plain = swav_loss(batch, module.prototypes.weight, assigned=["view1", "view2"], epsilon=0.2)
    queues = {view: torch.cat([units[view], units[view]]) for view in ("view1", "view2")}
    balanced = swav_loss(batch, module.prototypes.weight, assigned=["view1", "view2"], epsilon=0.2, queues=queues)
    for loss in losses[:3]:
        torch.testing.assert_close(loss, plain["loss"].detach())
    torch.testing.assert_close(losses[3], balanced["loss"].detach())


def test_a_queue_of_other_samples_changes_the_codes() -> None:
    batch, prototypes = {view: z.detach() for view, z in crops().items()}, unit(3, 4)
    options = {"assigned": ["view1"], "epsilon": 0.2}
    alone = swav_loss(batch, prototypes, **options)["loss"]  # type: ignore[arg-type]
    skewed = {"view1": prototypes[:1].expand(20, 4)}
    assert abs(float(alone - swav_loss(batch, prototypes, queues=skewed, **options)["loss"])) > 1e-2  # type: ignore[arg-type]


def test_views_that_get_codes() -> None:
    SwAV().check_views(["image", "text"])
    SwAV(assigned=["image"]).check_views(["image", "text"])
    for assigned, names in ((None, ["view1"]), (None, ["crop1", "crop2"]), (["audio"], ["image", "text"])):
        with pytest.raises(RecipeError, match="SwAV needs 2 views or more, and codes for some"):
            SwAV(assigned=assigned).check_views(names)
    with pytest.raises(RecipeError, match="embeddings of one width, found image 4, text 5"):
        SwAV().attach({"image": ViewShape("a", 9, 4), "text": ViewShape("b", 9, 5)}, samples=20)


def test_views_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found a \(4, 3\) and b \(5, 3\)"):
        swav_loss({"a": rows(4, 3), "b": rows(5, 3)}, unit(2, 3), assigned=["a"])


@pytest.mark.parametrize("reach", [40.0, 59.0, 61.0, 200.0])  # exponentials up to 60 apart are scaled as they are
def test_both_ways_of_the_codes_agree_with_the_equation(reach: float) -> None:
    scores = rows(12, 4)
    scores = scores / (scores.max() - scores.min()) * (0.05 * reach)
    found = sinkhorn(scores, epsilon=0.05, iterations=3)
    torch.testing.assert_close(found, reference.sinkhorn(scores, 0.05, 3), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sinkhorn(scores.float()).double(), found, rtol=1e-4, atol=1e-7)
