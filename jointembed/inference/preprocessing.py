"""What happens to a picture, a sound or a text before it reaches a graph, in words and numbers."""

from typing import Any

from torch import Tensor, nn

from jointembed.branches.image import Pixels
from jointembed.branches.members import first_member
from jointembed.data.audio_views import SoundViews
from jointembed.data.crops import Centre, Crop, Squash
from jointembed.data.forms import blank
from jointembed.data.pictures import MAX_PIXELS
from jointembed.data.tokens import Tokens
from jointembed.data.views import Views
from jointembed.model import JointEmbedding


def describe_pictures(model: JointEmbedding, view: str) -> dict[str, Any]:
    """The pipeline of a view of pictures, planes or sounds, as `JointEmbedding.encode` has it."""
    pipeline = model.image
    assert pipeline is not None  # a model of pictures has a pipeline
    key = view if view in pipeline.views else pipeline.views[0]
    described: dict[str, Any] = {"pipeline": model.config.get("image"), "view": key}
    if isinstance(pipeline, SoundViews):
        step = f"PCM wav, the mean of its channels, {pipeline.rate} samples a second, cut or filled up with silence"
        return described | {"rate": pipeline.rate, "steps": [step, f"view {key!r} of the pipeline"]}
    described["steps"] = [
        f"decode ({MAX_PIXELS} pixels at most), turn upright by EXIF, lay transparency over white, convert to RGB"
    ]
    crops = pipeline.crops if isinstance(pipeline, Views) else ()
    for crop in [one for one in crops if key in one.output.keys]:
        described |= {"size": [crop.size, crop.size], "interpolation": crop.interpolation, "antialias": True}
        described["steps"] += [*_geometry(crop)]
    shape = " x ".join(map(str, blank(pipeline, key).shape))
    pixels = _pixels(first_member(model.branch(view).encoder))
    if pixels is None:
        described["steps"] += [f"{shape}, channels first"]
        return described
    described |= {"mean": _numbers(pixels.mean), "std": _numbers(pixels.std)}
    described["steps"] += [
        f"bytes {shape}, channels first, RGB",
        "inside the graph: divide by 255, subtract the mean, divide by the standard deviation",
    ]
    return described


def _geometry(crop: Crop) -> list[str]:
    how = f"{crop.interpolation}, antialiased"
    if isinstance(crop.geometry, Squash):
        return [f"resize the whole picture to {crop.size} x {crop.size} without regard to its ratio, {how}"]
    if isinstance(crop.geometry, Centre):
        short = round(crop.size * crop.geometry.resize)
        return [f"resize the shorter side to {short}, {how}", f"cut the middle {crop.size} x {crop.size}"]
    return []


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.flatten().tolist()]  # float32 holds no more digits


def _pixels(encoder: nn.Module) -> Pixels | None:
    """The part of an encoder that takes bytes; an encoder of planes has it too, but never sees bytes."""
    pixels = getattr(encoder, "pixels", None)
    return pixels if isinstance(pixels, Pixels) and getattr(encoder, "channels", 3) == 3 else None


def describe_text(tokens: Tokens | None) -> dict[str, Any]:
    """The tokenizer and what is done to its numbers."""
    assert tokens is not None  # a model of texts has a tokenizer
    return {
        "tokenizer": "tokenizer.json",
        "library": "tokenizers",
        "vocabulary": tokens.vocabulary,
        "max_length": tokens.max_length,
        "padding": {"side": "right", "id": 0},
        "steps": [
            "replace NUL by a space",
            "encode with tokenizer.json, special tokens included",
            f"cut what is longer than {tokens.max_length} tokens, keeping its last token",
            "ids: pad on the right with 0; length: number of tokens of each text, at least 1",
        ],
    }
