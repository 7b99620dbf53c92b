"""Parameters in shards (FSDP2) on two gloo processes: gradients, micro-batches and checkpoints of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from ranks import run_ranks
from torch import Tensor, nn

from jointembed import distributed
from jointembed.branches.branch import Branch
from jointembed.layers import MLP, Norm, convert_batch_norm
from jointembed.model import JointEmbedding
from jointembed.objectives.byol import BYOL
from jointembed.objectives.clip import CLIP
from jointembed.objectives.objective import Objective
from jointembed.objectives.vicreg import VICReg
from jointembed.training import checkpoint as checkpoints
from jointembed.training import loop

pytestmark = pytest.mark.ddp

ROWS = {0: slice(0, 6), 1: slice(6, 11)}  # uneven, but of equally many micro-batches: each one gathers the shards


class Encoder(nn.Module):
    width = 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


def make(objective: Objective, views: dict[str, str], norm: Norm = "layer") -> JointEmbedding:
    torch.manual_seed(0)
    branches = {name: Branch(Encoder(), MLP(10, widths=[14, 9], norm=norm)) for name in sorted(set(views.values()))}
    core = JointEmbedding(branches, views, objective)
    core.attach(11)
    convert_batch_norm(core, "cpu")  # the predictor's
    return core.double().train()


def units(core: JointEmbedding) -> list[nn.Module]:
    targets = [] if core.targets is None else [*core.targets.values()]
    return [*core.branches.values(), *targets, *([] if core.objective is None else [core.objective])]


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 11, 6, generator=generator, dtype=torch.float64)
    rows = ROWS[distributed.rank()] if distributed.world() > 1 else slice(None)
    return {"left": left[rows], "right": right[rows], "index": torch.arange(11)[rows], "item": torch.arange(11)[rows]}


def gradients(core: JointEmbedding) -> dict[str, Tensor]:
    return distributed.whole({name: one.grad for name, one in core.named_parameters() if one.grad is not None})


def stepped(core: JointEmbedding, optimizer: torch.optim.Optimizer, micro_batch: int | None = None) -> Tensor:
    terms = loop.forward_backward(core, core, batch(), Accelerator(cpu=True), micro_batch)
    optimizer.step()
    optimizer.zero_grad()
    core.end_step(0.5)
    return terms["loss"]


def objectives() -> dict[str, JointEmbedding]:
    return {
        "vicreg": make(VICReg(predictor=[7]), {"left": "a", "right": "b"}),
        "clip": make(CLIP(learn_temperature=True), {"left": "a", "right": "b"}),
        "byol": make(BYOL(predictor_width=7, momentum=0.5, batch_norm=False), {"left": "a", "right": "a"}),
    }


def work(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, core in objectives().items():
        distributed.shard(core, units(core))
        own = sum(one.to_local().numel() for one in core.parameters())  # type: ignore[attr-defined]
        found[f"{name} share"] = own / sum(one.numel() for one in core.parameters())
        for way, micro_batch in (("micro", 3), ("whole", None)):  # in either a part may run before the whole does
            core.zero_grad()
            loss = loop.forward_backward(core, core, batch(), Accelerator(cpu=True), micro_batch)["loss"]
            found |= {f"{name} {way} loss": loss, f"{name} {way}": gradients(core)}
        core.zero_grad()
        optimizer = torch.optim.Adam([one for one in core.parameters() if one.requires_grad], lr=0.1)
        losses = [stepped(core, optimizer)]
        checkpoints.save(Path(folder) / name, core, optimizer, {"step": 1}, keep=1)
        losses.append(stepped(core, optimizer))
        saved = checkpoints.newest(Path(folder) / name)
        assert saved is not None
        checkpoints.restore(saved, core, optimizer)
        losses.append(stepped(core, optimizer, micro_batch=3))
        found[f"{name} losses"] = losses
        with distributed.unsharded(core):
            if distributed.rank() == 0:  # alone: the other rank runs no forward pass
                with torch.no_grad():
                    found[f"{name} alone"] = core.branch("left")(torch.ones(2, 6, dtype=torch.float64)).z
        found[f"{name} after"] = distributed.whole(core.state_dict())
        if core.objective is not None and name != "byol":
            with distributed.unsharded(core, core.objective), torch.no_grad():
                for parameter in core.objective.parameters():
                    parameter.fill_(0.25)
            found[f"{name} written"] = distributed.whole(dict(core.objective.named_parameters()))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("fsdp")
    return run_ranks(2, work, str(folder)), folder


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10 * max(1.0, float(tensor.abs().max())))


@pytest.mark.parametrize("name", ["vicreg", "clip", "byol"])
def test_shards_give_gradients_steps_and_checkpoints_of_one_process(
    results: tuple[list[dict[str, Any]], Path], name: str
) -> None:
    ranks, folder = results
    core = objectives()[name]
    loss = loop.forward_backward(core, core, batch(), Accelerator(cpu=True), None)["loss"]
    expected = gradients(core)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for found in ranks:
        assert found[f"{name} share"] < 0.6
        for way in ("whole", "micro"):
            torch.testing.assert_close(found[f"{name} {way} loss"], loss, rtol=1e-10, atol=0)
            same(found[f"{name} {way}"], expected)
    core.zero_grad()
    optimizer = torch.optim.Adam([one for one in core.parameters() if one.requires_grad], lr=0.1)
    losses = [stepped(core, optimizer), stepped(core, optimizer)]
    for found in ranks:
        torch.testing.assert_close(
            torch.stack(found[f"{name} losses"]), torch.stack([*losses, losses[1]]), rtol=1e-9, atol=0
        )

    saved = checkpoints.newest(folder / name)  # gathered: it loads where nothing is sharded
    assert saved is not None
    alone = objectives()[name]
    other = torch.optim.Adam([one for one in alone.parameters() if one.requires_grad], lr=0.1)
    checkpoints.restore(saved, alone, other)
    torch.testing.assert_close(stepped(alone, other), losses[1], rtol=1e-9, atol=0)
    for found in ranks:
        assert found[f"{name} after"].keys() == alone.state_dict().keys()
        for key, tensor in alone.state_dict().items():
            torch.testing.assert_close(found[f"{name} after"][key], tensor, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        z = alone.branch("left")(torch.ones(2, 6, dtype=torch.float64)).z
    torch.testing.assert_close(ranks[0][f"{name} alone"], z, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["vicreg", "clip"])
def test_what_an_objective_writes_when_an_epoch_starts_stays(
    results: tuple[list[dict[str, Any]], Path], name: str
) -> None:
    for found in results[0]:
        assert found[f"{name} written"] and all(bool((one == 0.25).all()) for one in found[f"{name} written"].values())


def statistics(_: str) -> tuple[Tensor, Tensor]:
    norm = nn.BatchNorm1d(3).train()
    norm(torch.randn(8, 3) + distributed.rank())
    own = norm.get_buffer("running_mean").clone()
    with distributed.unsharded(nn.Sequential(norm)):
        return own, norm.get_buffer("running_mean").clone()


def test_ranks_that_normalise_by_themselves_are_judged_as_rank_0() -> None:
    (first, shared), (other, same_there) = run_ranks(2, statistics, "")
    assert not torch.equal(first, other) and torch.equal(shared, first) and torch.equal(same_there, first)


def test_one_process_has_no_shards() -> None:
    core = objectives()["vicreg"]
    before = dict(core.named_parameters())
    distributed.shard(core, units(core))
    assert all(one is before[name] for name, one in core.named_parameters())
    with distributed.unsharded(core):
        assert distributed.whole(core.state_dict()).keys() == core.state_dict().keys()
