"""A gallery of queries with their best answers, in both directions, the right and the wrong ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from jointembed.errors import EvaluationError
from jointembed.inference.files import publish_json

ANSWERS = 5
THUMB_SIZE = 128  # pixels of the longer side
_BLOCK = 64  # queries scored at once
_MOST_EXAMINED = 2048  # queries looked at, a direction, in search of right and wrong ones

Entry = dict[str, Any]


def write_gallery(
    folder: Path,
    *,
    image: Tensor,
    text: Tensor,
    image_names: Sequence[str],
    texts: Sequence[str],
    positives: Tensor,
    open_picture: Callable[[int], Image.Image],
    queries: int = 12,
    seed: int = 0,
) -> Path:
    """Write `gallery.json` and `thumbs/*.jpg`: a seeded mix of queries answered rightly and wrongly.

    Half of the queries are images and half of them texts; of each half, as far as there are such, one half has a
    right first answer. So the mix shows what the model does, not how often: that is what the metrics are for.

    Args:
        folder: evaluation folder, made where missing.
        image: (I, D) embeddings of the pictures, any scale.
        text: (T, D) embeddings of the texts.
        image_names: I names, for the reader.
        texts: T texts, kept as they are.
        positives: (P, 2) pairs (picture, text) that belong together, a tensor or an array.
        open_picture: gives picture number i in RGB.
        queries: how many, both directions together.
        seed: which ones.

    Returns:
        Path of gallery.json.

    Raises:
        EvaluationError: sizes that do not fit, a pair out of range, or a non-finite embedding, by its row.
    """
    pairs = torch.as_tensor(positives).long()
    _check(image, text, image_names, texts, pairs)
    image, text = functional.normalize(image.float(), dim=1), functional.normalize(text.float(), dim=1)
    texts_of, images_of = _partners(pairs), _partners(pairs.flip(1))
    needed: set[int] = set()

    def picture(number: int) -> Entry:
        needed.add(number)
        entry = {"thumb": f"thumbs/{number:06d}.jpg", "name": image_names[number]}
        return entry | ({"caption": texts[texts_of[number][0]]} if number in texts_of else {})

    entries = []
    for number in _choose(image, text, texts_of, queries // 2, seed):
        query = picture(number)
        query["text"] = query.pop("caption")
        entries.append(_entry("i2t", query, image[number] @ text.T, texts_of[number], lambda i: {"text": texts[i]}))
    for number in _choose(text, image, images_of, queries - queries // 2, seed + 1):
        entries.append(_entry("t2i", {"text": texts[number]}, text[number] @ image.T, images_of[number], picture))
    _write_thumbs(folder / "thumbs", needed, open_picture)
    path = folder / "gallery.json"
    publish_json(path, {"seed": seed, "queries": entries})  # its ASCII keeps even a lone surrogate of a caption
    return path


def _check(image: Tensor, text: Tensor, names: Sequence[str], texts: Sequence[str], pairs: Tensor) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        found = f"{tuple(image.shape)} and {tuple(text.shape)}"
        raise EvaluationError(f"gallery: embeddings of shapes {found}; expected (I, D) and (T, D)")
    if len(names) != len(image) or len(texts) != len(text):
        raise EvaluationError(
            f"gallery: {len(image)} image embeddings with {len(names)} names, "
            f"{len(text)} text embeddings with {len(texts)} texts; they must be equally many"
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise EvaluationError(f"gallery: positives of shape {tuple(pairs.shape)}; expected (P, 2)")
    for row, (i, t) in enumerate(pairs.tolist()):
        if not (0 <= i < len(image) and 0 <= t < len(text)):
            raise EvaluationError(f"gallery: positives row {row} is ({i}, {t}), of {len(image)} and {len(text)}")
    for view, embedding in (("image", image), ("text", text)):
        bad = (~embedding.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise EvaluationError(f"gallery: {view} embedding row {int(bad[0])} is not finite")


def _partners(pairs: Tensor) -> dict[int, list[int]]:
    """Second numbers of each first number, ascending."""
    partners: dict[int, list[int]] = {}
    for first, second in torch.unique(pairs, dim=0).tolist():
        partners.setdefault(first, []).append(second)
    return partners


def _choose(query: Tensor, answer: Tensor, partners: dict[int, list[int]], count: int, seed: int) -> list[int]:
    """Numbers of `count` queries, half of them with a right first answer where there are enough of both kinds."""
    numbers = torch.tensor(sorted(partners), dtype=torch.long)
    order = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))][:_MOST_EXAMINED]
    right: list[int] = []
    wrong: list[int] = []
    for block in order.split(_BLOCK):
        best = (query[block] @ answer.T).argmax(dim=1)
        for number, first in zip(block.tolist(), best.tolist(), strict=True):
            (right if first in partners[number] else wrong).append(number)
        if min(len(right), len(wrong)) >= count:
            break
    n_right = min(len(right), max((count + 1) // 2, count - len(wrong)))
    chosen = set(right[:n_right] + wrong[: count - n_right])
    return [number for number in order.tolist() if number in chosen]


def _entry(direction: str, query: Entry, scores: Tensor, positives: list[int], show: Callable[[int], Entry]) -> Entry:
    """One query with its best answers; scores (A,) are cosines, best first, equal ones by number."""
    best = scores.argsort(descending=True, stable=True)[:ANSWERS].tolist()
    answers = [show(i) | {"score": float(scores[i]), "correct": i in positives} for i in best]
    return {"direction": direction, "query": query, "answers": answers, "rank": _expected_rank(scores, positives)}


def _expected_rank(scores: Tensor, positives: list[int]) -> float:
    """Rank of the best positive, 1-based, ties broken at random: a + 1 + t / (p + 1)."""
    is_positive = torch.zeros(len(scores), dtype=torch.bool)
    is_positive[positives] = True
    best = scores[is_positive].max()
    above = int((scores[~is_positive] > best).sum())
    tied = int((scores[~is_positive] == best).sum())
    return above + 1 + tied / (int((scores[is_positive] == best).sum()) + 1)


def _write_thumbs(folder: Path, numbers: set[int], open_picture: Callable[[int], Image.Image]) -> None:
    """Write a thumb for each number and remove those of an earlier gallery."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"{number:06d}.jpg" for number in numbers}
    for number in sorted(numbers):
        thumb = open_picture(number).convert("RGB")
        thumb.thumbnail((THUMB_SIZE, THUMB_SIZE), Image.Resampling.LANCZOS)
        thumb.save(folder / f"{number:06d}.jpg", quality=85)
    for old in folder.glob("[0-9]*.jpg"):
        if old.name not in kept:
            old.unlink()
