"""Objects found by a trained detector in pictures, shared out over the ranks; and a detector saved and loaded."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from jointembed import __version__, distributed
from jointembed.blocks import construct
from jointembed.branches import ENCODERS
from jointembed.branches.detector import DETECTORS, Detector
from jointembed.data.detection_samples import pixels, scaled_size
from jointembed.data.loader import to_device
from jointembed.data.loader_workers import in_order, worker_faults
from jointembed.data.masks import encode_masks
from jointembed.errors import WeightsError
from jointembed.inference.embed import Openable, Precision, picture_name
from jointembed.model import autocast
from jointembed.tensor_files import save_tensors

FORMAT = 1


@dataclass(frozen=True)
class Detections:
    """The n objects found in one picture, best first."""

    xywh: np.ndarray  # (n, 4) float64: left, top, width, height in px of the picture as it is on disk
    scores: np.ndarray  # (n,) float64, 0 .. 1
    labels: np.ndarray  # (n,) int64, 1 .. K
    masks: tuple[bytes, ...] | None = None  # n compressed run lengths

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    @property
    def xyxy(self) -> np.ndarray:
        """(n, 4) float64: left, top, right, bottom."""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], axis=1)


@worker_faults()
def detect(
    detector: Detector,
    pictures: Openable,
    *,
    size: int,
    max_size: int,
    batch: int = 4,
    workers: int = 0,
    precision: Precision = "fp32",
) -> list[Detections]:
    """Run a detector over all pictures; each rank does every W-th and all get the whole.

    Args:
        detector: used in evaluation mode; its mode is restored.
        pictures: a data set, whose objects are not looked at, or any pictures.
        size: the shorter side of a picture becomes this, px.
        max_size: but the longer one no longer than this, px.
        batch: pictures through the network at once.
        workers: processes that decode pictures; 0 decodes in this one.
        precision: of the network; boxes are float32 all the same.

    Returns:
        One entry a picture, in their order.
    """
    rank, world = distributed.rank(), distributed.world()
    own = list(range(rank, len(pictures), world))
    scaled = _Scaled(pictures, own, size, max_size)
    batches = in_order(scaled, batch=batch, workers=workers, name=picture_name(pictures, own), collate=list)
    was_training = detector.training
    detector.eval()
    found: list[Detections] = []
    try:
        with torch.inference_mode(), autocast(detector.device, precision):
            for rows in batches:
                images = to_device([image for image, _ in rows], detector.device)
                found += [_recorded(one) for one in detector.detect(images, [wanted for _, wanted in rows])]
    finally:
        detector.train(was_training)
    parts = distributed.gather_objects(found)
    return [parts[number % world][number // world] for number in range(len(pictures))]


class _Scaled(Dataset[tuple[Tensor, tuple[int, int]]]):
    """Pictures at the size that the network sees, with the height and width that they have on disk."""

    def __init__(self, pictures: Openable, numbers: Sequence[int], size: int, max_size: int) -> None:
        self.pictures, self.numbers, self.size, self.max_size = pictures, numbers, size, max_size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> tuple[Tensor, tuple[int, int]]:
        picture = self.pictures.open(self.numbers[number])
        scaled = scaled_size(picture.width, picture.height, self.size, self.max_size)
        return pixels(picture, *scaled), (picture.height, picture.width)


def _recorded(one: dict[str, Tensor]) -> Detections:
    boxes = one["boxes"].double().cpu().numpy()
    return Detections(
        xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        scores=one["scores"].double().cpu().numpy(),
        labels=one["labels"].cpu().numpy(),
        masks=encode_masks(one["masks"].cpu().numpy()) if "masks" in one else None,
    )


# -- saving ---------------------------------------------------------------------------------------------------------


def make_detector(config: dict[str, Any]) -> Detector:
    """A bare detector of the blocks `encoder` and `detector` and the names `categories`; no weights are loaded.

    Raises:
        WeightsError: a key that is missing or does not fit this version.
    """
    try:
        encoder = construct(config["encoder"] | {"weights": None}, ENCODERS)
        return construct(config["detector"], DETECTORS, encoder, len(config["categories"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"config: {type(error).__name__} {error}; it does not fit version {__version__}") from error


def save_detector(detector: Detector, folder: Path, config: dict[str, Any], card: str) -> None:
    """Write `model.safetensors`, `config.json` and the model card; whole or not at all.

    Args:
        detector: its parameters and buffers are saved.
        folder: replaced where it is there.
        config: `encoder`, `detector`, `categories`, `size`, `max_size`: what rebuilds and feeds it.
        card: Markdown.
    """
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in detector.state_dict().items()}
    save_tensors(state, part / "model.safetensors")
    whole = {"format": FORMAT, "jointembed": __version__, "kind": "detector", **config}
    (part / "config.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False), encoding="utf-8")
    (part / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():  # a folder cannot be replaced in one step: keep the old one until the new one is named
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_detector(folder: Path) -> tuple[Detector, dict[str, Any]]:
    """A saved detector in evaluation mode, and its config. Nothing is unpickled; every key must fit.

    Raises:
        WeightsError: naming the file and what is wrong with it.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict) or config.get("kind") != "detector":
        raise WeightsError(f"{path}: not the config of a detector")
    if not isinstance(config.get("format"), int) or config["format"] > FORMAT:
        raise WeightsError(f"{path}: format {config.get('format')}; this version reads up to {FORMAT}")
    detector = make_detector(config)
    weights = folder / "model.safetensors"
    try:
        detector.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise WeightsError(f"{weights}: {' '.join(str(error).split())[:600]}") from None
    return detector.eval(), config
