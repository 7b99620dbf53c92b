import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from jointembed.data.archives import extract
from jointembed.errors import DataError

FILES = {"photos/a.jpg": b"first" * 100, "photos/deep/b.jpg": b"second", "list.txt": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("photos")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpacks_and_does_not_do_it_twice(tmp_path: Path, make: type) -> None:
    archive = make(tmp_path / "a.archive", {**FILES, "__MACOSX/photos/._a.jpg": b"litter", "photos/.DS_Store": b"x"})
    assert extract(archive, tmp_path / "out") == 3
    assert tree(tmp_path / "out") == FILES
    assert extract(archive, tmp_path / "out") == 0
    (tmp_path / "out/photos/a.jpg").write_bytes(b"cut")
    assert extract(archive, tmp_path / "out") == 1
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "photos/../../evil.txt", "/tmp/evil-of-a-test.txt"])
@pytest.mark.fault(11, "unpacking: `../` and absolute members, zip and tar")
def test_members_outside_are_refused(tmp_path: Path, make: type, name: str) -> None:
    archive = make(tmp_path / "a.archive", {name: b"evil"})
    with pytest.raises(DataError, match="a.archive: .*must stay inside"):
        extract(archive, tmp_path / "deep" / "out")
    assert list(tmp_path.rglob("evil*")) == [] and not Path("/tmp/evil-of-a-test.txt").exists()


@pytest.mark.fault(11, "unpacking: through a symbolic link")
def test_members_through_a_link_that_is_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "photos")
    with pytest.raises(DataError, match="through a symbolic link"):
        extract(make_tar(tmp_path / "a.tar.gz", FILES), tmp_path / "out")
    assert tree(tmp_path / "elsewhere") == {}


@pytest.mark.fault(11, "unpacking: links, encrypted members")
def test_links_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        member = zipfile.ZipInfo("link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    content = bytearray(make_zip(tmp_path / "plain.zip", {"a": b"b"}).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    for name, message in (
        ("link.zip", "'link'.* a link"),
        ("link.tar", "'link' is a link"),
        ("locked.zip", "'a' is encr"),
    ):
        with pytest.raises(DataError, match=f"{name}: {message}"):
            extract(tmp_path / name, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_damaged_archives(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "whole.zip", {"a.bin": os.urandom(5000)}).read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 255
    packed = make_tar(tmp_path / "whole.tar.gz", {"a.bin": os.urandom(5000)}).read_bytes()
    cases: dict[str, bytes] = {
        "junk.zip": b"junk",
        "empty.zip": b"",
        "cut.zip": whole[:3000],
        "flip.zip": bytes(flipped),
        "cut.tar.gz": packed[:3000],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: (not an archive|'a.bin' is cut short)"):
            extract(tmp_path / name, tmp_path / "out")
        assert tree(tmp_path / "out") == {}
    with pytest.raises(DataError, match="none.zip: no such file"):
        extract(tmp_path / "none.zip", tmp_path / "out")


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [make_zip(tmp_path / "a.zip", FILES), make_tar(tmp_path / "a.tar.gz", FILES)]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    for archive in archives:
        with pytest.raises(DataError, match="unpacked it takes 50. bytes, 100 are free"):
            extract(archive, tmp_path / "out")
