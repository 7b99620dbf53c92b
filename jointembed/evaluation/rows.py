"""Rows of embeddings as they are multiplied: float32, of length 1 if asked, equal ones once.

A matrix product does not promise equal results at different places of a matrix, so what must tie shares its scores:
rows that are equal to the bit are multiplied once.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError

Matrix = Tensor | np.ndarray

_CHUNK = 256  # rows converted at a time


@dataclass(frozen=True)
class Rows:
    """The U different rows of N, in the order in which they first appear."""

    values: Tensor  # (U, D) float32, no two of them equal
    row: np.ndarray  # (N,) int64: values[row[n]] is the given row n
    members: np.ndarray  # (N,) int64 given rows, those of values[0] first
    start: np.ndarray  # (U + 1,) int64: members[start[u] : start[u + 1]] share values[u]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: no autocast, no TF32, no bfloat16, whatever the process has asked for."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def one_thread() -> Iterator[int]:
    """Small operations on one thread, and the number of threads that a large one may use.

    A barrier for each small operation costs more than it saves, and a whole time slice where other processes share the
    cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def read_rows(side: str, given: Matrix, *, normalize: bool, device: torch.device) -> Rows:
    """Find the rows that are equal once they are float32 and, if asked, of length 1 (zeros stay zeros).

    Args:
        side: "image" or "text", for messages.
        given: (N, D) of any floating type.
        normalize: divide each row by its norm.
        device: where the rows go.

    Raises:
        EvaluationError: naming the first row that holds NaN or infinity.
    """
    norms = torch.empty(len(given), dtype=torch.float64, device=given.device if isinstance(given, Tensor) else None)
    with one_thread():
        for first in range(0, len(given), _CHUNK):
            norms[first : first + _CHUNK] = finite_norms(given[first : first + _CHUNK], f"{side} embeddings", first)
        # Most rows already differ in their first four numbers; only the others are digested whole.
        head = _scaled(given[:, :4], norms, normalize).cpu().numpy()
        _, group, size = np.unique(head.view(f"V{head[0].nbytes}").ravel(), return_inverse=True, return_counts=True)
        key: list[bytes | int] = list(range(len(given)))
        shared = np.flatnonzero(size[group] > 1)
        for some in np.split(shared, range(_CHUNK, len(shared), _CHUNK)):
            at = _index(given, some)
            for n, row in zip(some, _scaled(given[at], norms[at], normalize).cpu().numpy(), strict=True):
                key[n] = hashlib.blake2b(row, digest_size=16).digest()
        seen: dict[bytes | int, int] = {}
        number = np.fromiter((seen.setdefault(one, len(seen)) for one in key), np.int64, len(key))
        different = np.unique(number, return_index=True)[1]
        values = torch.empty(len(different), given.shape[1], dtype=torch.float32, device=device)
        for first in range(0, len(different), _CHUNK):
            at = _index(given, different[first : first + _CHUNK])
            values[first : first + _CHUNK] = _scaled(given[at], norms[at], normalize)
    start = np.concatenate([[0], np.cumsum(np.bincount(number))])
    return Rows(values, number, np.argsort(number, kind="stable"), start)


def finite_norms(given: Matrix, name: str, first: int, where: Callable[[int], str] = "row {}".format) -> Tensor:
    """(n,) float64 lengths of rows as float32.

    Args:
        given: (n, D).
        name: of the matrix, for messages.
        first: number of the first of them.
        where: what messages call a row of a number.

    Raises:
        EvaluationError: naming the first row that holds NaN or infinity.
    """
    rows = as_float32(given)
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    if not bool(norm.isfinite().all()):
        row = int((~norm.isfinite()).nonzero()[0])
        value = float(rows[row][~rows[row].isfinite()][0])
        raise EvaluationError(f"{name}: {where(first + row)} holds {value}; every value must be finite")
    return norm


def as_float32(rows: Matrix) -> Tensor:
    """Rows as a float32 tensor, not copied where they are that; what is beyond float32 becomes infinite."""
    if isinstance(rows, Tensor):
        return rows.detach().float()
    with np.errstate(over="ignore"):
        return torch.from_numpy(rows.astype(np.float32))


def _index(given: Matrix, rows: np.ndarray) -> Any:
    return torch.from_numpy(rows).to(given.device) if isinstance(given, Tensor) else rows


def _scaled(rows: Matrix, norm: Tensor, normalize: bool) -> Tensor:
    """Float32 rows as they are multiplied. Adding zero turns -0.0 into 0.0, so that equal rows have equal bytes."""
    values = as_float32(rows)
    if normalize:
        values = (values.double() / torch.where(norm > 0, norm, 1.0)[:, None]).float()
    return (values + 0.0).contiguous()
