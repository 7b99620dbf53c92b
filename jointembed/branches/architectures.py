"""Torchvision's classification models by name, with the variants that the papers use."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from jointembed.errors import RecipeError


def _vit(width: int, heads: int, *, image_size: int = 224, patch_size: int = 16) -> VisionTransformer:
    return VisionTransformer(image_size, patch_size, 12, heads, width, 4 * width)


NAMED: dict[str, Callable[..., nn.Module]] = {  # what torchvision has the parts of, but no name for
    "vit_tiny_16": partial(_vit, 192, 3),  # Touvron et al. 2021
    "vit_s_16": partial(_vit, 384, 6),  # Touvron et al. 2021; the ViT-S of VICReg's table 4
    "resnet200": partial(ResNet, Bottleneck, [3, 24, 36, 3]),  # He et al. 2016; widen: 2 in VICReg
}
ARGUMENTS: dict[str, dict[str, Any]] = {  # no extra classifiers, and no warning about a slow initialisation
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


ResNetNorm = Literal["batch", "layer"]


@cache
def architectures() -> tuple[str, ...]:
    """Names of all classification models."""
    return (*models.list_models(module=models), *NAMED)


def architecture(
    model: str,
    *,
    zero_init_residual: bool = False,
    small_input: bool = False,
    small_stride: int = 1,
    widen: float = 1.0,
    stem: int | None = None,
    channels: int = 3,
    norm: ResNetNorm = "batch",
    image_size: int | None = None,
    patch_size: int | None = None,
    weights: WeightsEnum | None = None,
) -> nn.Module:
    """A classification model; arguments as in `TorchvisionEncoder`.

    Raises:
        RecipeError: an option that the model does not have.
    """
    if small_stride != 1 and not small_input:
        raise RecipeError("encoder.small_stride: this is the stride of small_input's stem, which is off")
    if not 64 * widen >= 1:
        raise RecipeError(f"encoder.widen: {widen} leaves none of the first 64 channels")
    for_resnets = {
        "zero_init_residual": zero_init_residual,
        "small_input": small_input,
        "widen": widen != 1,
        "stem": stem is not None,
        "channels": channels != 3,
        "norm": norm != "batch",
    }
    if any(for_resnets.values()) or image_size is not None or patch_size is not None:
        with torch.device("meta"):
            kind = type(_make(model, {}))
        for name, given in for_resnets.items():
            _check_option(name, kind, ResNet, given)
        _check_option("image_size", kind, VisionTransformer, image_size is not None)
        if patch_size is not None and not (kind is VisionTransformer and model in NAMED):
            raise RecipeError(f"encoder.patch_size: {model} has a fixed one")
    arguments: dict[str, Any] = {"zero_init_residual": True} if zero_init_residual else {}
    arguments |= {"norm_layer": partial(nn.GroupNorm, 1)} if norm == "layer" else {}
    arguments |= {} if image_size is None else {"image_size": image_size}
    arguments |= {} if patch_size is None else {"patch_size": patch_size}
    if weights is not None:
        return _make(model, arguments | {"weights": weights})
    if stem is not None and stem < 1:
        raise RecipeError(f"encoder.stem: {stem} channels, expected 1 or more")
    usual = widen == 1 and stem is None
    net = _make(model, arguments) if usual else _widened(model, widen, stem, arguments)
    if small_input:
        _new_stem(net, channels, size=3, stride=small_stride)
        net.maxpool = nn.Identity()
    elif channels != 3:
        _new_stem(net, channels, size=7, stride=2)
    return net


def _check_option(name: str, kind: type, wanted: type, given: bool) -> None:
    if given and not issubclass(kind, wanted):
        raise RecipeError(f"encoder.{name}: this is for a {wanted.__name__}; the model is a {kind.__name__}")


def _make(model: str, arguments: dict[str, Any]) -> nn.Module:
    if model in NAMED:
        return NAMED[model](**arguments)
    extra = dict(ARGUMENTS.get(model, {}))
    if "weights" in arguments:  # torchvision then initialises nothing, and refuses to be told to
        extra.pop("init_weights", None)
    with _CountsOnCPU() if model.startswith("regnet") else nullcontext():
        return models.get_model(model, **arguments, **extra)


class _CountsOnCPU(TorchFunctionMode):
    """RegNet's constructor computes its depths and widths with tensors: keep those real on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return function(*args, **kwargs)


class _WideResNet(ResNet):
    """A ResNet whose every layer is `widen` times as wide, but for a stem of `stem` channels where one is given."""

    def __init__(self, widen: float, stem: int | None, *arguments: Any, **options: Any) -> None:
        self.widen, self.stem = widen, stem
        super().__init__(*arguments, **options)
        self.fc = nn.Linear(self.inplanes, 1000)

    def _make_layer(self, block: Any, planes: int, blocks: int, *arguments: Any, **options: Any) -> nn.Sequential:
        planes = round(planes * self.widen)
        if not hasattr(self, "layer1"):  # the first one: the stem before it is still of the usual width
            self.inplanes = self.stem or planes
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, planes, blocks, *arguments, **options)


def _widened(model: str, widen: float, stem: int | None, arguments: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        usual = _make(model, {})
    assert isinstance(usual, ResNet)
    stages = (usual.layer1, usual.layer2, usual.layer3, usual.layer4)
    block = type(usual.layer1[0])
    assert issubclass(block, BasicBlock | Bottleneck)
    return _WideResNet(
        widen,
        stem,
        block,
        [len(stage) for stage in stages],
        groups=usual.groups,
        width_per_group=usual.base_width,
        **arguments,
    )


def _new_stem(net: nn.Module, channels: int, *, size: int, stride: int) -> None:
    assert isinstance(net, ResNet)
    net.conv1 = nn.Conv2d(channels, net.conv1.out_channels, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
