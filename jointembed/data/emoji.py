"""The data set inside the package: emoji, two renderings of each, with their words in 26 languages."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jointembed.data.records import CaptionData
from jointembed.data.shards import PictureTar
from jointembed.errors import DataError

RENDERINGS = ("fluent", "noto")
_SHARDS = {"train": "emoji-train.tar", "val": "emoji-heldout.tar", "test": "emoji-heldout.tar"}
_DRAWS = 4  # captions of "many" that name a part of the tags


def emoji(
    *,
    split: Literal["train", "val", "test"],
    languages: list[str] | None = None,
    tags: bool = True,
    captions: Literal["one", "many"] | None = None,
    renderings: list[str] | None = None,
) -> CaptionData:
    """One split; an item is a concept, shown by two pictures of 64 x 64 pixels (Fluent 3D, then Noto).

    No concept of one split has a near relative in another: "woman firefighter" is where "firefighter" is. With C
    concepts there are 2C pictures; one caption a concept makes the chance of R@K K/C with a picture as the query,
    and a little less, 1 - (1 - K/2C)(1 - K/(2C - 1)), with a caption, which has two right answers.

    Args:
        split: 1,079 concepts to train on, 100 to choose models by (val), 200 to report (test).
        languages: codes such as `["en", "de", "zh"]`, each of which captions every concept; English if None.
        tags: whether captions name the tags ("firefighter: fire, firetruck") or the label alone.
        captions: `one` a language, the label and all tags; or `many`: besides that one the label alone, all tags
            in another order, and four draws of half of the tags after the label. None: many in train, one in
            val and test, so that recalls on them are of one question a concept.
        renderings: `[fluent]` or `[noto]` for one picture a concept, where chance is K/C both ways; both if None.

    Raises:
        DataError: for an unknown split, language, captions or rendering, and where the package's files are damaged.
    """
    if split not in _SHARDS:
        raise DataError(f"emoji: no split {split!r}; expected one of {', '.join(_SHARDS)}")
    if captions not in (None, "one", "many"):
        raise DataError(f"emoji: captions is {captions!r}; expected one, many or null")
    shown = RENDERINGS if renderings is None else tuple(renderings)
    if not shown or len(set(shown)) < len(shown) or not set(shown) <= set(RENDERINGS):
        raise DataError(f"emoji: renderings is {renderings!r}; expected different ones of {', '.join(RENDERINGS)}")
    many = captions == "many" or (captions is None and split == "train")
    concepts, words = _read_words(["en"] if languages is None else languages)
    chosen = [number for number, concept in enumerate(concepts) if concept["split"] == split]
    ids = [f"{concepts[number]['key']}.{rendering}" for number in chosen for rendering in shown]
    return CaptionData(
        name="-".join(["emoji", split, *(renderings or ())]),
        pictures=PictureTar(_folder() / _SHARDS[split], [f"{split}/{one}.jpg" for one in ids]),
        item=np.arange(len(chosen), dtype=np.int64).repeat(len(shown)),
        captions=tuple(
            tuple(text for one in words for text in _captions(one[number], tags=tags, many=many)) for number in chosen
        ),
        picture_ids=tuple(ids),
    )


def emoji_languages() -> tuple[str, ...]:
    """Codes of the languages, in alphabetical order."""
    with _open_words() as archive:
        return _languages(archive)


def _folder() -> Path:
    return Path(str(files("jointembed") / "assets" / "emoji"))


@contextmanager
def _open_words() -> Iterator[zipfile.ZipFile]:
    path = _folder() / "words.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: missing or damaged; install the package again ({error})") from None


def _languages(archive: zipfile.ZipFile) -> tuple[str, ...]:
    return tuple(sorted(name.removesuffix(".json") for name in archive.namelist() if name != "concepts.json"))


def _read_words(languages: Sequence[str]) -> tuple[list[dict[str, str]], list[list[list[str]]]]:
    """All concepts, and for each language the words of each concept: label, then tags."""
    with _open_words() as archive:
        known = _languages(archive)
        unknown = [language for language in languages if language not in known]
        if unknown or not languages or len(set(languages)) < len(languages):
            raise DataError(f"emoji: languages is {languages!r}; expected different ones of {', '.join(known)}")
        read: list[Any] = [json.loads(archive.read(f"{name}.json")) for name in ("concepts", *languages)]
    return read[0], read[1:]


def _captions(words: Sequence[str], *, tags: bool, many: bool) -> list[str]:
    """Captions of one concept in one language, without repetitions."""
    label, *rest = words
    if not tags or not rest:
        return [label]
    whole = f"{label}: {', '.join(rest)}"
    if not many:
        return [whole]
    texts = [whole, label, ", ".join(_shuffled(words, 0))]
    half = -(-len(rest) // 2)
    texts += [f"{label}: {', '.join(_shuffled(words, draw)[:half])}" for draw in range(1, _DRAWS + 1)]
    return list(dict.fromkeys(texts))


def _shuffled(words: Sequence[str], draw: int) -> list[str]:
    """The tags in an order that is the same in every run, and another for each concept."""
    label, *tags = words
    return sorted(tags, key=lambda tag: hashlib.sha256(f"{draw} {label} {tag}".encode()).digest())
