import math

import pytest
import torch
from ranks import views
from reference.supervised_reference import cross_entropy
from torch import Tensor
from torch.autograd import gradcheck

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.objective import ViewShape
from jointembed.objectives.statistics import BatchError
from jointembed.objectives.supervised import Supervised, supervised_loss

LABEL = [2, 0, 1, 2, 2]


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_equations() -> None:
    logits = rows(5, 3).requires_grad_()
    found = supervised_loss(logits, torch.tensor(LABEL))["loss"]
    expected = cross_entropy(logits, LABEL)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert gradcheck(lambda x: supervised_loss(x, torch.tensor(LABEL))["loss"], logits)


def test_equal_logits_and_sure_ones() -> None:
    label = torch.tensor(LABEL)
    assert float(supervised_loss(torch.zeros(5, 3), label)["loss"]) == pytest.approx(math.log(3))
    sure = supervised_loss(50 * torch.eye(3)[label], label)
    assert float(sure["loss"]) == pytest.approx(0, abs=1e-6) and float(sure["top1"]) == 100
    assert float(supervised_loss(torch.eye(3)[label.roll(1)], label)["top1"]) == 40


def test_bfloat16_under_autocast_gives_float32() -> None:
    logits = rows(5, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = supervised_loss(logits, torch.tensor(LABEL))["loss"]
    assert found.dtype == torch.float32 and torch.equal(
        found, supervised_loss(logits.float(), torch.tensor(LABEL))["loss"]
    )


def test_module_reads_representations_of_every_view() -> None:
    module = Supervised(classes=3)
    module.attach(dict.fromkeys(["a", "b"], ViewShape("net", 4, 9)), samples=5)
    module.double()
    batch = {view: Embedding(rows(5, 4, seed), rows(5, 9)) for seed, view in enumerate("ab")}
    found, label = module(batch, label=torch.tensor(LABEL)), torch.tensor(LABEL)
    parts = [supervised_loss(module.classifier(batch[view].h), label) for view in "ab"]
    torch.testing.assert_close(found["loss"], (parts[0]["loss"] + parts[1]["loss"]) / 2)
    torch.testing.assert_close(found["top1"], (parts[0]["top1"] + parts[1]["top1"]) / 2)
    assert module.needs == {"label"} and not module.couples_samples


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_named(label: int) -> None:
    with pytest.raises(BatchError, match=f"label {label} is not one of 3 classes"):
        supervised_loss(rows(2, 3), torch.tensor([0, label]))


def test_what_it_cannot_work_with_is_refused() -> None:
    module = Supervised(classes=3)
    with pytest.raises(BatchError, match="needs labels"):
        module(views(image=rows(2, 4)))
    with pytest.raises(RecipeError, match=r"representations of widths \[4, 5\]"):
        module.attach({"a": ViewShape("x", 4, 9), "b": ViewShape("y", 5, 9)}, samples=5)
