"""A pipeline of crops: drawn from the size of a picture, rendered from one decode of it, reduced where it may be."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from jointembed.data import augment
from jointembed.data.crops import Crop, Plan, render_crop
from jointembed.data.pictures import reduced
from jointembed.errors import RecipeError

MARGIN = 2.0  # the finest detail of a reduced decode is then 2 to 3% weaker than of a whole one; at 1 it is 5 to 12%


class Views:
    """A pipeline of crops.

    Attributes:
        views: keys of what it returns.
        random: whether two calls differ.
    """

    def __init__(self, crops: Sequence[Crop], margin: float | None = None) -> None:
        """Keep the crops, drawn and rendered in this order.

        Args:
            crops: where they lie and what they become.
            margin: pixels that every crop must keep for each of its own, along both axes, where `opened` decodes a
                JPEG at a reduced size; None always decodes the whole.
        """
        if margin is not None and margin < 1:
            raise RecipeError(f"margin: {margin}, expected 1 or more decoded pixels for each of a view, or null")
        self.crops, self.margin = tuple(crops), margin
        self.views = tuple(key for crop in self.crops for key in crop.output.keys)
        self.random = any(crop.random for crop in self.crops)

    def __call__(self, picture: Image.Image) -> dict[str, Tensor]:
        """Draw and render: view -> bytes (3, size, size), or what the row says, on the global generator of torch."""
        return self.render(picture, self.draw(*picture.size))

    def opened(self, open_picture: Callable[[], Image.Image]) -> dict[str, Tensor]:
        """Draw and render a picture that is yet to be opened, decoded no larger than its crops need.

        What is drawn is what `self(open_picture())` draws: all of it depends on the size of the whole alone.
        """
        if self.margin is None:
            return self(open_picture())
        plans: list[Plan] = []

        def choose(width: int, height: int) -> tuple[int, int] | None:
            plans.append(self.draw(width, height))
            return self.decode_size(plans[0], self.margin)

        with reduced(choose):
            picture = open_picture()
        return self.render(picture, plans[0]) if plans else self(picture)

    def draw(self, width: int, height: int) -> Plan:
        """Draw every crop of a picture of that size, before it is decoded."""
        return Plan((width, height), tuple(crop.draw(width, height) for crop in self.crops))

    def render(self, picture: Image.Image, plan: Plan) -> dict[str, Tensor]:
        """Render a plan on the picture it was drawn for, in full or decoded at a reduced size."""
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        views: dict[str, Tensor] = {}
        with _one_thread():
            source = augment.pixels(picture)
            for crop, here, change in zip(self.crops, plan.on(*picture.size), plan.changes, strict=True):
                views |= crop.output(render_crop(source, crop, here), change)
        return views

    def decode_size(self, plan: Plan, margin: float | None = MARGIN) -> tuple[int, int] | None:
        """The least size (width, height) a JPEG can be decoded at for this plan, or None for the whole.

        A JPEG decodes faster at 1/2, 1/4 or 1/8. Every crop keeps `margin` decoded pixels for each of its own along
        both axes.
        """
        if margin is None:
            return None
        room = min(
            min(change.place.box[2] / change.place.width, change.place.box[3] / change.place.height)
            for change in plan.changes
        )
        for part in (8, 4, 2):
            if room >= margin * part:
                return plan.size[0] // part, plan.size[1] // part
        return None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Operations this small gain nothing from more threads, and on a busy machine wait ten times as long for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
