import math

import pytest
import torch
from reference import obow_reference as reference
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.obow import OBoW, bag_prediction_loss

NAMES = ["image", "view1", "view2", "crop1", "crop2", "crop3"]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attached(**options: object) -> OBoW:
    torch.manual_seed(1)
    module = OBoW(n_words=7, **options)  # type: ignore[arg-type]
    module.attach(dict.fromkeys(NAMES, ViewShape("net", 6, 6)), samples=20)
    return module.double()


def student(n: int = 4) -> dict[str, Embedding]:
    found = {}
    for seed, name in enumerate(NAMES[1:]):
        z = rows(n, 6, seed=seed).requires_grad_()
        found[name] = Embedding(z, z)
    return found


def teacher(n: int = 4) -> dict[str, Embedding]:
    levels = (rows(n, 3, 6, 6).relu(), rows(n, 6, 5, 5, seed=1).relu())
    return {"image": Embedding(rows(n, 6), rows(n, 6), levels[-1], levels)}


def test_prediction_equals_the_equations() -> None:
    z, weight = rows(4, 5).requires_grad_(), functional.normalize(rows(7, 5, seed=1), dim=1).requires_grad_()
    bag = functional.normalize(rows(4, 7, seed=2).relu(), p=1, dim=1)  # with zeros
    found, expected = bag_prediction_loss(z, weight, bag, kappa=3), reference.divergence(z, weight, bag, 3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = torch.autograd.grad(found, (z, weight)), torch.autograd.grad(expected, (z, weight))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    assert gradcheck(lambda z, weight: bag_prediction_loss(z, weight, bag), (z, weight))


def test_a_student_that_says_nothing_and_one_that_knows() -> None:
    bag = torch.full((3, 8), 1 / 8, dtype=torch.float64)
    weight = functional.normalize(rows(8, 5), dim=1)
    assert float(bag_prediction_loss(torch.zeros(3, 5, dtype=torch.float64), weight, bag)) == pytest.approx(
        0, abs=1e-12
    )
    one = torch.eye(8, dtype=torch.float64)[:3]
    assert float(bag_prediction_loss(torch.zeros(3, 5, dtype=torch.float64), weight, one)) == pytest.approx(math.log(8))
    logits = 8 * rows(3, 5) @ weight.T
    assert float(bag_prediction_loss(rows(3, 5), weight, logits.softmax(1))) == pytest.approx(0, abs=1e-9)


def test_module_equals_the_equations() -> None:
    module, online, target = attached(kappa=2.0, inverse_delta=4.0), student(), teacher()
    found = module(online, target)
    assert target["image"].levels is not None
    parts: dict[str, list[Tensor]] = {"view": [], "crop": []}
    for maps, words, generate in zip(target["image"].levels, module.vocabularies, module.generators, strict=True):
        words_now: Tensor = words.words  # type: ignore[assignment]
        delta = (0.99 * 0.5 + 0.01 * float(reference.nearest_distance(maps, words_now))) / 4.0
        bags = torch.stack([reference.bag(picture, words_now, delta) for picture in maps])
        first, scale, shift, last, bias = generate.parameters()
        hidden = functional.normalize(words_now, dim=1) @ first.T
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt() * scale + shift
        weight = functional.normalize(hidden.relu() @ last.T + bias, dim=1)
        for view, embedding in online.items():
            parts[view[:4]].append(reference.divergence(embedding.z, weight, bags, 2.0))
    expected = sum(torch.stack(part).mean() for part in parts.values())
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found["loss"].detach(), found["view"] + found["crop"])
    leaves = [embedding.z for embedding in online.values()] + list(module.parameters())
    ours, theirs = torch.autograd.grad(found["loss"], leaves), torch.autograd.grad(expected, leaves)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_steps_renew_the_words() -> None:
    module, target = attached(), teacher()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module(student(), target)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    module.end_step(0.1)
    assert all(not torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    again = attached()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(student(), target)["loss"], module(student(), target)["loss"])


def test_views_of_student_and_teacher() -> None:
    module = attached()
    module.check_views(NAMES)
    assert module.online_views(NAMES) == NAMES[1:] and module.target_views(NAMES) == ["image"]
    assert module.needs == {"target", "target_maps"}
    for names in (["image"], ["view1", "view2"]):
        with pytest.raises(RecipeError, match="OBoW needs the view 'image' and others"):
            module.check_views(names)
    with pytest.raises(RecipeError, match="OBoW needs one branch for all views .*image: a, view1: b"):
        module.check_branches({"image": "a", "view1": "b"})


def test_momentum_rises_to_one_on_a_half_cosine() -> None:
    module = OBoW()
    assert [module.momentum(progress) for progress in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])


def test_maps_of_other_channels_are_refused() -> None:
    module = attached(channels=[5, 6])
    with pytest.raises(
        RecipeError, match=r"objective.channels: maps of \[5, 6\] channels expected, the encoder gives \[3, 6\]"
    ):
        module(student(), teacher())
    image = teacher()["image"]
    assert image.levels is not None
    one = {"image": image._replace(levels=image.levels[1:])}
    with pytest.raises(RecipeError, match=r"maps of \[3, 6\] channels expected, the encoder gives \[6\]"):
        attached()(student(), one)
    assert torch.isfinite(attached(channels=[6])(student(), one)["loss"])


def test_bfloat16_under_autocast_gives_float32() -> None:
    module = attached().float()
    online = {view: Embedding(one.h.detach().bfloat16(), one.z.detach().bfloat16()) for view, one in student().items()}
    image = teacher()["image"]
    assert image.levels is not None
    target = {"image": image._replace(levels=tuple(maps.bfloat16() for maps in image.levels))}
    with torch.autocast("cpu", torch.bfloat16):
        found = module(online, target)["loss"]
    wide = {view: Embedding(one.h.float(), one.z.float()) for view, one in online.items()}
    expected = module(wide, {"image": image._replace(levels=tuple(maps.bfloat16().float() for maps in image.levels))})
    assert found.dtype == torch.float32 and torch.equal(found, expected["loss"])
