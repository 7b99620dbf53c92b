"""Representations of frozen encoders, computed once and kept on disk."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from jointembed import distributed
from jointembed.data.loader import to_device
from jointembed.data.loader_workers import in_order, worker_faults
from jointembed.data.records import CaptionData
from jointembed.data.samples import PictureView, draw_view, sample_seed
from jointembed.data.tokens import pad
from jointembed.errors import WeightsError
from jointembed.inference.embed import Openable, in_evaluation_mode, picture_batches, picture_name, shared_out
from jointembed.inference.files import publish
from jointembed.model import JointEmbedding
from jointembed.tensor_files import save_tensors


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached_rows(encoder: nn.Module, inputs: dict[str, Any], compute: Callable[[], Tensor], folder: Path) -> Tensor:
    """Representations of a frozen encoder, computed once and kept in `folder` under a key of everything they depend on.

    Args:
        encoder: whose weights are part of the key.
        inputs: the rest of the key as JSON values: encoder block, view pipeline or tokenizer, data fingerprint.
        compute: gives the rows; every rank calls it together.
        folder: the cache.

    Raises:
        WeightsError: a cache file that cannot be written, or not be read; delete it.
    """
    key = hashlib.sha256(json.dumps([weights_hash(encoder), inputs], sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{key}.safetensors"
    if distributed.broadcast_object(path.is_file()):
        try:
            return load_file(path)["h"]
        except (SafetensorError, OSError, KeyError) as error:
            raise WeightsError(f"{path}: cached representations cannot be read ({error}); delete the file") from None
    rows = compute()
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            publish(path, lambda aside: save_tensors({"h": rows.contiguous()}, aside))
        except (OSError, SafetensorError) as error:
            message = f"{path}: cached representations cannot be written ({error}); set JOINTEMBED_CACHE"
            raise WeightsError(message) from None
    distributed.barrier()
    return rows


def frozen_image_rows(
    model: JointEmbedding, view: PictureView, data: CaptionData, *, batch: int, workers: int
) -> Callable[[], Tensor]:
    """A `compute` for `cached_rows`: the image branch's representation of every picture, (I, R) float32."""
    branch = model.branch("image")

    @worker_faults()
    @torch.inference_mode()
    def rows_of(numbers: list[int]) -> Tensor:
        batches = picture_batches(view, data.pictures, numbers, batch=batch, workers=workers)
        rows = [branch.encoder(part[view.views[0]].to(model.device)).float().cpu() for part in batches]
        return torch.cat(rows) if rows else torch.zeros(0, branch.width)

    return lambda: in_evaluation_mode(branch, lambda: shared_out(len(data.pictures), rows_of))


def frozen_text_rows(model: JointEmbedding, data: CaptionData, *, batch: int) -> Callable[[], Tensor]:
    """A `compute` for `cached_rows`: the text branch's representation of every caption, (T, R) float32."""
    branch, tokens = model.branch("text"), model.tokens
    if tokens is None:
        raise WeightsError("this model has no tokenizer; it cannot encode text")

    @torch.inference_mode()
    def rows_of(numbers: list[int]) -> Tensor:
        ids = tokens.encode([data.texts[number] for number in numbers])
        found = torch.zeros(len(ids), branch.width)
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))  # little padding
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            moved = to_device(pad([ids[number] for number in some]), model.device)
            found[torch.tensor(some)] = branch.encoder(moved).float().cpu()
        return found

    return lambda: in_evaluation_mode(branch, lambda: shared_out(len(data.texts), rows_of))


def drawn_image_rows(
    model: JointEmbedding, view: PictureView, data: CaptionData, *, views: int, seed: int, batch: int, workers: int
) -> Callable[[], Tensor]:
    """A `compute` for `cached_rows`: the image branch's representations of drawn views, (I, views, R) float32.

    View j of picture i is drawn on the random stream of (seed, j, i), whatever the number of workers or ranks.
    Memory and file hold 4 I x views x R bytes: 8 views of 6,000 pictures at 1,280 are 246 MB.

    Args:
        model: whose branch `image` is frozen.
        view: a random pipeline that gives `image`.
        data: its pictures.
        views: drawn of each picture, from one decode.
        seed: of the draws.
        batch: views through the encoder at once.
        workers: processes that decode and draw.
    """
    branch = model.branch("image")

    @worker_faults()
    @torch.inference_mode()
    def rows_of(numbers: list[int]) -> Tensor:
        drawn = in_order(
            _Drawn(view, data.pictures, numbers, views, seed),
            batch=max(1, batch // views),
            workers=workers,
            name=picture_name(data.pictures, numbers),
        )
        rows = [
            branch.encoder(part.flatten(0, 1).to(model.device)).float().cpu().unflatten(0, part.shape[:2])
            for part in drawn
        ]
        return torch.cat(rows) if rows else torch.zeros(0, views, branch.width)

    return lambda: in_evaluation_mode(branch, lambda: shared_out(len(data.pictures), rows_of))


class _Drawn(Dataset[Tensor]):
    """Several drawn views of each picture, (views, 3, H, W)."""

    def __init__(self, view: PictureView, pictures: Openable, numbers: Sequence[int], views: int, seed: int) -> None:
        self.view, self.pictures, self.numbers, self.views, self.seed = view, pictures, numbers, views, seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Tensor:
        number = self.numbers[position]
        picture = self.pictures.open(number)
        seeds = [sample_seed(self.seed, one, number, stream=2) for one in range(self.views)]
        return torch.stack([draw_view(self.view, picture, seed)["image"] for seed in seeds])
