"""Caption and image data sets through the library `datasets`: parquet, image folders, saved data sets, and the hub."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jointembed.data.captions import row_captions
from jointembed.data.labels import number_labels
from jointembed.data.pictures import open_picture, stamp, status_inside
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.subsets import choose
from jointembed.errors import DataError

if TYPE_CHECKING:  # importing `datasets` takes a second; a run on other data does without
    from datasets import Dataset


def caption_dataset(
    *,
    path: str,
    split: str,
    image_column: str = "image",
    caption_column: str | list[str] = "caption",
    id_column: str | None = None,
    revision: str | None = None,
) -> CaptionData:
    """One split of a data set that `datasets` can load, in the order of its rows.

    Args:
        path: a `.parquet` file; a folder of parquet files, or of pictures with a `metadata.csv` or
            `metadata.jsonl`; a folder written by `save_to_disk`; otherwise an id on the hub.
        split: `train`, `test`, ..., also a slice such as `train[:1000]` (not of a saved data set).
        image_column: pictures, as `datasets.Image` or as bytes. They are decoded when they are asked for.
        caption_column: text, or lists of text; or several columns, whose captions are taken together.
        id_column: rows of equal value are captions of one picture, which the first of them shows; without it
            every row is a picture of its own.
        revision: commit or tag on the hub; without it results depend on the day.

    Raises:
        DataError: naming the data set and the column or row.
    """
    data = _load(path, split, revision)
    label = f"{path} {split}"
    columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
    _check_columns(data, [image_column, *columns, *([id_column] if id_column else [])], label)
    captions = [
        row_captions([row[column] for column in columns], f"{label}[{number}]")
        for number, row in enumerate(data.select_columns(columns))
    ]
    ids = data[id_column][:] if id_column else range(len(data))
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(ids):
        if key is None or isinstance(key, (dict, list)):
            raise DataError(f"{label}[{row}]: {id_column!r} is {ascii(key)[:60]}; expected an id")
        groups.setdefault(key, []).append(row)
    return CaptionData(
        name=label,
        pictures=DatasetPictures(
            _pictures(data, image_column, label), split, [rows[0] for rows in groups.values()], _folder(path)
        ),
        item=np.arange(len(groups), dtype=np.int64),
        captions=tuple(tuple(caption for row in rows for caption in captions[row]) for rows in groups.values()),
        picture_ids=tuple(map(str, groups)),
    )


def image_dataset(
    *,
    path: str,
    split: str,
    image_column: str = "image",
    label_column: str | None = None,
    revision: str | None = None,
    fraction: float | None = None,
    subset_seed: int = 0,
) -> ImageData:
    """Pictures of one split of a data set that `datasets` can load, in the order of its rows.

    Args:
        path: as in `caption_dataset`; of a folder of pictures, class folders give the column `label`.
        split: `train`, `test`, ..., also a slice such as `train[:1000]` (not of a saved data set).
        image_column: pictures, as `datasets.Image` or as bytes.
        label_column: `datasets.ClassLabel`, whole numbers from 0, or names of classes. None reads pictures alone.
        revision: commit or tag on the hub; without it results depend on the day.
        fraction: share of each class to keep; see `jointembed.data.subsets.choose`.
        subset_seed: of the fraction.

    Raises:
        DataError: naming the data set and the column or row.
    """
    data = _load(path, split, revision)
    label = f"{path} {split}"
    _check_columns(data, [image_column, *([label_column] if label_column else [])], label)
    pictures = DatasetPictures(_pictures(data, image_column, label), split, range(len(data)), _folder(path))
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    if label_column:
        values = data[label_column][:]
        for row, value in enumerate(values):
            if not isinstance(value, (int, str)) or isinstance(value, bool):
                raise DataError(
                    f"{label}[{row}]: {label_column!r} is {ascii(value)[:60]}; expected a whole number or a name"
                )
        names = getattr(data.features[label_column], "names", None)
        labels, classes = number_labels(
            values, names, source=f"{label}, column {label_column!r}", pictures=pictures.names
        )
    found = ImageData(label, pictures, labels, classes, picture_ids=tuple(map(str, range(len(data)))))
    return choose(found, subset=None, fraction=fraction, subset_seed=subset_seed)


def _check_columns(data: "Dataset", columns: Iterable[str], label: str) -> None:
    for column in columns:
        if column not in data.column_names:
            raise DataError(f"{label}: no column {column!r}; the columns are {', '.join(map(repr, data.column_names))}")


def _load(path: str, split: str, revision: str | None) -> "Dataset":
    import datasets
    import pyarrow

    place = Path(path)
    if not place.exists() and (place.suffix == ".parquet" or place.is_absolute() or path.startswith(".")):
        raise DataError(f"{path}: no such file or folder")  # no id on the hub, which would be asked for half a minute
    if place.exists() and revision is not None:
        raise DataError(f"{path}: is on this disk, where there is no revision {revision!r}")
    if place.is_file() and place.suffix != ".parquet":
        raise DataError(f"{path}: expected a .parquet file, a folder or an id on the hub")
    try:
        if place.is_file():
            files = {split.split("[")[0]: path}
            with _uncounted():
                found = datasets.load_dataset("parquet", data_files=files, split=split)
        elif (place / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(path)[split]
        elif (place / "state.json").is_file():
            found = datasets.load_from_disk(path)
            if str(found.split or split) != split:
                raise DataError(f"{path}: holds the split {str(found.split)!r}, not {split!r}")
        else:
            with _uncounted() if place.exists() else nullcontext():
                found = datasets.load_dataset(path, split=split, revision=revision)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} {split}: cannot be loaded ({_one_line(error)})") from None
    except datasets.exceptions.DatasetsError as error:
        raise DataError(f"{path} {split}: cannot be loaded ({_one_line(error.__cause__ or error)})") from None
    if not isinstance(found, datasets.Dataset) or not len(found):
        raise DataError(f"{path} {split}: no row in it")
    return found


@contextmanager
def _uncounted() -> Iterator[None]:
    """Without the request that `datasets` sends to count loads, also of files on this disk."""
    from datasets import config

    counted, config.HF_UPDATE_DOWNLOAD_COUNTS = config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counted


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _pictures(data: "Dataset", column: str, label: str) -> "Dataset":
    """The column of pictures alone, cast so that rows come as {"bytes": ..., "path": ...} and nothing is decoded."""
    import datasets

    feature = data.features[column]
    if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise DataError(f"{label}: the column {column!r} holds {feature}; expected pictures, or their bytes")
    return data.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _folder(path: str) -> Path | None:
    """The folder of a data set on this disk; None of one on the hub."""
    place = Path(path)
    return place.parent if place.is_file() else place if place.is_dir() else None


def _caches() -> list[Path]:
    """Where `datasets` keeps what it fetches and unpacks, the pictures of a hub's data set or of a zip file."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    places = [config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE]
    return [Path(os.path.realpath(place)) for place in places]


class DatasetPictures:
    """Pictures in rows of a `datasets.Dataset`, encoded as they were stored and opened like any other file.

    A row may hold the path of a file alone, which lies in the data set's folder or in the caches of `datasets`.
    """

    def __init__(self, data: "Dataset", split: str, rows: Sequence[int], folder: Path | None) -> None:
        """Look at every row once, for its size; nothing is decoded.

        Args:
            data: one column, cast to `datasets.Image(decode=False)`.
            split: begins the name of each picture.
            rows: the row of each picture.
            folder: of the data set, from which relative paths go; None where it is on the hub.

        Raises:
            DataError: naming the row that holds no picture, or whose file is missing or lies elsewhere.
        """
        self._data, self._rows = data, tuple(rows)
        self._column = data.column_names[0]
        sizes, paths = _sizes_and_paths(data, self._column)
        self.names: Sequence[str] = tuple(f"{split}[{row}] {os.path.basename(paths[row])}".strip() for row in rows)
        self._sizes: list[int] = []
        self._files: dict[int, tuple[Path, tuple[int, int]]] = {}  # of the rows that hold a path alone
        found = _file_in(folder)
        for name, row in zip(self.names, self._rows, strict=True):
            size, path = sizes[row], paths[row]
            if size is None and not path:
                raise DataError(f"{name}: the row holds no picture")
            if size is None:
                self._files[row] = found(path, name)
                size = self._files[row][1][0]
            self._sizes.append(size)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB."""
        row = self._rows[number]
        source = self._files[row][0] if row in self._files else self._data[row][self._column]["bytes"]
        return open_picture(source, name=self.names[number])

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture."""
        return self._sizes

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change of the tables' files, and of each picture that is a file."""
        tables = [stamp(Path(one["filename"])) for one in self._data.cache_files]
        return [*tables, *(one for _, one in self._files.values())]


def _file_in(folder: Path | None) -> Callable[[str, str], tuple[Path, tuple[int, int]]]:
    """A function of the path in a row and the picture's name: the file, and its bytes and time of change.

    It raises DataError where there is no such file, or it lies neither in the folder nor in the caches of `datasets`.
    """
    roots = [*([Path(os.path.realpath(folder))] if folder is not None else []), *_caches()]
    folders: set[str] = set()

    def find(path: str, name: str) -> tuple[Path, tuple[int, int]]:
        place = (folder or Path()) / path
        try:
            status = status_inside(str(place), roots, folders)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            raise DataError(f"{name}: no such picture as {path!r}") from None
        if status is None:
            where = folder or "the files of the data set"
            raise DataError(f"{name}: {path!r}: a picture's file name must stay inside {where}")
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise DataError(f"{name}: {path!r} is no file")
        return place, (status.st_size, status.st_mtime_ns)

    return find


def _sizes_and_paths(data: "Dataset", column: str) -> tuple[list[int | None], list[str]]:
    """Of each row: the number of bytes, None where it holds a path alone; and the path, or "". Reads no bytes."""
    import pyarrow.compute as compute

    sizes: list[int | None] = []
    paths: list[str] = []
    for batch in data.with_format("arrow").iter(batch_size=1000):
        cells = batch[column]
        sizes += compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
        paths += [path or "" for path in compute.struct_field(cells, "path").to_pylist()]
    return sizes, paths
