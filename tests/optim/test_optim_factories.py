import inspect

import pytest
import torch
from torch import nn

from jointembed.errors import RecipeError
from jointembed.optim import OPTIMIZERS, parameter_groups
from jointembed.recipe import check_block


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_recipe_block_builds_each_with_its_defaults(name: str) -> None:
    block = check_block({"name": name, "lr": 1, "weight_decay": 0.5}, OPTIMIZERS, "optimizer")
    assert block["lr"] == 1.0
    arguments = {key: value for key, value in block.items() if key != "name"}
    model = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](parameter_groups(model, weight_decay=0.5), **arguments)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    keyword_only = {
        key for key, p in inspect.signature(OPTIMIZERS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    assert keyword_only == set(arguments)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01, fused=False, foreach=False)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01, fused=False, foreach=False)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01, momentum=0.9, fused=False, foreach=False)),
    ],
)
def test_the_fused_form_takes_torchs_plain_steps(name: str, reference) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (OPTIMIZERS[name](ours, lr=0.1, weight_decay=0.01), reference(theirs))
    assert optimizers[0].defaults["fused"] is True
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_model_on_the_meta_device_gets_an_optimizer(name: str) -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    assert OPTIMIZERS[name](list(model.parameters())).param_groups


def test_wrong_arguments_are_refused_by_name() -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    with pytest.raises(RecipeError, match="betas"):
        OPTIMIZERS["adam"](parameters, betas=[0.9])
    with pytest.raises(RecipeError, match="nesterov"):
        OPTIMIZERS["sgd"](parameters, nesterov=True, momentum=0.0)
    with pytest.raises(RecipeError, match="optimizer.momentun"):
        check_block({"name": "sgd", "momentun": 0.9}, OPTIMIZERS, "optimizer")
