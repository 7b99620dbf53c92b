"""MLP, pooling, and batch norm over all ranks."""

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError
from jointembed.layers import MLP, GatheredBatchNorm1d, GatheredBatchNorm2d, convert_batch_norm, pool_tokens

# -- expander -------------------------------------------------------------------------------------------------------


def test_no_widths_leave_the_representation_as_it_is() -> None:
    expander, h = MLP(7, widths=[]), torch.randn(3, 7)
    assert expander.width == 7
    assert torch.equal(expander(h), h)


def test_one_width_is_a_linear_layer() -> None:
    expander, h = MLP(7, widths=[5]), torch.randn(3, 7)
    (weight,) = expander.parameters()
    assert expander.width == 5
    torch.testing.assert_close(expander(h), h @ weight.T)


def test_equals_the_formula() -> None:
    expander, h = MLP(6, widths=[8, 9, 4]).double(), torch.randn(5, 6, dtype=torch.float64)
    p = {name: value for name, value in expander.named_parameters()}
    x = h
    for linear, norm in ((0, 1), (3, 4)):
        x = x @ p[f"layers.{linear}.weight"].T + p[f"layers.{linear}.bias"]
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        x = (x * p[f"layers.{norm}.weight"] + p[f"layers.{norm}.bias"]).clamp_min(0)
    torch.testing.assert_close(expander(h), x @ p["layers.6.weight"].T, rtol=1e-10, atol=1e-10)
    assert expander.width == 4 and "layers.6.bias" not in p


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", None)])
def test_norm_and_bias_of_the_last_layer(norm: str, kind: type | None) -> None:
    expander = MLP(6, widths=[8, 4], norm=norm, bias_last=True)  # type: ignore[arg-type]
    found = [type(layer) for layer in expander.layers]
    assert found == [nn.Linear, *([kind] if kind else []), nn.ReLU, nn.Linear]
    assert expander.layers[-1].bias is not None


def test_dropout_acts_in_training_only() -> None:
    expander, h = MLP(6, widths=[64, 4], norm="none", dropout=0.5), torch.randn(5, 6)
    assert not torch.equal(expander(h), expander(h))
    expander.eval()
    assert torch.equal(expander(h), expander(h))


def test_normalized_input_does_not_see_the_length() -> None:
    expander, h = MLP(6, widths=[4], normalize_input=True), torch.randn(5, 6)
    torch.testing.assert_close(expander(h), expander(100 * h))
    torch.testing.assert_close(expander(h), expander.layers(functional.normalize(h)))


@pytest.mark.parametrize(
    ("arguments", "key"), [({"widths": [8, 0]}, "widths"), ({"widths": [8], "dropout": 1.5}, "dropout")]
)
def test_impossible_sizes_are_refused_by_name(arguments: dict, key: str) -> None:
    with pytest.raises(RecipeError, match=f"expander.{key}"):
        MLP(6, **arguments)


# -- pooling --------------------------------------------------------------------------------------------------------


def test_pooling_leaves_padding_out() -> None:
    nan = float("nan")
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [nan, nan]], [[5.0, -7.0], [nan, nan], [nan, nan]]])
    length = torch.tensor([2, 1])
    expected = {
        "mean": [[2.0, -3.0], [5.0, -7.0]],
        "max": [[3.0, -2.0], [5.0, -7.0]],
        "last": [[3.0, -2.0], [5.0, -7.0]],
        "cls": [[1.0, -4.0], [5.0, -7.0]],
    }
    for how, rows in expected.items():
        assert pool_tokens(states, length, how).tolist() == rows, how  # type: ignore[arg-type]


# -- batch norm over all ranks --------------------------------------------------------------------------------------

CASES: dict[str, tuple[type[nn.BatchNorm1d | nn.BatchNorm2d], tuple[int, ...], dict]] = {
    "rows": (nn.BatchNorm1d, (8, 3), {}),
    "sequences": (nn.BatchNorm1d, (8, 3, 5), {"momentum": None}),
    "maps": (nn.BatchNorm2d, (8, 3, 4, 2), {"momentum": 0.3, "eps": 1e-3}),
    "not affine": (nn.BatchNorm1d, (8, 3), {"affine": False}),
    "no running statistics": (nn.BatchNorm2d, (8, 3, 2, 2), {"track_running_stats": False}),
}
OWN_ROWS = (slice(0, 6), slice(6, 8))  # uneven on purpose
STEPS = 2


def run_case(norm: nn.Module, shape: tuple[int, ...], rows: slice, factor: float) -> dict[str, Tensor]:
    """Two training steps and one in evaluation on some rows of a fixed batch; `factor` scales the loss."""
    generator = torch.Generator().manual_seed(3)
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for step in range(STEPS):
        x = (4 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64))[rows].requires_grad_()
        target = torch.randn(shape, generator=generator, dtype=torch.float64)[rows]
        y = norm(x)
        (factor * (y - target).pow(3).sum()).backward()
        assert x.grad is not None
        result |= {f"y{step}": y.detach(), f"dx{step}": x.grad / factor}
    result |= {f"d{name}": p.grad / factor for name, p in norm.named_parameters() if p.grad is not None}
    result |= {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.eval()
    result["evaluated"] = norm(x).detach()
    return result


def on_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    found: dict[str, dict[str, Tensor]] = {}
    for name, (kind, shape, options) in CASES.items():
        parent = nn.Sequential(nn.Sequential(kind(shape[1], **options, dtype=torch.float64)))
        assert convert_batch_norm(parent, "cpu") is parent
        norm = parent.get_submodule("0.0")
        assert type(norm) in (GatheredBatchNorm1d, GatheredBatchNorm2d)
        found[name] = run_case(norm, shape, OWN_ROWS[rank], factor=2.0)
    norm = convert_batch_norm(nn.BatchNorm1d(3), "cpu")
    half = norm(torch.arange(12.0).view(4, 3).to(torch.bfloat16) + rank)
    found["half"] = {"y": half.detach()}
    assert isinstance(convert_batch_norm(nn.BatchNorm1d(3), "cuda"), nn.SyncBatchNorm)
    with pytest.raises(ValueError, match="more than one value"):
        norm(torch.zeros(1 - rank, 3))
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_rank, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.ddp
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_batch_norm_of_one(name: str, two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    kind, shape, options = CASES[name]
    one = run_case(kind(shape[1], **options, dtype=torch.float64), shape, slice(None), factor=1.0)
    parts = [rank[name] for rank in two_ranks]
    assert one.keys() == parts[0].keys()
    for key, expected in one.items():
        if key.startswith(("y", "dx", "evaluated")):
            found = torch.cat([part[key] for part in parts])
        elif key.startswith("d"):  # what DDP's mean over the ranks makes of the gradients
            found = sum(part[key] for part in parts)  # type: ignore[assignment]
        else:
            found = parts[0][key]
            assert torch.equal(found, parts[1][key]), key
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=f"{name}: {key} differs")


@pytest.mark.ddp
def test_half_precision_keeps_its_type_and_float32_statistics(two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    rows = torch.arange(12.0).view(4, 3).to(torch.bfloat16)
    expected = nn.BatchNorm1d(3)(torch.cat([rows, rows + 1]).float()).to(torch.bfloat16)
    found = torch.cat([rank["half"]["y"] for rank in two_ranks])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_one_process_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3))
    norm = module[0]
    assert convert_batch_norm(module, "cpu")[0] is norm  # type: ignore[index]
    assert convert_batch_norm(module, "cuda")[0] is norm  # type: ignore[index]


@pytest.mark.parametrize("name", CASES)
def test_in_one_process_it_is_plain_batch_norm(name: str) -> None:
    kind, shape, options = CASES[name]
    gathered = GatheredBatchNorm1d if kind is nn.BatchNorm1d else GatheredBatchNorm2d
    plain, ours = (
        run_case(one(shape[1], **options, dtype=torch.float64), shape, slice(None), 1.0) for one in (kind, gathered)
    )
    assert plain.keys() == ours.keys()
    assert all(torch.equal(plain[key], ours[key]) for key in plain)


def test_a_norm_after_the_last_layer_has_no_affine_parameters() -> None:
    mlp = MLP(6, widths=[8, 5], norm_last=True)
    z = mlp(torch.randn(64, 6))
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(8, 6), (8,), (8,), (8,), (5, 8)]
