"""An index: vectors that can be searched, how to open what they were made of, and the model that encodes queries.

A folder `index.json`, `vectors-00000.safetensors` ..., `rows.parquet` (id, path, perhaps text), `model/`, and, for the
kind `ivf_pq`, `index.faiss`. `index.json` holds the size and the SHA-256 of every other file.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jointembed.data.json_file import read_json
from jointembed.errors import DataError, EmbeddingsError
from jointembed.inference.files import sha256_of
from jointembed.inference.nearest import Vectors, nearest
from jointembed.model import JointEmbedding

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
KINDS = ("exact", "flat", "ivf_pq")
_FILE = re.compile(
    r"vectors-\d{5}\.safetensors|rows\.parquet|index\.faiss|model/(config\.json|model\.safetensors|tokenizer\.json|README\.md)"
)


class Index:
    """Vectors to search by the cosine. Open one with `Index.open`.

    Attributes:
        folder: where it is.
        info: the content of `index.json`.
        vectors: N rows, memory-mapped, each of length 1.
        ids: N ids, unique.
        paths: N places that `open_place` opens again; None where a row has none.
        texts: N texts, where the rows are texts; else None.
    """

    def __init__(self, folder: Path, info: dict[str, Any], vectors: Vectors, columns: "dict[str, Column]") -> None:
        """See `open`."""
        self.folder, self.info, self.vectors = folder, info, vectors
        self.ids: Sequence[str] = columns["id"]
        self.paths: Sequence[str | None] = columns["path"]
        self.texts: Sequence[str] | None = columns.get("text")
        self._model: JointEmbedding | None = None
        self._faiss: Any = None

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> "Index":
        """Open an index folder; nothing is unpickled.

        Args:
            folder: written by `build_index`.
            verify: compare the SHA-256 of every file; sizes are compared in any case.

        Raises:
            EmbeddingsError: naming the file that is missing, cut short, altered or of a newer version.
        """
        folder = Path(folder)
        info = read_info(folder)
        for name, expected in info["files"].items():
            _check_file(folder / name, expected, verify=verify)
        parts = [read_vectors(folder / name, info["width"]) for name in sorted(info["files"]) if "vectors-" in name]
        vectors = Vectors(parts, info["width"])
        columns = _read_rows(folder / "rows.parquet")
        if not len(vectors) == len(columns["id"]) == info["rows"]:
            found = f"{len(vectors)} vectors and {len(columns['id'])} ids"
            raise EmbeddingsError(f"{folder}: {found}; index.json says {info['rows']}")
        return cls(folder, info, vectors, columns)

    def __len__(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """D."""
        return self.vectors.width

    @property
    def kind(self) -> str:
        """`exact`, `flat` or `ivf_pq`."""
        return self.info["kind"]

    def model(self) -> JointEmbedding:
        """The model that made the vectors, loaded once, on the CPU. Raises WeightsError."""
        if self._model is None:
            self._model = JointEmbedding.from_pretrained(self.folder / "model")
        return self._model

    def search(self, queries: np.ndarray | Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows with the highest cosine.

        Exact for the kinds `exact` and `flat`; `ivf_pq` may miss rows, and `index.json` says how many on average.

        Args:
            queries: (Q, D) float32, each of length 1.
            k: how many, at least 1; all N where there are fewer.

        Returns:
            Scores (Q, K) float32, descending, and rows (Q, K) int64, equal scores by row number; K = min(k, N).

        Raises:
            DataError: for queries of another shape, or non-finite ones, by number; for k below 1.
        """
        rows = torch.as_tensor(queries).float().cpu()
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise DataError(f"queries of shape {tuple(rows.shape)}; this index takes (Q, {self.width})")
        bad = (~rows.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise DataError(f"query {int(bad[0])} is not finite")
        if k < 1:
            raise DataError(f"k is {k}; expected 1 or more")
        if self.kind == "exact":
            return nearest(rows, self.vectors, k)
        from jointembed.inference.approximate import open_faiss, search_faiss

        if self._faiss is None:
            self._faiss = open_faiss(self.folder / "index.faiss", self.kind, self.vectors)
        return search_faiss(self._faiss, rows, self.vectors, k)


class Column(Sequence[Any]):
    """A column of strings, kept as Arrow does: a few bytes a row besides the text itself."""

    def __init__(self, values: "pyarrow.ChunkedArray") -> None:
        """Take the column over."""
        self.values = values.combine_chunks()

    def __len__(self) -> int:
        """N."""
        return len(self.values)

    @overload
    def __getitem__(self, number: int) -> Any: ...

    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...

    def __getitem__(self, number: int | slice) -> Any:
        """One value, or a list of them."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        position = int(number)
        if not -len(self) <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        return self.values[position % len(self)].as_py()


def read_info(folder: Path) -> dict[str, Any]:
    """The content of an index folder's `index.json`, checked. Raises EmbeddingsError."""
    path = folder / "index.json"
    if not path.is_file():
        raise EmbeddingsError(f"{folder}: not an index, it has no index.json")
    try:
        info = read_json(path)
    except DataError as error:
        raise EmbeddingsError(str(error)) from None
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        raise EmbeddingsError(f"{path}: not the description of an index")
    if info["format"] > FORMAT:
        raise EmbeddingsError(f"{path}: format {info['format']} is of a newer version; this one reads up to {FORMAT}")
    kinds = {"kind": str, "view": str, "width": int, "rows": int, "model": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            raise EmbeddingsError(f"{path}: {key!r} is missing or no {kind.__name__}")
    if info["kind"] not in KINDS:
        raise EmbeddingsError(f"{path}: kind {info['kind']!r}; there are {', '.join(KINDS)}")
    for name in ("rows.parquet", "model/config.json", "model/model.safetensors"):
        if name not in info["files"]:
            raise EmbeddingsError(f"{path}: names no file {name}")
    unknown = next((name for name in info["files"] if not _FILE.fullmatch(name)), None)
    if unknown is not None:
        raise EmbeddingsError(f"{path}: {ascii(unknown)[:80]} is no file of an index")
    return info


def _check_file(path: Path, expected: Any, *, verify: bool) -> None:
    if not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
        raise EmbeddingsError(f"{path.name}: index.json does not say its size")
    if not path.is_file():
        raise EmbeddingsError(f"{path}: missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise EmbeddingsError(f"{path}: {size} bytes where {expected['bytes']} were written; cut short or altered")
    if verify and sha256_of(path) != expected.get("sha256"):
        raise EmbeddingsError(f"{path}: altered, its SHA-256 is not the one in index.json")


def read_vectors(path: Path, width: int) -> Tensor:
    """Vectors (N, D) of one file, memory-mapped. Raises EmbeddingsError naming it."""
    try:
        with safe_open(path, framework="pt") as file:
            vectors = file.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        raise EmbeddingsError(f"{path}: cannot be read ({error})") from None
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype != torch.float32:
        shape = f"{tuple(vectors.shape)} {vectors.dtype}"
        raise EmbeddingsError(f"{path}: holds {shape}; expected (N, {width}) torch.float32")
    return vectors


def _read_rows(path: Path) -> dict[str, Column]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise EmbeddingsError(f"{path}: cannot be read ({error})") from None
    for name in ("id", "path"):
        if name not in table.column_names:
            raise EmbeddingsError(f"{path}: no column {name!r}")
    return {name: Column(table[name]) for name in table.column_names}


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Write `index.json`, with the size and the SHA-256 of every file that is there."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    (folder / "index.json").write_text(json.dumps({"format": FORMAT, **info, "files": files}, indent=1), "utf-8")
