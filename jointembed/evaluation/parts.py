"""Embeddings in many files, read a range of rows at a time: what `jointembed embed` writes, or safetensors."""

import csv
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jointembed.errors import EmbeddingsError, EvaluationError
from jointembed.inference.embeddings import finished_shards, parquet_path, read_header

if TYPE_CHECKING:  # imported where it is used: an evaluation of other files does without
    from pyarrow.parquet import ParquetFile


class EmbeddingParts:
    """N rows of D numbers in files that follow one another; one row group is in memory at a time.

    Attributes:
        paths: of the files.
        width: D.
        model: SHA-256 of the model that `jointembed embed` noted in the folder; None of other files.
    """

    def __init__(self, source: Path | str | Sequence[Path | str]) -> None:
        """Look into each file for its shape.

        Args:
            source: a folder of `.parquet` files with a column `vector` (and `id`), or of `.safetensors` files with one
                matrix, named `vector` where there are other tensors; taken in the order of their names. Or such files.
                A folder with an `embeddings.json` is read as `jointembed embed` wrote it, and must be finished.

        Raises:
            EvaluationError: naming the file that is missing, no such file, or of another width; the shards that
                `jointembed embed` has not finished.
        """
        self.model: str | None = None
        if isinstance(source, Path | str) and (Path(source) / "embeddings.json").is_file():
            found, self.model = _embedded(Path(source))
        elif isinstance(source, Path | str) and Path(source).is_dir():
            found = [path for path in sorted(Path(source).iterdir()) if path.suffix in (".parquet", ".safetensors")]
        else:
            found = [Path(one) for one in ([source] if isinstance(source, Path | str) else source)]
        if not found:
            raise EvaluationError(f"{source}: no .parquet or .safetensors file of embeddings there")
        self.paths = tuple(found)
        self._starts = [0]  # row that each row group begins at
        self._groups: list[tuple[Path, int, str]] = []  # file, and its row group or the name of its tensor
        self._kept: tuple[int, np.ndarray] | None = None
        widths = {path: width for path in self.paths if (width := self._look(path)) is not None}
        if not len(self):
            raise EvaluationError(f"{self.paths[0]}: no row in it ({len(self.paths)} files)")
        first = next(iter(widths))
        self.width = widths[first]
        odd = next((path for path, width in widths.items() if width != self.width), None)
        if odd is not None:
            raise EvaluationError(f"{odd}: vectors of width {widths[odd]}; those of {first} have {self.width}")

    def __len__(self) -> int:
        """Rows of all files."""
        return self._starts[-1]

    def _look(self, path: Path) -> int | None:
        """Note the rows of a file; its width, None where it has no row to tell it."""
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file")
        if path.suffix == ".safetensors":
            name, (rows, width) = _matrix(path)
            self._add(path, 0, name, rows)
            return width
        file = _parquet(path)
        for group in range(file.num_row_groups):
            self._add(path, group, "vector", file.metadata.row_group(group).num_rows)
        kind = file.schema_arrow.field("vector").type
        if hasattr(kind, "list_size"):
            return kind.list_size
        first = next(iter(file.iter_batches(batch_size=1, columns=["vector"])), None)
        return None if first is None else len(first["vector"][0].as_py() or ())

    def _add(self, path: Path, group: int, name: str, rows: int) -> None:
        self._groups.append((path, group, name))
        self._starts.append(self._starts[-1] + rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`: (n, D) float32.

        Raises:
            EvaluationError: naming the file that cannot be read, or whose vectors are not all of width D.
        """
        pieces = [np.empty((0, self.width), dtype=np.float32)]
        group = bisect_right(self._starts, start) - 1
        while start < min(stop, len(self)):
            first, last = self._starts[group], min(self._starts[group + 1], stop)
            if last > start:
                pieces.append(self._rows(group, start - first, last - first))
                start = last
            group += 1
        return np.concatenate(pieces)

    def _rows(self, group: int, start: int, stop: int) -> np.ndarray:
        path, number, name = self._groups[group]
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    return file.get_slice(name)[start:stop].float().numpy()
            except (SafetensorError, OSError) as error:
                raise EvaluationError(f"{path}: cannot be read ({error})") from None
        if self._kept is None or self._kept[0] != group:
            self._kept = None  # not two of them at once
            self._kept = group, _vectors(path, number, self.width)
        return self._kept[1][start:stop]

    def where(self, row: int) -> str:
        """File and row in it, for messages."""
        group = bisect_right(self._starts, row) - 1
        path = self._groups[group][0]
        first = next(n for n, one in enumerate(self._groups) if one[0] == path)
        return f"{path}, row {row - self._starts[first]}"

    def ids(self) -> list[str]:
        """The column `id` of parquet files, as text; row numbers of safetensors files.

        Raises:
            EvaluationError: naming a parquet file without that column, or an id that is there twice.
        """
        found: list[str] = []
        for path in self.paths:
            if path.suffix == ".safetensors":
                found += map(str, range(len(found), len(found) + _matrix(path)[1][0]))
                continue
            file = _parquet(path)
            if "id" not in file.schema_arrow.names:
                raise EvaluationError(f"{path}: no column 'id'")
            found += [str(one) for one in file.read(columns=["id"])["id"].to_pylist()]
        if len(set(found)) < len(found):
            seen: set[str] = set()
            twice = next(one for one in found if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise EvaluationError(f"{self.paths[0].parent}: the id {twice!r} is there twice")
        return found


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Which image and which text belong together: ids in a CSV file with the columns `image` and `text`.

    Raises:
        EvaluationError: naming the file, and the line that is not two ids.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from None
    if not lines or lines[0] != ["image", "text"]:
        raise EvaluationError(f"{path}: the first line is {lines[:1]}; expected the header image,text")
    odd = next((number for number, line in enumerate(lines[1:], 2) if len(line) != 2 or not all(line)), None)
    if odd is not None:
        raise EvaluationError(f"{path}, line {odd}: {lines[odd - 1]}; expected the id of an image and that of a text")
    return [(image, text) for image, text in lines[1:]]


def rows_of_pairs(image: EmbeddingParts, text: EmbeddingParts, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Pairs of ids as pairs of rows, (P, 2) int64.

    Raises:
        EvaluationError: naming an id that is not there; embeddings of two models.
    """
    if image.model and text.model and image.model != text.model:
        raise EvaluationError(
            f"{text.paths[0].parent}: embedded by another model ({text.model[:12]}) than {image.paths[0].parent} "
            f"({image.model[:12]}); vectors of two models have nothing in common"
        )
    if not pairs:
        raise EvaluationError("pairs: there are none")
    columns = []
    for side, parts, ids in zip(("image", "text"), (image, text), zip(*pairs, strict=True), strict=True):
        row = {one: number for number, one in enumerate(parts.ids())}
        unknown = next((one for one in ids if one not in row), None)
        if unknown is not None:
            raise EvaluationError(f"pairs: the {side} id {unknown!r} is not among the {len(row):,} embedded ones")
        columns.append([row[one] for one in ids])
    return np.array(columns, dtype=np.int64).T.copy()


def _embedded(folder: Path) -> tuple[list[Path], str]:
    """The files of a folder that `jointembed embed` has finished, and the SHA-256 of its model."""
    try:
        header = read_header(folder)
        marks = finished_shards(folder, header)
    except EmbeddingsError as error:
        raise EvaluationError(str(error)) from None
    paths = [parquet_path(folder, number) for number in range(len(marks))]
    for path, mark in zip(paths, marks, strict=True):
        if not path.is_file() or path.stat().st_size != mark["bytes"]:
            raise EvaluationError(f"{path}: missing or cut short; its mark says {mark['bytes']:,} bytes")
    return paths, str(header["model"]["sha256"])


def _matrix(path: Path) -> tuple[str, tuple[int, int]]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path}: not a readable safetensors file ({error})") from None
    name = "vector" if "vector" in shapes else next(iter(shapes), "") if len(shapes) == 1 else ""
    if len(shapes.get(name, ())) != 2:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "nothing"
        raise EvaluationError(f"{path}: expected one matrix, or one named 'vector'; found {found}")
    return name, (shapes[name][0], shapes[name][1])


def _parquet(path: Path) -> "ParquetFile":
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise EvaluationError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None
    names = file.schema_arrow.names
    kind = file.schema_arrow.field("vector").type if "vector" in names else None
    if kind is None or not (pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        found = ", ".join(map(repr, names)) if kind is None else kind
        raise EvaluationError(f"{path}: expected a column 'vector' of lists of numbers; found {found}")
    return file


def _vectors(path: Path, group: int, width: int) -> np.ndarray:
    import pyarrow
    import pyarrow.compute as compute

    try:
        column: Any = _parquet(path).read_row_group(group, columns=["vector"])["vector"].combine_chunks()
    except (OSError, pyarrow.ArrowException) as error:
        raise EvaluationError(f"{path}: row group {group} cannot be read ({error})") from None
    if column.null_count or not compute.all(compute.equal(compute.list_value_length(column), width)).as_py():
        raise EvaluationError(f"{path}: row group {group} holds a vector of another width than {width}, or none")
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
