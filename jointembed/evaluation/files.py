"""Files of an evaluation: ranks.npz, embeddings made elsewhere, published ground truth."""

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import QueryRanks, RetrievalRanks, check_pairs, whole_numbers

_COUNTS = ("above", "ties", "tied_positives", "positives", "item", "fold")
_PARTNERS = {"image_to_caption": "caption_to_image", "caption_to_image": "image_to_caption"}

_OUTSIDE = 1e-3  # share of listed answers that may lie outside the rows


def save_ranks(path: Path, ranks: RetrievalRanks) -> None:
    """Write ranks as npz without pickles, whole or not at all.

    For each direction: `{i2t,t2i}_rank` (expected rank), `_hit@K`, `_item`, and the counts that they come from:
    `_above`, `_ties`, `_tied_positives`, `_positives`, `_fold` (all (Q,)) and `_candidates`. NaN: not judged.
    """
    arrays: dict[str, Any] = {"k": np.array(ranks.k)}
    for name, one in ranks.directions.items():
        arrays |= {f"{name}_{field}": getattr(one, field) for field in _COUNTS}
        arrays |= {f"{name}_rank": one.rank, f"{name}_candidates": np.array(one.candidates)}
        arrays |= {f"{name}_hit@{k}": one.hit(k) for k in ranks.k}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(part, path)


def load_ranks(path: Path) -> RetrievalRanks:
    """Read what `save_ranks` wrote.

    Raises:
        EvaluationError: naming the file and what is wrong with it.
    """
    arrays = _read_npz(path)
    try:
        directions = [
            QueryRanks(
                **{field: whole_numbers(f"{path}: {name}_{field}", arrays[f"{name}_{field}"]) for field in _COUNTS},
                candidates=int(arrays[f"{name}_candidates"]),
            )
            for name in ("i2t", "t2i")
        ]
        k = tuple(int(one) for one in arrays["k"])
    except KeyError as error:
        raise EvaluationError(f"{path}: no array {error}; not a file of ranks") from None
    if any(len(getattr(one, field)) != len(one.item) for one in directions for field in _COUNTS):
        raise EvaluationError(f"{path}: its arrays are not equally long; not a whole file of ranks")
    return RetrievalRanks(directions[0], directions[1], k)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise ValueError("a single array")
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path}: not a readable npz file of plain arrays ({error})") from None


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """Embeddings made anywhere, and which belong together."""

    image: Tensor | np.ndarray  # (I, D)
    text: Tensor | np.ndarray  # (T, D)
    positives: np.ndarray  # (P, 2) int64 pairs (image, text)
    image_of_text: np.ndarray | None  # (T,) int64, where the file has it
    image_ids: np.ndarray | None  # (I,) int64, for published ground truth
    text_ids: np.ndarray | None  # (T,) int64


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read `image` (I, D), `text` (T, D) and either `image_of_text` (T,) or `positives` (P, 2).

    `image_ids` (I,) and `text_ids` (T,) may be there too, to look pictures and captions up in a ground truth.

    Args:
        path: a `.safetensors` or `.npz` file; nothing in it is unpickled.

    Raises:
        EvaluationError: naming the file and the array that is missing or does not fit.
    """
    arrays = _read_arrays(path)
    for name in ("image", "text"):
        if name not in arrays:
            raise EvaluationError(f"{path}: no array {name!r}; found {', '.join(sorted(arrays)) or 'nothing'}")
        if arrays[name].ndim != 2:
            raise EvaluationError(f"{path}: {name} has shape {tuple(arrays[name].shape)}; expected rows x dimensions")
    n_images, n_texts = len(arrays["image"]), len(arrays["text"])
    if ("image_of_text" in arrays) == ("positives" in arrays):
        raise EvaluationError(f"{path}: expected exactly one of image_of_text (T,) and positives (P, 2)")
    try:
        owner = None
        if "image_of_text" in arrays:
            owner = whole_numbers("image_of_text", arrays["image_of_text"], n_texts)
            arrays["positives"] = np.stack([owner, np.arange(n_texts)], axis=1)
        pairs = check_pairs(arrays["positives"], n_images, n_texts)
        lengths = {"image_ids": n_images, "text_ids": n_texts}
        ids = {name: whole_numbers(name, arrays[name], length) for name, length in lengths.items() if name in arrays}
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from None
    return EmbeddingFile(arrays["image"], arrays["text"], pairs, owner, ids.get("image_ids"), ids.get("text_ids"))


def _read_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix != ".safetensors":
        raise EvaluationError(f"{path}: expected a .safetensors or .npz file")
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path}: not a readable safetensors file ({error})") from None


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Who judged what: the texts that answer some images, and the images that answer some texts."""

    i2t: np.ndarray  # (P, 2) int64 pairs (image, text)
    t2i: np.ndarray  # (P', 2) int64 pairs (image, text)
    i2t_listed: np.ndarray  # (I,) int64 answers listed for each image, those outside the rows included
    t2i_listed: np.ndarray  # (T,) int64 answers listed for each text


def ground_truth(path: Path, image_ids: np.ndarray, text_ids: np.ndarray) -> GroundTruth:
    """Read a published ground truth of the COCO 5K test, as pairs of rows.

    The two directions were judged apart and lie in two files, JSON objects of id -> list of ids (ECCV Caption, Chun et
    al. 2022; Crisscrossed Captions, Parekh et al. 2021). ECCV lists two captions outside the 25,000: such answers
    cannot be found, but count among those that should be.

    Args:
        path: one of the files, `..._image_to_caption.json` or `..._caption_to_image.json`; the other lies beside it.
        image_ids: (I,) COCO picture ids of the rows.
        text_ids: (T,) COCO caption ids of the rows.

    Raises:
        EvaluationError: naming the file, and a pair that it lists twice, a query in it that is not among the rows, or
            an answer where more than one in a thousand are not.
    """
    kind = next((kind for kind in _PARTNERS if kind in path.name), None)
    if kind is None:
        raise EvaluationError(f"{path}: expected a file named ...image_to_caption.json or ...caption_to_image.json")
    files = {kind: path, _PARTNERS[kind]: path.with_name(path.name.replace(kind, _PARTNERS[kind]))}
    images, texts = _row_of_id("image", image_ids), _row_of_id("text", text_ids)
    i2t, i2t_listed = _lookup(files["image_to_caption"], images, texts, ("image", "text"))
    t2i, t2i_listed = _lookup(files["caption_to_image"], texts, images, ("text", "image"))
    return GroundTruth(i2t, t2i[:, ::-1].copy(), i2t_listed, t2i_listed)


def _row_of_id(side: str, ids: np.ndarray) -> dict[int, int]:
    rows = {int(one): row for row, one in enumerate(ids)}
    if len(rows) < len(ids):
        raise EvaluationError(f"{side} ids: {len(ids) - len(rows):,} of {len(ids):,} are given more than once")
    return rows


def _lookup(
    path: Path, queries: dict[int, int], answers: dict[int, int], sides: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query row, answer row) of a file, (P, 2), and how many answers it lists for each query row, (Q,)."""
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    try:
        judged = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(int(query), int(answer)) for query, listed in judged.items() for answer in listed]
    except (ValueError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a JSON object of id -> list of ids ({error})") from None
    seen: set[tuple[int, int]] = set()
    for pair in pairs:
        if pair in seen:
            raise EvaluationError(f"{path}: {sides[0]} id {pair[0]} lists {sides[1]} id {pair[1]} twice")
        seen.add(pair)
    for rows, column, side, most in ((queries, 0, sides[0], 0.0), (answers, 1, sides[1], _OUTSIDE * len(pairs))):
        outside = [pair[column] for pair in pairs if pair[column] not in rows]
        if len(outside) > most:
            raise EvaluationError(
                f"{path}: {side} id {outside[0]} is not among the {len(rows):,} {side} ids given "
                f"({len(outside):,} of {len(pairs):,} pairs have such a one)"
            )
    asked = np.array([queries[query] for query, _ in pairs], dtype=np.int64)
    listed = np.bincount(asked, minlength=len(queries))
    found = [(queries[query], answers[answer]) for query, answer in pairs if answer in answers]
    return np.array(found, dtype=np.int64).reshape(-1, 2), listed
