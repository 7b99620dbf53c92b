"""Run the cells of a table at small scale, one after another, each in a process of its own.

    python scripts/run_table.py ablation --out runs/ablation [--seeds 0 1] [--only 'simsiam*'] [--shard 1/2]

Started again, it skips what is finished and goes on with what was interrupted. A cell that fails does not stop the
others; the failed ones are named at the end, with exit code 1. The output of a run is in RUN.log beside its folder.
Needs JOINTEMBED_DATA. `jointembed table ablation runs/ablation` shows what there is, at any time.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from jointembed import build
from jointembed.errors import JointEmbedError
from jointembed.recipe import load_recipe, recipe_tree
from jointembed.report.plans import JUDGED, SCALES, Command, cells

ROOT = Path(__file__).resolve().parents[1]
BASELINES = {"flexibility": "recipes/small/flexibility_shared.yaml"}  # the recipe of a table's baselines
RECIPE = "recipes/small/cifar10_vicreg.yaml"  # of the other tables


@dataclass(frozen=True)
class Job:
    """One run: its name, below the folder of the table, and what makes it."""

    name: str
    verb: str  # train, baselines
    recipe: str
    overrides: tuple[str, ...]
    record: str  # the file, below its folder, that is there when it is finished

    def finished(self, out: Path) -> bool:
        """Whether it is. Raises JointEmbedError where another recipe was run there."""
        folder = out / self.name
        if not (folder / "recipe.yaml").is_file():
            return False
        wanted = recipe_tree(build.check(load_recipe(ROOT / self.recipe, self.overrides)))
        if yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) != wanted:
            raise JointEmbedError(f"{folder}: holds a run of another recipe; move it away or take another --out")
        return _is_whole(folder / self.record)

    def command(self, out: Path) -> list[str]:
        """What is run."""
        resume = ["--resume"] if self.verb == "train" and (out / self.name).exists() else []
        recipe = os.path.relpath(ROOT / self.recipe)
        return [
            sys.executable,
            "-m",
            "jointembed",
            self.verb,
            recipe,
            *self.overrides,
            "--out",
            str(out / self.name),
            *resume,
        ]


def main() -> int:
    """Run what the arguments ask for; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[name for name, scales in SCALES.items() if "small" in scales])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="of every cell; by default one, three where it matters")
    parser.add_argument("--only", default="*", help="names of runs, such as 'vicreg-*/var/*'")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th run from the i-th on, i from 0")
    parser.add_argument(
        "--set", dest="change", action="append", default=[], metavar="a.b=c", help="key of every recipe"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the runs and end")
    given = parser.parse_args()
    jobs = [job for job in jobs_of(given.table, given.seeds, given.change) if fnmatch.fnmatch(job.name, given.only)]
    jobs = shard(jobs, given.shard)
    if not jobs:
        parser.error(f"no run is named {given.only!r} in shard {given.shard}")
    if given.list:
        print("\n".join(job.name for job in jobs))
        return 0
    failed = [job.name for number, job in enumerate(jobs, 1) if not run(job, given.out, f"[{number}/{len(jobs)}]")]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs finished; jointembed table {given.table} {given.out}")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def jobs_of(table: str, seeds: Sequence[int] | None, change: Sequence[str]) -> list[Job]:
    """The baselines, then the cells of a table in printed order, a job for each seed."""
    planned = cells(table, "small")
    most = max(cell.seeds for cell in planned)
    recipe = BASELINES.get(table, RECIPE)
    jobs = [
        Job(
            f"baselines/seed{seed}", "baselines", recipe, (JUDGED, *change, f"seed={seed}"),
            "evaluation/validation-untrained/metrics.json",
        )
        for seed in (seeds or range(most) if table != "cost" else ())
    ]  # fmt: skip
    for cell in planned:
        command: Command = cell.commands[0]
        name = command.run.partition("/")[2]
        jobs += [
            Job(
                f"{name}/seed{seed}", "train", command.recipe, (*command.overrides, *change, f"seed={seed}"),
                "evaluation/validation-features/metrics.json",
            )
            for seed in seeds or range(cell.seeds)
        ]  # fmt: skip
    return jobs


def _is_whole(record: Path) -> bool:
    """Whether a record is there and was written to its end: a kill may have cut it short."""
    try:
        json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def shard(jobs: list[Job], part: str) -> list[Job]:
    """Every n-th job from the i-th on, of `i/n`."""
    first, _, step = part.partition("/")
    if not first.isdecimal() or not step.isdecimal() or int(first) >= int(step):
        raise SystemExit(f"--shard {part!r}: expected i/n with i from 0 to n - 1")
    return jobs[int(first) :: int(step)]


def run(job: Job, out: Path, place: str) -> bool:
    """Run a job unless it is finished; whether it is now. Says in one line what came of it."""
    started = time.monotonic()
    try:
        if job.finished(out):
            print(f"{place} {job.name}: finished before, {numbers(out / job.name / job.record)}", flush=True)
            return True
        log = out / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            done = subprocess.run(job.command(out), stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode == 0 and job.finished(out):
            took = time.monotonic() - started
            print(f"{place} {job.name}: {numbers(out / job.name / job.record)} ({took:.0f} s)", flush=True)
            return True
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        problem = f"exit code {done.returncode}: {lines[-1] if lines else 'no output'} ({log})"
    except JointEmbedError as error:
        problem = str(error)
    print(f"{place} {job.name}: failed, {problem}", flush=True)
    return False


def numbers(record: Path) -> str:
    """The numbers that one looks at first."""
    metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    shown = [name for name in ("knn20_top1", "linear_top1", "rankme", "z_rankme") if name in metrics]
    return ", ".join(f"{name} {metrics[name]:.1f}" for name in shown) or "no numbers"


if __name__ == "__main__":
    sys.exit(main())
