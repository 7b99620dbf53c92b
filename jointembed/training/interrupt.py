"""SIGTERM and Ctrl-C end a run between two steps, with a checkpoint, not in the middle of one."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from jointembed.data.loader_workers import end_workers

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """While it is entered, the first signal is noted for the loop to see; a second Ctrl-C ends the process at once.

    Further SIGTERMs change nothing: a batch system and a launcher may both send one. Only the main thread can have
    handlers; anywhere else nothing is noted and signals do what they did.

    Attributes:
        number: of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        """Nothing has come."""
        self.number = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            self.before = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for one, handler in self.before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            end_workers()
            os._exit(128 + number)
        if not self.number:
            self.number = number
            if os.environ.get("RANK", "0") == "0":  # not print: the signal may have come in the middle of one
                told = f"jointembed: {signal_name(number)}: stopping after this step; Ctrl-C (again) ends it at once\n"
                os.write(2, told.encode())


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name
