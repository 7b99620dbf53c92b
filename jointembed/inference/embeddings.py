"""The folder that `jointembed embed` fills, as it is read: header, marks, and the rows of all shards in order."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointembed.data.json_file import read_json
from jointembed.errors import DataError, EmbeddingsError
from jointembed.inference.files import sha256_of

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
_HEADER = {
    "model": dict, "view": str, "width": int, "normalized": bool, "precision": str, "data": dict, "shards": int,
}  # fmt: skip
_MARK = {"shard": int, "rows": int, "bytes": int, "sha256": str, "model": dict, "view": str, "width": int,
         "normalized": bool, "skipped": list}  # fmt: skip


def parquet_path(folder: Path, shard: int) -> Path:
    """The vectors of one shard."""
    return folder / f"part-{shard:06d}.parquet"


def mark_path(folder: Path, shard: int) -> Path:
    """What marks the vectors of one shard as finished."""
    return folder / f"part-{shard:06d}.json"


def model_sha256(folder: Path) -> str:
    """SHA-256 over the files of a model folder that decide its vectors: config, weights, tokenizer."""
    digest = hashlib.sha256()
    for name in MODEL_FILES[:3]:
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_of(folder / name)}\n".encode())
    return digest.hexdigest()


def schema(header: dict[str, Any]) -> "pyarrow.Schema":
    """Columns of a parquet: `id`, `path`, `vector`, and `text` where texts were embedded."""
    import pyarrow

    columns: list[Any] = [
        pyarrow.field("id", pyarrow.string(), nullable=False),
        pyarrow.field("path", pyarrow.string()),
        pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), header["width"]), nullable=False),
    ]
    if header["data"]["kind"] == "text":
        columns.append(pyarrow.field("text", pyarrow.string()))
    metadata = {
        "jointembed.model": header["model"]["sha256"],
        "jointembed.view": header["view"],
        "jointembed.normalized": str(header["normalized"]).lower(),
    }
    return pyarrow.schema(columns, metadata=metadata)


def read_header(folder: Path) -> dict[str, Any]:
    """`embeddings.json`, checked. Raises EmbeddingsError naming the file."""
    path = folder / "embeddings.json"
    if not path.is_file():
        raise EmbeddingsError(f"{folder}: not a folder of embeddings, it has no embeddings.json")
    header = _read(path, {"format": int})
    if header["format"] > FORMAT:
        raise EmbeddingsError(f"{path}: format {header['format']} is of a newer version; this one reads up to {FORMAT}")
    header = _read(path, _HEADER)
    for key, names in (("model", ("name", "sha256")), ("data", ("name", "kind", "sha256"))):
        if any(not isinstance(header[key].get(name), str) for name in names):
            raise EmbeddingsError(f"{path}: {key!r} must say {', '.join(names)}")
    return header


def read_mark(path: Path) -> dict[str, Any]:
    """The mark of one finished shard, checked. Raises EmbeddingsError naming the file."""
    return _read(path, _MARK)


def _read(path: Path, keys: dict[str, type]) -> dict[str, Any]:
    try:
        found = read_json(path)
    except DataError as error:
        raise EmbeddingsError(str(error)) from None
    for key, kind in keys.items():
        if not isinstance(found, dict) or not isinstance(found.get(key), kind):
            raise EmbeddingsError(f"{path}: {key!r} is missing or no {kind.__name__}")
    return found


def finished_shards(folder: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The marks of all shards, in order.

    Raises:
        EmbeddingsError: naming the shards that are not finished, or the mark of another model, view or width.
    """
    missing = [number for number in range(header["shards"]) if not mark_path(folder, number).is_file()]
    if missing:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise EmbeddingsError(
            f"{folder}: {len(missing)} of {header['shards']} shards are not finished ({some}); run `jointembed embed`"
        )
    marks = [read_mark(mark_path(folder, number)) for number in range(header["shards"])]
    for number, mark in enumerate(marks):
        for key in ("model", "view", "width", "normalized"):
            if mark[key] != header[key]:
                path = mark_path(folder, number)
                raise EmbeddingsError(f"{path}: {key} is {mark[key]!r}; embeddings.json says {header[key]!r}")
    return marks


def read_rows(folder: Path, header: dict[str, Any], rows: int = 8192) -> "Iterator[tuple[pyarrow.Table, np.ndarray]]":
    """All rows in order, some at a time: the columns without the vectors, and the vectors (N, D) float32.

    Raises:
        EmbeddingsError: naming the parquet that is missing, cut short or altered.
    """
    import pyarrow
    from pyarrow import parquet

    for number, mark in enumerate(finished_shards(folder, header)):
        path = parquet_path(folder, number)
        if not path.is_file():
            raise EmbeddingsError(f"{path}: missing")
        if path.stat().st_size != mark["bytes"] or sha256_of(path) != mark["sha256"]:
            raise EmbeddingsError(f"{path}: cut short or altered, its SHA-256 is not that of its mark")
        with parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema(header)):
                raise EmbeddingsError(f"{path}: the columns are not those of embeddings of width {header['width']}")
            for batch in file.iter_batches(batch_size=rows):
                vectors = batch["vector"].flatten().to_numpy().reshape(-1, header["width"])
                yield pyarrow.Table.from_batches([batch]).drop_columns(["vector"]), vectors
