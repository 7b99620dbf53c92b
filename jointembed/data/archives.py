"""Unpacking zip and tar archives: no member may be written outside the folder."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from jointembed.data.pictures import inside
from jointembed.errors import DataError


def extract(archive: Path | str, folder: Path | str) -> int:
    """Unpack `.zip`, `.tar` or `.tar.gz`; members that are there already, at their full size, are left alone.

    Returns:
        The number of files that were written.

    Raises:
        DataError: naming archive and member: not an archive, damaged, no room, a name that leads out of the folder,
            a link, a device or an encrypted member.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                return _extract_zip(file, archive, folder)
        with tarfile.open(archive) as tar:
            return _extract_tar(tar, archive, folder)
    except FileNotFoundError:
        raise DataError(f"{archive}: no such file") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{archive}: not an archive, or a damaged one ({error})") from None


def _extract_zip(file: zipfile.ZipFile, archive: Path, folder: Path) -> int:
    members = [member for member in file.infolist() if not _is_litter(member.filename)]
    _check_room(archive, folder, (member.file_size for member in members))
    written = 0
    for member in members:
        mode = member.external_attr >> 16
        if member.flag_bits & 1 or stat.S_ISLNK(mode):
            raise DataError(f"{archive}: {member.filename!r} is encrypted, or a link; expected plain files")
        target = _target(archive, folder, member.filename)
        if not member.is_dir() and not _is_there(target, member.file_size):
            with file.open(member) as source:
                _write(source, target)
            written += 1
    return written


def _extract_tar(file: tarfile.TarFile, archive: Path, folder: Path) -> int:
    written = 0
    for member in file:
        if _is_litter(member.name):
            continue
        target = _target(archive, folder, member.name)
        if member.isdir() or _is_there(target, member.size):
            continue
        source = file.extractfile(member) if member.isreg() else None
        if source is None:
            raise DataError(f"{archive}: {member.name!r} is a link or a device; expected plain files")
        _check_room(archive, folder, [member.size])
        with source:
            _write(source, target)
        if not _is_there(target, member.size):
            target.unlink()
            raise DataError(f"{archive}: {member.name!r} is cut short")
        written += 1
    return written


def _is_litter(name: str) -> bool:
    """What macOS adds to archives."""
    return name.startswith("__MACOSX/") or name.rsplit("/")[-1] in (".DS_Store", "._.DS_Store")


def _target(archive: Path, folder: Path, name: str) -> Path:
    try:
        return inside(folder, name.rstrip("/").removeprefix("./") or ".")
    except DataError as error:
        raise DataError(f"{archive}: {error}") from None


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _check_room(archive: Path, folder: Path, sizes: Iterable[int]) -> None:
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{archive}: unpacked it takes {needed} bytes, {free} are free in {folder}")


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with open(part, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
