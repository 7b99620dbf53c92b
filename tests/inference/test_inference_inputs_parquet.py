import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from jointembed.errors import DataError
from jointembed.inference.inputs import open_source
from jointembed.inference.places import open_place

COUNT = 10


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


def pictures(first: int = 0) -> list[dict[str, Any]]:
    """As `datasets.Image` is stored."""
    return [{"bytes": png(first + n), "path": f"{n}.png"} for n in range(COUNT)]


def read(source: Any) -> list[tuple[str, str | None, Any]]:
    opened = [source.records(shard) for shard in range(len(source))]
    return [(one.ids[n], one.paths[n], one.read(n)) for one in opened for n in range(len(one.ids))]


@pytest.mark.parametrize("size", [1, 4, 10, 99])
def test_pictures_of_all_forms_and_their_places(tmp_path: Path, size: int) -> None:
    cells = pictures()
    (tmp_path / "3.png").write_bytes(cells[3]["bytes"])
    cells[3] = {"bytes": None, "path": "3.png"}  # beside the parquet
    forms = {"struct": cells, "bytes": [png(n) for n in range(COUNT)]}
    for name, form in forms.items():
        source = open_source(str(write(tmp_path / f"{name}.parquet", image=form)), shard_size=size)
        found = read(source)
        assert source.modality == "image" and len(source) == -(-COUNT // size)
        assert [one[0] for one in found] == [f"{name}:{n}" for n in range(COUNT)]
        for n, (_, place, picture) in enumerate(found):
            assert place is not None
            expected = np.asarray(Image.open(io.BytesIO(png(n))))
            assert np.array_equal(picture, expected) and np.array_equal(np.asarray(open_place(place)), expected)


def test_a_shard_never_spans_two_files_and_ids_may_have_a_column(tmp_path: Path) -> None:
    for number in range(2):
        keys = [f"{number}-{n}" for n in range(COUNT)]
        write(tmp_path / "set" / f"{number}.parquet", caption=[f"text {n}" for n in range(COUNT)], key=keys)
    source = open_source(str(tmp_path / "set"), shard_size=6, id_column="key")
    assert [len(source.records(shard).ids) for shard in range(len(source))] == [6, 4, 6, 4]
    found = read(source)
    assert [one[0] for one in found] == [f"{number}-{n}" for number in range(2) for n in range(COUNT)]
    assert found[13] == ("1-3", None, "text 3")


def test_the_modality_chooses_the_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=pictures(), caption=["a"] * COUNT)
    assert open_source(str(path)).modality == "image"
    assert read(open_source(str(path), modality="text"))[0] == ("a:0", None, "a")
    assert open_source(str(path), column="caption").modality == "text"


def test_a_bad_cell_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    cells = [{"bytes": b"junk", "path": None}, {"bytes": None, "path": "../out.png"}, {"bytes": None, "path": None}]
    records = open_source(str(write(tmp_path / "a.parquet", image=cells))).records(0)
    for number, message in enumerate(["row 0: not a picture", "must stay inside", "row 2: holds no picture"]):
        with pytest.raises(DataError, match=message):
            records.read(number)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": [1, 2]}, {}, "no column of pictures or texts found in 'image'; name it"),
        ({"image": [1, 2]}, {"column": "image"}, "the column 'image' is int64; expected pictures or texts"),
        ({"a": ["x"]}, {"column": "b"}, "no column 'b'; the columns are 'a'"),
        ({"text": ["x"]}, {"modality": "image"}, "no column of pictures or texts found"),
        ({"text": ["x"]}, {"id_column": "key"}, "no column 'key'"),
        ({"text": pyarrow.array([], pyarrow.string())}, {}, "no row in it"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, columns: dict, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(str(write(tmp_path / "a.parquet", **columns)), **options)


def test_a_damaged_file_and_a_missing_id_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["x", "y"], key=["1", None])
    with pytest.raises(DataError, match="row 1: the id is None"):
        open_source(str(path), id_column="key").records(0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"a.parquet: not a parquet file, or a damaged one"):
        open_source(str(path))
