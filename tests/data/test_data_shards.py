import io
import multiprocessing
import os
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jointembed.data.shards import PictureTar, PictureZip
from jointembed.errors import DataError

Archive = PictureTar | PictureZip


def jpeg(value: int, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(out, "JPEG", quality=95)
    return out.getvalue()


PICTURES = {f"train/{number:02d}.jpg": jpeg(10 * number) for number in range(20)}


def write_tar(path: Path, members: dict[str, bytes], *extra: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.mkdir("train")
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.fixture(params=["tar", "zip"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    if request.param == "tar":
        return PictureTar(write_tar(tmp_path / "a.tar", PICTURES, special("val", tarfile.DIRTYPE)))
    return PictureZip(write_zip(tmp_path / "a.zip", PICTURES))


def grey(archive: Archive, number: int) -> int:
    return int(np.asarray(archive.open(number)).mean().round())


def all_grey(archive: Archive) -> list[int]:
    return [grey(archive, number) for number in range(len(archive))]


VALUES = [10 * number for number in range(20)]


# reading


def test_names_sizes_and_pictures_come_in_the_archives_order(archive: Archive) -> None:
    assert tuple(archive.names) == tuple(PICTURES)
    assert len(archive) == 20
    assert list(archive.sizes()) == [len(data) for data in PICTURES.values()]
    assert archive.open(3).mode == "RGB"
    assert all_grey(archive) == VALUES


@pytest.mark.parametrize("kind", [PictureTar, PictureZip])
def test_members_choose_and_order(kind: Callable[..., Archive], tmp_path: Path) -> None:
    write = write_tar if kind is PictureTar else write_zip
    found = kind(write(tmp_path / "a", PICTURES), ["train/05.jpg", "train/02.jpg"])
    assert [grey(found, 0), grey(found, 1)] == [50, 20]
    assert list(found.sizes()) == [len(PICTURES["train/05.jpg"]), len(PICTURES["train/02.jpg"])]


@pytest.mark.parametrize("kind", [PictureTar, PictureZip])
def test_without_members_only_pictures_are_taken(kind: Callable[..., Archive], tmp_path: Path) -> None:
    write = write_tar if kind is PictureTar else write_zip
    members = {"b.JPG": jpeg(1), "b.json": b"{}", "__MACOSX/._b.jpg": b"\0", ".c.png": b"x", "a.png": jpeg(2)}
    found = kind(write(tmp_path / "a", members))
    assert tuple(found.names) == ("b.JPG", "a.png")


@pytest.mark.parametrize("kind", [PictureTar, PictureZip])
def test_a_leading_dot_slash_is_no_part_of_the_name(kind: Callable[..., Archive], tmp_path: Path) -> None:
    write = write_tar if kind is PictureTar else write_zip
    path = write(tmp_path / "a", {"./x/a.jpg": jpeg(70)})
    for members in (None, ["x/a.jpg"], ["./x/a.jpg"]):
        found = kind(path, members)
        assert tuple(found.names) == ("x/a.jpg",) and grey(found, 0) == 70


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(format: int, tmp_path: Path) -> None:
    name = "/".join(["folder" * 8] * (2 if format == tarfile.USTAR_FORMAT else 6)) + "/é.jpg"
    path = write_tar(tmp_path / "a.tar", {"first.jpg": jpeg(7), name: jpeg(90)}, format=format)
    found = PictureTar(path)
    assert tuple(found.names) == ("first.jpg", name)
    assert grey(found, 1) == 90


def test_several_shards_are_one_collection(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", {"a.jpg": jpeg(10)})
    two = write_tar(tmp_path / "2.tar", {"b.jpg": jpeg(20), "c.jpg": jpeg(30)})
    found = PictureTar([one, two], ["c.jpg", "a.jpg"])
    assert all_grey(found) == [30, 10]
    assert tuple(PictureTar([two, str(one)]).names) == ("b.jpg", "c.jpg", "a.jpg")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_compressions(compression: int, tmp_path: Path) -> None:
    assert all_grey(PictureZip(write_zip(tmp_path / "a.zip", PICTURES, compression))) == VALUES


def test_empty_archives_hold_no_pictures(tmp_path: Path) -> None:
    assert len(PictureTar(write_tar(tmp_path / "a.tar", {}))) == 0
    assert len(PictureZip(write_zip(tmp_path / "a.zip", {}))) == 0


# processes and threads


def test_pickles_without_open_files(archive: Archive) -> None:
    assert grey(archive, 1) == 10
    copy = pickle.loads(pickle.dumps(archive))
    assert copy._files is None
    assert all_grey(copy) == VALUES and all_grey(archive) == VALUES


def _read_many(archive: Archive, rounds: int, queue: "multiprocessing.Queue[object]") -> None:
    try:
        queue.put([all_grey(archive) for _ in range(rounds)] == [VALUES] * rounds)
    except Exception as error:
        queue.put(repr(error))


@pytest.mark.parametrize(
    ("archive", "method"), [("tar", "fork"), ("zip", "fork"), ("tar", "spawn")], indirect=["archive"]
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_two_processes_read_at_once(archive: Archive, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    assert grey(archive, 0) == 0  # opened here, before the fork
    context: Any = multiprocessing.get_context(method)
    queue: multiprocessing.Queue[object] = context.Queue()
    workers = [context.Process(target=_read_many, args=(archive, 20, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    here = [all_grey(archive) for _ in range(20)]
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found == [True, True]
    assert here == [VALUES] * 20


def test_threads_share_one_archive(archive: Archive) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append([all_grey(archive) for _ in range(10)] == [VALUES] * 10))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 4


def test_one_file_stays_open_however_much_is_read(archive: Archive) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to count open files in")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        all_grey(archive)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del archive._files
    assert len(os.listdir("/proc/self/fd")) == before


# refusals: each names archive and member


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (special("x.jpg", tarfile.SYMTYPE, "/etc/passwd"), "link to '/etc/passwd'"),
        (special("x.jpg", tarfile.LNKTYPE, "train/00.jpg"), "link to 'train/00.jpg'"),
        (special("x.jpg", tarfile.CHRTYPE), "device"),
        (special("x.jpg", tarfile.BLKTYPE), "device"),
        (special("x.jpg", tarfile.FIFOTYPE), "device"),
        (special("../x.jpg", tarfile.REGTYPE), "leads out"),
        (special("a/../../x.jpg", tarfile.REGTYPE), "leads out"),
        (special("..\\x.jpg", tarfile.REGTYPE), "leads out"),
        (special("/x.jpg", tarfile.REGTYPE), "leads out"),
        (special("C:/x.jpg", tarfile.REGTYPE), "leads out"),
        (special("../x", tarfile.DIRTYPE), "leads out"),
        (special("train/00.jpg", tarfile.REGTYPE), "twice"),
    ],
)
@pytest.mark.fault(11, "tar with links, devices, pipes, `../`, absolute names")
def test_tar_members_that_are_refused(info: tarfile.TarInfo, words: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "bad.tar", PICTURES, info)
    with pytest.raises(DataError) as caught:
        PictureTar(path, ["train/01.jpg"])
    message = str(caught.value)
    assert str(path) in message and repr(info.name) in message and words in message


@pytest.mark.fault(11, "tar with a sparse member")
def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("hole.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000"}
    path = write_tar(tmp_path / "bad.tar", {}, info)
    with pytest.raises(DataError, match="'hole.jpg' is a sparse file"):
        PictureTar(path)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / name, {"a.jpg": jpeg(1)}) for name in ("1.tar", "2.tar")]
    with pytest.raises(DataError, match=r"2\.tar: 'a.jpg' is there twice, first in .*1\.tar"):
        PictureTar(paths)


@pytest.mark.fault(11, "tar cut short at any byte")
def test_tar_cut_short_at_any_byte(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in tar)
    path = tmp_path / "cut.tar"
    for length in [*range(0, end, 137), end - 512, end - 1, end, end + 100]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            PictureTar(path)
        assert str(path) in str(caught.value)
    path.write_bytes(whole[: end + 512])
    assert len(PictureTar(path)) == 2


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PICTURES, format=tarfile.USTAR_FORMAT)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[5].offset
    data = bytearray(path.read_bytes())
    data[offset + 150] ^= 0xFF  # in the checksum
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged at byte .* after 5 members"):
        PictureTar(path)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    text = tmp_path / "text"
    text.write_text("version https://git-lfs.github.com/spec/v1\n" * 40)
    for kind in (PictureTar, PictureZip):
        for path in (packed, text, tmp_path):
            with pytest.raises(DataError, match=f"{path.name}: not a"):
                kind(path)
        with pytest.raises(DataError, match="gone.tar: no such file"):
            kind(tmp_path / "gone.tar")


@pytest.mark.parametrize("kind", [PictureTar, PictureZip])
def test_members_missing_or_named_twice(kind: Callable[..., Archive], tmp_path: Path) -> None:
    path = (write_tar if kind is PictureTar else write_zip)(tmp_path / "a", PICTURES)
    with pytest.raises(DataError, match=f"{path.name}: no member 'train/99.jpg'"):
        kind(path, ["train/00.jpg", "train/99.jpg"])
    with pytest.raises(DataError, match="'train/00.jpg' is named twice"):
        kind(path, ["train/00.jpg", "train/01.jpg", "train/00.jpg"])


def test_a_member_that_is_no_picture_is_named(tmp_path: Path) -> None:
    found = PictureTar(write_tar(tmp_path / "a.tar", {"ok.jpg": jpeg(3), "x.jpg": b"<html></html>", "e.jpg": b""}))
    assert grey(found, 0) == 3
    with pytest.raises(DataError, match=r"a\.tar: x\.jpg: not a picture"):
        found.open(1)
    with pytest.raises(DataError, match=r"a\.tar: e\.jpg: the file is empty"):
        found.open(2)


def test_a_tar_cut_or_removed_after_indexing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PICTURES)
    found = PictureTar(path)
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"a\.tar: train/19\.jpg: cannot be read .*cut short"):
        found.open(19)
    path.unlink()
    with pytest.raises(DataError, match="the archive is gone"):
        pickle.loads(pickle.dumps(found)).open(0)


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a/../../x.jpg", "C:\\x.jpg", "\\x.jpg"])
@pytest.mark.fault(11, "zip with `../`, absolute and drive names")
def test_zip_names_that_lead_out(name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", {"a.jpg": jpeg(1), name: jpeg(2)})
    with pytest.raises(DataError, match="leads out of the archive") as caught:
        PictureZip(path)
    assert repr(name) in str(caught.value)


@pytest.mark.fault(11, "zip with links")
def test_zip_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x.jpg")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'x.jpg' is a link or a device"):
        PictureZip(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_duplicates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.jpg", jpeg(1))
        archive.writestr("x.jpg", jpeg(2))
    with pytest.raises(DataError, match="'x.jpg' is there twice"):
        PictureZip(path)


def patched_zip(path: Path, offset: int, value: bytes) -> Path:
    """A zip of one stored picture with bytes of its central directory entry overwritten."""
    write_zip(path, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.jpg", jpeg(1))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + offset : entry + offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_zip_encrypted_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'x.jpg' is encrypted"):
        PictureZip(patched_zip(tmp_path / "bad.zip", 8, b"\x01\x00"))


@pytest.mark.fault(10, "zip that declares gigabytes")
def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'x.jpg' has 4000000000 bytes; at most"):
        PictureZip(patched_zip(tmp_path / "bad.zip", 24, struct.pack("<I", 4_000_000_000)))


def test_zip_checksum_and_unknown_compression_are_checked_when_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.jpg: cannot be read .*CRC"):
        PictureZip(patched_zip(tmp_path / "crc.zip", 16, b"\x00\x00\x00\x00")).open(0)
    with pytest.raises(DataError, match=r"x\.jpg: cannot be read .*compression"):
        PictureZip(patched_zip(tmp_path / "method.zip", 10, b"\x63\x00")).open(0)


def test_zip_cut_short(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", PICTURES)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, len(data) // 23):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"a\.zip: not a zip archive, or a damaged one"):
            PictureZip(path)


@pytest.mark.data
def test_folders_inside_a_real_zip(data_folder: Path) -> None:
    found = PictureZip(data_folder / "cifar10_subset" / "cifar10_subset.zip")
    assert len(found) == 10 * (1000 + 200)
    assert {name.split("/")[0] for name in found.names} == {"train", "test"}
    assert len({name.split("/")[1] for name in found.names}) == 10
    assert found.open(0).size == (32, 32)
    assert found.open(len(found) - 1).mode == "RGB"


# what is beside the pictures


@pytest.mark.parametrize("kind", [PictureTar, PictureZip])
def test_other_members_and_folders_are_known_and_read(kind: Callable[..., Archive], tmp_path: Path) -> None:
    write = write_tar if kind is PictureTar else write_zip
    path = tmp_path / "a"
    write(path, {"train/0.jpg": jpeg(1), "train/0.cls": b"7", "x.txt": b""})
    found = kind(path)
    assert found.other_names == ("train/0.cls", "x.txt") and found.read_other("train/0.cls") == b"7"
    assert found.folders == ({"train"} if kind is PictureZip else set())
    assert pickle.loads(pickle.dumps(found)).other_names == ()
