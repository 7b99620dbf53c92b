import math

import pytest
import torch
from reference import cpc_reference as reference
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.context import Context
from jointembed.objectives.cpc import CPC, TURNS, cpc_loss
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import BatchError


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(width: int = 5, **arguments) -> CPC:
    torch.manual_seed(0)
    objective = CPC(**({"blocks": 2, "hidden": 4, "width": 3, "scale": 1.0} | arguments))
    objective.attach({"patches": ViewShape("net", width, width)}, samples=10)
    return objective.double()


def test_the_loss_equals_the_equation() -> None:
    target = rows(3, 4, 5).requires_grad_()
    tasks = [(rows(3, 2, 5, seed=1).requires_grad_(), torch.tensor([3, 1])), (rows(3, 1, 5, seed=2), torch.tensor([0]))]
    found = cpc_loss(tasks, target)
    expected = torch.zeros((), dtype=torch.float64)
    for prediction, patches in tasks:
        for picture in range(3):
            for m, patch in enumerate(patches.tolist()):
                error = reference.info_nce(prediction[picture, m], target, picture, patch)
                expected = expected + error / (3 * len(patches) * len(tasks))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(loss, (target, tasks[0][0])) for loss in (found, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_the_module_equals_the_equations_cell_by_cell() -> None:
    objective, h = make(steps=(1, 2)), rows(2, 9, 5).requires_grad_()
    found = objective({"patches": Embedding(h, h)})["loss"]
    parameters = dict(objective.named_parameters())
    expected = reference.cpc(h, parameters, TURNS, (1, 2), blocks=2, scale=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [h, *parameters.values()]
    for left, right in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    patch = torch.tensor([2, 0])
    inputs = rows(2, 2, 3).requires_grad_(), rows(2, 3, 3, seed=1).requires_grad_()
    assert gradcheck(lambda prediction, target: cpc_loss([(prediction, patch)], target), inputs)


@pytest.mark.parametrize("direction", TURNS)
def test_a_prediction_does_not_see_what_it_predicts(direction: str) -> None:
    """It sees its own row and the one above, and nothing from the next row on."""
    side, steps = 5, (2, 3)
    objective = make(steps=steps, directions=(direction,))
    h = rows(1, side**2, 5).requires_grad_()
    predictions = objective.predictions(h, direction)  # type: ignore[arg-type]
    line = {"down": lambda n: n // side, "up": lambda n: side - 1 - n // side}
    line |= {"right": lambda n: n % side, "left": lambda n: side - 1 - n % side}
    lines = torch.tensor([line[direction](number) for number in range(side**2)])
    for step, (prediction, patch) in zip(steps, predictions, strict=True):
        assert prediction.shape == (1, (side - step) * side, 3)
        assert sorted(patch.tolist()) == (lines >= step).nonzero().flatten().tolist()
        for number, target in enumerate(patch.tolist()):
            (gradient,) = torch.autograd.grad(prediction[0, number].sum(), h, retain_graph=True)
            seen = gradient[0].abs().sum(1) > 0
            ahead = lines[target] - step  # the line of the prediction
            assert seen[lines == ahead].any() and not seen[lines > ahead].any()
            assert ahead == 0 or seen[lines == ahead - 1].any()


def test_context_reaches_as_far_as_it_has_blocks() -> None:
    torch.manual_seed(0)
    x = rows(1, 6, 6, 4).requires_grad_()
    for blocks, rows_seen in ((1, 2), (3, 4)):
        context = Context(4, blocks=blocks, hidden=8).double()
        (gradient,) = torch.autograd.grad(context(x)[0, 4, 3].sum(), x)
        seen = (gradient[0].abs().sum(2) > 0).any(1)
        assert seen.nonzero().flatten().tolist() == list(range(5 - rows_seen, 5))


def test_nothing_known_is_a_blind_choice_among_all_patches() -> None:
    zero = torch.zeros(3, 2, 5)
    assert float(cpc_loss([(zero, torch.tensor([0, 3]))], rows(3, 4, 5).float())) == pytest.approx(math.log(12))


def test_a_sure_prediction_costs_nothing() -> None:
    target = torch.eye(8).view(2, 4, 8)
    patch = torch.tensor([1, 3])
    assert float(cpc_loss([(100 * target[:, patch], patch)], target)) == pytest.approx(0, abs=1e-6)


def test_defaults_fit_the_grid_of_the_view_row() -> None:
    objective = CPC()
    with torch.device("meta"):
        objective.attach({"patches": ViewShape("net", 2048, 2048)}, samples=10)
        h = torch.empty(2, 49, 2048)
        sizes = [
            prediction.shape[1]
            for direction in objective.directions
            for prediction, _ in objective.predictions(h, direction)
        ]
    assert sizes == [35, 28, 21, 14] * 4
    assert (objective.steps, objective.scale, objective.width) == ((2, 3, 4, 5), 0.1, 64)
    context = objective.contexts["down"]
    assert isinstance(context, Context) and len(context) == 6
    assert {tuple(one.shape) for one in context.parameters() if one.ndim == 4} == {(256, 256, 1, 3), (256, 256, 2, 1)}


@pytest.mark.parametrize("patches", [8, 9])
def test_grids_that_are_none_or_too_small_are_refused(patches: int) -> None:
    h = rows(2, patches, 5)
    with pytest.raises(BatchError, match=rf"CPC: 3 rows ahead need a square grid of more rows.*\(2, {patches}, 5\)"):
        make(steps=(3,))({"patches": Embedding(h, h)})


def test_recipes_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"CPC needs one view, a grid of patches, found 2 \(view1, view2\)"):
        CPC().check_views(["view1", "view2"])
    with pytest.raises(RecipeError, match=r"branches.net.expander: CPC has its own layers on h"):
        CPC().attach({"patches": ViewShape("net", 6, 4)}, samples=3)
    with pytest.raises(RecipeError, match=r"objective.steps: different numbers of at least 1 expected, found \[2, 2\]"):
        CPC(steps=(2, 2))
    with pytest.raises(RecipeError, match=r"objective.directions: .* found \['north'\]"):
        CPC(directions=("north",))  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="predictions .* expected"):
        cpc_loss([(rows(2, 3, 4), torch.tensor([0]))], rows(2, 5, 4))
