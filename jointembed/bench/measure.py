"""What the benchmarks share: turns, medians and ratios, fitted growth, and what they ran on."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jointembed import environment
from jointembed.training.folder import command

Turn = Callable[[], object]
SHORTEST = 0.02  # seconds of a measurement: shorter calls are repeated inside it


class Seconds(NamedTuple):
    """One measurement: the wall clock's, and what this process was given of the processors."""

    wall: float
    cpu: float


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        """Start."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> Seconds:
        """Time so far."""
        return Seconds(time.perf_counter() - self.wall, time.process_time() - self.cpu)


def timed(turn: Turn, calls: int = 1) -> Seconds:
    """Seconds of one call, the mean of `calls` in a row."""
    watch = Stopwatch()
    for _ in range(calls):
        turn()
    return Seconds(*(value / calls for value in watch.seconds()))


def take_turns(
    turns: Mapping[str, Turn], repeats: int, *, budget: float = math.inf, warm: Mapping[str, Seconds] | None = None
) -> dict[str, list[Seconds]]:
    """Measure alternatives in turn, so that what else the machine does falls on all alike; a first round warms up.

    Args:
        turns: what is measured, by name.
        repeats: rounds; calls shorter than 20 ms are repeated within one.
        budget: seconds after which no further round begins, once there is one.
        warm: what a call of each took that was made just now, in place of the round that warms up.
    """
    once = warm or {name: timed(turn) for name, turn in turns.items()}
    calls = {name: max(1, math.ceil(SHORTEST / max(one.cpu, 1e-6))) for name, one in once.items()}
    found: dict[str, list[Seconds]] = {name: [] for name in turns}
    watch = Stopwatch()
    for number in range(repeats):
        if number and watch.seconds().wall > budget:
            break
        for name, turn in turns.items():
            found[name].append(timed(turn, calls[name]))
    return found


def compared(times: Mapping[str, Sequence[Seconds]], ours: str = "jointembed") -> dict[str, dict[str, float]]:
    """Medians of each alternative, and the median of its time over ours, round by round.

    Returns:
        Name -> `seconds`, `cpu_seconds`, `ratio` of wall clocks, `cpu_ratio` of processor time, the steadier one
        where other programs run, and `rounds`.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, own in times.items():
        pairs = list(zip(own, times[ours], strict=True))
        rows[name] = {
            "seconds": statistics.median(one.wall for one in own),
            "cpu_seconds": statistics.median(one.cpu for one in own),
            "ratio": statistics.median(other.wall / mine.wall for other, mine in pairs),
            "cpu_ratio": statistics.median(other.cpu / max(mine.cpu, 1e-9) for other, mine in pairs),
            "rounds": float(len(own)),
        }
    return rows


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope b of the line through the logarithms: values grow as size^b. Two sizes or more, all above 0."""
    x, y = ([math.log(one) for one in row] for row in (sizes, values))
    return statistics.linear_regression(x, y).slope


def machine() -> dict[str, Any]:
    """What a result ran on: date, command, hardware, versions, threads, and the load that was there already."""
    found = environment.report({})
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _shortened(command()),
        **found["hardware"],
        **{key: found["torch"][key] for key in ("threads", "cpu_capability", "bf16_in_hardware", "accelerators")},
        "versions": {
            name: version
            for name, version in found["packages"].items()
            if name in ("torch", "torchvision", "transformers", "sentence-transformers", "lightly", "numpy", "pillow")
        },
        "load": os.getloadavg()[0],
    }


def _shortened(text: str) -> str:
    """A command line that another machine's user can type."""
    data = os.environ.get("JOINTEMBED_DATA")
    return environment.shortened(text.replace(data, "$JOINTEMBED_DATA") if data else text)
