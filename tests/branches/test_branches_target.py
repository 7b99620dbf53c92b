"""The EMA target."""

import pytest
import torch
from torch import nn

from jointembed.branches.branch import Branch
from jointembed.branches.target import make_target, update_target
from jointembed.layers import MLP


class Encoder(nn.Sequential):
    width = 6

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.BatchNorm1d(6))


def test_follows_the_online_branch() -> None:
    online = Branch(Encoder(), MLP(6, widths=[4]))
    target = make_target(online)
    assert isinstance(target, Branch) and not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    start = {name: p.clone() for name, p in target.named_parameters()}
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    online(torch.randn(8, 5))  # moves the running statistics
    update_target(target, online, 0.9)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.1)
    for ours, theirs in zip(target.buffers(), online.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert target(torch.randn(8, 5)).z.grad_fn is None


def test_the_ends_of_the_momentum() -> None:
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    before = target.weight.clone()
    update_target(target, online, 1)
    assert torch.equal(target.weight, before)
    update_target(target, online, 0)
    torch.testing.assert_close(target.weight, online.weight)
    for momentum in (-0.1, 1.5):
        with pytest.raises(ValueError, match="momentum"):
            update_target(target, online, momentum)


def test_other_structures_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        update_target(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)), 0.5)
