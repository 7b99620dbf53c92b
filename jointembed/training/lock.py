"""One run, one folder: a lock of the operating system, which ends with the process that holds it, however that ends."""

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from jointembed.errors import CheckpointError

logger = logging.getLogger("jointembed")

LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Held from `__init__` to `release`, or to the end of the process, a kill included.

    A POSIX record lock: forked loader workers do not inherit it, so it goes with the process that trains; NFS passes it
    on to other machines. The file says who holds it, for the message alone, and stays in the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock of a folder that is there.

        Raises:
            CheckpointError: another process holds it; names its number, machine and start.
            OSError: the file cannot be written.
        """
        self.path = folder / LOCK_NAME
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.warning("%s: this file system has no locks; a second run into it would not be noticed", folder)
                return
            holder = self._holder()
            os.close(self.descriptor)
            raise CheckpointError(
                f"{folder}: in use by another run ({holder}); wait for it, end it, or give another --out"
            ) from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": started})
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, holder.encode(), 0)

    def _holder(self) -> str:
        try:
            known = json.loads(os.pread(self.descriptor, 1000, 0))
            return f"process {known['process']} on {known['host']} since {known['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has the lock and is about to write
            return "which has just started"

    def release(self) -> None:
        """Let others in. The file stays: taking it away could take another's lock."""
        os.close(self.descriptor)
