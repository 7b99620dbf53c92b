"""Image encoders: any torchvision classification model without its classifier."""

import difflib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from jointembed.branches.architectures import NAMED, ResNetNorm, architecture, architectures
from jointembed.branches.weights import encoder_state, load_strictly, read_state
from jointembed.errors import RecipeError, WeightsError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAPS: dict[type[nn.Module], str] = {  # the module whose output is the last feature maps; `features` elsewhere
    ResNet: "layer4",
    VisionTransformer: "encoder",
    models.SwinTransformer: "permute",
    models.RegNet: "trunk_output",
    models.ShuffleNetV2: "conv5",
    models.MNASNet: "layers",
    models.MaxVit: "blocks.3",
    models.GoogLeNet: "inception5b",
    models.Inception3: "Mixed_7c",
}
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # the extra classifiers of GoogLeNet and Inception


class Pixels(nn.Module):
    """Pictures as an encoder wants them: uint8 is scaled to 0 .. 1 and normalised, float is taken as it is.

    Mean and std are buffers, so that a saved model carries those of its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to the same; channels last in memory, which convolutions on a CPU run up to 1.7 x faster."""
        if x.dtype == torch.uint8:
            x = x.to(self.mean.dtype).sub_(255 * self.mean).div_(255 * self.std)
        return x.contiguous(memory_format=torch.channels_last)


class TorchvisionEncoder(nn.Module):
    """A torchvision classification model without its classifier; `width` is the classifier's input.

    Args:
        model: name in torchvision, or `vit_tiny_16`, `vit_s_16` (192 / 384 wide, 3 / 6 heads, 12 deep) or `resnet200`.
        weights: a name of torchvision's weights of that model (found in `TORCH_HOME`, else downloaded), or a file in
            one of the layouts of `weights.LAYOUTS`; None starts from torchvision's initialisation.
        zero_init_residual: ResNets: the last batch norm of each block starts at 0 (Goyal et al. 2017).
        small_input: ResNets: a 3x3 stem of stride 1 without max-pool, for pictures of 32-64 px (SimCLR, appendix B.9).
        small_stride: of that stem; 2 costs a quarter.
        widen: ResNets: factor on the width of every layer; 2 is the x2 of VICReg and SwAV, .5 the half width of CMC.
        stem: ResNets: channels of the first convolution; None: as many as the first stage (CMC's halves keep 64).
        channels: ResNets: planes of a picture; other than 3 they must be float (CMC: 1 of luminance, 2 of chroma).
        norm: ResNets: `layer` in place of batch norm normalises each picture, over all channels and places (CPC v2).
        image_size: vision transformers: side of the pictures in px; published positions are interpolated to it.
        patch_size: `vit_tiny_16` and `vit_s_16`: side of a patch in px.
        mirror: while it does not train, a picture's representation is the mean of its own and its mirror image's, at
            twice the cost; maps are its own.

    Raises:
        RecipeError: unknown model, or an option that the model does not have.
        WeightsError: weights that are not there, cannot be read, or are of another architecture.
    """

    modality = "image"

    def __init__(
        self,
        *,
        model: str = "resnet50",
        weights: str | None = None,
        zero_init_residual: bool = False,
        small_input: bool = False,
        small_stride: int = 1,
        widen: float = 1.0,
        stem: int | None = None,
        channels: int = 3,
        norm: ResNetNorm = "batch",
        image_size: int | None = None,
        patch_size: int | None = None,
        mirror: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        if model not in architectures():
            close = difflib.get_close_matches(model, architectures(), n=1, cutoff=0.0)[0]
            raise RecipeError(f"encoder.model: torchvision has no classification model {model!r}; nearest is {close!r}")
        options: dict[str, Any] = {
            "zero_init_residual": zero_init_residual,
            "small_input": small_input,
            "small_stride": small_stride,
            "widen": widen,
            "stem": stem,
            "channels": channels,
            "norm": norm,
            "image_size": image_size,
            "patch_size": patch_size,
        }
        published = None if weights is None or model in NAMED else _published(model, weights)
        if published is None:
            net = architecture(model, **options)
        else:
            net = _pretrained(model, published, options)
        head, self.width = _remove_classifier(net)
        self.channels, self.mirror = channels, mirror
        self.model = net
        self.pixels = Pixels() if published is None else _pixels_of(published)
        if weights is not None and published is None:
            _load_file(net, weights, (head, *AUXILIARY), model, interpolate=image_size is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), uint8 or normalised float, or `channels` float planes, to representations (N, R).

        Raises:
            RecipeError: planes that this encoder was not built for, or pictures of a size that its vision transformer
                was not.
        """
        if x.shape[-3] != self.channels or (x.dtype == torch.uint8 and self.channels != 3):
            kind = "bytes" if x.dtype == torch.uint8 else "floats"
            raise RecipeError(
                f"encoder.channels: {x.shape[-3]} planes of {kind} reach an encoder of {self.channels}; "
                "bytes are pictures of 3"
            )
        if isinstance(self.model, VisionTransformer) and x.shape[-2:] != (self.model.image_size,) * 2:
            size = "x".join(map(str, x.shape[:-3:-1]))
            raise RecipeError(
                f"encoder.image_size: pictures of {size} px reach a vision transformer of {self.model.image_size}"
            )
        pixels = self.pixels(x)
        h = self.model(pixels)
        return h if self.training or not self.mirror else (h + self.model(pixels.flip(-1))) / 2

    def forward_with_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representations (N, R) and the last feature maps (N, C, H, W) of one pass; a ViT's are its patch tokens."""
        h, levels = self.forward_with_levels(x)
        return h, levels[-1]

    def forward_with_levels(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Representations, and the maps of a ResNet's last two stages; of other models the last maps alone."""
        last = next((name for kind, name in MAPS.items() if isinstance(self.model, kind)), "features")
        names = ["layer3", last] if isinstance(self.model, ResNet) else [last]
        seen: list[Tensor] = []
        handles = [
            self.model.get_submodule(name).register_forward_hook(lambda _, inputs, output: seen.append(output))
            for name in names
        ]
        try:
            h = self(x)
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(self.model, VisionTransformer):
            side = self.model.image_size // self.model.patch_size
            return h, (seen[0][:, 1:].transpose(1, 2).unflatten(2, (side, side)),)
        return h, tuple(seen[: len(names)])  # a mirror image's come after


def _published(model: str, weights: str) -> WeightsEnum | None:
    """Torchvision's weights of that name, or None where `weights` is a file."""
    known = models.get_model_weights(model).__members__
    if weights in known:
        return known[weights]
    if not Path(weights).is_file():
        raise WeightsError(f"weights {weights!r}: no such file, and {model} has only {', '.join(known) or 'none'}")
    return None


def _pretrained(model: str, published: WeightsEnum, options: dict[str, Any]) -> nn.Module:
    unfit = {"small_input": False, "widen": 1, "stem": None, "channels": 3, "norm": "batch", "patch_size": None}
    if any(options[name] != usual for name, usual in unfit.items()):
        raise WeightsError(f"weights {published.name} of {model} fit none of {', '.join(unfit)}")
    try:
        net = architecture(model, **(options | {"image_size": None}), weights=published)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"weights {published.name} of {model}: {Path(published.url).name} cannot be had, neither from TORCH_HOME "
            f"({torch.hub.get_dir()}/checkpoints) nor from the network ({error})"
        ) from None
    size = options["image_size"]
    if size is None or size == getattr(net, "image_size", size):
        return net
    larger = architecture(model, **options)
    state = interpolate_embeddings(size, net.patch_size, net.state_dict())
    load_strictly(larger, state, published.name)
    return larger


def _pixels_of(published: WeightsEnum) -> Pixels:
    transforms = published.transforms()
    return Pixels(getattr(transforms, "mean", IMAGENET_MEAN), getattr(transforms, "std", IMAGENET_STD))


def _load_file(net: nn.Module, file: str, heads: tuple[str, ...], model: str, *, interpolate: bool) -> None:
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"weights {file!r}: no such file")
    state = encoder_state(read_state(path), heads, path)
    if interpolate and isinstance(net, VisionTransformer) and "encoder.pos_embedding" in state:
        state = dict(interpolate_embeddings(net.image_size, net.patch_size, state))
    load_strictly(net, state, f"{path} (for {model})")


def _remove_classifier(net: nn.Module) -> tuple[str, int]:
    """Put the identity in place of the last layer and of dropout right before it; the layer's name and input width."""
    layers = [(name, one) for name, one in net.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]
    parent = net.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.Sequential):
        position = [child is last for child in parent].index(True)
        parent[position] = nn.Identity()
        if position and isinstance(parent[position - 1], nn.Dropout):
            parent[position - 1] = nn.Identity()
    else:
        setattr(parent, name.rpartition(".")[2], nn.Identity())
    if isinstance(getattr(net, "dropout", None), nn.Dropout):
        net.dropout = nn.Identity()
    return name, last.in_features if isinstance(last, nn.Linear) else last.in_channels
