"""`jointembed embed`: an idempotent worker; one input shard becomes one parquet of ids, places and vectors.

The folder it fills:

    embeddings.json       what the whole is: model, view, width, data, number of shards
    model/                the model, so that the folder is complete in itself
    part-000000.parquet   `id`, `path`, `vector` (fixed_size_list<float32>[D]), and `text` where texts were embedded
    part-000000.json      marks that parquet as finished: its rows and SHA-256, and what was skipped
    skipped.jsonl         everything that was skipped, from all the marks

Every file is published by a rename, the mark of a shard after its parquet. So a worker that is killed and started
again does the shards that have no mark, whole, and neither loses nor doubles a row; and workers need not know of
each other: each of W takes every W-th shard.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from jointembed.data.loader import to_device
from jointembed.data.loader_workers import in_order, worker_faults
from jointembed.data.samples import PictureView
from jointembed.errors import DataError, EmbeddingsError, WeightsError
from jointembed.inference.embed import Precision
from jointembed.inference.embeddings import (
    FORMAT,
    MODEL_FILES,
    mark_path,
    model_sha256,
    parquet_path,
    read_header,
    read_mark,
    schema,
)
from jointembed.inference.files import aside_of, publish, publish_json, remove_leftovers, sha256_of
from jointembed.inference.inputs import Modality, Records, Source, open_source
from jointembed.model import JointEmbedding, autocast, model_folder

_FLUSH = 8192  # rows of a row group, which are in memory at once
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to embed; what changes the vectors is part of the header, the rest may differ from worker to worker."""

    view: str | None = None  # None: the first view of the model that takes the source's inputs
    normalize: bool = True  # to length 1
    precision: Precision = "fp32"
    batch: int = 64
    workers: int = 0  # processes that decode pictures
    max_bad: int = 0  # inputs a worker may skip
    device: str = "cpu"


@dataclass
class _Progress:
    """What is known of one shard while it is made."""

    rows: int = 0
    skipped: list[dict[str, str | None]] = field(default_factory=list)


def modality_of(model: JointEmbedding, view: str | None) -> Modality | None:
    """What a view takes; None where no view is named. Raises JointEmbedError for a view that is not there."""
    return None if view is None else "text" if model.reads_text(view) else "image"


def embed_worker(
    run: Path | str,
    data: str,
    out: Path,
    settings: Settings,
    *,
    shard_size: int = 10_000,
    column: str | None = None,
    id_column: str | None = None,
) -> "EmbedWorker":
    """A worker from names alone, as the command line and Ray have them; see `open_source` and `EmbedWorker`."""
    model = JointEmbedding.from_pretrained(run, device=settings.device)
    source = open_source(
        data,
        modality=modality_of(model, settings.view),
        shard_size=shard_size,
        column=column,
        id_column=id_column,
    )
    return EmbedWorker(model, model_folder(run), source, out, settings)


class EmbedWorker:
    """One model, one source, one folder.

    Attributes:
        header: the content of `embeddings.json`.
    """

    def __init__(self, model: JointEmbedding, folder: Path, source: Source, out: Path, settings: Settings) -> None:
        """Claim the folder, or join the workers that already fill it.

        Args:
            model: loaded from `folder`.
            folder: the model folder.
            source: from `open_source`.
            out: made where missing.
            settings: see `Settings`.

        Raises:
            EmbeddingsError: where the folder holds embeddings of another model, view or data, naming both.
            JointEmbedError: for a view that the model does not have, or that takes other inputs than the source has.
        """
        self.model = model
        self.source, self.out, self.settings = source, out, settings
        self.view = _view(self.model, source, settings.view)
        self.header = {
            "format": FORMAT,
            "model": {"name": str(self.model.config.get("name", folder.name)), "sha256": model_sha256(folder)},
            "view": self.view,
            "width": self.model.width(self.view),
            "normalized": settings.normalize,
            "precision": settings.precision,
            "data": {"name": source.name, "kind": source.modality, "sha256": source.fingerprint},
            "shards": len(source),
        }
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        if not (out / "embeddings.json").exists():
            if any(out.glob("part-*")):
                raise EmbeddingsError(f"{out}: holds parts but no embeddings.json; take another folder")
            publish_json(out / "embeddings.json", self.header)
        _compare(out, read_header(out), self.header)
        _copy_model(folder, out / "model")

    def todo(self, rank: int, world: int) -> list[int]:
        """Numbers of the shards of rank r of W that are not finished."""
        return [number for number in range(rank, len(self.source), world) if self._mark(number) is None]

    def run(self, rank: int, world: int, finished: Callable[[dict[str, Any]], object] | None = None) -> None:
        """Finish every W-th shard, beginning with number r; those with a mark are left alone.

        Args:
            rank: r.
            world: W.
            finished: called with the mark of each shard that was made.

        Raises:
            DataError: naming the picture or text that is bad, where more are than `max_bad` allows; what is
                finished stays.
        """
        own = [self._mark(number) for number in range(rank, len(self.source), world)]
        bad = sum(len(mark["skipped"]) for mark in own if mark is not None)
        for number in range(rank, len(self.source), world):
            if self._mark(number) is None:
                mark = self.finish(number, bad)
                bad += len(mark["skipped"])
                if finished is not None:
                    finished(mark)
        self.list_skipped()

    def finish(self, number: int, bad: int = 0) -> dict[str, Any]:
        """Make one shard, whether it has a mark or not, and return its mark; `bad` inputs were skipped before it."""
        progress = _Progress()
        path = parquet_path(self.out, number)
        publish(path, lambda aside: self._write(aside, self._records(number), progress, bad))
        mark = {
            "shard": number,
            "rows": progress.rows,
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
            "model": self.header["model"],
            "view": self.view,
            "width": self.header["width"],
            "normalized": self.header["normalized"],
            "skipped": progress.skipped,
        }
        publish_json(mark_path(self.out, number), mark)
        return mark

    def _records(self, number: int) -> Records:
        """Open one shard. Raises DataError for an id or a path that no parquet can hold, which keeps text as UTF-8."""
        records = self.source.records(number)
        for name in filter(None, (*records.ids, *records.paths)):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"{self.source.name}: {ascii(name)} is not valid Unicode") from None
        return records

    def list_skipped(self) -> None:
        """Write `skipped.jsonl` from the marks of all workers; again, where another worker added one meanwhile."""
        seen: list[Path] = []
        while (marks := sorted(self.out.glob("part-*.json"))) != seen:
            seen = marks
            skipped = [one for path in marks for one in read_mark(path)["skipped"]]
            publish(self.out / "skipped.jsonl", partial(_write_lines, skipped))

    def _mark(self, number: int) -> dict[str, Any] | None:
        """The mark of a finished shard; None where it has none, or its parquet is not the one that was marked."""
        path = mark_path(self.out, number)
        if not path.exists():
            return None
        mark, parquet = read_mark(path), parquet_path(self.out, number)
        if not parquet.is_file() or parquet.stat().st_size != mark["bytes"]:
            logger.warning("%s: missing or altered since it was finished; it is made again", parquet)
            return None
        return mark

    def _write(self, path: Path, records: Records, progress: _Progress, bad: int) -> None:
        from pyarrow import parquet

        columns = schema(self.header)
        with parquet.ParquetWriter(
            path, columns, compression={name: "zstd" if name != "vector" else "none" for name in columns.names},
            use_dictionary=False, write_statistics=["id"],
        ) as writer:  # fmt: skip
            for numbers, vectors, texts in self._embedded(records, progress, bad):
                writer.write_table(_table(columns, records, numbers, vectors, texts), row_group_size=_FLUSH)
                progress.rows += len(numbers)

    def _embedded(
        self, records: Records, progress: _Progress, bad: int
    ) -> Iterator[tuple[list[int], Tensor, list[str]]]:
        """Numbers, vectors and texts of good inputs, at most `_FLUSH` at a time and in their order."""

        def skip(number: int, message: str) -> None:
            progress.skipped.append({"id": records.ids[number], "path": records.paths[number], "error": message})
            if bad + len(progress.skipped) > self.settings.max_bad:
                count = bad + len(progress.skipped)
                more = f" ({count} bad inputs; --max-bad {self.settings.max_bad})" if self.settings.max_bad else ""
                raise DataError(message + more)

        embed = self._texts if self.source.modality == "text" else self._pictures
        for start in range(0, len(records.ids), _FLUSH):
            numbers, vectors, texts = embed(records, range(start, min(start + _FLUSH, len(records.ids))), skip)
            wrong = (~vectors.isfinite().all(dim=1)).nonzero()
            if len(wrong):
                raise EmbeddingsError(f"{records.ids[numbers[int(wrong[0])]]}: the model's vector is not finite")
            yield numbers, functional.normalize(vectors, dim=1) if self.settings.normalize else vectors, texts

    def _texts(
        self, records: Records, numbers: range, skip: Callable[[int, str], None]
    ) -> tuple[list[int], Tensor, list[str]]:
        good, texts = [], []
        for number in numbers:
            try:
                texts.append(records.read(number))
                good.append(number)
            except DataError as error:
                skip(number, str(error))
        rows = self.model.encode(
            texts,
            self.view,
            batch_size=self.settings.batch,
            normalize=False,
            convert_to_numpy=False,
            precision=self.settings.precision,
        )
        return good, torch.as_tensor(rows), texts

    @worker_faults()
    def _pictures(
        self, records: Records, numbers: range, skip: Callable[[int, str], None]
    ) -> tuple[list[int], Tensor, list[str]]:
        pipeline = self.model.image
        assert pipeline is not None  # _view saw to it
        key = self.view if self.view in pipeline.views else pipeline.views[0]
        good: list[int] = []
        rows = [torch.zeros(0, self.model.width(self.view))]
        loader = in_order(
            _Decoded(pipeline, key, records, numbers),
            batch=self.settings.batch,
            workers=self.settings.workers,
            name=partial(_id_of, records.ids, numbers),
            collate=_collated,
        )
        self.model.eval()
        with torch.inference_mode(), autocast(self.model.device, self.settings.precision):
            for found, pictures, faults in loader:
                for number, message in faults:
                    skip(number, message)
                if pictures is not None:
                    good += found
                    rows.append(self.model.vectors(self.view, to_device(pictures, self.model.device)).cpu())
        return good, torch.cat(rows), []


class _Decoded(Dataset[tuple[int, Tensor | str]]):
    """Some inputs of a shard, each as (number, tensor), or (number, message) where it is bad."""

    def __init__(self, pipeline: PictureView, key: str, records: Records, numbers: range) -> None:
        self.pipeline, self.key, self.records, self.numbers = pipeline, key, records, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> tuple[int, Tensor | str]:
        number = self.numbers[position]
        try:
            return number, self.pipeline(self.records.read(number))[self.key]
        except DataError as error:
            return number, str(error)


def _id_of(ids: Sequence[str], numbers: range, position: int) -> str:
    return ids[numbers[position]]


def _collated(batch: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    good = [(number, value) for number, value in batch if isinstance(value, Tensor)]
    faults = [(number, value) for number, value in batch if isinstance(value, str)]
    return [number for number, _ in good], torch.stack([value for _, value in good]) if good else None, faults


def _view(model: JointEmbedding, source: Source, view: str | None) -> str:
    names = [name for name in model.views if modality_of(model, name) == source.modality]
    if view is not None and modality_of(model, view) != source.modality:
        raise DataError(f"{source.name}: holds {source.modality}s; the view {view!r} of the model takes others")
    if not names:
        raise WeightsError(f"the model has no view for {source.modality}s; it has {', '.join(model.views)}")
    if source.modality == "image" and model.image is None:
        raise WeightsError("this model has no picture pipeline; it cannot embed pictures")
    return view or names[0]


def _write_lines(values: list[Any], path: Path) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in values), "ascii")


def _compare(out: Path, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a folder that another job fills. Raises EmbeddingsError naming what differs."""
    if found["model"] != own["model"]:
        names = " and ".join(f"{one['model']['name']!r} ({one['model']['sha256'][:12]})" for one in (found, own))
        raise EmbeddingsError(f"{out}: holds embeddings of another model: {names}; take another folder")
    for key in ("view", "width", "normalized", "precision"):
        if found[key] != own[key]:
            raise EmbeddingsError(f"{out}: {key} is {found[key]!r} there and {own[key]!r} here; take another folder")
    for key in ("name", "kind", "sha256"):
        if found["data"][key] != own["data"][key]:
            raise EmbeddingsError(
                f"{out}: holds embeddings of other data: {key} {found['data'][key]!r} there and "
                f"{own['data'][key]!r} here; data that has changed needs another folder"
            )
    if found["shards"] != own["shards"]:
        raise EmbeddingsError(
            f"{out}: the data was cut into {found['shards']} shards there and {own['shards']} here; keep --shard-size"
        )


def _copy_model(folder: Path, target: Path) -> None:
    """Copy a model folder, whole or not at all; the first of several workers wins."""
    if target.exists():
        return
    aside = aside_of(target)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in MODEL_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, aside / name)
    try:
        aside.rename(target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _table(columns: Any, records: Records, numbers: list[int], vectors: Tensor, texts: list[str]) -> Any:
    import pyarrow

    flat = pyarrow.array(np.ascontiguousarray(vectors.numpy(), dtype=np.float32).reshape(-1))
    values = {
        "id": [records.ids[number] for number in numbers],
        "path": [records.paths[number] for number in numbers],
        "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "text": texts,
    }
    return pyarrow.table({name: values[name] for name in columns.names}, schema=columns)
