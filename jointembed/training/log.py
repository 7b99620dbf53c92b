"""What a run says while it trains: `metrics.jsonl`, trackers by name, a progress bar, warnings of collapse."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jointembed import distributed
from jointembed.errors import CheckpointError, RecipeError
from jointembed.model import JointEmbedding

logger = logging.getLogger("jointembed")
console = Console()

COLLAPSE_STD = 0.1  # of unit-length embeddings, against 1 for embeddings spread evenly in every direction
COLLAPSE_RANK = 2.0


def check_trackers(names: list[str]) -> None:
    """Raise RecipeError for trackers that Accelerate does not know, or would drop in silence: not installed ones."""
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"training.trackers: no tracker {name!r}; known: {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise RecipeError(f"training.trackers: {name} is not installed; pip install {name}")


class MetricsLog:
    """Appends one JSON object a line to `metrics.jsonl` and to the trackers; only the main rank writes."""

    def __init__(self, run: Path, accelerator: Accelerator, *, first_step: int, steps: int, per_epoch: int) -> None:
        """Open the log; on a resume, drop lines of steps that will be run again."""
        self.accelerator, self.steps, self.per_epoch = accelerator, steps, per_epoch
        self.path = run / "metrics.jsonl"
        self.main = distributed.is_main()
        self.before = self._cut(first_step) if self.main else 0.0
        self.started = self.clock = time.monotonic()
        self.seen, self.warned = 0, False
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self.main and sys.stdout.isatty()),
        )
        self.task = self.progress.add_task("training", total=steps, completed=first_step, speed="")

    def __enter__(self) -> "MetricsLog":
        """Start the progress bar."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and close the trackers."""
        self.progress.stop()
        for tracker in self.accelerator.trackers:  # not end_training: it also leaves the process group
            tracker.finish()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, earlier parts of a resumed run included."""
        return self.before + time.monotonic() - self.started

    def count(self, samples: int) -> None:
        """Add the samples of one step to the speed."""
        self.seen += samples

    def training(self, step: int, terms: Mapping[str, Any], **more: float) -> None:
        """Loss and terms, learning rate, gradient norm, speed."""
        values = {name: float(value) for name, value in terms.items() if not name.startswith("health/")}
        speed = self.seen / max(time.monotonic() - self.clock, 1e-9)
        self.clock, self.seen = time.monotonic(), 0
        self.write("train", step, values | more | {"samples_per_second": round(speed, 1)})
        self.progress.update(
            self.task, completed=step, description=f"loss {values['loss']:.4g}", speed=f"{speed:.0f} samples/s"
        )

    def health(self, step: int, terms: Mapping[str, Any], remedies: tuple[str, str]) -> None:
        """Std, correlation and RankMe of each view, and a warning, once, where one collapses."""
        prefix = "health/"
        values = {name.removeprefix(prefix): float(value) for name, value in terms.items() if name.startswith(prefix)}
        self.write("health", step, values)
        warnings = collapse_warnings(values, remedies)
        if warnings and not self.warned and self.main:
            self.warned = True
            for warning in warnings:
                logger.warning("step %d: %s", step, warning)
        elif not warnings:
            self.warned = False

    def validation(
        self, step: int, core: JointEmbedding, validate: Callable[[JointEmbedding], Mapping[str, float]]
    ) -> Mapping[str, float]:
        """Run the evaluator and log its numbers; its time does not count towards the training speed."""
        begun = time.monotonic()
        values = validate(core)
        core.train()
        self.write("validation", step, values)
        shown = "  ".join(f"{name} {value:.1f}" for name, value in values.items() if "R@" in name or name == "rsum")
        self.say(f"epoch {step / self.per_epoch:.3g} of {self.steps / self.per_epoch:.3g}  {shown}")
        self.clock += time.monotonic() - begun
        return values

    def skipped(self, step: int, message: str, samples: Sequence[str]) -> None:
        """A step that was left out: a warning, and a line with the names of its samples."""
        if self.main:
            logger.warning(message)
            self._append("skipped", step, {"samples": list(samples)})

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line; `values` are plain numbers."""
        if not self.main:
            return
        self._append(kind, step, values)
        if self.accelerator.trackers:
            self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def _append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        place = {"kind": kind, "step": step, "epoch": round(step / self.per_epoch, 4)}
        line = json.dumps(place | {"seconds": round(self.seconds, 3)} | dict(values))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written at step {step} ({error.strerror or error}); checkpoints are untouched"
            ) from None

    def say(self, text: str) -> None:
        """One line on the terminal, from the main rank, above the progress bar."""
        if self.main:
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _cut(self, first_step: int) -> float:
        if not self.path.exists():
            return 0.0
        kept, seconds = [], 0.0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # a kill in the middle of a write: the step is run again
            if entry["step"] <= first_step:
                kept.append(line)
                seconds = max(seconds, entry["seconds"])
        part = self.path.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        part.replace(self.path)
        return seconds


def collapse_warnings(values: Mapping[str, float], remedies: tuple[str, str]) -> list[str]:
    """A sentence for each view whose embeddings have collapsed to a point or a line, with its remedy; else none."""
    point, line = remedies
    warnings = []
    for name, spread in values.items():
        view, _, measure = name.rpartition("/")
        if measure != "relative_std":
            continue
        if spread < COLLAPSE_STD:
            warnings.append(
                f"view {view!r} has collapsed to a point (spread {spread:.3f} of the length of its embeddings): {point}"
            )
        elif values.get(f"{view}/rankme", float("inf")) < COLLAPSE_RANK:
            warnings.append(f"view {view!r} has collapsed to a line (RankMe {values[f'{view}/rankme']:.2f}): {line}")
    return warnings
