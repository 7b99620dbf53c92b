"""Pictures inside archives, read in place: uncompressed tar shards by offset, and zip files."""

import os
import re
import stat
import tarfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from jointembed.data.pictures import first_twice, open_picture, stamp
from jointembed.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
MAX_BYTES = 1 << 28  # of one member: a few kB of zip can declare gigabytes
_BLOCK = 512  # bytes, of a tar archive


class Member(NamedTuple):
    """Where a member of an archive lies."""

    archive: Path
    stored: str  # its name in the archive, perhaps with `./` before it
    offset: int  # of its first byte; of its header in a zip
    size: int  # bytes, unpacked


class _PictureArchive(ABC):
    """Pictures by the names of archive members. Open files belong to one process and are never pickled.

    Attributes:
        names: of the pictures.
        folders: that the archive has entries for.
    """

    def __init__(
        self, index: Mapping[str, Member], folders: Iterable[str], members: Sequence[str] | None, label: str
    ) -> None:
        self.folders = frozenset(folders)
        names = members if members is not None else [name for name in index if is_picture(name)]
        self.names: Sequence[str] = tuple(name.removeprefix("./") for name in names)
        if len(set(self.names)) < len(self.names):
            raise DataError(f"{label}: {first_twice(self.names)!r} is named twice among the pictures")
        missing = next((name for name in self.names if name not in index), None)
        if missing is not None:
            raise DataError(f"{label}: no member {missing!r} in it")
        self._others = {name: member for name, member in index.items() if not is_picture(name)}
        self._members = [index[name] for name in self.names]
        for name, member in zip(self.names, self._members, strict=True):
            if member.size > MAX_BYTES:
                raise DataError(f"{member.archive}: {name!r} has {member.size} bytes; at most {MAX_BYTES} are read")
        self._files: _Files | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            DataError: naming archive and member, where it cannot be read or is no picture.
        """
        member = self._members[number]
        label = f"{member.archive}: {self.names[number]}"
        return open_picture(self._read_checked(member, label), name=label)

    @property
    def other_names(self) -> Sequence[str]:
        """Names of the members that are no pictures; none in another process, to which they are not sent."""
        return tuple(self._others)

    def read_other(self, name: str) -> bytes:
        """Content of a member that is no picture. Raises DataError naming archive and member."""
        member = self._others[name]
        label = f"{member.archive}: {name}"
        if member.size > MAX_BYTES:
            raise DataError(f"{label}: has {member.size} bytes; at most {MAX_BYTES} are read")
        return self._read_checked(member, label)

    def _read_checked(self, member: Member, label: str) -> bytes:
        try:
            return self._read(member)
        except FileNotFoundError:
            raise DataError(f"{label}: the archive is gone") from None
        except Exception as error:  # on damaged members decompressors raise anything: zlib.error, LZMAError ...
            raise DataError(f"{label}: cannot be read ({error})") from None

    def sizes(self) -> Sequence[int]:
        """Bytes of each encoded picture, as unpacked."""
        return [member.size for member in self._members]

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change of each archive."""
        return [stamp(path) for path in dict.fromkeys(member.archive for member in self._members)]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files: another process opens its own."""
        return self.__dict__ | {"_files": None, "_others": {}}

    def _own(self) -> "_Files":
        """This process's open files; those inherited from a parent share its position and are left alone."""
        if self._files is None or self._files.process != os.getpid():
            self._files = _Files(os.getpid())
        return self._files

    @abstractmethod
    def _read(self, member: Member) -> bytes: ...


class _Files:
    """The open archives of one process; the lock keeps its threads from moving each other's position."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.lock = threading.Lock()
        self.tars: dict[Path, BinaryIO] = {}
        self.zips: dict[Path, zipfile.ZipFile] = {}

    def __del__(self) -> None:
        for file in self.tars.values():
            file.close()


class PictureTar(_PictureArchive):
    """Pictures in one or several uncompressed tar shards, indexed once and then read by offset.

    May be pickled, forked and shared by threads. Nothing is ever extracted.
    """

    def __init__(self, path: Path | str | Sequence[Path | str], members: Sequence[str] | None = None) -> None:
        """Index the shards.

        Args:
            path: the shard, or shards without a member name in common.
            members: names of the pictures, in the order wanted; all members with a picture's suffix if None.

        Raises:
            DataError: naming archive and member: not an uncompressed tar, cut short, a link, a device, a sparse
                file, a name that is absolute or has `..` in it, a name twice, a picture that is not there.
        """
        paths = [Path(path)] if isinstance(path, Path | str) else [Path(one) for one in path]
        index: dict[str, Member] = {}
        folders: set[str] = set()
        for archive in paths:
            files, found = index_tar(archive)
            folders |= found
            for name, member in files:
                if index.setdefault(name, member) is not member:
                    raise DataError(f"{archive}: {name!r} is there twice, first in {index[name].archive}")
        super().__init__(index, folders, members, ", ".join(map(str, paths)) or "tar shards")

    def _read(self, member: Member) -> bytes:
        files = self._own()
        with files.lock:
            if member.archive not in files.tars:
                files.tars[member.archive] = open(member.archive, "rb")
            file = files.tars[member.archive]
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise EOFError(f"{len(data)} of {member.size} bytes: cut short since it was indexed")
        return data


class PictureZip(_PictureArchive):
    """Pictures in a zip file, folders included; checksums are verified as the pictures are read.

    May be pickled, forked and shared by threads. Nothing is ever extracted.
    """

    def __init__(self, path: Path | str, members: Sequence[str] | None = None) -> None:
        """Index the archive.

        Args:
            path: the zip file.
            members: names of the pictures, in the order wanted; all members with a picture's suffix if None.

        Raises:
            DataError: naming archive and member: not a zip, cut short, a link, an encrypted member, a name that is
                absolute or has `..` in it, a name twice, a picture that is not there.
        """
        files, folders = _index_zip(Path(path))
        super().__init__(files, folders, members, str(path))

    def _read(self, member: Member) -> bytes:
        files = self._own()
        with files.lock:
            if member.archive not in files.zips:
                files.zips[member.archive] = zipfile.ZipFile(member.archive)
            data = files.zips[member.archive].read(member.stored)
        if len(data) != member.size:
            raise EOFError(f"{len(data)} bytes where {member.size} were indexed")
        return data


def index_tar(archive: Path) -> tuple[list[tuple[str, Member]], set[str]]:
    """Files of a tar in their order, and the folders that have an entry of their own.

    Raises:
        DataError: as `PictureTar`, but for the pictures.
    """
    found, folders = [], set()
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                name = _checked_name(archive, info.name)
                if info.isdir():
                    folders.add(name)
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"{archive}: {name!r} is a {_kind(info)}; expected plain files")
                found.append((name, Member(archive, info.name, info.offset_data, info.size)))
            end = tar.offset
        with open(archive, "rb") as file:  # `tarfile` takes a damaged header for the end: look whether it is one
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise DataError(f"{archive}: cut short or damaged at byte {end}, after {len(found)} members")
    except FileNotFoundError:
        raise DataError(f"{archive}: no such file") from None
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{archive}: not an uncompressed tar archive, or a damaged one ({error})") from None
    return found, folders


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"link to {info.linkname!r}"
    return "device" if info.isdev() else "sparse file" if info.issparse() else f"member of type {info.type!r}"


def _index_zip(archive: Path) -> tuple[dict[str, Member], set[str]]:
    """Files in their order, and the folders that have an entry of their own."""
    found: dict[str, Member] = {}
    folders: set[str] = set()
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
    except FileNotFoundError:
        raise DataError(f"{archive}: no such file") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{archive}: not a zip archive, or a damaged one ({error})") from None
    for info in infos:
        name = _checked_name(archive, info.filename)
        if info.is_dir():
            folders.add(name.rstrip("/"))
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise DataError(f"{archive}: {name!r} is a link or a device; expected plain files")
        if info.flag_bits & 1:
            raise DataError(f"{archive}: {name!r} is encrypted")
        if name in found:
            raise DataError(f"{archive}: {name!r} is there twice")
        found[name] = Member(archive, info.filename, info.header_offset, info.file_size)
    return found, folders


def _checked_name(archive: Path, name: str) -> str:
    """The name without a leading `./`."""
    if not name or name[0] in "/\\" or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise DataError(f"{archive}: {name!r} is a name that leads out of the archive; expected a relative path")
    return name.removeprefix("./")


def is_picture(name: str) -> bool:
    """Whether a member's name ends as pictures' do, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def member_key(name: str) -> str:
    """What the members of one sample share in the WebDataset layout: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
