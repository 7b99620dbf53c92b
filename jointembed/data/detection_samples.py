"""Training samples of a detection data set: a picture at a random size, perhaps mirrored, with its targets.

Everything random comes from (seed, epoch, index), as in `samples`. Boxes and masks follow the picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from jointembed.data.detection import DetectionData
from jointembed.data.loader_workers import noticed
from jointembed.data.samples import Batch, Key, sample_seed
from jointembed.errors import DataError

DETECTION_STREAM = 2  # of sample_seed: its own random numbers


def scaled_size(width: int, height: int, size: int, max_size: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side becomes `size`, or less where the longer passes `max_size`."""
    scale = min(size / min(width, height), max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def pixels(picture: Image.Image, width: int, height: int) -> Tensor:
    """The picture at that size as (3, H, W) uint8."""
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class DetectionSamples:
    """Pictures with at least one object to learn from; crowds are no such objects and are left out of the targets.

    Args:
        data: pictures and objects.
        sizes: the shorter side of a picture becomes one of these, px.
        max_size: but the longer one no longer than this, px.
        flip: probability of mirroring left and right.
        masks: give the masks too.
        seed: of the run.

    Raises:
        DataError: no picture with such an object.
    """

    def __init__(
        self, data: DetectionData, *, sizes: Sequence[int], max_size: int, flip: float, masks: bool, seed: int
    ) -> None:
        """See the class."""
        self.data, self.sizes, self.max_size, self.flip = data, tuple(sizes), max_size, flip
        self.masks, self.seed = masks, seed
        self.index = [number for number, one in enumerate(data.objects) if not one.crowd.all()]
        if not self.index:
            raise DataError(f"{data.name}: no picture with an object to learn from")
        if masks and not data.has_masks:
            raise DataError(f"{data.name}: the masks were not read; set masks: true where the data are named")

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self.index)

    def draw(self, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """One picture (3, H, W) uint8, and its `boxes` (n, 4) float32, `labels` (n,) int64, `masks` (n, H, W) uint8."""
        epoch, number = key
        choice = np.random.default_rng(sample_seed(self.seed, epoch, number, DETECTION_STREAM))
        picture = self.data.open(self.index[number])
        size = self.sizes[int(choice.integers(len(self.sizes)))]
        width, height = scaled_size(picture.width, picture.height, size, self.max_size)
        mirrored = bool(choice.random() < self.flip)
        image = pixels(picture, width, height)
        found = self.data.target(self.index[number], masks=self.masks)
        kept = ~found["iscrowd"]
        scale = torch.tensor([width / picture.width, height / picture.height] * 2, dtype=torch.float32)
        target: dict[str, Tensor] = {"boxes": found["boxes"][kept] * scale, "labels": found["labels"][kept]}
        if self.masks:
            masks = found["masks"][kept]
            target["masks"] = functional.interpolate(masks[None], size=(height, width), mode="nearest-exact")[0]
        return mirror(image, target) if mirrored else (image, target)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch: lists `images` and `targets`, and `index` (N,)."""
        drawn = [self.draw(key) for key in noticed(keys)]
        return {
            "images": [image for image, _ in drawn],
            "targets": [target for _, target in drawn],
            "index": torch.tensor([number for _, number in keys]),
        }

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def describe(self, keys: Sequence[Key]) -> list[str]:
        """Name of each sample's picture, for messages."""
        return [self.data.pictures.names[self.index[number]] for _, number in keys]


def mirror(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture and its targets, left and right exchanged."""
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    flipped = target | {"boxes": torch.stack([width - right, top, width - left, bottom], dim=1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image.flip(2), flipped
