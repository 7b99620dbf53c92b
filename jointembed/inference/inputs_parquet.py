"""Pictures or texts to embed from a column of parquet files, read by row groups."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jointembed.data.captions import clean_caption
from jointembed.errors import DataError
from jointembed.inference.inputs import TEXT_COLUMNS, Modality, Records, sizes_digest
from jointembed.inference.places import open_parquet, open_value, parquet_place, read_cells

_COLUMNS: dict[Modality, tuple[str, ...]] = {"image": ("image", "picture"), "text": TEXT_COLUMNS}


class ParquetFiles:
    """Rows of one or several files that have the column, in shards that never span two files."""

    def __init__(
        self,
        files: Mapping[str, Path],
        name: str,
        modality: Modality | None,
        size: int,
        column: str | None,
        id_column: str | None,
    ) -> None:
        """Read every file's footer.

        Raises:
            DataError: naming the file that is damaged or lacks the column, or the column of another type.
        """
        self.name, self.files, self.id_column = Path(name).absolute().as_posix(), dict(files), id_column
        self.column, self.modality = _choose(next(iter(files.values())), column, modality)
        self._pieces: list[tuple[str, int, int]] = []
        counts = []
        for label, path in files.items():
            opened = open_parquet(path)
            _choose(path, self.column, self.modality)
            if id_column is not None and id_column not in opened.schema_arrow.names:
                raise DataError(f"{path}: no column {id_column!r}")
            counts.append(opened.metadata.num_rows)
            self._pieces += [(label, start, min(start + size, counts[-1])) for start in range(0, counts[-1], size)]
        if not self._pieces:
            raise DataError(f"{name}: no row in it")
        keys = [*files, self.column, id_column or "", self.modality]
        self.fingerprint = sizes_digest(keys, [*(path.stat().st_size for path in files.values()), 0, 0, 0])

    def __len__(self) -> int:
        """Number of shards."""
        return len(self._pieces)

    def records(self, shard: int) -> Records:
        """One shard, held in memory as it is stored: pictures stay encoded."""
        label, start, stop = self._pieces[shard]
        path = self.files[label]
        columns = list(dict.fromkeys([self.column, *([self.id_column] if self.id_column else [])]))
        table = read_cells(open_parquet(path), path, columns, start, stop)
        if self.id_column is None:
            ids = [f"{label}:{row}" for row in range(start, stop)]
        else:
            ids = [_id(value, f"{path}, row {start + n}") for n, value in enumerate(table[self.id_column].to_pylist())]
        paths: list[str | None] = [None] * (stop - start)
        if self.modality == "image":
            paths = [parquet_place(path, self.column, row) for row in range(start, stop)]
        cells = table[self.column].combine_chunks()
        return Records(ids, paths, partial(_read, path, start, cells, self.modality))


def _read(path: Path, start: int, cells: Any, modality: Modality, number: int) -> Any:
    where = f"{path}, row {start + number}"
    value = cells[number].as_py()
    return clean_caption(value, where) if modality == "text" else open_value(value, path, where)


def _id(value: object, where: str) -> str:
    if not isinstance(value, str | int):
        raise DataError(f"{where}: the id is {ascii(value)[:60]}; expected text or a whole number")
    return str(value)


def _choose(path: Path, column: str | None, modality: Modality | None) -> tuple[str, Modality]:
    """The column and what it holds: the one that is named, or the first with a usual name."""
    import pyarrow.types as types

    schema = open_parquet(path).schema_arrow

    def holds(name: str) -> Modality | None:
        kind = schema.field(name).type
        if types.is_binary(kind) or types.is_large_binary(kind):
            return "image"
        if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(n).name for n in range(kind.num_fields)}:
            return "image"
        return "text" if types.is_string(kind) or types.is_large_string(kind) else None

    if column is not None:
        if column not in schema.names:
            raise DataError(f"{path}: no column {column!r}; the columns are {', '.join(map(repr, schema.names))}")
        found = holds(column)
        if found is None or modality not in (None, found):
            wanted = {"image": "pictures", "text": "texts", None: "pictures or texts"}[modality]
            raise DataError(f"{path}: the column {column!r} is {schema.field(column).type}; expected {wanted}")
        return column, found
    for kind in ("image", "text"):
        for name in _COLUMNS[kind] if modality in (None, kind) else ():
            if name in schema.names and holds(name) == kind:
                return name, kind
    raise DataError(f"{path}: no column of pictures or texts found in {', '.join(map(repr, schema.names))}; name it")
