"""The forms in which users have their pictures and sounds, for `JointEmbedding.encode`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jointembed.data.audio import Sound, open_sound
from jointembed.data.audio_views import SoundViews
from jointembed.data.pictures import open_picture, upright_rgb
from jointembed.data.samples import PictureView
from jointembed.errors import DataError

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor


def is_one(inputs: Any, pipeline: PictureView | None) -> bool:
    """Whether this is one input rather than a list of them.

    Args:
        inputs: anything.
        pipeline: of the view, which says how many axes one array has; None for text, which has no arrays.
    """
    if isinstance(inputs, str | bytes | Path | Image.Image | Sound):
        return True
    axes = 1 if isinstance(pipeline, SoundViews) else 3
    return pipeline is not None and isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == axes


def as_view(pipeline: PictureView, source: Any, key: str, label: str) -> Tensor:
    """One picture or sound, in any form, as the tensor of a view.

    Args:
        pipeline: of the model.
        source: see `as_picture` and `as_sound`; or, in place of a picture, the float tensor that the pipeline would
            make of it (planes, or a picture that was scaled and normalised elsewhere).
        key: which of the pipeline's views.
        label: what messages call it.

    Raises:
        DataError: naming `label`.
    """
    if isinstance(pipeline, SoundViews):
        return pipeline(as_sound(source, pipeline.rate, label))[key]
    if not isinstance(source, Tensor) or not source.is_floating_point():
        return pipeline(as_picture(source, label))[key]
    shape = tuple(blank(pipeline, key).shape)
    if tuple(source.shape) != shape:
        raise DataError(
            f"{label}: a float tensor must be prepared as the model's pipeline does, {shape}, or be bytes (3, H, W); "
            f"found {tuple(source.shape)}"
        )
    return _finite(source.detach().float().cpu(), label)


def blank(pipeline: PictureView, key: str) -> Tensor:
    """What a pipeline makes of a black picture or of silence: shape and type of a view."""
    empty = Sound(torch.zeros(pipeline.rate), pipeline.rate) if isinstance(pipeline, SoundViews) else None
    return pipeline(Image.new("RGB", (64, 64)) if empty is None else empty)[key]


def as_picture(source: Any, label: str) -> Image.Image:
    """Any of the forms a user has a picture in, as an upright RGB image; one that is open is left as it is.

    Args:
        source: path, bytes of a file, PIL image, (H, W, 3) uint8 array or (3, H, W) uint8 tensor.
        label: what messages call it.

    Raises:
        DataError: naming the file or `label`.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source.copy(), label)
    if isinstance(source, str | Path):
        return open_picture(Path(source))
    if isinstance(source, bytes):
        return open_picture(source, name=label)
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] != 3 or source.dtype != torch.uint8:
            raise DataError(f"{label}: a tensor must be (3, H, W) uint8, found {tuple(source.shape)} {source.dtype}")
        return Image.fromarray(source.permute(1, 2, 0).cpu().numpy())
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise DataError(f"{label}: an array must be (H, W, 3) uint8, found {source.shape} {source.dtype}")
        return Image.fromarray(source)
    raise DataError(f"{label}: not a picture but {type(source).__name__}")


def as_sound(source: Any, rate: int, label: str) -> Sound:
    """Any of the forms a user has a sound in.

    Args:
        source: path of a wav file, `Sound`, or (T,) float array or tensor in -1 .. 1.
        rate: samples a second of such an array.
        label: what messages call it.

    Raises:
        DataError: naming the file or `label`.
    """
    if isinstance(source, Sound):
        return source
    if isinstance(source, str | Path):
        return open_sound(Path(source))
    if isinstance(source, np.ndarray | Tensor):
        samples = torch.as_tensor(source)
        if samples.ndim != 1 or not len(samples) or not samples.is_floating_point():
            raise DataError(f"{label}: a sound must be (T,) floats, found {tuple(samples.shape)} {samples.dtype}")
        return Sound(_finite(samples.detach().float().cpu(), label), rate)
    raise DataError(f"{label}: not a sound but {type(source).__name__}")


def _finite(values: Tensor, label: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{label}: has values that are not finite")
    return values
