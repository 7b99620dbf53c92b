"""A data set of one's own: pictures that exist only in memory, each with two captions."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jointembed import build, runs, runs_evaluate
from jointembed.data import DATASETS
from jointembed.data.records import CaptionData
from jointembed.recipe import load_recipe

COLOURS = {"red": "#d62828", "green": "#2a9d4a", "blue": "#2759c4", "yellow": "#f2c118", "black": "#151515"}
SHAPES = ("circle", "square", "triangle")
PLACES = {"left": 16, "middle": 32, "right": 48}


class Drawings:
    """Pictures by number: all that a data set needs are names, a length, `open` and `sizes`."""

    def __init__(self, things: Sequence[tuple[str, ...]]) -> None:
        """Colour, shape and place of each."""
        self.things = things
        self.names: Sequence[str] = [f"{number:04d} {' '.join(one)}" for number, one in enumerate(things)]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.things)

    def open(self, number: int) -> Image.Image:
        """Draw one, a little larger or smaller each time its number comes."""
        colour, shape, place = self.things[number]
        picture = Image.new("RGB", (64, 64), "white")
        radius, middle = 8 + number % 6, (PLACES[place], 32)
        corners = {"circle": 32, "square": 4, "triangle": 3}[shape]
        ImageDraw.Draw(picture).regular_polygon((middle, radius), corners, fill=COLOURS[colour])
        return picture

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture, for the data set's fingerprint; nothing is encoded here."""
        return [0] * len(self.things)


def drawings(*, count: int = 600, seed: int = 0) -> CaptionData:
    """Coloured shapes with two captions each: the keyword-only arguments are what a recipe may set.

    Pictures of the same colour, shape and place are one item: they share their captions, and any of them answers one.
    """
    rng = np.random.default_rng(seed)
    kinds = (list(COLOURS), SHAPES, list(PLACES))
    things = [tuple(str(rng.choice(kind)) for kind in kinds) for _ in range(count)]
    items = sorted(set(things))
    return CaptionData(
        name="drawings",
        pictures=Drawings(things),
        item=np.array([items.index(thing) for thing in things]),
        captions=tuple((f"a {c} {s} on the {p}", f"{p}: one {s}, {c}") for c, s, p in items),
        picture_ids=tuple(f"{number:04d}" for number in range(count)),
    )


if __name__ == "__main__":
    DATASETS["drawings"] = drawings
    blocks = [f"data.{split}={{name: drawings, count: {n}, seed: {seed}}}"
              for split, n, seed in (("train", 600, 0), ("validation", 200, 1), ("test", 200, 2))]  # fmt: skip
    overrides = ["name=drawings", *blocks, "data.image={name: resize, size: 48}", *sys.argv[1:]]
    recipe = build.check(load_recipe("recipes/quickstart.yaml", overrides))
    runs.train(recipe, Path("runs/drawings"), overwrite=True)
    print(runs_evaluate.evaluate_run(Path("runs/drawings"), "test").record["metrics"])
