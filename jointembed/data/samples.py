"""From pictures, captions and labels to batches: what one sample of a run is.

A sample is drawn by a key (epoch, index). Everything random in it comes from (seed, epoch, index) alone, so that
the same sample is the same tensor in any worker, on any rank, before and after a resume.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jointembed.data.order import Layout, layout_of, regrouped
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.tokens import Tokens, pad

Batch = dict[str, Any]
Key = tuple[int, int]  # epoch, index


class PictureView(Protocol):
    """A view pipeline of `jointembed.data.views`."""

    @property
    def views(self) -> tuple[str, ...]:
        """Keys of the batch that it fills."""
        ...

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        ...

    def __call__(self, picture: Any, /) -> dict[str, Tensor]:
        """One tensor a view; of a sound where the data set holds sounds."""
        ...


def sample_seed(seed: int, epoch: int, index: int, stream: int = 0) -> int:
    """63 random bits keyed by all four numbers (splitmix64 over each in turn)."""
    state = 0x9E3779B97F4A7C15
    for number in (seed, epoch, index, stream):
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def draw_view(view: PictureView, picture: Image.Image, seed: int) -> dict[str, Tensor]:
    """Run a view pipeline on its own random stream, leaving torch's global one untouched."""
    if not view.random:
        return view(picture)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return view(picture)


class CaptionSamples:
    """Training samples of a caption data set: a picture (or its cached representation) and one of its captions.

    Args:
        data: pictures and captions.
        image: view pipeline of the pictures.
        tokens: tokenizer of the captions; all captions are tokenised once, here, unless `ids` has them.
        captions: `random`: an epoch shows each picture once, with one of its captions; `all`: each caption once.
        seed: of the run.
        cached: representations (I, R) in place of pictures, given to the view as `{"h": ...}`.
        cached_text: representations (T, R) in place of captions.
        ids: token numbers of all captions, where they are known (`token_cache`).
    """

    def __init__(
        self,
        data: CaptionData,
        image: PictureView,
        tokens: Tokens,
        captions: Literal["random", "all"],
        seed: int,
        cached: Tensor | None = None,
        cached_text: Tensor | None = None,
        ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Tokenise and index."""
        self.data, self.image, self.captions, self.seed = data, image, captions, seed
        self.cached, self.cached_text = cached, cached_text
        self.ids = tokens.encode(data.texts) if ids is None else ids
        counts = [len(one) for one in data.captions]
        self.first_text = np.concatenate([[0], np.cumsum(counts)])
        order = np.argsort(data.item, kind="stable")
        ends = np.searchsorted(data.item[order], np.arange(len(counts) + 1))
        self.pictures_of = [order[ends[item] : ends[item + 1]] for item in range(len(counts))]
        shown = np.isin(data.text_item, data.item)
        self.index = np.arange(len(data.item)) if captions == "random" else np.flatnonzero(shown)

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self.index)

    @property
    def layout(self) -> Layout | None:
        """How the samples lie on disk; None where any order costs the same."""
        layout = layout_of(self.data.pictures)
        if self.captions == "random" or layout is None:
            return layout
        counts = [len(self.data.captions[item]) for item in self.data.item]  # in shards, an item is one picture
        return regrouped(layout, np.asarray(counts))

    def pick(self, key: Key) -> tuple[int, int, int]:
        """Picture, caption and item of one sample."""
        epoch, number = key
        chosen = sample_seed(self.seed, epoch, number)
        if self.captions == "random":
            picture = int(self.index[number])
            item = int(self.data.item[picture])
            text = int(self.first_text[item]) + chosen % len(self.data.captions[item])
        else:
            text = int(self.index[number])
            item = int(self.data.text_item[text])
            pictures = self.pictures_of[item]
            picture = int(pictures[chosen % len(pictures)])
        return picture, text, item

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch, collated: every view, `index` (N,) and `item` (N,)."""
        picks = [self.pick(key) for key in keys]
        batch: Batch = {
            "index": torch.tensor([number for _, number in keys]),
            "item": torch.tensor([item for _, _, item in picks]),
        }
        if self.cached is not None:
            batch["image"] = {"h": self.cached[torch.tensor([picture for picture, _, _ in picks])]}
        else:
            drawn = [
                draw_view(self.image, self.data.pictures.open(picture), sample_seed(self.seed, *key, stream=1))
                for (picture, _, _), key in zip(picks, keys, strict=True)
            ]
            batch |= {view: torch.stack([views[view] for views in drawn]) for view in self.image.views}
        if self.cached_text is not None:
            batch["text"] = {"h": self.cached_text[torch.tensor([text for _, text, _ in picks])]}
        else:
            batch["text"] = pad([self.ids[text] for _, text, _ in picks])
        return batch

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def describe(self, keys: Sequence[Key]) -> list[str]:
        """Name of each sample's picture, for messages."""
        return [self.data.pictures.names[self.pick(key)[0]] for key in keys]


class ImageSamples:
    """Training samples of an image data set: every view of a picture, all drawn from one decode.

    Args:
        data: pictures, with or without labels.
        image: view pipeline of the pictures; a view is any tensor whose shape is the same for every picture.
        seed: of the run.
    """

    def __init__(self, data: ImageData, image: PictureView, seed: int) -> None:
        """Keep them."""
        self.data, self.image, self.seed = data, image, seed
        self.label = None if data.labels is None else torch.tensor(data.labels)

    def __len__(self) -> int:
        """Samples an epoch: the pictures."""
        return len(self.data.pictures)

    @property
    def layout(self) -> Layout | None:
        """How the samples lie on disk; None where any order costs the same."""
        return layout_of(self.data.pictures)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch, collated: every view, `index`, `item` and, where there are labels, `label`, all (N,)."""
        index = torch.tensor([number for _, number in keys])
        batch: Batch = {"index": index, "item": index.clone()}
        if self.label is not None:
            batch["label"] = self.label[index]
        drawn = [
            draw_view(self.image, self.data.pictures.open(key[1]), sample_seed(self.seed, *key, stream=1))
            for key in keys
        ]
        return batch | {view: torch.stack([views[view] for views in drawn]) for view in self.image.views}

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def describe(self, keys: Sequence[Key]) -> list[str]:
        """Name of each sample's picture, for messages."""
        return [self.data.pictures.names[number] for _, number in keys]
