import pytest
import torch

from jointembed import build
from jointembed.branches.members import Members
from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.model import from_config
from jointembed.objectives.members import PerMember
from jointembed.objectives.moco import MoCo
from jointembed.objectives.objective import EpochEmbeddings, Objective, ViewShape
from jointembed.objectives.vicreg import VICReg, vicreg_loss
from jointembed.objectives.vicregl import VICRegL
from jointembed.recipe import load_recipe


def views(n: int, d: int, count: int) -> dict[str, Embedding]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, count * d, generator=generator, dtype=torch.float64) for _ in range(4)]
    return {"image": Embedding(rows[0], rows[1].requires_grad_()), "text": Embedding(rows[2], rows[3])}


def test_the_loss_is_the_mean_of_the_members_without_terms_between_them() -> None:
    given = views(12, 5, 3)
    terms = PerMember(VICReg, 3)(given)
    a, b = given["image"].z, given["text"].z
    single = [vicreg_loss(a[:, 5 * k : 5 * k + 5], b[:, 5 * k : 5 * k + 5])["loss"] for k in range(3)]
    torch.testing.assert_close(terms["loss"], torch.stack(single).mean(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(terms["loss"], a)
    (alone,) = torch.autograd.grad(single[1], a)
    torch.testing.assert_close(gradient[:, 5:10], alone[:, 5:10] / 3, rtol=1e-12, atol=1e-15)


def test_members_that_share_an_encoder_see_the_whole_representation() -> None:
    widths: list[dict[str, tuple[int, int]]] = []
    seen: list[dict[str, torch.Tensor]] = []

    class Heads(VICReg):
        def attach(self, views, samples) -> None:
            widths.append({view: (one.h, one.z) for view, one in views.items()})

        def forward(self, online, target=None, index=None, item=None, label=None):
            seen.append({view: one.h for view, one in online.items()})
            return super().forward(online)

    objective, given = PerMember(Heads, 3, shared=["image"]), views(12, 5, 3)
    objective.attach({"image": ViewShape("a", 15, 15), "text": ViewShape("b", 15, 15)}, 12)
    objective(given)
    assert widths == [{"image": (15, 5), "text": (5, 5)}] * 3 and len(seen) == 3
    for number, h in enumerate(seen):
        assert torch.equal(h["image"], given["image"].h)
        assert torch.equal(h["text"], given["text"].h[:, 5 * number : 5 * number + 5])


def test_every_member_has_its_own_queue() -> None:
    objective = PerMember(lambda: MoCo(queue=16), 2)
    objective.attach({name: ViewShape("net", 8, 8) for name in ("view1", "view2")}, 64)
    queues = {name: rows for name, rows in objective.named_buffers() if name.endswith("rows")}
    assert {rows.shape for rows in queues.values()} == {(16, 4)} and len(queues) == 2
    assert objective.needs == MoCo(queue=16).needs and objective.momentum(0.5) == MoCo(queue=16).momentum(0.5)


def test_hooks_reach_every_member_with_its_part() -> None:
    seen: list[tuple[str, object]] = []

    class Noting(VICReg):
        def start_epoch(self, epoch: int, embed) -> None:
            seen.append(("epoch", embed().z.tolist()))

        def before_step(self, batch) -> None:
            seen.append(("step", batch))

        def end_step(self, progress: float) -> None:
            seen.append(("end", progress))

    objective: Objective = PerMember(Noting, 2)
    rows = torch.arange(8.0).view(2, 4)
    objective.start_epoch(0, lambda: EpochEmbeddings(torch.arange(2), rows, rows))
    objective.before_step({"x": 1})
    objective.end_step(0.5)
    assert seen == [
        ("epoch", [[0.0, 1.0], [4.0, 5.0]]), ("epoch", [[2.0, 3.0], [6.0, 7.0]]),
        ("step", {"x": 1}), ("step", {"x": 1}), ("end", 0.5), ("end", 0.5),
    ]  # fmt: skip


def test_objectives_of_maps_are_refused() -> None:
    with pytest.raises(RecipeError, match="feature maps"):
        PerMember(VICRegL, 2)


def test_members_of_a_supervised_objective_are_refused() -> None:
    overrides = ["branches.net.members=2", "data.train.path=x", "data.validation.path=x"]
    with pytest.raises(RecipeError, match="branches.members: a supervised objective has one classifier"):
        build.check(load_recipe("recipes/imagenet/supervised.yaml", overrides))


def test_members_must_be_equally_many() -> None:
    with pytest.raises(RecipeError, match="equally many members.*image 3, text 2"):
        build.check(load_recipe("recipes/quickstart.yaml", ["branches.image.members=3", "branches.text.members=2"]))


def test_members_of_a_frozen_encoder_share_it() -> None:
    expander = {"name": "mlp", "widths": [6]}
    encoder = {"name": "torchvision", "model": "resnet18", "widen": 0.125, "small_input": True}
    block = {"encoder": encoder, "expander": expander, "members": 3}
    model = from_config({"branches": {"net": block | {"train": "none"}}, "views": {"view1": "net"}}, None)
    branch = model.branch("view1")
    assert branch.width == 64 and model.width("view1") == 18 and not isinstance(branch.encoder, Members)
    h = torch.randn(4, 64)
    assert isinstance(branch.expander, Members)
    parts = [copy(h) for copy in branch.expander.copies]
    assert torch.equal(branch.expander(h), torch.cat(parts, dim=1)) and not torch.equal(parts[0], parts[1])
    trained = from_config({"branches": {"net": block}, "views": {"view1": "net"}}, None).branch("view1")
    assert trained.width == 3 * 64 and isinstance(trained.encoder, Members)
