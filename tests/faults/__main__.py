"""Runs every test that injects a fault and writes what came of it: python -m tests.faults [--quick] [--rows 5,10]."""

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jointembed import environment

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "faults_table.md"
ROWS = {
    1: "killed in training and in the middle of a save",
    2: "disk full, read-only folder, quota during a save",
    3: "leftover partial checkpoint folder, two ranks",
    4: "checkpoint truncated, altered, renamed keys, no random state, newer version",
    5: "pickle payload in every file that is ever loaded",
    6: "recipe, data or world size changed on resume",
    7: "NaN or Inf in inputs, loss or gradient of one rank",
    8: "a rank killed, raising, exiting 0, hanging",
    9: "a loader worker killed, raising, hanging",
    10: "pictures: damaged, disguised, too large, every mode",
    11: "paths that lead out of folders and archives",
    12: "captions: empty, odd characters, very long",
    13: "annotation JSON: broken, duplicate, large",
    14: "detection truth and results",
    15: "batch of one, constant embeddings, equal captions, too little data",
    16: "out of memory in the first step",
    17: "SIGTERM and Ctrl-C",
    18: "two runs into one folder",
    19: "clock, folders, home, locale, paths, PYTHONOPTIMIZE",
    20: "the search page under load and attack",
    21: "the same seed twice, 0 and 2 workers",
    22: "fuzzed readers",
}


@dataclass
class Line:
    """One test function's outcomes under one row."""

    row: int
    what: str
    test: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Recorder:
    """A pytest plugin: keeps the tests of the rows asked for, and counts outcomes and seconds a test function."""

    def __init__(self, rows: set[int]) -> None:
        self.rows = rows
        self.lines: dict[tuple[int, str, str], Line] = {}
        self._keys: dict[str, list[tuple[int, str, str]]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen: list[pytest.Item] = []
        others: list[pytest.Item] = []
        for item in items:
            marks = [mark.args for mark in item.iter_markers("fault") if mark.args[0] in self.rows]
            (chosen if marks else others).append(item)
            test = item.nodeid.partition("[")[0]
            for row, what in marks:
                key = (row, what, test)
                self.lines.setdefault(key, Line(row, what, test))
                self._keys.setdefault(item.nodeid, []).append(key)
        config.hook.pytest_deselected(items=others)
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key in self._keys.get(report.nodeid, []):
            line = self.lines[key]
            line.seconds += report.duration
            if report.when == "call" or report.outcome != "passed":
                line.outcomes[report.outcome] += 1


def table(lines: list[Line], rows: set[int]) -> list[str]:
    """The Markdown table, one line a test function; a row without a test says so."""
    found = ["| row | fault | test | result | seconds |", "|---:|---|---|---|---:|"]
    for row in sorted(rows):
        own = sorted((line for line in lines if line.row == row), key=lambda line: (line.test, line.what))
        if not own:
            found.append(f"| {row} | {ROWS[row]} | | no test was run | |")
        for line in own:
            result = ", ".join(f"{count} {name}" for name, count in sorted(line.outcomes.items())) or "not run"
            found.append(f"| {row} | {line.what} | `{line.test}` | {result} | {line.seconds:.1f} |")
    return found


def page(lines: list[Line], rows: set[int], command: str) -> str:
    """The table under what it was made by: date, machine, command."""
    machine = environment.report()
    hardware = machine["hardware"]
    outcomes = sum((line.outcomes for line in lines), Counter())
    return "\n".join(
        [
            f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}: jointembed {machine['jointembed']}, "
            f"Python {machine['python']}, torch {machine['packages']['torch']}, {hardware['processor']}, "
            f"{hardware['cores']} cores, {hardware.get('memory_gb', '?')} GB, {machine['platform']}. "
            f"{', '.join(f'{count} {name}' for name, count in sorted(outcomes.items())) or 'nothing was run'}. "
            "Seconds are of all cases of a test together, on a machine that may be shared.",
            "",
            *table(lines, rows),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="file of the table; by default docs/faults_table.md for all rows")
    parser.add_argument("--quick", action="store_true", help="leave the slow tests out")
    parser.add_argument("--rows", help="only these, as in 5,10; printed, and written where --out says so")
    arguments = parser.parse_args()
    rows = {int(one) for one in arguments.rows.split(",")} if arguments.rows else set(ROWS)
    if rows - set(ROWS):
        parser.error(f"rows are 1 to {max(ROWS)}")
    recorder = Recorder(rows)
    chosen = "fault and not slow" if arguments.quick else "fault"
    code = int(pytest.main(["-q", "-m", chosen, "--rootdir", str(ROOT), str(ROOT / "tests")], plugins=[recorder]))
    text = page(list(recorder.lines.values()), rows, shlex.join(["python", "-m", "tests.faults", *sys.argv[1:]]))
    out = arguments.out or (None if arguments.rows else TABLE)
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    untested = rows - {line.row for line in recorder.lines.values()}
    if untested:
        print(f"rows without a test: {', '.join(map(str, sorted(untested)))}")
    return code or int(bool(untested))


if __name__ == "__main__":
    sys.exit(main())
