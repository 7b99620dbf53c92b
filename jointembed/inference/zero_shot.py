"""Zero-shot classification: classes by their names, each the mean of what templates say of it.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021), section 3.1.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from jointembed.errors import DataError
from jointembed.inference.index import Index
from jointembed.inference.search import picture_view, text_view
from jointembed.model import JointEmbedding

TEMPLATE = "a photo of a {}"
_ROWS = 8192  # scored at once


def class_vectors(
    model: JointEmbedding, classes: Sequence[str], templates: Sequence[str] = (TEMPLATE,), *, batch: int = 256
) -> np.ndarray:
    """One vector a class: the mean of its templates' embeddings, each of length 1, scaled to length 1 again.

    Args:
        model: with a view that reads text.
        classes: C names, different ones.
        templates: each with one `{}` for the name.
        batch: texts through the branch at once.

    Returns:
        (C, D) float32.

    Raises:
        DataError: for fewer than two classes, an empty name or one that is there twice, or a template without `{}`.
    """
    names = [name.strip() for name in classes]
    if len(names) < 2:
        raise DataError(f"{len(names)} classes; there is nothing to tell apart below two")
    twice = next((name for name in names if names.count(name) > 1), None)
    if "" in names or twice is not None:
        raise DataError(f"the class {twice!r} is named twice" if twice else "a class has no name")
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"template {template!r}: expected one {{}} for the name of the class")
    texts = [template.replace("{}", name) for name in names for template in templates]
    rows = torch.as_tensor(model.encode(texts, text_view(model), batch_size=batch, convert_to_numpy=False))
    means = rows.view(len(names), len(templates), -1).mean(dim=1)
    return functional.normalize(means, dim=1).numpy()


def zero_shot(vectors: np.ndarray, classes: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k classes nearest to each row.

    Args:
        vectors: (N, D) of length 1.
        classes: (C, D) of length 1, from `class_vectors`.
        k: how many; all C where there are fewer.

    Returns:
        Cosines (N, K) float32, descending, and class numbers (N, K) int64, equal ones by number.
    """
    scores = np.asarray(vectors, dtype=np.float32) @ np.asarray(classes, dtype=np.float32).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(classes))]
    return np.take_along_axis(scores, order, axis=1), order


def zero_shot_index(index: Index, classes: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`zero_shot` for every row of an index of pictures. Raises DataError where it holds texts."""
    if index.texts is not None:
        raise DataError(f"{index.folder}: an index of texts; classes are for pictures")
    found = [zero_shot(block.numpy(), classes, k) for _, block in index.vectors.blocks(_ROWS)]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([numbers for _, numbers in found])


@dataclass(frozen=True)
class Classified:
    """One picture with its nearest classes, the nearest first."""

    id: str
    path: str | None
    classes: list[str]
    scores: list[float]  # cosines


def classify_pictures(
    source: Path | str, pictures: Sequence[Path], classes: Sequence[str], templates: Sequence[str], k: int = 1
) -> list[Classified]:
    """Classify picture files by a model or the model of an index; or, where no file is given, the rows of an index.

    Args:
        source: index folder, run folder, model folder or hub id.
        pictures: files.
        classes: names.
        templates: see `class_vectors`.
        k: classes a picture.

    Raises:
        DataError: for a source that is no index where no picture is given; and see `class_vectors`.
    """
    if k < 1:
        raise DataError(f"{k} classes a picture; expected 1 or more")
    names = [name.strip() for name in classes]
    index = Index.open(source) if (Path(source) / "index.json").is_file() else None
    model = index.model() if index is not None else JointEmbedding.from_pretrained(source)
    vectors = class_vectors(model, names, templates)
    if pictures:
        rows = np.asarray(model.encode([Path(one) for one in pictures], picture_view(model)))
        scores, numbers = zero_shot(rows, vectors, k)
        ids: Sequence[str] = [str(one) for one in pictures]
        paths: Sequence[str | None] = ids
    elif index is not None:
        scores, numbers = zero_shot_index(index, vectors, k)
        ids, paths = index.ids, index.paths
    else:
        raise DataError(f"{source}: no index; name the pictures to classify")
    return [
        Classified(ids[n], paths[n], [names[one] for one in numbers[n]], scores[n].tolist()) for n in range(len(scores))
    ]
