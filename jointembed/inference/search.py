"""Questions to an index: words or a picture in, the nearest rows out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointembed.errors import DataError, WeightsError
from jointembed.inference.index import Index
from jointembed.inference.inputs import Modality
from jointembed.inference.worker import modality_of
from jointembed.model import JointEmbedding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One row that was found."""

    rank: int  # 1-based
    score: float  # cosine
    row: int
    id: str
    path: str | None  # for `open_place`
    text: str | None  # of a row that is a text


def text_view(model: JointEmbedding) -> str:
    """The first view that reads text. Raises WeightsError where there is none."""
    return _first(model, "text")


def picture_view(model: JointEmbedding) -> str:
    """The first view that takes pictures. Raises WeightsError where there is none."""
    return _first(model, "image")


def _first(model: JointEmbedding, modality: Modality) -> str:
    for view in model.views:
        if modality_of(model, view) == modality:
            return view
    raise WeightsError(f"the model has no view for {modality}s; it has {', '.join(model.views)}")


def encode_query(model: JointEmbedding, query: str | Any) -> np.ndarray:
    """The vector of one query: words where it is a `str`, else a picture as `JointEmbedding.encode` takes it.

    Args:
        model: the one that made the vectors.
        query: words, or a `Path`, PIL image, array, tensor, or the bytes of a picture file.

    Returns:
        (1, D) float32 of length 1.

    Raises:
        DataError: for an empty text, or a picture that cannot be opened, by its name.
        WeightsError: where the model has no view for such a query.
    """
    if isinstance(query, str) and not query.strip():
        raise DataError("the query is empty; expected some words")
    view = text_view(model) if isinstance(query, str) else picture_view(model)
    return np.asarray(model.encode([query], view))


def search(index: Index, query: str | Path | Any, k: int = 10) -> list[Answer]:
    """The k rows of an index nearest to words or to a picture; see `encode_query` and `Index.search`."""
    scores, rows = index.search(encode_query(index.model(), query), k)
    if scores.shape[1] > 1 and np.ptp(scores) == 0:
        count, score = scores.shape[1], scores[0, 0]
        logger.warning(
            "the %d best rows all score %.4f: the model does not tell them apart, has it collapsed?", count, score
        )
    return answers_of(index, scores[0], rows[0])


def answers_of(index: Index, scores: Sequence[float] | np.ndarray, rows: Sequence[int] | np.ndarray) -> list[Answer]:
    """Row numbers and scores with what the index knows of those rows."""
    return [
        Answer(
            rank=rank,
            score=float(score),
            row=int(row),
            id=index.ids[int(row)],
            path=index.paths[int(row)],
            text=None if index.texts is None else index.texts[int(row)],
        )
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), start=1)
    ]
