"""A gallery of queries with their best answers, in both directions, the right and the wrong ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Scoring(NamedTuple):
    """How an evaluation scored and searched: by default by the cosine, all with all."""

    normalize: bool = True  # score by cosine, else by inner product
    words: str = "cosines"  # what the scores are, for the reader
    folds: tuple[np.ndarray, np.ndarray] | None = None  # (I,) and (T,): rows of one fold meet, those of -1 none
    ranks: tuple[np.ndarray, np.ndarray] | None = None  # (I,) and (T,) that it found; else they are found here


def write_gallery(
    folder: Path,
    *,
    image: Tensor,
    text: Tensor,
    image_names: Sequence[str],
    texts: Sequence[str],
    positives: Tensor,
    open_picture: Callable[[int], Image.Image],
    scoring: Scoring = Scoring(),  # noqa: B008 - never changed
    queries: int = 12,
    seed: int = 0,
) -> Path:
    """Write `gallery.json` and `thumbs/*.jpg`: a seeded mix of queries answered rightly and wrongly.

    Half of the queries are images and half of them texts; of each half, as far as there are such, one half has a
    right first answer. So the mix shows what the model does, not how often: that is what the metrics are for.

    Args:
        folder: evaluation folder, made where missing.
        image: (I, D) embeddings of the pictures, as they search; any scale where they are scored by the cosine.
        text: (T, D) embeddings of the texts.
        image_names: I names, for the reader.
        texts: T texts, kept as they are.
        positives: (P, 2) pairs (picture, text) that belong together, a tensor or an array.
        open_picture: gives picture number i in RGB.
        scoring: of the evaluation whose gallery this is.
        queries: how many, both directions together.
        seed: which ones.

    Returns:
        Path of gallery.json.

    Raises:
        EvaluationError: sizes that do not fit, a pair out of range, or a non-finite embedding, by its row.
    """
    pairs = torch.as_tensor(positives).long()
    _check(image, text, image_names, texts, pairs)
    image, text = image.float(), text.float()
    if scoring.normalize:
        image, text = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
    of_image, of_text = _folds(scoring, len(image), len(text))
    pairs = pairs[(of_image[pairs[:, 0]] == of_text[pairs[:, 1]]) & (of_image[pairs[:, 0]] >= 0)]
    asked, answers = _Side(image, of_image), _Side(text, of_text)
    rank_of_image, rank_of_text = scoring.ranks or (None, None)
    texts_of, images_of = _partners(pairs), _partners(pairs.flip(1))
    needed: set[int] = set()

    def picture(number: int) -> Entry:
        needed.add(number)
        entry = {"thumb": f"thumbs/{number:06d}.jpg", "name": image_names[number]}
        return entry | ({"caption": texts[texts_of[number][0]]} if number in texts_of else {})

    entries = []
    for number in _choose(asked, answers, texts_of, queries // 2, seed):
        query = picture(number)
        query["text"] = query.pop("caption")
        scores = _scores(asked, answers, torch.tensor([number]))[0]
        entry = _entry("i2t", query, scores, texts_of[number], lambda i: {"text": texts[i]})
        entries.append(entry | _known(rank_of_image, number))
    for number in _choose(answers, asked, images_of, queries - queries // 2, seed + 1):
        scores = _scores(answers, asked, torch.tensor([number]))[0]
        entry = _entry("t2i", {"text": texts[number]}, scores, images_of[number], picture)
        entries.append(entry | _known(rank_of_text, number))
    _write_thumbs(folder / "thumbs", needed, open_picture)
    path = folder / "gallery.json"
    content = {"seed": seed, "scores": scoring.words, "queries": entries}
    publish_json(path, content)  # its ASCII keeps even a lone surrogate of a caption
    return path


class _Side(NamedTuple):
    """Pictures or texts, as they search one another."""

    rows: Tensor  # (N, D) float32
    fold: Tensor  # (N,) int64


def _folds(scoring: Scoring, images: int, texts: int) -> tuple[Tensor, Tensor]:
    if scoring.folds is None:
        return torch.zeros(images, dtype=torch.long), torch.zeros(texts, dtype=torch.long)
    of_image, of_text = (torch.as_tensor(one).long() for one in scoring.folds)
    if (len(of_image), len(of_text)) != (images, texts):
        found = f"{len(of_image)} and {len(of_text)}"
        raise EvaluationError(f"gallery: folds of {found} rows; expected {images} pictures and {texts} texts")
    return of_image, of_text


def _scores(query: _Side, answer: _Side, block: Tensor) -> Tensor:
    """(B, A) scores of some queries with all answers; minus infinity with those of another fold."""
    with torch.no_grad():
        scores = query.rows[block] @ answer.rows.T
    return scores.masked_fill((query.fold[block, None] != answer.fold).to(scores.device), -torch.inf)


def _known(ranks: np.ndarray | None, number: int) -> Entry:
    """The rank that the evaluation found, in place of the one found here; both differ only by rounding."""
    return {} if ranks is None else {"rank": float(ranks[number])}


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


def _choose(query: _Side, answer: _Side, partners: dict[int, list[int]], count: int, seed: int) -> list[int]:
    """Numbers of `count` queries, half of them with a right first answer where there are enough of both kinds."""
    numbers = torch.tensor(sorted(partners), dtype=torch.long)
    order = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))][:_MOST_EXAMINED]
    right: list[int] = []
    wrong: list[int] = []
    for block in order.split(_BLOCK):
        best = _scores(query, answer, block).argmax(dim=1)
        for number, first in zip(block.tolist(), best.tolist(), strict=True):
            (right if first in partners[number] else wrong).append(number)
        if min(len(right), len(wrong)) >= count:
            break
    n_right = min(len(right), max((count + 1) // 2, count - len(wrong)))
    chosen = set(right[:n_right] + wrong[: count - n_right])
    return [number for number in order.tolist() if number in chosen]


def _entry(direction: str, query: Entry, scores: Tensor, positives: list[int], show: Callable[[int], Entry]) -> Entry:
    """One query with its best answers; of scores (A,) the best first, equal ones by number."""
    order = scores.argsort(descending=True, stable=True)[:ANSWERS]
    best = order[scores[order] > -torch.inf].tolist()
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
