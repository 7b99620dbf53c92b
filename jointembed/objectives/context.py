"""The masked convolutional network that CPC v2 sums up rows of patches with. Henaff et al., ICML 2020, appendix A.2."""

from torch import Tensor, nn
from torch.nn import functional


class Context(nn.Sequential):
    """Residual blocks and a ReLU over a grid (n, H, W, R): a cell's context holds its row and the rows above alone.

    That is so by construction: the only layer that looks across rows sees the own one and the one above, and norms are
    of one cell.

    Args:
        width: R.
        blocks: how many; B of them reach B rows up and B columns to both sides.
        hidden: width inside of a block.
    """

    def __init__(self, width: int, *, blocks: int = 5, hidden: int = 256) -> None:
        """See the class."""
        super().__init__(*(_Block(width, hidden) for _ in range(blocks)), nn.ReLU())


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU())
        self.across = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(hidden, hidden, (2, 1))
        self.widen = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.across(self.narrow(x).movedim(-1, 1))
        inner = functional.relu(self.down(functional.pad(inner, (0, 0, 1, 0))))
        return x + self.widen(inner.movedim(1, -1))
