"""Building blocks shared by branches and objectives."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed import distributed
from jointembed.errors import RecipeError

Norm = Literal["batch", "layer", "none"]


class Embedding(NamedTuple):
    """What a branch gives for one view: representation, embedding and, where asked for, feature maps."""

    h: Tensor  # (N, R) or (N, P, R) for patch views
    z: Tensor  # (N, D) or (N, P, D)
    maps: Tensor | None = None  # (N, C, H, W), of the encoder's last stage
    levels: tuple[Tensor, ...] | None = None  # maps of the last two stages, where the encoder has stages


class MLP(nn.Module):
    """The expander: blocks of Linear, norm, ReLU, and a last Linear alone (VICReg, Bardes et al. 2022, section 4.2).

    Args:
        width: of the input.
        widths: of every layer's output, the last one the embedding's; `[]` leaves the input as it is, one width is a
            single linear layer.
        norm: after every linear layer but the last.
        bias_last: whether the last linear layer has a bias; the centred objectives cannot see one.
        norm_last: the norm, without affine parameters, after the last linear layer too (SimSiam, Chen & He 2021).
        dropout: probability, after every ReLU.
        normalize_input: scale each row of the input to length 1 first (VSE++, Faghri et al. 2018).

    Raises:
        RecipeError: a width below 1, or a dropout outside 0 .. 1.
    """

    def __init__(
        self,
        width: int,
        *,
        widths: list[int],
        norm: Norm = "batch",
        bias_last: bool = False,
        norm_last: bool = False,
        dropout: float = 0.0,
        normalize_input: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        if any(one < 1 for one in widths):
            raise RecipeError(f"expander.widths: every width must be at least 1, found {widths}")
        if not 0 <= dropout < 1:
            raise RecipeError(f"expander.dropout: must be at least 0 and below 1, found {dropout}")
        self.width = widths[-1] if widths else width
        self.normalize_input = normalize_input
        layers: list[nn.Module] = []
        for before, after in zip([width, *widths[:-1]], widths[:-1], strict=False):
            layers += [nn.Linear(before, after), *_norm(norm, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        if widths:
            layers.append(nn.Linear([width, *widths][-2], widths[-1], bias=bias_last))
            layers += _norm(norm, widths[-1], affine=False) if norm_last else []
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """Representations (N, R) to embeddings (N, D)."""
        return self.layers(functional.normalize(h, dim=-1) if self.normalize_input else h)


def _norm(kind: Norm, width: int, *, affine: bool = True) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm1d(width, affine=affine)]
    return [nn.LayerNorm(width, elementwise_affine=affine)]


Pool = Literal["mean", "max", "last", "cls"]


def valid_positions(length: Tensor, size: int) -> Tensor:
    """Which of `size` positions hold a token: (N,) lengths to (N, size) bool."""
    return torch.arange(size, device=length.device) < length[:, None]


def pool_tokens(states: Tensor, length: Tensor, how: Pool) -> Tensor:
    """One vector a sequence, padding left out.

    Args:
        states: (N, T, D), padded on the right.
        length: (N,) int64, at least 1.
        how: mean or maximum of the valid states, the last valid one, or the first (`cls`).

    Returns:
        (N, D).
    """
    if how == "cls":
        return states[:, 0]
    if how == "last":
        return states[torch.arange(states.shape[0], device=states.device), length - 1]  # len() would fix N in a graph
    valid = valid_positions(length, states.shape[1])[:, :, None]
    if how == "max":
        return states.masked_fill(~valid, float("-inf")).amax(dim=1)
    return states.masked_fill(~valid, 0).sum(dim=1) / length[:, None]


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks. Each rank's gradient of the sum is a part only, so backward adds them up too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return distributed.sum_over_ranks(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return distributed.sum_over_ranks(gradients[0])


class _GatheredBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all ranks, exact for uneven row counts, forward and gradient, on any backend."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of (N, C, ...) by the statistics of every rank's N."""
        if distributed.world() == 1 or not (self.training or self.running_mean is None):
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            return self._normalised(x.to(dtype)).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        own = x.new_full((1,), x.numel() // self.num_features)
        total = _SumOverRanks.apply(torch.cat([x.sum(dims), own]))
        count = total[-1].detach()
        if count <= 1:
            raise ValueError(f"batch norm needs more than one value per channel over all ranks, found {int(count)}")
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        # a second sum: the sum of squares minus the squared sum would lose the digits that both share
        variance = _SumOverRanks.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        x = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class GatheredBatchNorm1d(_GatheredBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the rows of all ranks, for backends that `nn.SyncBatchNorm` refuses; same state dict."""


class GatheredBatchNorm2d(_GatheredBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the rows of all ranks, for backends that `nn.SyncBatchNorm` refuses; same state dict."""


def convert_batch_norm(module: nn.Module, device_type: str) -> nn.Module:
    """Make every batch norm one over the rows of all ranks, in place; with one rank nothing changes.

    Args:
        module: its parameters and buffers are taken over as they are.
        device_type: `cpu` takes the gathered form, an accelerator `nn.SyncBatchNorm`.

    Returns:
        The module, or its replacement where it is a batch norm itself.
    """
    if distributed.world() == 1:
        return module
    if device_type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        setattr(module, name, convert_batch_norm(child, device_type))
    for plain, gathered in ((nn.BatchNorm1d, GatheredBatchNorm1d), (nn.BatchNorm2d, GatheredBatchNorm2d)):
        if type(module) is plain:
            return _taken_over(gathered, module)
    return module


def _taken_over(gathered: type[_GatheredBatchNorm], old: nn.Module) -> nn.Module:
    assert isinstance(old, nn.modules.batchnorm._BatchNorm)
    new = gathered(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats, device="meta")
    for name, parameter in old.named_parameters():
        new.register_parameter(name, parameter)
    for name, buffer in old.named_buffers():
        new.register_buffer(name, buffer)
    return new.train(old.training)
