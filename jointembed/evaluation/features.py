"""Features of a data set in a file: what kNN, the linear probes and the SVM start from, made here or elsewhere.

A `.safetensors` file with `features` (N, R) and, where there is a truth, `labels` (N,) or `presence` (N, C); its header
may hold, under `jointembed.features`, a JSON object that says where they come from.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jointembed.data.json_file import parse_json
from jointembed.errors import DataError, EvaluationError
from jointembed.inference.files import publish
from jointembed.tensor_files import save_tensors

_KEY, _VERSION = "jointembed.features", 1
_ABOUT = ("data", "fingerprint", "label_fingerprint", "model")


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """Features and their truth; what `read_features` returns has been checked."""

    rows: Tensor  # (N, R) float32, finite
    label: Tensor | None = None  # (N,) int64, 0 .. C-1
    presence: Tensor | None = None  # (N, C) int8: 1 present, -1 absent, 0 difficult
    classes: tuple[str, ...] | None = None  # C names, where they are known
    about: dict[str, str] = field(default_factory=dict)  # `data`, `fingerprint`, `label_fingerprint`, `model`


def write_features(path: Path, features: FeatureFile) -> None:
    """Write a file that `read_features` reads, whole or not at all.

    Raises:
        EvaluationError: naming the file, for features that `read_features` would refuse.
    """
    arrays = {"features": features.rows, "labels": features.label, "presence": features.presence}
    tensors = {name: array.detach().cpu().contiguous() for name, array in arrays.items() if array is not None}
    about = features.about | {"version": _VERSION} | ({"classes": features.classes} if features.classes else {})
    _checked(path, tensors, about)
    publish(path, lambda aside: save_tensors(tensors, aside, metadata={_KEY: json.dumps(about)}))


def read_features(path: Path) -> FeatureFile:
    """Read a file of features.

    Raises:
        EvaluationError: naming the file and what is wrong: no safetensors, an array that is missing, unknown or of
            another length, a value that is not finite, a label that is no class, an unknown key of the header.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        about = parse_json(header, f"{path}: {_KEY}")
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path}: not a readable safetensors file ({error})") from None
    except DataError as error:
        raise EvaluationError(str(error)) from None
    return _checked(path, tensors, about)


def check_same_space(train: FeatureFile, test: FeatureFile) -> None:
    """Raise EvaluationError unless both are of one model, one number of dimensions and the same classes."""
    if train.rows.shape[1] != test.rows.shape[1]:
        raise EvaluationError(
            f"train features have {train.rows.shape[1]} dimensions, test features {test.rows.shape[1]}"
        )
    for name, one, other in (
        ("classes", train.classes, test.classes),
        ("model", train.about.get("model"), test.about.get("model")),
    ):
        if one is not None and other is not None and one != other:
            raise EvaluationError(f"train and test features are of different {name}: {one!s:.80} and {other!s:.80}")


def _checked(path: Path, tensors: dict[str, Tensor], about: Any) -> FeatureFile:
    if "features" not in tensors or set(tensors) - {"features", "labels", "presence"}:
        raise EvaluationError(
            f"{path}: holds {', '.join(sorted(tensors)) or 'nothing'}; expected features, labels, presence"
        )
    rows, label, presence = (tensors.get(name) for name in ("features", "labels", "presence"))
    assert rows is not None
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        raise EvaluationError(f"{path}: features are {rows.dtype} {tuple(rows.shape)}; expected rows x dimensions")
    finite = rows.isfinite().all(1)
    if not bool(finite.all()):
        raise EvaluationError(f"{path}: row {int((~finite).nonzero()[0])} holds a value that is not finite")
    about, classes = _about(path, about)
    count = len(classes) if classes else None
    if label is not None and presence is not None:
        raise EvaluationError(f"{path}: holds labels and presence; expected one of them")
    if label is not None:
        _check_label(path, label, len(rows), count)
    if presence is not None:
        if presence.dtype != torch.int8 or presence.ndim != 2 or len(presence) != len(rows):
            raise EvaluationError(f"{path}: presence is {presence.dtype} {tuple(presence.shape)}; expected int8 (N, C)")
        if (count or presence.shape[1]) != presence.shape[1] or bool((presence.abs() > 1).any()):
            raise EvaluationError(f"{path}: presence must hold -1, 0 and 1, and a column for each of {count} classes")
    return FeatureFile(rows.float(), label, presence, classes, about)


def _check_label(path: Path, label: Tensor, rows: int, classes: int | None) -> None:
    if label.dtype != torch.int64 or label.shape != (rows,):
        raise EvaluationError(f"{path}: labels are {label.dtype} {tuple(label.shape)}; expected int64 ({rows},)")
    wrong = (label < 0) | (label >= (classes or torch.iinfo(torch.int64).max))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise EvaluationError(f"{path}: row {row} has label {int(label[row])}, of {classes or 'no'} classes")


def _about(path: Path, about: Any) -> tuple[dict[str, str], tuple[str, ...] | None]:
    if not isinstance(about, dict) or about.get("version", _VERSION) != _VERSION:
        raise EvaluationError(f"{path}: its header is not of version {_VERSION}: {about!s:.80}")
    unknown = sorted(set(about) - {"version", "classes", *_ABOUT})
    if unknown:
        raise EvaluationError(f"{path}: its header has the unknown key {unknown[0]!r}")
    classes = about.get("classes")
    texts = {name: about[name] for name in _ABOUT if name in about}
    names = [] if classes is None else classes
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in [*names, *texts.values()]):
        raise EvaluationError(f"{path}: its header must hold text, and a list of names as classes")
    return texts, tuple(names) or None
