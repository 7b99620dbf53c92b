"""Sound: a one-dimensional ResNet for waveforms; mel spectrograms go through `TorchvisionEncoder`, `channels: 1`."""

from torch import Tensor, nn
from torch.nn import functional

from jointembed.errors import RecipeError


class WaveformResNet(nn.Module):
    """A ResNet of basic blocks (He et al. 2016) over time.

    A k x k convolution of the ResNet for pictures has k^2 taps here, and a stride of s is s^2: depth, widths, number of
    weights and the share of the input that a place sees are the same.

    Args:
        blocks: of the four stages; [2, 2, 2, 2] is a ResNet-18, [3, 4, 6, 3] a ResNet-34.
        channels: of the first stage; each later one has twice as many.

    Attributes:
        width: channels of the last stage.

    Raises:
        RecipeError: no four stages of at least one block, or no channel.
    """

    modality = "audio"

    def __init__(self, *, blocks: tuple[int, ...] = (2, 2, 2, 2), channels: int = 64) -> None:
        """See the class."""
        super().__init__()
        if len(blocks) != 4 or min(*blocks, channels) < 1:
            raise RecipeError(f"encoder: four stages of blocks, and channels, expected; found {blocks} and {channels}")
        self.stem = nn.Sequential(
            nn.Conv1d(1, channels, 49, stride=4, padding=24, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.MaxPool1d(9, stride=4, padding=4),
        )
        stages: list[nn.Module] = []
        before = channels
        for stage, count in enumerate(blocks):
            after = channels * 2**stage
            strides = [1 if stage == 0 else 4] + [1] * (count - 1)
            widths = [before] + [after] * (count - 1)
            stages += [_Block(wide, after, stride) for wide, stride in zip(widths, strides, strict=True)]
            before = after
        self.stages = nn.Sequential(*stages)
        self.width = before
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Waveforms (N, 1, T) in -1 .. 1 to representations (N, R), the mean over time.

        Raises:
            RecipeError: another shape.
        """
        if x.ndim != 3 or x.shape[1] != 1 or not x.is_floating_point():
            raise RecipeError(f"encoder: float waveforms (N, 1, T) expected, found {x.dtype} {tuple(x.shape)}")
        return self.stages(self.stem(x)).mean(2)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, 9, stride=stride, padding=4, bias=False)
        self.bn1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, 9, padding=4, bias=False)
        self.bn2 = nn.BatchNorm1d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv1d(before, after, 1, stride=stride, bias=False), nn.BatchNorm1d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))
