"""Worker processes of a loader that fail by name: a killed, raising or hanging worker names the sample it was at.

Each worker writes down what it reads on a board in shared memory. Workers take no notice of Ctrl-C and SIGTERM, which
a terminal or a batch system sends to all processes of a run: the process that trains decides when they end.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from jointembed.errors import DataError, JointEmbedError

Key = tuple[int, int]  # epoch, index
NOTHING = -1.0
EVALUATION = -2  # the epoch of a sample that is read outside training

_boards: "list[Board]" = []  # of the loaders of this process that are being read
_place: Callable[[Key], None] | None = None  # in a worker: writes on its board
_last: Key | None = None  # the sample that this process is at, worker or not


def noticed(keys: Iterable[Key]) -> Iterator[Key]:
    """The same keys; each is the sample that this process is at until the next one is asked for."""
    global _last
    for key in keys:
        _last = key
        if _place is not None:
            _place(key)
        yield key


class Board:
    """Of each worker of a loader: its process, the epoch and index of the sample it is at, and since when.

    Args:
        workers: how many.
        name: key -> what messages call a sample.
        timeout: seconds a batch may take; 0 is no limit.
        limit: what messages call the timeout.
    """

    def __init__(
        self, workers: int, name: Callable[[Key], str], timeout: float, *, limit: str = "loader.timeout"
    ) -> None:
        """See the class."""
        self.cells = RawArray("d", [NOTHING] * (4 * workers))
        self.name, self.timeout, self.workers, self.limit = name, timeout, workers, limit
        self.processes: list[BaseProcess] = []

    def failure(self) -> DataError | None:
        """An error that names the sample of a worker that is gone, else of the one that is at a sample the longest."""
        for process in self.processes:
            if process.exitcode is not None:
                return DataError(f"{self._sample(process.pid)}: {_ended(process)}")
        busy = [slot for slot in range(self.workers) if self.cells[4 * slot + 2] != NOTHING]
        if not busy:
            return None
        slot = min(busy, key=lambda one: self.cells[4 * one + 3])
        seconds = time.monotonic() - self.cells[4 * slot + 3]
        return DataError(
            f"{self._sample(int(self.cells[4 * slot]))}: a loader worker has read it for {seconds:.0f} s and its batch "
            f"did not come within {self.limit} ({self.timeout:g} s)"
        )

    def _sample(self, process: int | None) -> str:
        for slot in range(self.workers):
            number, epoch, index, _ = self.cells[4 * slot : 4 * slot + 4]
            if number == process and index != NOTHING:
                return _called(self.name, (int(epoch), int(index)))
        return "between two samples"

    def end(self) -> None:
        """End the workers that are still there, whatever they do."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None  # torch would report their end
        for process in self.processes:
            process.kill()
            process.join()
        if main:
            signal.signal(signal.SIGCHLD, before)
        if self in _boards:
            _boards.remove(self)


def _ended(process: BaseProcess) -> str:
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    short = "; where memory is short, lower loader.workers" if code == -signal.SIGKILL else ""
    return f"loader worker {process.pid}, which was at it, {how}{short}"


@atexit.register
def end_workers() -> None:
    """End the workers of all loaders; at exit before multiprocessing waits for them, however long one hangs."""
    for board in list(_boards):
        board.end()


@contextmanager
def worker_faults() -> Iterator[None]:
    """Name the sample when torch reports the end of a worker, which it does in the middle of whatever runs."""
    try:
        yield
    except RuntimeError as error:
        if (told := _told(error)) is None:
            raise
        raise told from None


def _told(error: RuntimeError) -> DataError | None:
    if isinstance(error, JointEmbedError) or "DataLoader" not in str(error):
        return None
    return next((found for board in _boards if (found := board.failure()) is not None), None)


def guarded(loader: Callable[..., DataLoader], board: Board) -> Iterator[Any]:
    """The batches of a loader whose data set is `Reporting`.

    Args:
        loader: takes `timeout` and `worker_init_fn`.
        board: made for as many workers.

    Raises:
        DataError: a sample that cannot be read, or a worker that is gone or hangs, named.
    """
    limit = board.timeout if board.workers else 0
    made = loader(timeout=limit, worker_init_fn=_Start(board) if board.workers else None)
    others = set(multiprocessing.active_children())
    batches = iter(made)
    board.processes = [child for child in multiprocessing.active_children() if child not in others]
    _boards.append(board)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                raise _told(error) or error from None
            if isinstance(batch, Failed):
                raise batch.error
            yield batch
    except BaseException:
        board.end()
        raise
    finally:
        if board in _boards:
            _boards.remove(board)


def in_order(
    samples: Sized,
    *,
    batch: int,
    workers: int,
    name: Callable[[int], str],
    collate: Callable[[list[Any]], Any] = default_collate,
    timeout: float = 600.0,
) -> Iterator[Any]:
    """Batches of a data set from its first sample to its last, outside training; workers fail by name as they do there.

    The global random state is left alone. Whoever works on the batches is decorated with `worker_faults`.

    Args:
        samples: with `__len__` and `__getitem__`.
        batch: samples at once.
        workers: processes that read; 0 reads in this one.
        name: position -> what messages call a sample; it pickles.
        collate: samples -> batch.
        timeout: seconds that a batch may take the workers.

    Raises:
        DataError: a sample that cannot be read, or a worker that is gone or hangs, named.
    """
    called = partial(_position_name, name)  # pickles, which a lambda does not: workers may be spawned
    made = partial(
        DataLoader,
        Reporting(_Ordered(samples, collate), called),  # type: ignore[arg-type]  # a Dataset in all but name
        batch_size=batch,
        sampler=[(EVALUATION, position) for position in range(len(samples))],
        num_workers=workers,
        collate_fn=already_a_batch,
        generator=torch.Generator(),
    )
    return guarded(made, Board(workers, called, timeout, limit="the time of a batch"))


def _position_name(name: Callable[[int], str], key: Key) -> str:
    return name(key[1])


class _Ordered:
    """A data set asked for batches of keys."""

    def __init__(self, samples: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.samples, self.collate = samples, collate

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        return self.collate([self.samples[position] for _, position in noticed(keys)])


def already_a_batch(batch: Any) -> Any:
    """A `collate_fn` for data sets that give batches."""
    return batch


def _called(name: Callable[[Key], str], key: Key) -> str:
    epoch, index = key
    return f"{name(key)} (sample {index}{'' if epoch == EVALUATION else f' of epoch {epoch}'})"


class _Start:
    """Runs first in a worker."""

    def __init__(self, board: Board) -> None:
        self.cells = board.cells

    def __call__(self, worker: int) -> None:
        global _place, _last
        torch.set_num_threads(1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        first = 4 * worker
        self.cells[first : first + 3] = [float(os.getpid()), NOTHING, NOTHING]
        _last = None

        def place(key: Key) -> None:
            self.cells[first + 1 : first + 4] = [float(key[0]), float(key[1]), time.monotonic()]

        _place = place


class Failed:
    """What a worker gives in the place of a batch: torch would wrap an error in a traceback of many lines."""

    def __init__(self, error: JointEmbedError) -> None:
        """Keep it."""
        self.error = error


class Reporting:
    """Samples whose errors come back as `Failed`, those of a decoder or a view with the sample's name.

    Args:
        samples: with `__len__` and `__getitems__`.
        name: key -> what messages call a sample.
    """

    def __init__(self, samples: Any, name: Callable[[Key], str]) -> None:
        """See the class."""
        self.samples, self.name = samples, name

    def __len__(self) -> int:
        """Samples."""
        return len(self.samples)

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """A batch, or why there is none."""
        global _last
        _last = None
        try:
            return self.samples.__getitems__(keys)
        except JointEmbedError as error:
            return Failed(error)
        except Exception as error:
            key = keys[0] if _last is None else _last
            return Failed(DataError(f"{_called(self.name, key)}: {_where(error)}"))
        finally:
            if _place is not None:
                _place((int(NOTHING), int(NOTHING)))


def _where(error: Exception) -> str:
    """An error in one line, with the line of code that it comes from."""
    last = traceback.extract_tb(sys.exc_info()[2])[-1]
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if said else ''}{said} ({os.path.basename(last.filename)}, line {last.lineno})"
