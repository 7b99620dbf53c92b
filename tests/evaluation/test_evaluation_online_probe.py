import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from jointembed import distributed
from jointembed.evaluation.online_probe import OnlineProbe

COUNTS = [5, 0, 9, 2]


def clusters(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(4, 16, generator=torch.Generator().manual_seed(99))
    label = torch.randint(4, (rows,), generator=generator)
    return centre[label] + torch.randn(rows, 16, generator=generator), label


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (100.0, 500.0), (1e-2, 0.1)])
def test_it_learns_at_any_scale_and_starts_at_chance(scale: float, shift: float) -> None:
    probe = OnlineProbe(16, 4)
    found = []
    for step in range(200):
        h, label = clusters(64, step)
        found.append(probe.step(h * scale + shift, label))
    assert found[0]["online/loss"] == pytest.approx(torch.log(torch.tensor(4.0)).item())
    assert found[0]["online/top5"] == 100 and set(found[0]) == {"online/top1", "online/top5", "online/loss"}
    last = sum(one["online/top1"] for one in found[-20:]) / 20
    assert last > 90 and all(one["online/loss"] < 10 for one in found)
    h, label = clusters(500, 1000)
    assert float((probe(h * scale + shift).argmax(1) == label).float().mean()) > 0.9


def test_nothing_flows_back_and_no_optimizer_sees_it() -> None:
    encoder, probe = nn.Linear(8, 16), OnlineProbe(16, 4)
    h = encoder(torch.randn(32, 8))
    before = h.detach().clone()
    probe.step(h, torch.randint(4, (32,)))
    assert torch.equal(h, before) and h.grad_fn is not None
    h.sum().backward()
    assert encoder.weight.grad is not None
    assert not list(probe.parameters()) and not probe(h).requires_grad


def test_its_state_is_all_in_the_checkpoint() -> None:
    one, other = OnlineProbe(16, 4), OnlineProbe(16, 4)
    for step in range(5):
        one.step(*clusters(32, step))
    other.load_state_dict(one.state_dict())
    assert one.step(*clusters(32, 7)) == other.step(*clusters(32, 7))
    assert all(torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in one.state_dict())


def test_the_gradient_is_that_of_the_mean_cross_entropy() -> None:
    probe = OnlineProbe(16, 4, lr=1.0, momentum=0.0)
    h, label = clusters(40, 0)
    probe.step(h, label)
    layer = nn.Linear(16, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    nn.functional.cross_entropy(layer(h), label).backward()
    rate = 1 / float(h.square().sum(1).mean())
    assert layer.weight.grad is not None and layer.bias.grad is not None
    shifted = -layer.bias.grad + h.mean(0) @ probe.weight  # the centre moved from 0 to the mean
    assert torch.allclose(probe.bias, shifted, atol=1e-6)
    assert torch.allclose(probe.weight.T, -rate * layer.weight.grad, atol=1e-6)


def _steps() -> dict[str, Tensor]:
    probe = OnlineProbe(16, 4)
    start = sum(COUNTS[: distributed.rank()])
    numbers = []
    for step in range(3):
        h, label = clusters(sum(COUNTS), step)
        rows = slice(start, start + COUNTS[distributed.rank()]) if distributed.world() > 1 else slice(None)
        numbers.append(list(probe.step(h[rows], label[rows]).values()))
    return dict(probe.state_dict()) | {"numbers": torch.tensor(numbers)}


@pytest.mark.ddp
def test_four_ranks_equal_one() -> None:
    whole = _steps()
    for part in run_ranks(4, _steps):
        for name, value in whole.items():
            assert torch.allclose(part[name], value, atol=1e-5), name
