"""From pictures, captions and labels to batches: what one sample of a run is.

A sample is drawn by a key (epoch, index). Everything random in it comes from (seed, epoch, index) alone, so that
the same sample is the same tensor in any worker, on any rank, before and after a resume.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from jointembed.data.loader_workers import noticed
from jointembed.data.order import Layout, layout_of, regrouped
from jointembed.data.pipeline import Views
from jointembed.data.records import CaptionData, ImageData, Pictures
from jointembed.data.tokens import Tokens, pad
from jointembed.errors import DataError

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
    return _on_its_stream(view, lambda: view(picture), seed)


def open_view(view: PictureView, pictures: Pictures, number: int, seed: int) -> dict[str, Tensor]:
    """What `draw_view` gives of a picture that is yet to be opened, decoded no larger than the view needs."""
    source = partial(pictures.open, number)
    run = partial(view.opened, source) if isinstance(view, Views) else lambda: view(source())
    return _on_its_stream(view, run, seed)


def _on_its_stream(view: PictureView, run: Callable[[], dict[str, Tensor]], seed: int) -> dict[str, Tensor]:
    if not view.random:
        return run()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return run()


def text_views(count: int) -> list[str]:
    """The views of `count` captions in a sample: text, text2, text3 ..."""
    return ["text", *(f"text{number}" for number in range(2, count + 1))]


class CaptionSamples:
    """Training samples of a caption data set: a picture (or its cached representation) and one or more captions of it.

    Args:
        data: pictures and captions.
        image: view pipeline of the pictures.
        tokens: tokenizer of the captions; all captions are tokenised once, here, unless `ids` has them.
        captions: `random`: an epoch shows each picture once, with one of its captions; `all`: each caption once.
        seed: of the run.
        cached: representations (I, R) in place of pictures, given to the view as `{"h": ...}`; of several drawn views
            of each picture (I, V, R), one of which is drawn for each sample of each epoch.
        cached_text: representations (T, R) in place of captions.
        ids: token numbers of all captions, where they are known (`token_cache`).
        texts: captions in a sample, all different: views `text`, `text2` ...; the first is the one that `captions`
            chooses, the others are drawn anew for each sample of each epoch.

    Raises:
        DataError: an item with fewer captions than `texts`.
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
        texts: int = 1,
    ) -> None:
        """Tokenise and index."""
        self.data, self.image, self.captions, self.seed = data, image, captions, seed
        self.texts = texts
        few = next((number for number, item in enumerate(data.item) if len(data.captions[item]) < texts), None)
        if few is not None:
            found = len(data.captions[data.item[few]])
            raise DataError(
                f"{data.name}: picture {data.pictures.names[few]!r} has {found} captions; data.texts is {texts}"
            )
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

    def pick_texts(self, key: Key) -> list[int]:
        """All captions of one sample: that of `pick`, and others of its item in the order of their random numbers."""
        _, text, item = self.pick(key)
        if self.texts == 1:
            return [text]
        first, end = self.first_text[item], self.first_text[item + 1]
        others = [number for number in range(first, end) if number != text]
        others.sort(key=lambda number: sample_seed(self.seed, *key, stream=3 + int(number - first)))
        return [text, *others[: self.texts - 1]]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch, collated: every view, `index` (N,) and `item` (N,)."""
        picks = [self.pick(key) for key in keys]
        batch: Batch = {
            "index": torch.tensor([number for _, number in keys]),
            "item": torch.tensor([item for _, _, item in picks]),
        }
        if self.cached is not None:
            batch["image"] = {"h": self._cached_rows(self.cached, [picture for picture, _, _ in picks], keys)}
        else:
            drawn = [
                open_view(self.image, self.data.pictures, picture, sample_seed(self.seed, *key, stream=1))
                for (picture, _, _), key in zip(picks, noticed(keys), strict=True)
            ]
            batch |= default_collate(drawn)
        columns = zip(*(self.pick_texts(key) for key in keys), strict=True)
        for view, texts in zip(text_views(self.texts), columns, strict=True):
            if self.cached_text is not None:
                batch[view] = {"h": self.cached_text[torch.tensor(texts)]}
            else:
                batch[view] = pad([self.ids[text] for text in texts])
        return batch

    def _cached_rows(self, cached: Tensor, pictures: Sequence[int], keys: Sequence[Key]) -> Tensor:
        rows = cached[torch.tensor(pictures)]
        if rows.ndim == 2:
            return rows
        drawn = [sample_seed(self.seed, *key, stream=2) % rows.shape[1] for key in keys]
        return rows[torch.arange(len(rows)), torch.tensor(drawn)]

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
            open_view(self.image, self.data.pictures, key[1], sample_seed(self.seed, *key, stream=1))
            for key in noticed(keys)
        ]
        return batch | default_collate(drawn)  # a worker stacks in shared memory: nothing is copied once more

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def describe(self, keys: Sequence[Key]) -> list[str]:
        """Name of each sample's picture, for messages."""
        return [self.data.pictures.names[number] for _, number in keys]
