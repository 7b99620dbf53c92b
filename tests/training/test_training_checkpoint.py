import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jointembed.errors import CheckpointError
from jointembed.training import checkpoint as checkpoints


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, step: int, keep: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = make(step)
    checkpoints.save(folder, model, optimizer, {"step": step}, keep=keep)
    return model, optimizer


def test_restores_weights_moments_and_random_state(tmp_path: Path) -> None:
    model, optimizer = save(tmp_path, 5)
    expected = torch.rand(4)
    other, other_optimizer = make(99)
    saved = checkpoints.newest(tmp_path)
    assert saved is not None and saved.state == {"step": 5}
    checkpoints.restore(saved, other, other_optimizer)
    assert torch.equal(torch.rand(4), expected)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(1)
        m(torch.randn(8, 3)).square().sum().backward()
        o.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    checkpoints.save(tmp_path, model, optimizer, {"step": 1}, keep=1)
    saved = checkpoints.newest(tmp_path)
    assert saved is not None
    checkpoints.restore(saved, model, optimizer)
    assert model[1].weight is model[0].weight


def test_retention_keeps_the_newest_by_number(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-9", "step-10"]


@pytest.mark.fault(1, "what a killed save left is passed over and removed")
def test_leftovers_of_a_killed_save_are_passed_over_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 3)
    leftover = tmp_path / ".step-4.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    saved = checkpoints.newest(tmp_path)
    assert saved is not None and saved.state["step"] == 3
    assert not leftover.exists()


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None


@pytest.mark.fault(4, "each file missing, truncated, or with one byte flipped: refused by name")
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["missing", "truncated", "flipped"])
def test_a_faulty_file_is_refused_by_name(tmp_path: Path, name: str, fault: str) -> None:
    save(tmp_path, 3)
    path = tmp_path / "step-3" / name
    content = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoints.newest(tmp_path)


@pytest.mark.fault(4, "a checkpoint of a newer version is refused")
def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 3)
    manifest = tmp_path / "step-3" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="step-3: was written by a newer version; format 2, this version reads 1"):
        checkpoints.newest(tmp_path)


@pytest.mark.fault(4, "renamed keys are refused by name")
def test_renamed_keys_are_named(tmp_path: Path) -> None:
    model, optimizer = save(tmp_path, 3)
    folder = tmp_path / "step-3"
    tensors = load_file(folder / "model.safetensors")
    tensors["0.wait"] = tensors.pop("0.weight")
    save_file(tensors, folder / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = checkpoints._hash(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    saved = checkpoints.newest(tmp_path)
    assert saved is not None
    with pytest.raises(CheckpointError, match="0.wait"):
        checkpoints.restore(saved, model, optimizer)


def test_a_disk_that_refuses_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_sync", full)
    with pytest.raises(CheckpointError, match="step-4.*No space left"):
        save(tmp_path, 4)
    monkeypatch.undo()
    saved = checkpoints.newest(tmp_path)
    assert saved is not None and saved.state["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3"]


def test_deleting_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(tmp_path, step)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3)
    monkeypatch.undo()
    for folder in checkpoints.complete(tmp_path):  # whatever has the name of a checkpoint is one
        checkpoints.read(folder)
    assert [folder.name for folder in checkpoints.complete(tmp_path)] == ["step-2", "step-3"]
    saved = checkpoints.newest(tmp_path)
    assert saved is not None and saved.state["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


@pytest.mark.fault(1, "the only checkpoint survives a kill while it is replaced")
def test_the_only_checkpoint_survives_a_kill_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = save(tmp_path, 1)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    monkeypatch.undo()
    saved = checkpoints.newest(tmp_path)
    assert saved is not None and torch.equal(saved.model["0.weight"], model.state_dict()["0.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def altered(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> checkpoints.Checkpoint:
    """A checkpoint whose tensors were changed, with a hash that says they belong there."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = checkpoints._hash(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return checkpoints.read(folder)


@pytest.mark.fault(4, "each random state missing: refused by name")
@pytest.mark.parametrize("kind", ["torch", "python", "python_gauss", "numpy", "numpy_gauss"])
def test_a_missing_random_state_is_named(tmp_path: Path, kind: str) -> None:
    model, optimizer = save(tmp_path, 3)
    saved = altered(tmp_path / "step-3", "random.safetensors", lambda tensors: tensors.pop(f"rank0.{kind}"))
    with pytest.raises(CheckpointError, match=f"random.safetensors: no random state rank0.{kind}"):
        checkpoints.restore(saved, model, optimizer)


@pytest.mark.fault(4, "an optimizer state with keys missing, renamed or of other shapes: refused by name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("2.exp_avg"), "of parameter 2 there is exp_avg_sq, step"),
        (lambda tensors: [tensors.pop(f"3.{key}") for key in ("step", "exp_avg", "exp_avg_sq")], "3 there is nothing"),
        (lambda tensors: tensors.update({"9.step": torch.ones(())}), "parameter 9, but the optimizer has 6"),
        (lambda tensors: tensors.update({"exp_avg": torch.ones(())}), "'exp_avg' is no key"),
        (lambda tensors: tensors.update({"0.exp_avg": torch.ones(2, 2)}), r"0.exp_avg has shape \(2, 2\)"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_named(tmp_path: Path, change: Callable, message: str) -> None:
    model, optimizer = save(tmp_path, 3)
    saved = altered(tmp_path / "step-3", "optimizer.safetensors", change)
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors: .*{message}"):
        checkpoints.restore(saved, model, optimizer)


def test_a_rank_that_was_not_there_gets_a_random_state_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = save(tmp_path, 3)
    saved = checkpoints.newest(tmp_path)
    assert saved is not None
    drawn = []
    for rank in (0, 1, 2):
        monkeypatch.setattr(checkpoints.distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        checkpoints.restore(saved, model, optimizer)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3
