"""A search over the keys of a recipe: one run a trial, in processes of their own, by Optuna (extra `tune`).

The folder of a search holds `study.db` (the study), `recipes/` and `logs/` of the trials, a run folder `trial-NNN` for
each, without its checkpoints once it has ended, and the table of all trials as Markdown, JSON and HTML with its plot.
Representations of frozen encoders are kept by the cache that all runs share, so the first trial computes them for all.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from jointembed.errors import CheckpointError, Interrupted, JointEmbedError, RecipeError
from jointembed.report.curves import is_number, metric_text, of_kind, read_metrics
from jointembed.report.trials import Trial, Trials, draw_trials, trials_page
from jointembed.training.interrupt import Interrupts, signal_name
from jointembed.training.lock import FolderLock
from jointembed.tuning_space import Parameter, Space, load_space

_STUDY = "study.db"
_PATIENCE = 120.0  # seconds that a trial has for its checkpoint once it is told to end
_HOPELESS = 3  # failures in a row at the start of a search, after which it is the search that is wrong

Trainer = Callable[[Path, Path], list[str]]


class TuneError(JointEmbedError):
    """A search that cannot go on."""


def train_command(recipe: Path, run: Path) -> list[str]:
    """What trains a recipe into a run folder, in a process of its own."""
    return [sys.executable, "-m", "jointembed", "train", str(recipe), "--out", str(run)]


def tune(
    path: Path,
    out: Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    trainer: Trainer = train_command,
    poll: float = 1.0,
    say: Callable[[str], None] = print,
) -> Trials:
    """Run the trials of a search that are not done yet, and write their table.

    A trial is a process: one that fails is marked so and costs no other. A search that was killed goes on: the trial
    that was running is marked interrupted and its values are tried again in a new run.

    Args:
        path: the search, as `tuning_space` describes it.
        out: its folder, made here; one that is there goes on.
        trials: in all, those done before included; by default as the search says. A grid has no more than its own.
        minutes: after which no further trial begins.
        trainer: recipe file, run folder -> the command of a trial.
        poll: seconds between looks at the log of a trial.
        say: takes a line for each trial.

    Raises:
        RecipeError: a search or recipe that is wrong, with the key.
        TuneError: Optuna is not there; another search in this folder; the first trials all fail.
        CheckpointError: the folder, or the trial that was running, is in use by another process; a broken study.db.
        Interrupted: SIGTERM or Ctrl-C, after the running trial was told to end.
    """
    optuna = _optuna()
    space = load_space(path)
    for folder in (out, out / "recipes", out / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    try:
        study = _open_study(optuna, space, out)
        wanted = _wanted(space, trials, say)
        end = None if minutes is None else time.monotonic() + 60 * minutes
        try:
            with Interrupts() as interrupts:
                while len(_counted(study)) < wanted and (end is None or time.monotonic() < end):
                    _run_trial(optuna, study, space, out, trainer, poll, interrupts, say)
                    _check_hope(study, out)
        finally:
            found = _trials_of(study)
            write_trials(found, out)
        return found
    finally:
        lock.release()


def read_trials(out: Path) -> dict[Path, Trials]:
    """The search in a folder, or those in the folders below it, by folder.

    Raises:
        CheckpointError: no search in it; a study.db that is broken, or holds several.
    """
    optuna = _optuna()
    studies = {one: _stored(optuna, one) for one in (out, *sorted(out.glob("*"))) if (one / _STUDY).is_file()}
    found = {one: _trials_of(study) for one, study in studies.items() if study is not None}
    if not found:
        raise CheckpointError(f"{out}: no {_STUDY} with a study in it; not the folder of a search")
    return found


def write_trials(search: Trials, out: Path) -> list[Path]:
    """Write the table of all trials, as Markdown, JSON and HTML, and the plot if there is a number to draw."""
    page = trials_page(search)
    written = []
    for form, suffix in (("markdown", "md"), ("json", "json"), ("html", "html")):
        written.append(out / f"trials.{suffix}")
        written[-1].write_text(getattr(page, form)(), encoding="utf-8")
    if draw_trials(search, out / "trials.png"):
        written.append(out / "trials.png")
    return written


# -- the study ------------------------------------------------------------------------------------------------------


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise TuneError("a search needs Optuna; pip install 'jointembed[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(out: Path) -> str:
    return f"sqlite:///{out / _STUDY}"


def _stored(optuna: ModuleType, out: Path) -> Any:
    """The study of a folder, None where there is none yet; one of before has the name of its file."""
    from sqlalchemy.exc import SQLAlchemyError  # comes with Optuna

    try:
        names = optuna.get_all_study_names(storage=_storage(out))
        study = optuna.load_study(study_name=names[0], storage=_storage(out)) if len(names) == 1 else None
        if study is not None:
            study.get_trials(deepcopy=False)  # they alone may be damaged
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:  # the last: of another version
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
        raise CheckpointError(f"{out / _STUDY}: cannot be read as the study of a search ({reason})") from None
    if len(names) > 1:
        raise CheckpointError(f"{out / _STUDY}: holds {len(names)} searches ({', '.join(names)}); a folder is of one")
    return study


def _open_study(optuna: ModuleType, space: Space, out: Path) -> Any:
    """The study of the folder, made where there is none; a trial that was running is marked, and queued again."""
    search, pruner = space.search, optuna.pruners.NopPruner()
    if search.pruner.name == "median":
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=search.pruner.startup, n_warmup_steps=search.pruner.warmup + 1
        )
    study = _stored(optuna, out)
    if study is None:  # of one name, whatever its file is called: a folder holds one study
        study = optuna.create_study(study_name="search", storage=_storage(out), direction=search.direction)
    study.pruner = pruner
    if study.user_attrs.get("digest", space.digest) != space.digest:
        raise TuneError(f"{out}: holds another search ({space.path} or its recipe has changed); give another --out")
    # another seed after a restart, which would otherwise draw the same values again
    seed = search.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    if search.sampler == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    if "digest" not in study.user_attrs:
        if search.sampler == "grid":
            for values in space.grid():
                study.enqueue_trial(values, skip_if_exists=True)
        about = {
            "recipe": search.recipe,
            "budget": f"{space.base.training.epochs:g} epochs a trial; sampler {search.sampler}, seed {search.seed}, "
            f"pruner {search.pruner.name}",
            "fixed": ", ".join(f"{key}={value}" for key, value in search.overrides.items()) or "nothing",
        }
        known = {"name": space.path.stem, "metric": search.metric, "about": about, "digest": space.digest}
        for key, value in known.items():
            study.set_user_attr(key, value)
    for one in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if (folder := out / _name(one.number)).is_dir():
            FolderLock(folder).release()  # its process may have outlived the search: two would share the machine
        study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        if one.params:
            study.enqueue_trial(one.params, user_attrs={"again": one.number})
    return study


def _wanted(space: Space, trials: int | None, say: Callable[[str], None]) -> int:
    """How many trials there will be; beyond the end of a grid the sampler would draw some of them again."""
    if space.search.sampler != "grid":
        return trials or space.search.budget.trials
    size = math.prod(len(one.labels) for one in space.search.space.values())
    if trials is not None and trials > size:
        say(f"{space.path}: its grid ends after {size} trials, before the {trials} that were asked for")
    return min(trials or size, size)


def _counted(study: Any) -> list[Any]:
    """Trials that have used up a part of the budget: those that ended, but were not interrupted."""
    again = {one.user_attrs.get("again") for one in study.trials}
    return [one for one in study.trials if one.state.is_finished() and one.number not in again and one.params]


def _check_hope(study: Any, out: Path) -> None:
    ended = _counted(study)
    if len(ended) == _HOPELESS and all(one.state.name == "FAIL" for one in ended):
        raise TuneError(
            f"{out}: the first {_HOPELESS} trials failed, the last with: {ended[-1].user_attrs.get('error')} "
            f"({out / 'logs'} has all they said)"
        )


def _name(number: int) -> str:
    return f"trial-{number:03d}"


# -- one trial ------------------------------------------------------------------------------------------------------


def _run_trial(
    optuna: ModuleType,
    study: Any,
    space: Space,
    out: Path,
    trainer: Trainer,
    poll: float,
    interrupts: Interrupts,
    say: Callable[[str], None],
) -> None:
    search = space.search
    trial = study.ask({name: _distribution(optuna, one) for name, one in search.space.items()})
    values = {name: one.value(trial.params[name]) for name, one in search.space.items()}
    run, begun = out / _name(trial.number), time.monotonic()
    trial.set_user_attr("values", values)
    trial.set_user_attr("folder", run.name)
    state, error = "FAIL", None
    try:
        epochs = space.recipe(values).training.epochs
        recipe = out / "recipes" / f"{run.name}.yaml"
        recipe.write_text(yaml.safe_dump(space.tree(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
        with (out / "logs" / f"{run.name}.txt").open("wb") as log:
            child = subprocess.Popen(trainer(recipe, run), stdout=log, stderr=log, start_new_session=True)
        try:
            state = _watch(child, trial, run, search.metric, epochs, poll, interrupts)
        finally:
            _end(child)
        if state == "FAIL":
            error = _last_line(out / "logs" / f"{run.name}.txt") or f"ended with code {child.returncode}"
    except RecipeError as problem:  # values that are right one by one, but not together
        error = str(problem)
    trial.set_user_attr("minutes", (time.monotonic() - begun) / 60)
    best = _best(run, search.metric, search.direction)
    if state == "COMPLETE" and best is None:
        state, error = "FAIL", f"no finite number {search.metric} in {run / 'metrics.jsonl'}"
    if best is not None:
        for key, value in zip(("best", "epoch", "looks"), best, strict=True):
            trial.set_user_attr(key, value)
    if error is not None:
        trial.set_user_attr("error", error)
    else:  # a search goes on with other trials, not with this one; its best model stays
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    study.tell(trial, best[0] if state == "COMPLETE" and best else None, state=optuna.trial.TrialState[state])
    shown = "" if best is None else f"{search.metric} {metric_text(search.metric, best[0])} at epoch {best[1]:g}, "
    say(f"{run.name}: {shown}{state.lower()}{'' if error is None else f' ({error})'}; {_short(values)}")


def _watch(
    child: subprocess.Popen[bytes],
    trial: Any,
    run: Path,
    metric: str,
    epochs: float,
    poll: float,
    interrupts: Interrupts,
) -> str:
    """Report the looks of a trial as they come, until it ends or is stopped: its state."""
    seen = 0
    while True:
        code = child.poll()
        looks = _looks(run, metric)
        while seen < len(looks):
            epoch, value = looks[seen]
            seen += 1
            trial.report(value, seen)
            if code is None and epoch < epochs - 1e-6 and trial.should_prune():
                return "PRUNED"
        if code is not None:
            return "COMPLETE" if code == 0 else "FAIL"
        if interrupts.number:
            _end(child)
            raise Interrupted(
                f"{signal_name(interrupts.number)}: {run} was stopped; the same command goes on", interrupts.number
            )
        time.sleep(poll)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Tell a trial to end, with its checkpoint; after two minutes it is killed, with its loader workers."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _looks(run: Path, metric: str) -> list[tuple[float, float]]:
    """Epoch and number of each look at the validation data; those that are not finite are none: Optuna takes no NaN."""
    lines = of_kind(read_metrics(run / "metrics.jsonl").lines, "validation")
    numbers = [(line.get("epoch", 0.0), float(line[metric])) for line in lines if is_number(line.get(metric))]
    return [look for look in numbers if math.isfinite(look[1])]


def _best(run: Path, metric: str, direction: str) -> tuple[float, float, int] | None:
    """The best number of a run, its epoch, and how many looks there were."""
    looks = _looks(run, metric)
    if not looks:
        return None
    epoch, value = (max if direction == "maximize" else min)(looks, key=lambda look: look[1])
    return value, epoch, len(looks)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("jointembed: ")[:300] if lines else ""


def _short(values: Mapping[str, Any]) -> str:
    words = {name: f"{one:.4g}" if isinstance(one, float) else str(one) for name, one in values.items()}
    return ", ".join(f"{name}={word}" for name, word in words.items())


def _distribution(optuna: ModuleType, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return optuna.distributions.CategoricalDistribution(list(parameter.labels))
    kind = optuna.distributions.IntDistribution if parameter.whole else optuna.distributions.FloatDistribution
    return kind(parameter.low, parameter.high, log=parameter.log)


# -- the table ------------------------------------------------------------------------------------------------------


def _trials_of(study: Any) -> Trials:
    again = {one.user_attrs["again"]: one.number for one in study.trials if "again" in one.user_attrs}
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
    rows = []
    for one in study.trials:
        known = one.user_attrs
        note = known.get("error", "")
        if one.number in again:
            note = f"tried again as {again[one.number]}"
        elif "again" in known:
            note = " ".join(filter(None, (f"{known['again']} again.", note)))
        rows.append(
            Trial(
                one.number,
                "interrupted" if one.number in again else names[one.state.name],
                known.get("values", one.params),
                known.get("best"),
                known.get("epoch"),
                known.get("looks", 0),
                known.get("minutes"),
                known.get("folder", ""),
                note,
            )
        )
    direction = "minimize" if study.direction.name == "MINIMIZE" else "maximize"
    about = study.user_attrs.get("about", {})
    name = study.user_attrs.get("name", study.study_name)
    return Trials(name, study.user_attrs.get("metric", ""), direction, rows, about)
