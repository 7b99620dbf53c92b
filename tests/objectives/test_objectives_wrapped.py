"""Objectives around objectives: ramps of coefficients, and a contrastive term on top."""

import pytest
import torch
from ranks import views
from torch import Tensor
from torch.autograd import grad

from jointembed.errors import RecipeError
from jointembed.objectives import infomin
from jointembed.objectives.barlow_twins import BarlowTwins
from jointembed.objectives.byol import BYOL
from jointembed.objectives.clip import CLIP, clip_loss
from jointembed.objectives.contrasted import Contrasted
from jointembed.objectives.infomin import InfoMin
from jointembed.objectives.moco import MoCo
from jointembed.objectives.objective import Objective
from jointembed.objectives.obow import OBoW
from jointembed.objectives.ramped import Ramp, Ramped
from jointembed.objectives.regularized import Regularized
from jointembed.objectives.supervised import Supervised
from jointembed.objectives.vicreg import VICReg, vicreg_loss
from jointembed.objectives.wmse import WMSE
from jointembed.objectives.wrapped import innermost


def rows(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * 0.8 + 1).requires_grad_()


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.2), (0.1, 0.2), (0.2, 0.4), (0.3, 0.6), (0.5, 1.0), (0.7, 1.0), (1.0, 1.0)]
)
def test_a_ramp_is_flat_then_linear_then_one(progress: float, factor: float) -> None:
    assert Ramp(0.2, 0.1, 0.5).at(progress) == pytest.approx(factor)


def test_ramped_coefficients_are_those_of_the_share_of_the_run() -> None:
    a, b = rows(), rows(seed=1)
    objective = Ramped(VICReg(covariance={"image": 4.0, "text": 2.0}), {"covariance": Ramp(0.0, 0.0, 0.5)})
    for done, factor in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        objective.end_step(done)
        objective.before_step({})
        found = objective(views(image=a, text=b))
        assert torch.equal(found["loss"], vicreg_loss(a, b, covariance=(4.0 * factor, 2.0 * factor))["loss"])


def test_a_ramp_starts_before_the_first_step_and_goes_on_after_a_resume() -> None:
    def make() -> Ramped:
        return Ramped(BarlowTwins(off_diagonal=0.01), {"off_diagonal": Ramp(0.5, 0.0, 1.0)})

    first = make()
    inner = first.objective
    assert isinstance(inner, BarlowTwins) and inner.off_diagonal == pytest.approx(0.005)
    first.end_step(0.5)
    resumed = make()
    resumed.load_state_dict(first.state_dict())
    resumed.before_step({})
    assert isinstance(resumed.objective, BarlowTwins) and resumed.objective.off_diagonal == pytest.approx(0.0075)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (WMSE(), "size"),  # a number of rows
        (MoCo(), "temperatur"),
        (BYOL(), "momentum"),  # a method
        (CLIP(learn_temperature=True), "temperature"),  # a parameter
        (CLIP(), "max_scale"),
        (OBoW(), "inverse_delta"),  # what is made of it at the start does not move
    ],
)
def test_what_no_ramp_could_move_is_refused(objective: Objective, name: str) -> None:
    with pytest.raises(RecipeError, match=f"ramp.{name}: {type(objective).__name__} has no coefficient"):
        Ramped(objective, {name: Ramp(0.5)})


def test_a_ramp_of_the_temperature_moves_it() -> None:
    a, b = rows(), rows(seed=1)
    ramped = Ramped(CLIP(temperature=0.2), {"temperature": Ramp(0.5, 0.0, 1.0)})
    ramped.before_step({})
    assert torch.equal(ramped(views(image=a, text=b))["loss"], clip_loss(a, b, temperature=0.1)["loss"])


def test_the_innermost_objective_is_that_of_the_recipe() -> None:
    bare = Supervised(classes=2)
    assert innermost(Regularized(Contrasted(bare))) is bare and innermost(bare) is bare and innermost(None) is None


@pytest.mark.parametrize(
    ("name", "ramp", "message"),
    [
        ("covarance", Ramp(), "ramp.covarance: VICReg has no coefficient"),
        ("convention", Ramp(), "ramp.convention: VICReg has no coefficient"),
        ("covariance", Ramp(0, 0.5, 0.5), "begin < end"),
        ("covariance", Ramp(-1), "start >= 0"),
    ],
)
def test_ramps_that_cannot_be(name: str, ramp: Ramp, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Ramped(VICReg(), {name: ramp})


def test_contrast_is_added_with_its_weight() -> None:
    a, b = rows(), rows(seed=1)
    item = torch.tensor([0, 1, 1, 2, 3, 4])
    terms = Contrasted(VICReg(), weight=0.3, temperature=0.2)(views(image=a, text=b), item=item)
    bare, contrast = vicreg_loss(a, b)["loss"], clip_loss(a, b, temperature=0.2, item=item)["loss"]
    torch.testing.assert_close(terms["loss"], bare + 0.3 * contrast)
    for found, wanted in zip(grad(terms["loss"], (a, b)), grad(bare + 0.3 * contrast, (a, b)), strict=True):
        torch.testing.assert_close(found, wanted)
    assert terms["uncontrasted"] == bare and terms["contrast"] == contrast
    assert not any(term.requires_grad for name, term in terms.items() if name != "loss")


def test_contrast_of_chosen_pairs_and_means() -> None:
    a, b, c = rows(), rows(seed=1), rows(seed=2)
    every = views(image=a, text=b, text2=c)
    found = Contrasted(VICReg(), weight=1.0, pairs=[["image", "text"], ["image", "text2"]])(every)
    wanted = (clip_loss(a, b)["loss"] + clip_loss(a, c)["loss"]) / 2
    torch.testing.assert_close(found["contrast"], wanted.detach())
    mean = Contrasted(VICReg(), weight=1.0, pairs=[["image", "text+text2"]])(every)
    torch.testing.assert_close(mean["contrast"], clip_loss(a, (b + c) / 2)["loss"].detach())


@pytest.mark.parametrize("pairs", [[], [["image"]], [["image", "image"]], [["image", "words"]]])
def test_pairs_that_cannot_be_contrasted(pairs: list[list[str]]) -> None:
    with pytest.raises(RecipeError, match="contrast.pairs"):
        Contrasted(VICReg(), pairs=pairs).check_views(["image", "text"])


def test_a_temperature_does_not_begin_at_0() -> None:
    with pytest.raises(RecipeError, match="ramp.temperature.start: .* above 0"):
        Ramped(CLIP(temperature=0.2), {"temperature": Ramp()})


def test_views_that_are_not_embedded_whole_are_not_contrasted() -> None:
    with pytest.raises(RecipeError, match=r"contrast: it compares 2 views .* found view1 \(MoCo\)"):
        Contrasted(MoCo(queue=16)).check_views(["view1", "view2"])
    with pytest.raises(RecipeError, match=r"contrast: .* patches"):
        Contrasted(InfoMin(queue=16)).check_views(infomin.VIEWS)


def test_one_view_cannot_be_contrasted() -> None:
    with pytest.raises(RecipeError, match="contrast: it compares 2 views or more"):
        Contrasted(Supervised(classes=2)).check_views(["image"])


def test_needs_and_constant_rates_go_through_every_layer() -> None:
    whole = Regularized(Contrasted(Ramped(BYOL(), {})))
    assert whole.needs == BYOL().needs
    assert whole.target_views(["a", "b"]) == BYOL().target_views(["a", "b"])
    assert whole.momentum(0.5) == BYOL().momentum(0.5)


def test_invariance_to_every_caption_is_that_to_their_mean_and_their_spread() -> None:
    a, texts = rows(), [rows(seed=seed) for seed in (1, 2, 3)]
    every = views(image=a, text=texts[0], text2=texts[1], text3=texts[2])
    each = VICReg(pairs=[["image", "text"], ["image", "text2"], ["image", "text3"]])(every)["invariance"]
    mean = VICReg(pairs=[["image", "text+text2+text3"]])(every)["invariance"]
    spread = torch.stack(texts).var(0, unbiased=False).mean()
    torch.testing.assert_close(each, mean + spread.detach())


def test_clip_with_variance_and_covariance_is_regularized_clip() -> None:
    a, b = rows(), rows(seed=1)
    found = Regularized(CLIP(), variance=25, covariance=1)(views(image=a, text=b))["loss"]
    torch.testing.assert_close(found, clip_loss(a, b)["loss"] + vicreg_loss(a, b, invariance=0)["loss"])
