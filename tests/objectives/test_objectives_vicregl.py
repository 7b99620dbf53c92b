import pytest
import torch
from reference import vicregl_reference as reference
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import BatchError
from jointembed.objectives.vicregl import VICRegL, local_loss

VIEWS = {"view1": ViewShape("net", 6, 5), "view2": ViewShape("net", 6, 5)}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(n: int = 4, p: int = 6, q: int = 4, d: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Local embeddings of two views, and where they lie."""
    a, b = rows(n, p, d).requires_grad_(), rows(n, q, d, seed=1).requires_grad_()
    return a, b, 9 * rows(n, p, 2, seed=2), 9 * rows(n, q, 2, seed=3)


@pytest.mark.parametrize(("most", "feature_most"), [(20, None), (3, None), (3, 2), (1, 1)])
def test_equals_the_equations(most: int, feature_most: int | None) -> None:
    a, b, at_a, at_b = places()
    coefficients = (20.0, 15.0, 2.0)
    found = local_loss(a, b, at_a, at_b, matches=most, feature_matches=feature_most, coefficients=coefficients)["loss"]
    expected = reference.local(a, b, at_a, at_b, most, feature_most, coefficients)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for left, right in zip(*(torch.autograd.grad(loss, (a, b)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    a, b, at_a, at_b = places(3, 3, 2, 2)
    assert gradcheck(lambda a, b: local_loss(a, b, at_a, at_b, matches=2)["loss"], (a, b))


def test_full_collapse_costs_the_whole_variance_term_twice() -> None:
    _, _, at_a, at_b = places()
    terms = local_loss(torch.ones(4, 6, 3), torch.ones(4, 4, 3), at_a, at_b)
    assert float(terms["location"]) == float(terms["feature"]) == pytest.approx(25 * (1 - 1e-2))
    assert float(terms["loss"]) == pytest.approx(50 * (1 - 1e-2))


def test_the_same_places_of_white_embeddings_have_no_loss() -> None:
    """Centred, orthogonal dimensions of variance 2 at every place, and both views alike."""
    white = torch.stack([torch.linalg.qr(x - x.mean(0))[0] * 4 for x in rows(3, 9, 4)], dim=1)  # variance 16 / 8
    at = 9 * rows(9, 3, 2)
    assert float(local_loss(white, white, at, at)["loss"]) == pytest.approx(0, abs=1e-10)


def test_places_are_matched_by_location_whatever_they_look_like() -> None:
    """A crop and its mirror image hold the same places in another order: only the flip tells."""
    objective = VICRegL(alpha=0.0, projector=(6,), matches=9, feature_matches=1, variance=0.0, covariance=0.0)
    objective.attach(VIEWS, samples=10)
    objective.double()
    maps, z = rows(4, 6, 3, 3), rows(4, 5)
    h = maps.mean((2, 3))
    online = {"view1": Embedding(h, z, maps), "view2": Embedding(h, z, maps.flip(3))}
    box = torch.tensor([[5.0, 3.0, 60.0, 50.0]]).expand(4, -1)
    straight, flipped = (torch.cat([box, torch.full((4, 1), one)], dim=1) for one in (0.0, 1.0))
    objective.before_step({"view1_box": straight, "view2_box": flipped})
    assert float(objective(online)["location"]) == pytest.approx(0, abs=1e-12)
    objective.before_step({"view1_box": straight, "view2_box": straight})
    assert float(objective(online)["location"].detach()) > 0.1


def test_the_module_equals_the_equations() -> None:
    torch.manual_seed(0)
    objective = VICRegL(alpha=0.7, matches=3, feature_matches=4, projector=(7, 4), norm="none")
    objective.attach(VIEWS, samples=10)
    objective.double()
    sizes, online, expected_places = {"view1": (3, 2), "view2": (2, 2)}, {}, []
    boxes = {f"{view}_box": 50 * rows(4, 5, seed=9 + k).abs() for k, view in enumerate(sizes)}
    for k, (view, size) in enumerate(sizes.items()):
        boxes[f"{view}_box"][:, 4] = torch.tensor([0.0, 1.0, 0.0, 1.0])
        maps = rows(4, 6, *size, seed=k)
        online[view] = Embedding(maps.mean((2, 3)), rows(4, 5, seed=k + 5), maps)
        projected = objective.projectors["net"](maps.flatten(2).mT.flatten(0, 1)).unflatten(0, (4, -1))
        at = torch.tensor([reference.positions(one.tolist(), *size) for one in boxes[f"{view}_box"]])
        expected_places.append((projected, at))
    objective.before_step(boxes)
    terms = objective(online)
    (a, at_a), (b, at_b) = expected_places
    whole = reference.criterion(online["view1"].z, online["view2"].z)
    local = reference.local(a, b, at_a, at_b, 3, 4)
    assert terms.keys() == {"loss", "global", "location", "feature"}
    torch.testing.assert_close(terms["loss"], 0.7 * whole + 0.3 * local, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms["global"] * 0.7 + 0.3 * (terms["location"] + terms["feature"]), terms["loss"])


def test_lightly_agrees_on_the_invariance_and_on_maps_of_one_place() -> None:
    """It takes matches in order of their distance, so that other places make up a batch of its variance term."""
    loss = pytest.importorskip("lightly.loss").VICRegLLoss
    z = [rows(5, 4, seed=k).float() for k in (7, 8)]
    for size, mu, nu in ((3, 0.0, 0.0), (1, 25.0, 1.0)):
        maps = [rows(5, size, size, 4, seed=k).float() for k in range(2)]
        grids = [9 * rows(5, size, size, 2, seed=k).float() for k in (2, 3)]
        theirs = loss(mu_param=mu, nu_param=nu, num_matches=(size, size))(list(zip(z, maps, strict=True)), grids)
        flat, at = ([one.flatten(1, 2) for one in group] for group in (maps, grids))
        coefficients = (25.0, mu, nu)
        ours = local_loss(*flat, *at, matches=size, feature_matches=size, coefficients=coefficients)["loss"]
        whole = reference.criterion(z[0], z[1], coefficients)
        torch.testing.assert_close(0.75 * whole + 0.25 * ours, theirs[0], rtol=1e-5, atol=1e-5)


def test_defaults_are_the_authors() -> None:
    objective = VICRegL()
    objective.attach({view: ViewShape("net", 2048, 8192) for view in VIEWS}, samples=10)
    assert (objective.alpha, objective.coefficients) == (0.75, (25.0, 25.0, 1.0))
    assert objective.options == {"matches": 20, "feature_matches": None}
    widths = [tuple(one.shape) for one in objective.parameters() if one.ndim == 2]
    assert widths == [(512, 2048), (512, 512), (512, 512)]


def test_each_branch_has_its_own_projector() -> None:
    objective = VICRegL()
    objective.attach({"view1": ViewShape("a", 6, 5), "view2": ViewShape("b", 8, 5)}, samples=10)
    assert {name: one.width for name, one in objective.projectors.items()} == {"a": 512, "b": 512}
    assert [one.shape[1] for one in objective.projectors["b"].parameters() if one.ndim == 2] == [8, 512, 512]


def test_what_cannot_be_is_refused() -> None:
    objective = VICRegL(projector=(4,))
    objective.attach(VIEWS, samples=10)
    with pytest.raises(RecipeError, match="VICRegL needs 'view2_box' of every picture; set boxes: true"):
        objective.before_step({"view1_box": torch.zeros(2, 5)})
    objective.before_step({"view1_box": torch.zeros(2, 5), "view2_box": torch.zeros(2, 5)})
    z, h = torch.zeros(2, 5), torch.zeros(2, 6)
    for maps, found in ((None, "none"), (torch.zeros(2, 7, 2, 2), r"\(2, 7, 2, 2\)")):
        with pytest.raises(BatchError, match=rf"maps \(N, 6, H, W\) of view 'view1', found {found}"):
            objective({view: Embedding(h, z, maps) for view in VIEWS})
    for arguments in ({"alpha": 1.0}, {"matches": 0}, {"feature_matches": 0}, {"projector": ()}):
        with pytest.raises(RecipeError, match="alpha must be at least 0 and below 1"):
            VICRegL(**arguments)
