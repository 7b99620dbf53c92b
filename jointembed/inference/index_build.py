"""`jointembed index`: from a folder of embeddings to an index folder, in bounded memory and published by a rename."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jointembed import __version__
from jointembed.errors import DataError, EmbeddingsError
from jointembed.inference.approximate import build_ivf_pq, import_faiss, measure_recall, write_faiss
from jointembed.inference.embeddings import MODEL_FILES, model_sha256, read_header, read_rows
from jointembed.inference.files import aside_of
from jointembed.inference.index import KINDS, Index, read_vectors, write_info
from jointembed.inference.nearest import Vectors
from jointembed.inference.search import text_view
from jointembed.model import JointEmbedding
from jointembed.tensor_files import save_tensors

_PART = 1 << 27  # bytes of vectors in one file


def build_index(
    embeddings: Path,
    out: Path,
    *,
    kind: str = "exact",
    lists: int | None = None,
    code_bytes: int | None = None,
    probes: int | None = None,
    queries: list[str] | None = None,
    overwrite: bool = False,
) -> Index:
    """Make an index of finished embeddings.

    Args:
        embeddings: filled by `EmbedWorker`.
        out: the index folder, not there yet.
        kind: `exact`, or with FAISS `flat` or `ivf_pq`.
        lists: for `ivf_pq`, see `build_ivf_pq`.
        code_bytes: for `ivf_pq`.
        probes: for `ivf_pq`.
        queries: texts to measure the recall of `ivf_pq` on, instead of rows of the index.
        overwrite: replace an index that is there.

    Raises:
        EmbeddingsError: for embeddings that are unfinished or altered, two rows of one id, a kind that does not exist,
            or a folder that is there already.
    """
    if kind not in KINDS:
        raise EmbeddingsError(f"no kind {kind!r} of index; there are {', '.join(KINDS)}")
    if kind != "ivf_pq" and not (lists is code_bytes is probes is queries is None):
        raise EmbeddingsError(f"lists, code bytes, probes and queries belong to the kind ivf_pq, not to {kind}")
    if kind != "exact":
        import_faiss()
    check_free(out, overwrite=overwrite)
    header = read_header(embeddings)
    if model_sha256(embeddings / "model") != header["model"]["sha256"]:
        raise EmbeddingsError(f"{embeddings / 'model'}: altered, it is not the model that made the vectors")
    part = aside_of(out)
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "model").mkdir(parents=True)
        for name in MODEL_FILES:
            if (embeddings / "model" / name).is_file():
                shutil.copyfile(embeddings / "model" / name, part / "model" / name)
        vectors = _write_rows(part, embeddings, header)
        info = {"jointembed": __version__, "kind": kind, "rows": len(vectors)}
        info |= {key: header[key] for key in ("view", "width", "model", "data")}
        if kind == "ivf_pq":
            faiss = build_ivf_pq(vectors, lists=lists, code_bytes=code_bytes, probes=probes)
            write_faiss(faiss, part / "index.faiss")
            info["ivf_pq"] = {"lists": faiss.nlist, "code_bytes": faiss.pq.M, "probes": faiss.nprobe}
            info["recall"] = measure_recall(faiss, vectors, _encoded(part / "model", queries))
        write_info(part, info)
        _name(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Index.open(out, verify=False)


def _name(part: Path, out: Path) -> None:
    """Give a finished folder its name; one that is there cannot be replaced in one step."""
    old = aside_of(out.with_name(f"{out.name}.old"))
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written over. Raises EmbeddingsError."""
    if not out.exists():
        return
    if not overwrite:
        raise EmbeddingsError(f"{out}: is there already; --overwrite replaces it")
    if not (out / "index.json").is_file():
        raise EmbeddingsError(f"{out}: is no index; it is not replaced")


def _write_rows(folder: Path, embeddings: Path, header: dict[str, Any]) -> Vectors:
    """Write `rows.parquet` and the vectors, and give them memory-mapped."""
    import pyarrow
    from pyarrow import compute, parquet

    writer = None
    kept: list[Tensor] = []
    limit = max(1, _PART // (4 * header["width"]))
    names: list[Path] = []

    def save(rows: list[Tensor]) -> None:
        names.append(folder / f"vectors-{len(names):05d}.safetensors")
        save_tensors({"vectors": torch.cat(rows)}, names[-1])

    for columns, vectors in _normalized(embeddings, header):
        if writer is None:
            writer = parquet.ParquetWriter(
                folder / "rows.parquet", columns.schema.remove_metadata(), compression="zstd"
            )
        writer.write_table(columns.replace_schema_metadata(None))
        kept.append(vectors)
        if sum(map(len, kept)) >= limit:
            save(kept)
            kept = []
    if writer is None:
        raise EmbeddingsError(f"{embeddings}: no row in it")
    writer.close()
    if kept:
        save(kept)
    ids = parquet.read_table(folder / "rows.parquet", columns=["id"])["id"]
    if compute.count_distinct(ids).as_py() < len(ids):
        counts = compute.value_counts(ids)
        twice = counts.filter(compute.greater(counts.field("counts"), pyarrow.scalar(1)))
        raise EmbeddingsError(f"{embeddings}: the id {twice[0]['values'].as_py()!r} is there twice")
    return Vectors([read_vectors(name, header["width"]) for name in names], header["width"])


def _normalized(embeddings: Path, header: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    for columns, values in read_rows(embeddings, header):
        vectors = torch.from_numpy(np.array(values))
        yield columns, vectors if header["normalized"] else functional.normalize(vectors, dim=1)


def _encoded(model: Path, queries: list[str] | None) -> Tensor | None:
    if queries is None:
        return None
    if not queries:
        raise DataError("no query to measure the recall on")
    loaded = JointEmbedding.from_pretrained(model)
    return torch.as_tensor(loaded.encode(queries, text_view(loaded), convert_to_numpy=False))
