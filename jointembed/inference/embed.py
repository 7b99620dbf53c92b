"""Embeddings of a whole data set, each item once, shared out over the ranks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from jointembed import distributed
from jointembed.data.loader import to_device
from jointembed.data.loader_workers import in_order, worker_faults
from jointembed.data.records import CaptionData
from jointembed.data.samples import PictureView
from jointembed.errors import WeightsError
from jointembed.model import JointEmbedding, autocast
from jointembed.objectives.objective import EpochEmbeddings

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class RetrievalEmbeddings:
    """Pictures (I, D) and captions (T, D) of one data set, float32, not normalised; rows in the data set's order."""

    image: Tensor
    text: Tensor


class Openable(Protocol):
    """Pictures that can be decoded by number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def open(self, number: int) -> Image.Image:
        """Decode one."""
        ...


class PicturesAndTexts(Protocol):
    """What embedding needs of a data set; `CaptionData` is one."""

    @property
    def pictures(self) -> Openable:
        """All pictures."""
        ...

    @property
    def texts(self) -> Sequence[str]:
        """All captions."""
        ...


def embed_captions(
    model: JointEmbedding,
    data: PicturesAndTexts,
    *,
    batch: int = 256,
    precision: Precision = "fp32",
    workers: int = 0,
    cached: Tensor | None = None,
    cached_text: Tensor | None = None,
) -> RetrievalEmbeddings:
    """Embed every picture and every caption once; each rank does every W-th and all get the whole.

    Args:
        model: used in evaluation mode; its mode is restored.
        data: pictures and captions.
        batch: rows through a branch at once.
        precision: of the branches.
        workers: processes that decode pictures; 0 decodes in this one.
        cached: representations (I, R) in place of pictures.
        cached_text: representations (T, R) in place of captions.
    """
    key, view = model.image_view, model.image

    def images(numbers: list[int]) -> Tensor:
        if cached is not None:
            return project(model, key, cached[numbers], batch=batch)
        if view is None:
            raise WeightsError("this model has no picture pipeline; it cannot embed pictures")
        batches = picture_batches(view, data.pictures, numbers, batch=batch, workers=workers)
        return in_evaluation_mode(model, lambda: _rows(model, key, (one[view.views[0]] for one in batches), precision))

    def texts(numbers: list[int]) -> Tensor:
        if cached_text is not None:
            return project(model, "text", cached_text[numbers], batch=batch)
        chosen = [data.texts[number] for number in numbers]
        rows = model.encode(
            chosen, "text", batch_size=batch, normalize=False, convert_to_numpy=False, precision=precision
        )
        return torch.as_tensor(rows)

    return RetrievalEmbeddings(shared_out(len(data.pictures), images), shared_out(len(data.texts), texts))


def embed_pictures(
    model: JointEmbedding,
    pictures: Openable,
    view: PictureView,
    views: Sequence[str],
    *,
    batch: int = 256,
    precision: Precision = "fp32",
    workers: int = 0,
) -> Tensor:
    """Vectors of every picture, each once, those of several views side by side: (I, sum of widths) on every rank.

    Args:
        model: used in evaluation mode; its mode is restored.
        pictures: a picture is whatever the pipeline takes.
        view: the pipeline; a view of the model that it does not give is fed its first one.
        views: of the model.
        batch: rows through a branch at once.
        precision: of the branches.
        workers: processes that decode.
    """
    keys = {name: name if name in view.views else view.views[0] for name in views}

    @worker_faults()
    @torch.inference_mode()
    def rows_of(numbers: list[int]) -> Tensor:
        rows = []
        for part in picture_batches(view, pictures, numbers, batch=batch, workers=workers):
            moved = to_device(part, model.device)
            with autocast(model.device, precision):
                rows.append(torch.cat([model.vectors(name, moved[key]) for name, key in keys.items()], dim=1).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, sum(model.width(name) for name in views))

    return in_evaluation_mode(model, lambda: shared_out(len(pictures), rows_of))


def embed_epoch(
    model: JointEmbedding, pictures: Openable, view: PictureView, *, batch: int, precision: Precision, workers: int
) -> EpochEmbeddings:
    """This rank's part of the training set, every W-th picture, through the branch of the first view."""
    branch = model.branch(next(iter(model.views)))
    numbers = list(range(distributed.rank(), len(pictures), distributed.world()))

    @worker_faults()
    @torch.inference_mode()
    def parts() -> tuple[Tensor, Tensor]:
        found = []
        for part in picture_batches(view, pictures, numbers, batch=batch, workers=workers):
            with autocast(model.device, precision):
                found.append(branch(to_device(part[view.views[0]], model.device)))
        return torch.cat([one.h.float() for one in found]), torch.cat([one.z.float() for one in found])

    was_training = model.training
    model.eval()
    try:
        h, z = parts()
    finally:
        model.train(was_training)
    return EpochEmbeddings(torch.tensor(numbers, device=h.device), h.clone(), z.clone())


def shared_out(count: int, rows_of: Callable[[list[int]], Tensor]) -> Tensor:
    """Rows 0 .. count-1, of which rank r of W computes r, r+W, ...; the whole on every rank."""
    rank, world = distributed.rank(), distributed.world()
    own = rows_of(list(range(rank, count, world)))
    if world == 1:
        return own
    gathered = distributed.gather_objects(own)
    whole = torch.empty(count, *own.shape[1:], dtype=own.dtype)
    for other, rows in enumerate(gathered):
        whole[other::world] = rows
    return whole


class _Decoded(Dataset[dict[str, Tensor]]):
    def __init__(self, view: PictureView, pictures: Openable, numbers: Sequence[int]) -> None:
        self.view, self.pictures, self.numbers = view, pictures, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.view(self.pictures.open(self.numbers[position]))


def picture_batches(
    view: PictureView, pictures: Openable, numbers: Sequence[int], *, batch: int, workers: int
) -> Iterable[dict[str, Tensor]]:
    """The views of these pictures in batches (N, ...), decoded by worker processes; see `in_order`."""
    decoded = _Decoded(view, pictures, numbers)
    return in_order(decoded, batch=batch, workers=workers, name=picture_name(pictures, numbers))


def picture_name(pictures: Openable, numbers: Sequence[int]) -> Callable[[int], str]:
    """Position in `numbers` -> what messages call that picture."""
    return partial(_picture_name, pictures, numbers)


def _picture_name(pictures: Openable, numbers: Sequence[int], position: int) -> str:
    names = getattr(pictures, "names", None)
    return f"picture {numbers[position]}" if names is None else str(names[numbers[position]])


@worker_faults()
def _rows(model: JointEmbedding, key: str, batches: Iterable[Any], precision: Precision) -> Tensor:
    with torch.inference_mode(), autocast(model.device, precision):
        rows = [model.vectors(key, to_device(part, model.device)).cpu() for part in batches]
    return torch.cat(rows) if rows else torch.zeros(0, model.width(key))


def project(model: JointEmbedding, view: str, representations: Tensor, *, batch: int) -> Tensor:
    """Vectors of cached representations (N, R): (N, D) float32 on the CPU."""
    batches = ({"h": part} for part in representations.split(batch) if len(part))
    return in_evaluation_mode(model, lambda: _rows(model, view, batches, "fp32"))


def in_evaluation_mode(model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives while the model is in evaluation mode; its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return compute()
    finally:
        model.train(was_training)


def set_centres(
    model: JointEmbedding,
    data: CaptionData,
    *,
    seed: int,
    limit: int = 4096,
    batch: int = 256,
    precision: Precision = "fp32",
    workers: int = 0,
    cached: Tensor | None = None,
    cached_text: Tensor | None = None,
) -> RetrievalEmbeddings:
    """Set each view's centre to the mean of its vectors over (a seeded sample of) the training data.

    Views that share the branch of the pictures or of the texts have its centre. Returns the sample as the model embeds
    it from now on, which is what `embed_sample` would give, without another pass.
    """
    of_branch = {model.views[model.image_view]: "image", model.views["text"]: "text"}
    followers = {view: of_branch[branch] for view, branch in model.views.items() if branch in of_branch}
    with torch.no_grad():
        for view in followers:
            model.get_buffer(f"centre_{view}").zero_()
    rows = embed_sample(
        model, data, seed=seed, limit=limit, batch=batch, precision=precision, workers=workers, cached=cached,
        cached_text=cached_text,
    )  # fmt: skip
    with torch.no_grad():
        for view, side in followers.items():
            model.get_buffer(f"centre_{view}").copy_(getattr(rows, side).mean(dim=0))
    return RetrievalEmbeddings(rows.image - rows.image.mean(dim=0), rows.text - rows.text.mean(dim=0))


def embed_sample(
    model: JointEmbedding,
    data: CaptionData,
    *,
    seed: int,
    limit: int = 4096,
    batch: int = 256,
    precision: Precision = "fp32",
    workers: int = 0,
    cached: Tensor | None = None,
    cached_text: Tensor | None = None,
) -> RetrievalEmbeddings:
    """Embed a seeded sample of a data set, its rows in the data set's order.

    Args:
        model: as in `embed_captions`, and so are the others.
        data: which is sampled.
        seed: of the sample.
        limit: rows of each side.
        batch: rows through a branch at once.
        precision: of the branches.
        workers: processes that decode pictures.
        cached: representations (I, R) of all pictures.
        cached_text: representations (T, R) of all captions.
    """
    rng = np.random.default_rng([seed, 7])
    pictures = np.sort(rng.permutation(len(data.pictures))[:limit]).tolist()
    texts = np.sort(rng.permutation(len(data.texts))[:limit]).tolist()
    return embed_captions(
        model,
        CaptionSample(data, pictures, texts),
        batch=batch,
        precision=precision,
        workers=workers,
        cached=None if cached is None else cached[pictures],
        cached_text=None if cached_text is None else cached_text[texts],
    )


class CaptionSample:
    """Some pictures and some captions of a data set: what embedding needs of it, no more."""

    def __init__(self, data: CaptionData, pictures: list[int], texts: list[int]) -> None:
        """By number."""
        self.pictures = _Subset(data.pictures, pictures)
        self.texts = tuple(data.texts[number] for number in texts)


class _Subset:
    def __init__(self, pictures: Openable, numbers: list[int]) -> None:
        self.pictures, self.numbers = pictures, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def open(self, number: int) -> Image.Image:
        return self.pictures.open(self.numbers[number])
