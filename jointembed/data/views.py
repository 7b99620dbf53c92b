"""View pipelines: how one decoded picture becomes the tensors of its views. Every pipeline is a row of `VIEWS`.

A row is data: a builder of this file and the values that the authors of a method gave its parameters. A pipeline
draws everything random first, from torch's global generator, then renders; one decode serves all views. Views leave
as bytes, the encoder scales and normalises them. In training a JPEG is decoded at 1/2, 1/4 or 1/8 where the crops drawn
leave room for it (the parameter `margin` of every row); a picture that is open already is used as it is.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from jointembed.data.augment import Interpolation
from jointembed.data.crops import Area, Centre, Colour, Crop, Opponents, Patches, Squash, Whole
from jointembed.data.pipeline import MARGIN, Views
from jointembed.errors import RecipeError

# -- builders -------------------------------------------------------------------------------------------------------


def resize(*, size: int, interpolation: Interpolation) -> Views:
    """`image`: the whole picture squashed to size x size."""
    return Views([Crop(Whole("image"), size, Squash(), interpolation)])


def center(*, size: int, resize: float, interpolation: Interpolation) -> Views:
    """`image`: the shorter side resized to `resize` times the size, then the middle."""
    return Views([Crop(Whole("image"), size, Centre(resize), interpolation)])


def one_crop(
    *,
    size: int,
    scale: list[float],
    ratio: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    blur: float,
    sigma: list[float],
    solarize: float,
) -> Views:
    """`image`: one random resized crop. Jitter is brightness, contrast, saturation, hue; the rest probabilities."""
    colour = Colour(jitter, jitter_p, grey, blur, sigma, solarize, flip)
    return Views([Crop(Whole("image"), size, Area(scale, ratio), interpolation, colour)])


def pair(
    *,
    size: int,
    scale: list[float],
    ratio: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    blur: list[float],
    sigma: list[float],
    solarize: list[float],
    operations: int,
    magnitude: float,
    boxes: bool,
    grey_first: bool,
) -> Views:
    """`view1`, `view2`: two random resized crops; `blur` and `solarize` have one probability a view.

    `operations` of RandAugment at `magnitude` (0 to 10) follow the blur. `boxes` adds `view1_box`, `view2_box` (5,),
    where in the picture the views lie and whether they are flipped. `grey_first` turns grey before the jitter.
    """
    _pair_of(blur, "blur")
    _pair_of(solarize, "solarize")
    return Views(
        [
            Crop(
                Whole(f"view{number + 1}", boxes),
                size,
                Area(scale, ratio),
                interpolation,
                Colour(
                    jitter,
                    jitter_p,
                    grey,
                    blur[number],
                    sigma,
                    solarize[number],
                    flip,
                    operations,
                    magnitude,
                    grey_first=grey_first,
                ),  # fmt: skip
            )
            for number in range(2)
        ]
    )


def multi_crop(
    *,
    sizes: list[int],
    counts: list[int],
    scales: list[list[float]],
    ratio: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    blur: float,
    sigma: list[float],
    solarize: float,
) -> Views:
    """`view1` ... of the first size, `crop1` ... of all others: `counts[i]` crops of `sizes[i]` and `scales[i]`."""
    if not len(sizes) == len(counts) == len(scales) > 0:
        raise RecipeError(f"multi_crop: {len(sizes)} sizes, {len(counts)} counts and {len(scales)} scales")
    if min(counts) < 1:
        raise RecipeError(f"multi_crop: counts are {counts}, each must be 1 or more")
    colour = Colour(jitter, jitter_p, grey, blur, sigma, solarize, flip)
    names = [f"view{number + 1}" for number in range(counts[0])]
    names += [f"crop{number + 1}" for number in range(sum(counts[1:]))]
    kinds = [kind for kind, count in enumerate(counts) for _ in range(count)]
    return Views(
        [
            Crop(Whole(name), sizes[kind], Area(scales[kind], ratio), interpolation, colour)
            for name, kind in zip(names, kinds, strict=True)
        ]
    )


def obow(
    *,
    size: int,
    resize: float,
    crop_size: int,
    crop_scale: list[float],
    crops: int,
    patch_size: int,
    patches: int,
    patch_source: int,
    patch_scale: list[float],
    patch_jitter: int,
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    blur: float,
    sigma: list[float],
) -> Views:
    """`image` for the teacher; `view1` ... and, cut out of one further crop, `crop1` ... for the student.

    The patches are `patches` of a 3 x 3 grid over a crop of `patch_source` pixels, each moved by up to `patch_jitter`.
    """
    colour = Colour(jitter, jitter_p, grey, blur, sigma, 0.0, flip)
    unblurred = Colour(jitter, jitter_p, grey, 0.0, sigma, 0.0, flip)
    stride = (patch_source - patch_size - patch_jitter) // 2
    grid = Patches("crop", 3, patch_size, stride, patch_jitter, keep=patches, separate=True)
    image = Crop(Whole("image"), size, Centre(resize), interpolation, Colour(flip=flip))
    views = [
        Crop(Whole(f"view{number + 1}"), crop_size, Area(crop_scale), interpolation, colour) for number in range(crops)
    ]
    return Views([image, *views, Crop(grid, patch_source, Area(patch_scale), interpolation, unblurred)])


def jigsaw(
    *,
    size: int,
    scale: list[float],
    patch_size: int,
    patch_source: int,
    patch_scale: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    photometric: float,
) -> Views:
    """`view1` and `patches` (9, 3, h, h): one patch at random in each cell of a 3 x 3 grid, in random order.

    The view and each patch have colours and a flip of their own.
    """
    colour = Colour(jitter, jitter_p, grey, flip=flip, photometric=photometric)
    crop = Crop(Whole("view1"), size, Area(scale), interpolation, colour)
    grid = _cells(patch_size, patch_source)
    return Views([crop, Crop(grid, patch_source, Area(patch_scale), interpolation, patch_colour=colour)])


def _cells(size: int, source: int) -> Patches:
    cell = source // 3
    return Patches("patches", 3, size, cell, cell - size, shuffle=True)


def pair_and_jigsaw(
    *,
    size: int,
    scale: list[float],
    ratio: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
    blur: list[float],
    sigma: list[float],
    solarize: list[float],
    operations: int,
    magnitude: float,
    boxes: bool,
    grey_first: bool,
    patch_size: int,
    patch_source: int,
    patch_scale: list[float],
) -> Views:
    """What `pair` gives, and `patches` (9, 3, h, h) as in `jigsaw` but in the picture's colours, flipped as one."""
    two = pair(
        size=size, scale=scale, ratio=ratio, interpolation=interpolation, flip=flip, jitter=jitter, jitter_p=jitter_p,
        grey=grey, blur=blur, sigma=sigma, solarize=solarize, operations=operations, magnitude=magnitude, boxes=boxes,
        grey_first=grey_first,
    )  # fmt: skip
    grid = _cells(patch_size, patch_source)
    return Views([*two.crops, Crop(grid, patch_source, Area(patch_scale), interpolation, Colour(flip=flip))])


def patch_grid(
    *,
    size: int,
    scale: list[float],
    patch_size: int,
    stride: int,
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    grey: float,
) -> Views:
    """`patches` (P, 3, h, h): a regular grid of overlapping patches, row by row."""
    if stride < 1:
        raise RecipeError(f"stride: {stride} pixels from one patch to the next, expected 1 or more")
    grid = Patches("patches", (size - patch_size) // stride + 1, patch_size, stride)
    colour = Colour(jitter, jitter_p, grey, flip=flip)
    return Views([Crop(grid, size, Area(scale), interpolation, colour)])


def luminance_chroma(
    *,
    size: int,
    scale: list[float],
    ratio: list[float],
    interpolation: Interpolation,
    flip: float,
    jitter: list[float],
    jitter_p: float,
    space: Literal["lab", "ydbdr"],
) -> Views:
    """`luminance` (1, H, W) and `chroma` (2, H, W): float planes of one crop, each scaled to -1 .. 1."""
    colour = Colour(jitter, jitter_p, flip=flip)
    return Views([Crop(Opponents(space), size, Area(scale, ratio), interpolation, colour)])


def _pair_of(values: Sequence[float], name: str) -> None:
    if len(values) != 2:
        raise RecipeError(f"{name}: {list(values)}, expected one probability for each of the two views")


# -- the table ------------------------------------------------------------------------------------------------------


Pipeline = TypeVar("Pipeline")


def row(builder: Callable[..., Pipeline], **defaults: Any) -> Callable[..., Pipeline]:
    """A builder with default values for its parameters, which its signature shows."""
    signature = inspect.signature(builder)
    if set(defaults) != set(signature.parameters):
        raise TypeError(f"defaults and parameters differ: {set(defaults) ^ set(signature.parameters)}")

    @functools.wraps(builder)
    def build(**chosen: Any) -> Pipeline:
        signature.bind(**(defaults | chosen))
        return builder(**(defaults | chosen))

    parameters = [parameter.replace(default=defaults[key]) for key, parameter in signature.parameters.items()]
    build.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return build


def picture_row(builder: Callable[..., Views], **defaults: Any) -> Callable[..., Views]:
    """A row whose pipeline has a `margin` too (of `Views`): that of rows that are random, where none is given.

    The views of the others are mostly those of evaluation as well, and stay what evaluation sees.
    """

    @functools.wraps(builder)
    def build(*, margin: float | None, **chosen: Any) -> Views:
        return Views(builder(**chosen).crops, margin)

    signature = inspect.signature(builder)
    own = inspect.Parameter("margin", inspect.Parameter.KEYWORD_ONLY, annotation=float | None)
    build.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
    build.__annotations__ = builder.__annotations__ | {"margin": float | None}
    return row(build, **({"margin": MARGIN} | defaults))


_CROP = {"size": 224, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bilinear", "flip": 0.5}
_PAIR = _CROP | {
    "jitter": [0.4, 0.4, 0.4, 0.1], "jitter_p": 0.8, "grey": 0.2, "blur": [0.5, 0.5], "sigma": [0.1, 2.0],
    "solarize": [0.0, 0.0], "operations": 0, "magnitude": 10.0, "boxes": False,
    "grey_first": False,
}  # fmt: skip
_BYOL = _PAIR | {
    "interpolation": "bicubic", "jitter": [0.4, 0.4, 0.2, 0.1], "blur": [1.0, 0.1], "solarize": [0.0, 0.2],
}  # fmt: skip
_STRONG = {"jitter": [0.8, 0.8, 0.8, 0.2]}
_INFOMIN = _PAIR | _STRONG | {"scale": [0.2, 1.0], "operations": 2}
_MOCO_V1 = {
    "scale": [0.2, 1.0], "jitter": [0.4, 0.4, 0.4, 0.4], "jitter_p": 1.0, "blur": [0.0, 0.0], "grey_first": True,
}  # fmt: skip
_PATCHES = {"patch_size": 64, "patch_source": 255, "patch_scale": [0.6, 1.0]}
_SWAV = {
    "sizes": [224, 96], "counts": [2, 6], "scales": [[0.14, 1.0], [0.05, 0.14]], "ratio": [3 / 4, 4 / 3],
    "interpolation": "bilinear", "flip": 0.5, "jitter": [0.8, 0.8, 0.8, 0.2], "jitter_p": 0.8, "grey": 0.2,
    "blur": 0.5, "sigma": [0.1, 2.0], "solarize": 0.0,
}  # fmt: skip

VIEWS: dict[str, Callable[..., Views]] = {
    "resize": picture_row(resize, margin=None, size=224, interpolation="bilinear"),
    "center": picture_row(center, margin=None, size=224, resize=256 / 224, interpolation="bilinear"),
    "crop": picture_row(
        one_crop, **_CROP, jitter=[0.4, 0.4, 0.4, 0.1], jitter_p=0.0, grey=0.0, blur=0.0, sigma=[0.1, 2.0], solarize=0.0
    ),
    "vicreg": picture_row(pair, **_BYOL),
    "vicreg_symmetric": picture_row(pair, **_BYOL | {"blur": [0.5, 0.5], "solarize": [0.1, 0.1]}),
    "vicregl": picture_row(pair, **_BYOL | {"boxes": True}),
    "byol": picture_row(pair, **_BYOL),
    "simclr": picture_row(pair, **_PAIR | _STRONG | {"interpolation": "bicubic"}),
    "moco_v1": picture_row(
        pair, **_PAIR | _MOCO_V1
    ),
    "moco_v2": picture_row(pair, **_PAIR | {"scale": [0.2, 1.0]}),
    "infomin": picture_row(pair, **_INFOMIN),
    "infomin_jigsaw": picture_row(pair_and_jigsaw, **_INFOMIN | _PATCHES),
    "swav": picture_row(multi_crop, **_SWAV | {"sizes": [224], "counts": [2], "scales": [[0.08, 1.0]]}),
    "multi_crop": picture_row(multi_crop, **_SWAV),
    "obow": picture_row(
        obow, size=224, resize=256 / 224, crop_size=160, crop_scale=[0.08, 0.6], crops=2, patch_size=96, patches=5,
        patch_source=256, patch_scale=[0.6, 1.0], patch_jitter=24, interpolation="bilinear", flip=0.5,
        jitter=[0.4, 0.4, 0.4, 0.1], jitter_p=0.8, grey=0.2, blur=0.5, sigma=[0.1, 2.0],
    ),
    "pirl": picture_row(
        jigsaw, **_PATCHES, size=224, scale=[0.08, 1.0], interpolation="bilinear", flip=0.5,
        jitter=[0.4, 0.4, 0.4, 0.2], jitter_p=1.0, grey=0.2, photometric=0.66,
    ),
    "cpc": picture_row(
        patch_grid, size=256, scale=[0.3, 1.0], patch_size=64, stride=32, interpolation="bilinear", flip=0.5,
        jitter=[0.8, 0.8, 0.8, 0.2], jitter_p=0.8, grey=0.25,
    ),
    "cmc": picture_row(
        luminance_chroma, size=224, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], interpolation="bilinear", flip=0.5,
        jitter=[0.4, 0.4, 0.4, 0.1], jitter_p=0.0, space="lab",
    ),
}  # fmt: skip
