import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jointembed.errors import DataError
from jointembed.inference.inputs import Source, open_source
from jointembed.inference.places import open_place


def everything(source: Source) -> list[tuple[str, str | None, Any]]:
    """Id, place and input of every record of every shard."""
    found = []
    for shard in range(len(source)):
        records = source.records(shard)
        assert len(records.ids) == len(records.paths)
        found += [(records.ids[n], records.paths[n], records.read(n)) for n in range(len(records.ids))]
    return found


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def assert_places_open(found: list[tuple[str, str | None, Any]]) -> None:
    for _, place, picture in found:
        assert place is not None and np.array_equal(np.asarray(open_place(place)), picture)


def test_a_folder_is_read_recursively_in_sorted_order(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(pictures), shard_size=4)
    found = everything(source)
    assert (source.modality, len(source)) == ("image", 3)
    ids = [one[0] for one in found]
    assert ids == sorted(ids) and len(ids) == 11 and ids[0] == "a/00.png"
    assert_places_open(found)
    monkeypatch.chdir(pictures.parent)
    assert everything(open_source("pictures"))[3][1] == found[3][1]  # places are absolute


def test_links_to_folders_are_followed_but_not_in_circles(pictures: Path) -> None:
    (pictures / "c").symlink_to(pictures / "a")
    (pictures / "a" / "up").symlink_to(pictures)
    ids = [one[0] for one in everything(open_source(str(pictures)))]
    assert "c/00.png" in ids and len(set(ids)) == len(ids) < 40


def test_the_fingerprint_is_of_names_and_sizes(pictures: Path) -> None:
    before = open_source(str(pictures)).fingerprint
    (pictures / "a" / "00.png").rename(pictures / "a" / "000.png")
    renamed = open_source(str(pictures)).fingerprint
    with open(pictures / "a" / "000.png", "ab") as file:
        file.write(b"x")
    assert len({before, renamed, open_source(str(pictures)).fingerprint}) == 3


def test_tar_shards_of_a_folder_or_a_pattern_and_their_texts(tmp_path: Path) -> None:
    for number in range(2):
        members = {f"{n}{end}": png(n) if end == ".png" else b" a dog " for n in range(3) for end in (".png", ".txt")}
        write_tar(tmp_path / "shards" / f"{number}.tar", members)
    for data in (str(tmp_path / "shards"), str(tmp_path / "shards" / "*.tar")):
        source = open_source(data, shard_size=1)
        found = everything(source)
        assert len(source) == 2  # an archive is a shard
        assert [one[0] for one in found] == [f"{a}/{n}.png" for a in range(2) for n in range(3)]
        assert_places_open(found)
    found = everything(open_source(str(tmp_path / "shards" / "1.tar"), modality="text"))
    assert found == [(f"1/{n}.txt", None, "a dog") for n in range(3)]


def test_shards_of_one_name_in_two_folders_keep_their_ids_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_tar(tmp_path / folder / "0.tar", {"a.png": png(0)})
    assert [one[0] for one in everything(open_source(str(tmp_path)))] == ["x/0/a.png", "y/0/a.png"]
    assert [one[0] for one in everything(open_source(str(tmp_path / "*" / "0.tar")))] == ["x/0/a.png", "y/0/a.png"]


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_two_files_of_one_name_but_for_the_case_of_the_suffix_are_named(tmp_path: Path, suffix: str) -> None:
    for name in (f"a.{suffix}", f"a.{suffix.upper()}"):
        (tmp_path / name).write_bytes(b"")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(DataError, match=rf"a\.{suffix.upper()} and .*a\.{suffix}: "):
        open_source(str(tmp_path))


def test_emoji_by_split_or_whole_pictures_or_captions() -> None:
    source = open_source("emoji:test", shard_size=300)
    found = everything(source)
    assert len(source) == 2 and len(found) == 400 and found[0][0].startswith("test/")
    assert_places_open(found[:3] + found[-3:])
    assert len(everything(open_source("emoji:test", modality="text"))) == 200
    whole = open_source("emoji", modality="text")
    ids = [one[0] for one in everything(whole)]
    assert len(set(ids)) == len(ids) == 1079 + 100 + 200
    with pytest.raises(DataError, match="no split 'tset'"):
        open_source("emoji:tset")


def make_both(root: Path) -> None:
    write_tar(root / "0.tar", {"a.png": png(0)})
    (root / "b.png").write_bytes(png(1))


@pytest.mark.parametrize(
    ("make", "data", "modality", "message"),
    [
        (lambda root: None, "absent", None, "absent: no such file or folder"),
        (lambda root: None, ".", None, "no picture, tar shard or parquet file there"),
        (lambda root: None, "*.tar", None, "no picture, tar shard or parquet file there"),
        (lambda root: (root / "a.zip").write_bytes(b""), "a.zip", None, "expected a folder of pictures, or a file in"),
        (lambda root: (root / "b.png").write_bytes(png(0)), "*.png", None, "a pattern of pictures; give their folder"),
        (make_both, ".", None, "holds pictures and tar; give a folder or pattern of one"),
        (lambda root: (root / "b.png").write_bytes(png(0)), ".", "text", "holds pictures; expected texts"),
        (lambda root: (root / "b.txt").write_text("a"), "b.txt", "image", "holds texts; expected pictures"),
    ],
)
def test_what_is_no_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, data: str, modality: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(data, modality=modality)


def test_a_shard_size_of_nothing_is_refused(pictures: Path) -> None:
    with pytest.raises(DataError, match="shard size 0"):
        open_source(str(pictures), shard_size=0)


def test_a_file_name_that_is_no_unicode_is_named(pictures: Path) -> None:
    try:
        (pictures / "a" / "00.png").rename(pictures / "a" / "\udcff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"'a/\\udcff.png' is not valid Unicode"):
        open_source(str(pictures))
