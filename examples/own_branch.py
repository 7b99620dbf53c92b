"""An encoder of one's own under a name of one's own: keyword-only arguments are what a recipe may set."""

import sys
from pathlib import Path

from torch import Tensor, nn

from jointembed import build, runs
from jointembed.branches import ENCODERS
from jointembed.recipe import load_recipe


class Colours(nn.Module):
    """The mean colours of a grid: pictures (N, 3, H, W) bytes to (N, 3 * grid * grid)."""

    def __init__(self, *, grid: int = 4) -> None:
        """See the class."""
        super().__init__()
        self.grid, self.width = grid, 3 * grid * grid

    def forward(self, x: Tensor) -> Tensor:
        """Representations of a batch."""
        return nn.functional.adaptive_avg_pool2d(x / 255.0 - 0.5, self.grid).flatten(1)


if __name__ == "__main__":
    ENCODERS["colours"] = Colours
    overrides = ["name=colours", "branches.image.encoder={name: colours, grid: 4}", *sys.argv[1:]]
    runs.train(build.check(load_recipe("recipes/quickstart.yaml", overrides)), Path("runs/colours"), overwrite=True)
