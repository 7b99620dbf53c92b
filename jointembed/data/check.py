"""Looking a data set over before training on it: `jointembed data check`."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jointembed.data.audio import Sound, Sounds
from jointembed.data.records import CaptionData, ImageData
from jointembed.errors import DataError

# What a tokenizer drops or keeps as noise; each is reported with its count and one example.
ODD: dict[str, Callable[[str], bool]] = {
    "without a letter or digit": lambda caption: not any(character.isalnum() for character in caption),
    "of one word": lambda caption: len(caption.split()) == 1,
    "of more than 60 words": lambda caption: len(caption.split()) > 60,
    "with a line break or control character": lambda caption: bool(re.search(r"[\x00-\x1f\x7f-\x9f]", caption)),
    "with U+FFFD, left by a wrong decoding": lambda caption: "\ufffd" in caption,
    "with an HTML tag or entity": lambda caption: bool(re.search(r"</?[a-zA-Z]+[^<>]*>|&#?\w+;", caption)),
    "with a web address": lambda caption: bool(re.search(r"https?://|www\.", caption)),
}


@dataclass(frozen=True)
class Spread:
    """Least, middle and greatest of many numbers, and their mean."""

    least: float
    median: float
    mean: float
    greatest: float

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Spread":
        """Of at least one number."""
        return cls(float(min(numbers)), float(np.median(numbers)), float(np.mean(numbers)), float(max(numbers)))

    def __str__(self) -> str:
        """The four, in one short line."""
        return f"{self.least:g} to {self.greatest:g}, median {self.median:g}, mean {self.mean:.1f}"


@dataclass(frozen=True)
class Odd:
    """Captions that share one oddity: what it is, how many, and the first of them."""

    what: str
    count: int
    example: str


@dataclass(frozen=True)
class CheckReport:
    """What was found; `ok` is False where training would stop, that is, at a picture that cannot be decoded."""

    name: str
    fingerprint: str
    things: str  # "pictures" or "sounds"
    n_pictures: int  # or sounds
    n_items: int
    n_captions: int
    captions_per_item: dict[int, int]  # captions -> items that have so many
    per_class: dict[str, int]  # pictures of each class, where there are labels
    words: Spread | None  # of a caption
    file_bytes: Spread
    total_bytes: int
    n_decoded: int
    widths: Spread | None  # pixels, of the decoded pictures; sounds have none
    heights: Spread | None
    undecodable: tuple[str, ...]  # one message each, naming the picture
    duplicates: tuple[tuple[str, ...], ...]  # names of pictures with equal pixels, or sounds with equal samples
    repeated: int  # captions that more than one item has, or one item twice
    odd: tuple[Odd, ...]

    @property
    def ok(self) -> bool:
        """Whether every picture that was looked at can be decoded."""
        return not self.undecodable

    def lines(self) -> list[str]:
        """The report, line by line, to be printed."""
        counts = ", ".join(f"{items} with {captions}" for captions, items in self.captions_per_item.items())
        thing = self.things.removesuffix("s")
        same = "same pixels" if thing == "picture" else "same samples"
        lines = [
            f"{self.name}: {self.n_pictures} {self.things}"
            + (f", {self.n_items} items, {self.n_captions} captions" if self.words else ""),
            *([f"captions an item: {counts}", f"words a caption: {self.words}"] if self.words else []),
            *([f"{self.things} a class: {Spread.of(list(self.per_class.values()))}"] if self.per_class else []),
            f"bytes a {thing}: {self.file_bytes}; {self.total_bytes} in all",
            f"decoded: {self.n_decoded} of {self.n_pictures} {self.things}, {len(self.undecodable)} cannot be decoded",
        ]
        if self.widths and self.heights:
            lines += [f"width: {self.widths}", f"height: {self.heights}"]
        lines += [f"CANNOT BE DECODED {message}" for message in self.undecodable]
        lines += [f"{same}: {', '.join(names)}" for names in self.duplicates[:20]]
        if len(self.duplicates) > 20:
            lines.append(f"{same}: {len(self.duplicates) - 20} groups more")
        if self.repeated:
            lines.append(f"captions that stand more than once: {self.repeated}")
        lines += [f"captions {odd.what}: {odd.count}, such as {odd.example!r}" for odd in self.odd]
        return [*lines, f"fingerprint: {self.fingerprint}", "ok" if self.ok else "NOT OK"]


def check(data: CaptionData | ImageData, *, decode: bool = True) -> CheckReport:
    """Count, measure and decode.

    Args:
        data: the data set.
        decode: open the pictures; without it none is found undecodable or duplicate.
    """
    count = len(data.pictures)
    looks = [_look(data, number) for number in range(count)] if decode else []
    whole = [look for look in looks if not look.error]
    measured = [look.size for look in whole if look.size is not None]
    same: dict[bytes, list[str]] = {}
    for look in whole:
        same.setdefault(look.digest, []).append(look.name)
    sizes = [int(size) for size in data.pictures.sizes()]
    captions, texts = (data.captions, data.texts) if isinstance(data, CaptionData) else ((), ())
    per_item = Counter(len(one) for one in captions)
    return CheckReport(
        name=data.name,
        fingerprint=data.fingerprint,
        things="sounds" if isinstance(data.pictures, Sounds) else "pictures",
        n_pictures=count,
        n_items=len(captions),
        n_captions=len(texts),
        captions_per_item=dict(sorted(per_item.items())),
        per_class=_per_class(data),
        words=Spread.of([len(caption.split()) for caption in texts]) if texts else None,
        file_bytes=Spread.of(sizes),
        total_bytes=sum(sizes),
        n_decoded=len(whole),
        widths=Spread.of([width for width, _ in measured]) if measured else None,
        heights=Spread.of([height for _, height in measured]) if measured else None,
        undecodable=tuple(look.error for look in looks if look.error),
        duplicates=tuple(tuple(names) for names in same.values() if len(names) > 1),
        repeated=sum(times for times in Counter(texts).values() if times > 1),
        odd=_odd(texts),
    )


def _per_class(data: CaptionData | ImageData) -> dict[str, int]:
    if isinstance(data, CaptionData) or data.labels is None or data.classes is None:
        return {}
    counts = np.bincount(data.labels, minlength=len(data.classes)).tolist()
    return dict(zip(data.classes, counts, strict=True))


@dataclass(frozen=True)
class _Look:
    name: str
    size: tuple[int, int] | None = None  # width and height of a picture
    digest: bytes = b""
    error: str = ""


def _look(data: CaptionData | ImageData, number: int) -> _Look:
    name = data.pictures.names[number]
    try:
        opened = data.pictures.open(number)
    except DataError as error:
        return _Look(name, error=str(error))
    size, content = (None, opened.samples.numpy()) if isinstance(opened, Sound) else (opened.size, opened)
    digest = hashlib.blake2b(f"{size}".encode(), digest_size=16)
    digest.update(content.tobytes())
    return _Look(name, size, digest.digest())


def _odd(captions: Sequence[str]) -> tuple[Odd, ...]:
    found = []
    for what, is_odd in ODD.items():
        odd = [caption for caption in captions if is_odd(caption)]
        if odd:
            example = odd[0] if len(odd[0]) <= 80 else odd[0][:77] + "..."
            found.append(Odd(what, len(odd), example))
    return tuple(found)
