"""Files that are whole or not there: written aside, synced, and published by one rename."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def aside_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name; no other process has that place."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then give it that name, in place of an older one."""
    aside = aside_of(path)
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def publish_json(path: Path, value: Any) -> None:
    """`publish` for JSON."""
    publish(path, lambda aside: aside.write_text(json.dumps(value, indent=1) + "\n", "ascii"))


def remove_leftovers(folder: Path) -> None:
    """Remove files and folders aside that processes of this host left when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.part"):
        process = path.name.split(".")[-2]
        if process.isdigit() and int(process) != os.getpid() and not _is_alive(int(process)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where signal 0 would not only ask
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
