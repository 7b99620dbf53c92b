"""Captioned pictures in parquet files, read in place, row group by row group.

For data that fits, `caption_dataset` is simpler; it copies the pictures into the cache of `datasets` first.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jointembed.data.captions import row_captions
from jointembed.data.order import Layout
from jointembed.data.pictures import open_picture, stamp
from jointembed.data.records import CaptionData
from jointembed.errors import DataError

if TYPE_CHECKING:  # imported where it is used: a run on other data does without
    from pyarrow.parquet import ParquetFile


def caption_parquet(
    *,
    files: str,
    image_column: str = "image",
    caption_column: str | list[str] = "caption",
    window: int = 1024,
    interleave: int = 4,
) -> CaptionData:
    """Rows in the order of the files, one item a row.

    A shard, in the sense of the shuffle, is a row group. A process keeps twice `interleave` of them decoded.

    Args:
        files: a `.parquet` file, or a folder of them, read in the order of their names.
        image_column: encoded pictures: bytes, or a struct with a field `bytes` as `datasets` writes it.
        caption_column: text or lists of text; or several columns, whose captions are taken together.
        window: training samples that are shuffled among each other.
        interleave: row groups that training reads at once.

    Raises:
        DataError: naming file, column and row.
    """
    place = Path(files)
    paths = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not paths:
        raise DataError(f"{files}: no .parquet file there")
    columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
    pictures = ParquetPictures(paths, image_column, window, interleave)
    captions = [one for path in paths for one in _captions(path, columns)]
    return CaptionData(
        name=place.stem,
        pictures=pictures,
        item=np.arange(len(pictures), dtype=np.int64),
        captions=tuple(captions),
        picture_ids=tuple(pictures.names),
    )


class ParquetPictures:
    """Pictures in the rows of parquet files; decoded row groups stay in memory, the least recently used leaves."""

    def __init__(self, paths: Sequence[Path], column: str, window: int, interleave: int) -> None:
        """Read the files' footers.

        Args:
            paths: the files.
            column: of the pictures.
            window: as in `Layout`.
            interleave: as in `Layout`.

        Raises:
            DataError: naming the file that cannot be read, has no such column, or has no pictures in it.
        """
        self.paths, self.column = tuple(paths), column
        self._groups: list[tuple[int, int]] = []  # file, row group
        self.names: list[str] = []
        rows, self._sizes = [], []
        for number, path in enumerate(paths):
            file = _open(path, [column])
            at = _leaf(file, path, column)
            for group in range(file.num_row_groups):
                part = file.metadata.row_group(group)
                self._groups.append((number, group))
                self._sizes += [part.column(at).total_uncompressed_size // max(1, part.num_rows)] * part.num_rows
                rows.append(part.num_rows)
            self.names += [f"{path.name}[{row}]" for row in range(file.metadata.num_rows)]
        self.layout = Layout(tuple(rows), window, interleave)
        self._first = np.concatenate([[0], np.cumsum(rows)])
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB. Raises DataError naming file and row."""
        group = int(np.searchsorted(self._first, number, side="right")) - 1
        label = f"{self.paths[self._groups[group][0]].parent}/{self.names[number]}"
        data = self._column(group)[number - int(self._first[group])].as_py()
        if not data:
            raise DataError(f"{label}: the row holds no picture")
        return open_picture(data, name=label)

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture, to the mean of its row group: the footer knows no more."""
        return self._sizes

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change of each file."""
        return [stamp(path) for path in self.paths]

    def _column(self, group: int) -> Any:
        """The bytes of a row group's pictures, as an arrow array."""
        import pyarrow

        with self._lock:
            if group not in self._kept:
                file, number = self._groups[group]
                try:
                    table = _open(self.paths[file], [self.column]).read_row_group(number, columns=[self.column])
                    column = table[self.column].combine_chunks()
                except (OSError, pyarrow.ArrowException) as error:
                    raise DataError(f"{self.paths[file]}: row group {number} cannot be read ({error})") from None
                self._kept[group] = column.field("bytes") if pyarrow.types.is_struct(column.type) else column
                while len(self._kept) > 2 * self.layout.interleave:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the decoded row groups and the lock."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With none decoded yet."""
        self.__dict__ |= state | {"_kept": OrderedDict(), "_lock": threading.Lock()}


def _open(path: Path, columns: Sequence[str]) -> "ParquetFile":
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None
    for column in columns:
        if column not in file.schema_arrow.names:
            found = ", ".join(map(repr, file.schema_arrow.names))
            raise DataError(f"{path}: no column {column!r}; the columns are {found}")
    return file


def _leaf(file: "ParquetFile", path: Path, column: str) -> int:
    """Which of the file's flat columns holds the bytes; text is none: it would be opened as the path of a file."""
    for number in range(len(file.schema)):
        leaf = file.schema.column(number)
        is_bytes = leaf.physical_type.endswith("BYTE_ARRAY") and leaf.logical_type.type == "NONE"
        if is_bytes and leaf.path in (column, f"{column}.bytes"):
            return number
    kind = file.schema_arrow.field(column).type
    raise DataError(
        f"{path}: the column {column!r} holds {kind}; expected pictures as bytes, or a struct with a field 'bytes'"
    )


def _captions(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for batch in _open(path, columns).iter_batches(columns=list(columns)):
        for row in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
            found.append(row_captions(row, f"{path}[{len(found)}]"))
    return found
