import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jointembed.errors import EvaluationError
from jointembed.evaluation.collapse import diagnostics
from jointembed.evaluation.features import FeatureFile, check_same_space, read_features, write_features

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 1, 2, 0, 1, 2])
ABOUT = {"data": "cifar", "fingerprint": "ab", "label_fingerprint": "cd", "model": "ef"}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    given = FeatureFile(ROWS, LABEL, None, ("a", "b", "c"), ABOUT)
    write_features(path, given)
    found = read_features(path)
    assert torch.equal(found.rows, ROWS) and found.label is not None and torch.equal(found.label, LABEL)
    assert found.presence is None and found.classes == ("a", "b", "c") and found.about == ABOUT
    assert list(tmp_path.iterdir()) == [path]
    presence = torch.tensor([[1, -1], [0, 1]], dtype=torch.int8)
    write_features(path, FeatureFile(ROWS[:2].half(), presence=presence))
    found = read_features(path)
    assert found.presence is not None and torch.equal(found.presence, presence) and found.label is None
    assert found.rows.dtype == torch.float32 and torch.equal(found.rows, ROWS[:2].half().float())


def test_a_file_made_elsewhere_needs_no_header(tmp_path: Path) -> None:
    save_file({"features": ROWS.double(), "labels": LABEL}, tmp_path / "a.safetensors")
    found = read_features(tmp_path / "a.safetensors")
    assert found.classes is None and found.about == {} and torch.equal(found.rows, ROWS)
    assert diagnostics({"features": found.rows})["features"]["dimension"] == 4


@pytest.mark.parametrize(
    "tensors, about, message",
    [
        ({"rows": ROWS}, {}, "holds rows; expected features"),
        ({"features": ROWS, "extra": ROWS}, {}, "holds extra, features"),
        ({"features": ROWS[0]}, {}, r"features are torch.float32 \(4,\)"),
        ({"features": LABEL[:, None]}, {}, r"features are torch.int64 \(6, 1\)"),
        ({"features": ROWS / 0}, {}, "row 0 holds a value that is not finite"),
        ({"features": ROWS, "labels": LABEL[:5]}, {}, r"labels are torch.int64 \(5,\); expected int64 \(6,\)"),
        ({"features": ROWS, "labels": LABEL.int()}, {}, "labels are torch.int32"),
        ({"features": ROWS, "labels": LABEL - 1}, {}, "row 0 has label -1, of no classes"),
        ({"features": ROWS, "labels": LABEL}, {"classes": ["a", "b"]}, "row 2 has label 2, of 2 classes"),
        (
            {"features": ROWS, "labels": LABEL, "presence": LABEL[:, None].to(torch.int8)},
            {},
            "holds labels and presence",
        ),
        ({"features": ROWS, "presence": LABEL[:, None]}, {}, r"presence is torch.int64 \(6, 1\)"),
        ({"features": ROWS, "presence": LABEL[:, None].to(torch.int8)}, {}, "presence must hold -1, 0 and 1"),
        ({"features": ROWS}, {"version": 2}, "its header is not of version 1"),
        ({"features": ROWS}, [], "its header is not of version 1"),
        ({"features": ROWS}, {"modle": "x"}, "its header has the unknown key 'modle'"),
        ({"features": ROWS}, {"model": 3}, "its header must hold text"),
        ({"features": ROWS}, {"classes": "abc"}, "a list of names as classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], about: Any, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: one.clone() for name, one in tensors.items()}, path, {"jointembed.features": json.dumps(about)})
    with pytest.raises(EvaluationError, match=rf"a\.safetensors: .*{message}"):
        read_features(path)


def test_what_is_no_file_of_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="gone.safetensors: no such file"):
        read_features(tmp_path / "gone.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(EvaluationError, match="not a readable safetensors file"):
        read_features(tmp_path / "a.safetensors")
    save_file({"features": ROWS}, tmp_path / "a.safetensors", {"jointembed.features": "{"})
    with pytest.raises(EvaluationError, match="broken JSON"):
        read_features(tmp_path / "a.safetensors")
    with pytest.raises(EvaluationError, match="row 0 holds a value"):
        write_features(tmp_path / "b.safetensors", FeatureFile(ROWS / 0))
    assert not (tmp_path / "b.safetensors").exists()


def test_features_of_two_models_are_not_compared() -> None:
    train = FeatureFile(ROWS, LABEL, None, ("a", "b", "c"), ABOUT)
    check_same_space(train, FeatureFile(ROWS, LABEL))
    with pytest.raises(EvaluationError, match="train features have 4 dimensions, test features 3"):
        check_same_space(train, replace(train, rows=ROWS[:, :3]))
    with pytest.raises(EvaluationError, match="of different classes"):
        check_same_space(train, replace(train, classes=("a", "b", "d")))
    with pytest.raises(EvaluationError, match="of different model: ef and xx"):
        check_same_space(train, replace(train, about=ABOUT | {"model": "xx"}))
