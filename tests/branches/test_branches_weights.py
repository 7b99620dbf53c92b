"""Weights files: the published layouts, and what is wrong with the others."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jointembed.branches.image import TorchvisionEncoder
from jointembed.errors import WeightsError

TINY: dict[str, Any] = {"model": "resnet18", "widen": 0.125}
Layout = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    encoder = TorchvisionEncoder(**TINY)
    encoder(torch.randn(4, 3, 32, 32))  # so that the running statistics are no defaults
    return {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(2, 2) for name in names}


def layouts(state: dict[str, Tensor]) -> dict[str, Layout]:
    """Files as the authors' code writes them (facebookresearch: vicreg, barlowtwins, moco, moco-v3, swav)."""
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {
        "torchvision": state | other("fc.weight", "fc.bias"),
        "vicreg backbone": state,
        "vicreg": {
            "epoch": 1000,
            "model": prefixed("module.backbone.", state) | other("module.projector.0.weight"),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        },
        "barlow twins": {
            "epoch": 1000,
            "model": prefixed("module.backbone.", state) | other("module.projector.0.weight", "module.bn.running_mean"),
        },
        "moco": {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": prefixed("module.encoder_q.", state)
            | prefixed("module.encoder_k.", wrong)
            | other("module.encoder_q.fc.0.weight", "module.encoder_k.fc.0.weight", "module.queue", "module.queue_ptr"),
        },
        "moco v3": {
            "state_dict": prefixed("module.base_encoder.", state)
            | prefixed("module.momentum_encoder.", wrong)
            | other("module.base_encoder.fc.0.weight", "module.predictor.0.weight")
        },
        "swav": prefixed("module.", state) | other("module.projection_head.0.weight", "module.prototypes.weight"),
        "swav checkpoint": {"state_dict": prefixed("module.", state) | other("module.prototypes.prototypes0.weight")},
        "training checkpoint": {"model": state | other("fc.weight"), "epoch": 3},
    }


@pytest.mark.parametrize("name", list(layouts({})))
def test_published_layouts(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(layouts(state)[name], tmp_path / "weights.pth")
    found = TorchvisionEncoder(**TINY, weights=str(tmp_path / "weights.pth")).model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    found = TorchvisionEncoder(**TINY, weights=str(tmp_path / "weights.safetensors")).model.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_files_of_old_torch_count_no_batches(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "weights.pth")
    encoder = TorchvisionEncoder(**TINY, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(encoder.model.get_parameter("conv1.weight"), state["conv1.weight"])


def exclude_bias_and_norm(parameter: Tensor) -> bool:
    raise AssertionError("a function of the file was run")


def test_a_full_checkpoint_that_names_a_function_of_its_script(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "exclude_bias_and_norm", exclude_bias_and_norm, raising=False)
    monkeypatch.setattr(exclude_bias_and_norm, "__module__", "__main__")
    groups = [{"weight_decay_filter": exclude_bias_and_norm, "params": [0]}]
    checkpoint = {"model": prefixed("module.backbone.", state), "optimizer": {"param_groups": groups}}
    torch.save(checkpoint, tmp_path / "full.pth")
    found = TorchvisionEncoder(**TINY, weights=str(tmp_path / "full.pth")).model.state_dict()
    assert torch.equal(found["conv1.weight"], state["conv1.weight"])


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="bad.pth: cannot be read as weights"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"broken.{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=f"broken.{suffix}: cannot be read as weights"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / f"broken.{suffix}"))


def test_something_else_in_the_file(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="expected a state dict, found list"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / "list.pth"))
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "numbers.pth")
    with pytest.raises(WeightsError, match="no state dict of a known layout .*top keys: epoch, loss"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / "numbers.pth"))
    with pytest.raises(WeightsError, match="no such file"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / "absent.pth"))


def test_weights_of_another_architecture_name_keys_and_shapes(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    file = str(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights.pth .*96 unexpected|weights.pth .*missing keys \(features"):
        TorchvisionEncoder(model="mobilenet_v2", weights=file)
    with pytest.raises(WeightsError, match=r"missing keys \(layer1.2.bn1.bias, .*\)") as error:
        TorchvisionEncoder(model="resnet34", widen=0.125, weights=file)
    assert "unexpected" not in str(error.value)
    with pytest.raises(WeightsError, match=r"shapes differ \(conv1.weight is \(8, 3, 7, 7\), expected \(16, 3, 7, 7\)"):
        TorchvisionEncoder(model="resnet18", widen=0.25, weights=file)
    torch.save(state | other("layer9.weight"), file)
    with pytest.raises(WeightsError, match=r"1 unexpected keys \(layer9.weight\)"):
        TorchvisionEncoder(**TINY, weights=file)


def test_positions_of_a_vision_transformers_file_are_interpolated_where_asked(tmp_path: Path) -> None:
    small: dict[str, Any] = {"model": "vit_tiny_16", "patch_size": 16}
    encoder = TorchvisionEncoder(**small, image_size=32)
    file = str(tmp_path / "vit.pth")
    torch.save(encoder.model.state_dict(), file)
    larger = TorchvisionEncoder(**small, image_size=48, weights=file)
    positions = larger.model.get_parameter("encoder.pos_embedding")
    assert positions.shape == (1, 1 + 9, 192)
    assert torch.equal(positions[:, 0], encoder.model.get_parameter("encoder.pos_embedding")[:, 0])
    with pytest.raises(WeightsError, match="shapes differ"):
        TorchvisionEncoder(model="vit_tiny_16", weights=file)


def test_layouts_leave_other_modules_alone(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("module.encoder_q.", state) | other("module.surprise")}, tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match=r"1 unexpected keys \(module.surprise\)"):
        TorchvisionEncoder(**TINY, weights=str(tmp_path / "moco.pth"))
