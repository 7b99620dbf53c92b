from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from ranks import views
from reference import vicreg_reference
from torch import Tensor
from torch.autograd import grad, gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.byol import BYOL
from jointembed.objectives.clip import CLIP, clip_loss
from jointembed.objectives.objective import Objective, ViewShape
from jointembed.objectives.regularized import Regularized, regularization
from jointembed.objectives.simsiam import SimSiam
from jointembed.objectives.vicreg import vicreg_loss
from jointembed.objectives.wrapped import Wrapped


def rows(*shape: int, seed: int = 0) -> Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * 0.8 + 1).requires_grad_()


def expected(every: list[Tensor], variance: float, covariance: float) -> Tensor:
    v = sum(vicreg_reference.variance(z) for z in every) / len(every)
    c = sum(vicreg_reference.covariance(z) for z in every) / len(every)
    return variance * v + 2 * covariance * c


def same_value_and_gradient(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grad(found, inputs), grad(wanted, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4)])
def test_equals_the_equations(n: int, d: int, count: int) -> None:
    every = [rows(n, d, seed=seed) for seed in range(count)]
    found = regularization({str(k): z for k, z in enumerate(every)}, variance=3, covariance=0.5)["loss"]
    same_value_and_gradient(found, expected(every, 3, 0.5), every)


def test_patches_are_rows() -> None:
    patches, plain = rows(3, 4, 5), rows(6, 7, seed=1)
    found = regularization({"patches": patches, "plain": plain}, variance=3, covariance=0.5)["loss"]
    same_value_and_gradient(found, expected([patches.reshape(12, 5), plain], 3, 0.5), [patches, plain])


def test_closed_forms() -> None:
    collapsed = torch.full((6, 4), 0.3)
    terms = regularization({"a": collapsed, "b": collapsed})
    assert float(terms["variance"]) == pytest.approx(1 - 1e-2) and float(terms["covariance"]) == pytest.approx(0)
    white = torch.randn(9, 4, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0))[0] * 4
    assert float(regularization({"a": white})["loss"]) == pytest.approx(0, abs=1e-12)


def test_it_is_what_vicreg_has_besides_invariance() -> None:
    a, b = rows(6, 5), rows(6, 5, seed=1)
    found = regularization({"a": a, "b": b}, variance=7, covariance=2, gamma=1.5, eps=1e-3)["loss"]
    terms = vicreg_loss(a, b, invariance=0, variance=7, covariance=2, gamma=1.5, eps=1e-3)
    torch.testing.assert_close(found, terms["loss"])


def test_gradcheck() -> None:
    assert gradcheck(lambda a, b: regularization({"a": a, "b": b}, gamma=2)["loss"], (rows(4, 6), rows(4, 6, seed=1)))


def test_module_adds_to_the_objectives_loss() -> None:
    a, b = rows(6, 5), rows(6, 5, seed=1)
    item = torch.tensor([0, 1, 1, 2, 3, 4])
    terms = Regularized(CLIP(), variance=2, covariance=3)(views(image=a, text=b), item=item)
    bare = clip_loss(a, b, item=item)
    same_value_and_gradient(terms["loss"], bare["loss"] + expected([a, b], 2, 3), [a, b])
    assert terms["unregularized"] == bare["loss"] and terms["image_to_text"] == bare["a_to_b"]
    assert not any(term.requires_grad for key, term in terms.items() if key != "loss")
    torch.testing.assert_close(
        terms["loss"].detach(),
        terms["unregularized"] + 2 * terms["regularize/variance"] + 3 * terms["regularize/covariance"],
    )


def test_bfloat16_under_autocast_gives_float32() -> None:
    a, b = rows(6, 5).detach().bfloat16(), rows(6, 5, seed=1).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = regularization({"a": a, "b": b})
    wide = regularization({"a": a.float(), "b": b.float()})
    assert all(term.dtype == torch.float32 and torch.equal(term, wide[key]) for key, term in found.items())


class Recorder(Objective):
    needs = frozenset({"target", "maps"})
    couples_samples = False
    constant_lr = ("predictor",)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def forward(self, online: Mapping[str, Embedding], *given: Any, **named: Any) -> dict[str, Tensor]:
        self.calls.append(("forward", given, named))
        return {"loss": online["a"].z.sum()}

    def check_views(self, views: Iterable[str]) -> None:
        self.calls.append(("check_views", views))

    def check_branches(self, views: Mapping[str, str]) -> None:
        self.calls.append(("check_branches", views))

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        self.calls.append(("attach", views, samples))

    def online_views(self, views: Iterable[str]) -> list[str]:
        return ["online"]

    def target_views(self, views: Iterable[str]) -> list[str]:
        return ["target"]

    def momentum(self, progress: float) -> float:
        return progress / 2

    def start_epoch(self, epoch: int, embed: Any) -> None:
        self.calls.append(("start_epoch", epoch, embed))

    def before_step(self, batch: Mapping[str, Any]) -> None:
        self.calls.append(("before_step", batch))

    def end_step(self, progress: float) -> None:
        self.calls.append(("end_step", progress))


def test_every_hook_reaches_the_objective() -> None:
    inner = Recorder()
    outer = Regularized(inner)
    own = {name for name in vars(Objective) if not name.startswith("_")}
    assert own <= set(vars(Wrapped)) | {"needs", "couples_samples", "constant_lr", "remedies"}
    assert outer.remedies == ("raise regularize.variance", "raise regularize.covariance")
    assert outer.needs == {"target", "maps"} and outer.couples_samples  # the added terms do couple
    assert outer.constant_lr == ("objective.predictor",)
    outer.check_views(["a"])
    outer.check_branches({"a": "net"})
    outer.attach({}, 7)
    outer.start_epoch(3, "embed")  # type: ignore[arg-type]
    outer.before_step({"x": 1})
    target = views(a=rows(3, 2))
    outer(views(a=rows(3, 2)), target, index="index", item="item", label="label")
    outer.end_step(0.25)
    assert inner.calls == [
        ("check_views", ["a"]),
        ("check_branches", {"a": "net"}),
        ("attach", {}, 7),
        ("start_epoch", 3, "embed"),
        ("before_step", {"x": 1}),
        ("forward", (target,), {"index": "index", "item": "item", "label": "label"}),
        ("end_step", 0.25),
    ]
    assert (outer.online_views([]), outer.target_views([]), outer.momentum(1.0)) == (["online"], ["target"], 0.5)


def test_the_objectives_refusals_stay() -> None:
    with pytest.raises(RecipeError, match="BYOL needs one branch"):
        Regularized(BYOL()).check_branches({"a": "left", "b": "right"})
    with pytest.raises(RecipeError, match="SimSiam compares exactly 2 views"):
        Regularized(SimSiam()).check_views(["a"])
