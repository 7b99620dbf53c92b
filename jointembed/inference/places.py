"""Places: one string that says how to open an embedded picture again.

A file is its absolute path. What lies inside another file is written as fsspec chains addresses:
`tar://member::/shards/0.tar`, `parquet://column/row::/data/0.parquet`. `emoji://test/1f436.noto` is in this package.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from jointembed.data.emoji import emoji
from jointembed.data.pictures import inside, open_picture
from jointembed.data.records import Pictures
from jointembed.data.shards import PictureTar
from jointembed.errors import DataError

_OPEN_FILES = 16  # archives whose members stay indexed


def tar_place(archive: Path, member: str) -> str:
    """Place of a member of a tar archive. Raises DataError where the path of the archive has `::` in it."""
    return f"tar://{member}::{_inner(archive)}"


def parquet_place(file: Path, column: str, row: int) -> str:
    """Place of a cell of a parquet file. Raises DataError where the path of the file has `::` in it."""
    return f"parquet://{column}/{row}::{_inner(file)}"


def emoji_place(split: str, picture_id: str) -> str:
    """Place of a picture of the data set inside the package."""
    return f"emoji://{split}/{picture_id}"


def _inner(file: Path) -> str:
    path = file.absolute().as_posix()
    if "::" in path:
        raise DataError(f"{path}: a path with '::' in it cannot be part of a place")
    return path


def open_place(place: str) -> Image.Image:
    """Decode the picture of a place to RGB.

    Raises:
        DataError: naming the place, where it cannot be opened.
    """
    scheme, separator, rest = place.partition("://")
    if not separator or scheme not in ("tar", "parquet", "emoji"):
        return open_picture(Path(place))
    if scheme == "emoji":
        split, _, picture_id = rest.partition("/")
        pictures, numbers = _emoji(split)
        return pictures.open(_number(numbers, picture_id, place))
    inner, _, file = rest.rpartition("::")
    if scheme == "tar":
        archive, numbers = _tar(file)
        return archive.open(_number(numbers, inner, place))
    column, _, row = inner.rpartition("/")
    return open_cell(_parquet(file), Path(file), column, int(row) if row.isdecimal() else -1)


def _number(numbers: dict[str, int], name: str, place: str) -> int:
    if name not in numbers:
        raise DataError(f"{place}: no such picture")
    return numbers[name]


@lru_cache(_OPEN_FILES)
def _emoji(split: Any) -> tuple[Pictures, dict[str, int]]:
    data = emoji(split=split)
    return data.pictures, {name: number for number, name in enumerate(data.picture_ids)}


@lru_cache(_OPEN_FILES)
def _tar(file: str) -> tuple[PictureTar, dict[str, int]]:
    archive = PictureTar(Path(file))
    return archive, {name: number for number, name in enumerate(archive.names)}


@lru_cache(_OPEN_FILES)
def _parquet(file: str) -> Any:
    return open_parquet(Path(file))


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`. Raises DataError naming the file."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except UnicodeEncodeError:  # Arrow takes no other paths
        raise DataError(f"{ascii(str(file))} is not valid Unicode") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: not a parquet file, or a damaged one ({' '.join(str(error).split())[:200]})"
        ) from None


def read_cells(opened: Any, file: Path, columns: list[str], start: int, stop: int) -> Any:
    """Rows start to stop of some columns, from the row groups that hold them: a `pyarrow.Table`."""
    import pyarrow

    groups, first, begin = [], None, 0
    for number in range(opened.metadata.num_row_groups):
        end = begin + opened.metadata.row_group(number).num_rows
        if end > start and begin < stop:
            groups.append(number)
            first = begin if first is None else first
        begin = end
    try:
        table = opened.read_row_groups(groups, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    return table.slice(start - (first or 0), stop - start)


def open_cell(opened: Any, file: Path, column: str, row: int) -> Image.Image:
    """Decode the picture in one cell of a parquet file."""
    if column not in opened.schema_arrow.names or not 0 <= row < opened.metadata.num_rows:
        raise DataError(f"{file}: no row {row} of a column {column!r}")
    cell = read_cells(opened, file, [column], row, row + 1)[column][0].as_py()
    return open_value(cell, file, f"{file}, row {row}")


def open_value(cell: Any, file: Path, where: str) -> Image.Image:
    """Decode a picture as `datasets` stores it: bytes, or `{"bytes", "path"}` with a path below the file's folder."""
    if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
        return open_picture(inside(file.parent, cell["path"]), name=where)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise DataError(f"{where}: holds no picture")
    return open_picture(content, name=where)
