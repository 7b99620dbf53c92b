"""The EMA target."""

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn

from jointembed import distributed
from jointembed.branches.branch import Branch
from jointembed.branches.target import forward_shuffled, make_target, update_target
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


def _rows(rank: int) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(rank))


def _lent() -> dict[str, Any]:
    """On one of two ranks: its rows through batch norm shuffled, and what every batch norm has seen."""
    torch.manual_seed(7)
    branch, own = Branch(Encoder(), MLP(6, widths=[4])), _rows(distributed.rank())
    seen: list[torch.Tensor] = []
    branch.get_submodule("encoder.0").register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    torch.manual_seed(distributed.rank())  # ranks must agree on the order all the same
    found = forward_shuffled(branch, own)
    return {"found": found.z, "own": own, "seen": seen[0], "z": branch(seen[0]).z.detach()}


def test_keys_are_embedded_beside_rows_of_other_ranks_and_come_back_in_order() -> None:
    """MoCo's shuffled batch norm: the batch of each rank is a part of a permutation of the global one."""
    ranks = run_ranks(2, _lent)
    every = torch.cat([one["own"] for one in ranks])
    seen = torch.cat([one["seen"] for one in ranks])
    places = (seen[:, None] == every[None]).all(2).int().argmax(1)  # of every row seen, in the global batch
    assert sorted(places.tolist()) == list(range(6))
    assert any(set(places[start : start + 3].tolist()) not in ({0, 1, 2}, {3, 4, 5}) for start in (0, 3))
    embedded = torch.cat([one["z"] for one in ranks])[places.argsort()]
    torch.testing.assert_close(torch.cat([one["found"] for one in ranks]), embedded)
