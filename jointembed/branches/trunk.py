"""A convolutional encoder cut into its stages: what a detector is built on."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from jointembed.branches.image import TorchvisionEncoder
from jointembed.errors import RecipeError

PROBE = 64  # px of the picture that shows where the maps become smaller


class Stage(NamedTuple):
    """Consecutive blocks whose maps have one size."""

    module: nn.Sequential
    channels: int
    stride: int  # px of the picture a cell of its maps stands for


def stages(encoder: TorchvisionEncoder) -> list[Stage]:
    """The stages of an encoder, from the picture on; they share its parameters.

    Raises:
        RecipeError: an encoder that is no chain of convolutional blocks (vision transformers, Inception ...).
    """
    if not isinstance(encoder, TorchvisionEncoder):
        raise RecipeError(f"detector: {type(encoder).__name__} has no feature maps to build on; use a torchvision one")
    blocks = _blocks(encoder.model)
    found: list[tuple[list[nn.Module], int, int]] = []
    training = encoder.training
    encoder.eval()  # running statistics are not to see the probe
    try:
        with torch.no_grad():
            x = torch.zeros(1, 3, PROBE, PROBE, device=next(encoder.parameters()).device)
            for block in blocks:
                x = block(x)
                stride = PROBE // x.shape[2]
                if found and found[-1][2] == stride:
                    found[-1] = ([*found[-1][0], block], x.shape[1], stride)
                else:
                    found.append(([block], x.shape[1], stride))
    finally:
        encoder.train(training)
    return [Stage(nn.Sequential(*chain), channels, stride) for chain, channels, stride in found]


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of a network in the order in which a picture passes them, up to the last pooling."""
    if isinstance(net, ResNet):
        return [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4]
    if isinstance(net, models.RegNet):
        return [net.stem, *net.trunk_output.children()]
    if isinstance(net, models.ShuffleNetV2):
        return [net.conv1, net.maxpool, net.stage2, net.stage3, net.stage4, net.conv5]
    if isinstance(net, models.MNASNet):
        return list(net.layers.children())
    features = getattr(net, "features", None)
    if isinstance(features, nn.Sequential) and not isinstance(net, models.SwinTransformer):
        return list(features.children())
    raise RecipeError(f"detector: a {type(net).__name__} is no chain of convolutional stages to build on")


def stride_small_stem(encoder: TorchvisionEncoder) -> None:
    """Give a ResNet made with `small_input` the strides of the usual stem: its 3x3 convolution 2, and the max-pool.

    Without them a picture of detection size costs 16 times as much, and no map is coarser than 8 px.

    Raises:
        RecipeError: an encoder without such a stem.
    """
    net = encoder.model
    if not isinstance(net, ResNet) or not isinstance(net.maxpool, nn.Identity):
        raise RecipeError("detector.stride_stem: this is for ResNets made with small_input: true")
    net.conv1.stride = (2, 2)
    net.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def freeze_batch_norm(module: nn.Module) -> None:
    """Put a fixed scale and shift in place of every 2-d batch norm below a module, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _frozen(child))
        else:
            freeze_batch_norm(child)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    fixed = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor: Tensor = getattr(norm, name)
        fixed.register_buffer(name, tensor.detach().clone())
    return fixed
