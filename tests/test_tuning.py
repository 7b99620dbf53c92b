"""The search driver: trials are played by a small script that writes the log a run would, but for one real trial."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY

from jointembed import build
from jointembed.cli import main
from jointembed.errors import CheckpointError, Interrupted, RecipeError
from jointembed.recipe import load_recipe
from jointembed.report.trials import Trial, Trials, trials_page
from jointembed.training.lock import FolderLock
from jointembed.tuning import TuneError, read_trials, tune
from jointembed.tuning_space import load_space

SPACE = """
recipe: tiny.yaml
overrides: {training.clip: 2.0}
space:
  objective.invariance: {low: 1.0, high: 50.0, log: true}
  branches.text.encoder.pool: [last, max]
  expanders:
    keys: [branches.image.expander.widths, branches.text.expander.widths]
    choices: [[8], [16, 16]]
budget: {trials: 4, epochs: 3}
pruner: {startup: 2, warmup: 1}
seed: 5
"""

# what a run leaves, in milliseconds; rsum falls with the distance of the invariance from 10, and rises over the epochs
PLAYER = """
import json, math, pathlib, sys, time, yaml
recipe, run, pause = yaml.safe_load(open(sys.argv[1])), pathlib.Path(sys.argv[2]), sys.argv[3]
run.mkdir(parents=True)
invariance = recipe["objective"].get("invariance", 25)
if len(sys.argv) > 4 and eval(sys.argv[4]):
    sys.exit("jointembed: data/captions.json: cannot be read")
for epoch in range(1, round(recipe["training"]["epochs"]) + 1):
    rsum = 100 - 30 * abs(math.log(invariance / 10)) + epoch
    line = {"kind": "validation", "step": epoch, "epoch": float(epoch), "seconds": 1.0, "rsum": rsum}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")
    time.sleep(eval(pause))
"""


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "player.py").write_text(PLAYER)
    (tmp_path / "space.yaml").write_text(SPACE)
    yield tmp_path / "space.yaml"


def player(folder: Path, pause: float | str = 0.0, *more: str) -> Callable[[Path, Path], list[str]]:
    return lambda recipe, run: [sys.executable, str(folder / "player.py"), str(recipe), str(run), str(pause), *more]


def play(space: Path, pause: float | str = 0.0, *more: str, **options: Any) -> Any:
    out = space.parent / "search"
    return tune(space, out, trainer=player(space.parent, pause, *more), poll=0.02, say=lambda line: None, **options)


# -- the file -------------------------------------------------------------------------------------------------------


def test_recipes_of_trials_are_checked_recipes(space: Path) -> None:
    found = load_space(space)
    recipe = found.recipe({"objective.invariance": 7.5, "branches.text.encoder.pool": "max", "expanders": [8]})
    assert recipe.objective["invariance"] == 7.5 and recipe.branches["text"].encoder["pool"] == "max"
    assert [one.expander["widths"] for one in recipe.branches.values()] == [[8], [8]]
    assert recipe.training.epochs == 3 and recipe.training.clip == 2.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("objective.invariance:", "objective.invarance:", "space.objective.invarance: .*did you mean 'invariance'"),
        ("training.clip", "training.clap", "training.clap: unknown key; did you mean 'clip'"),
        ("[last, max]", "[last, most]", "space.branches.text.encoder.pool: .*pool: Input should be"),
        ("[8], [16, 16]", "[8], wide", "space.expanders: branches.image.expander.widths: Input should be"),
        ("low: 1.0", "low: 0.0", "log needs a positive low"),
        ("low: 1.0", "low: 60.0", "low must be below high"),
        ("low: 1.0, ", "", "give low and high, or choices"),
        ("log: true", "logs: true", "logs: unknown key; did you mean 'log'"),
        ("[last, max]", "[]", "choices must be there and differ"),
        ("[last, max]", "[last, last]", "choices must be there and differ"),
        ("training.clip", "objective.invariance", "objective.invariance is set by overrides already"),
        ("training.clip: 2.0", "training.epochs: 2", "training.epochs is set by budget.epochs already"),
        ("budget:", "budgets:", "budgets: unknown key; did you mean 'budget'"),
        ("trials: 4", "trials: 0", "budget.trials"),
        ("seed: 5", "metric: rsom", "metric: no 'rsom'; did you mean 'rsum'"),
        ("seed: 5", "sampler: grid", "space.objective.invariance: a grid needs choices"),
        ("recipe: tiny.yaml", "recipe: absent.yaml", "absent.yaml: cannot read the recipe"),
        ("seed: 5", "overrides2: 1\nseed: 5", "overrides2: unknown key; did you mean 'overrides'"),
        ("training.clip: 2.0", "data.validation: null", "no data.validation"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_named_before_any_work(space: Path, old: str, new: str, message: str) -> None:
    assert old in SPACE
    space.write_text(SPACE.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        play(space)
    assert not (space.parent / "search").exists()


SEARCHES = sorted((Path(__file__).parent.parent / "recipes" / "search").glob("*.yaml"))


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_every_search_of_the_repository_is_right(path: Path) -> None:
    space = load_space(path)
    judged = space.base.data.validation or {}
    assert judged.get("split") == "val" or judged["annotations"] == "${JOINTEMBED_DATA}/flickr8k/captions_val.json"
    assert f"jointembed tune recipes/search/{path.name} --out" in path.read_text()


@pytest.mark.parametrize("data", ["flickr8k", "emoji"])
def test_the_five_objectives_have_one_budget_and_the_same_keys_besides_their_own(data: str) -> None:
    names = ("vicreg", "barlow_twins", "vse", "clip", "siglip")
    spaces = [load_space(SEARCHES[0].parent / f"{data}_{name}.yaml") for name in names]
    assert [space.base.objective["name"] for space in spaces] == list(names)
    own = ("objective", "branches.image.expander.widths", "branches.text.expander.widths")
    for space in spaces[1:]:
        for part in ("budget", "pruner", "sampler", "metric", "seed"):
            assert getattr(space.search, part) == getattr(spaces[0].search, part)
        fixed, of_first = (
            {key: one for key, one in some.search.overrides.items() if key not in own} for some in (space, spaces[0])
        )
        assert fixed == of_first
        assert len(list(space.grid())) == len(list(spaces[0].grid()))
        common, first = (
            {key: one for key, one in some.search.space.items() if not key.startswith("objective.")}
            for some in (space, spaces[0])
        )
        assert common == first and len(common) < len(space.search.space)
        assert space.base.data == spaces[0].base.data
        searched = {"lr": None} if "optimizer.lr" in common else {}
        assert space.base.optimizer | searched == spaces[0].base.optimizer | searched


# -- the trials -----------------------------------------------------------------------------------------------------


def test_a_search_leaves_runs_and_one_table_of_all_trials(space: Path) -> None:
    found = play(space, trials=6)
    assert [one.number for one in found.trials] == list(range(6))
    out = space.parent / "search"
    best = found.ranked[0]
    assert best.value == max(one.value for one in found.trials) and best.folder == f"trial-{best.number:03d}"
    for one in found.trials:
        assert (out / one.folder / "metrics.jsonl").is_file() and one.looks >= 2
        recipe = build.check(load_recipe(out / "recipes" / f"{one.folder}.yaml"))
        assert recipe.objective["invariance"] == one.parameters["objective.invariance"]
        assert recipe.branches["image"].expander["widths"] == one.parameters["expanders"]
    assert {path.name for path in out.glob("trials.*")} == {f"trials.{form}" for form in ("md", "json", "html", "png")}
    table = json.loads((out / "trials.json").read_text())["tables"][0]
    assert [row["trial"] for row in table["rows"]] == [one.number for one in found.ranked]
    assert any("3 epochs a trial" in note for note in table["notes"])
    assert read_trials(out)[out].trials == found.trials


def test_a_trial_below_the_median_is_stopped(space: Path) -> None:
    text = SPACE.replace("low: 1.0, high: 50.0, log: true", "choices: [10, 10.1, 500]")
    text = text.replace("[last, max]", "[last]").replace("[[8], [16, 16]]", "[[8]]")
    space.write_text(text.replace("budget:", "sampler: grid\nbudget:"))
    found = play(space, "60 if invariance > 100 and epoch == 2 else 0", trials=3)
    states = {one.parameters["objective.invariance"]: one for one in found.trials}
    assert states[10].state == states[10.1].state == "complete"
    assert states[500].state == "pruned" and states[500].looks == 2 and states[500].value is not None


def test_a_grid_ends_where_all_is_tried(space: Path) -> None:
    text = SPACE.replace("low: 1.0, high: 50.0, log: true", "choices: [10, 20]").replace("[[8], [16, 16]]", "[[8]]")
    space.write_text(text.replace("budget:", "sampler: grid\nbudget:"))
    said: list[str] = []
    out = space.parent / "search"
    found = tune(space, out, trials=6, trainer=player(space.parent), poll=0.02, say=said.append)
    values = [tuple(map(str, one.parameters.values())) for one in found.trials]
    assert len(values) == len(set(values)) == 4
    assert said[0] == f"{space}: its grid ends after 4 trials, before the 6 that were asked for"


def test_a_failing_trial_costs_no_other(space: Path) -> None:
    found = play(space, 0.0, "run.name == 'trial-001'")
    assert [one.state for one in found.trials].count("failed") == 1 and len(found.trials) == 4
    failed = found.trials[1]
    assert failed.note == "data/captions.json: cannot be read" and failed.value is None
    assert "cannot be read" in (space.parent / "search" / "logs" / "trial-001.txt").read_text()
    assert found.ranked[-1] is failed


@pytest.mark.parametrize("looks", [{1}, {1, 2, 3}])
def test_looks_that_are_not_finite_do_not_count(space: Path, looks: set[int]) -> None:
    text = PLAYER.replace("rsum = 100", f"rsum = math.nan if run.name == 'trial-001' and epoch in {looks} else 100")
    (space.parent / "player.py").write_text(text)
    found = play(space)
    assert len(found.trials) == 4
    states = [one.state for one in found.trials]
    if looks == {1}:
        assert "failed" not in states and found.trials[1].value is not None and found.trials[1].looks < 3
    else:
        assert states.count("failed") == 1 and "no finite number rsum in" in found.trials[1].note
    assert len(play(space, trials=5).trials) == 5


def test_a_search_that_cannot_work_ends(space: Path) -> None:
    with pytest.raises(TuneError, match="the first 3 trials failed, the last with: data/captions.json"):
        play(space, 0.0, "True", trials=20)


def test_a_search_goes_on_and_draws_other_values(space: Path) -> None:
    first = play(space, trials=2)
    second = play(space, trials=4)
    assert second.trials[:2] == first.trials and len(second.trials) == 4
    values = [one.parameters["objective.invariance"] for one in second.trials]
    assert len(set(values)) == 4
    assert len(play(space, trials=4).trials) == 4  # nothing left to do


def test_minutes_end_a_search_between_trials(space: Path) -> None:
    assert len(play(space, minutes=0).trials) == 0
    assert len(play(space, minutes=5, trials=1).trials) == 1


def test_another_search_does_not_go_on_in_the_same_folder(space: Path) -> None:
    play(space, trials=1)
    space.write_text(SPACE.replace("high: 50.0", "high: 60.0"))
    with pytest.raises(TuneError, match="holds another search"):
        play(space, trials=2)
    space.write_text(SPACE.replace("trials: 4", "trials: 2"))  # the number of trials may change
    assert len(play(space).trials) == 2


def test_nor_does_one_of_another_name(space: Path) -> None:
    first = play(space, trials=1)
    out = space.parent / "search"
    written = {path: path.read_bytes() for path in (*out.glob("trials.*"), *out.glob("recipes/*"), *out.glob("logs/*"))}
    other = space.with_name("other.yaml")
    other.write_text(SPACE.replace("high: 50.0", "high: 60.0"))
    with pytest.raises(TuneError, match="holds another search"):
        tune(other, out, trials=2, trainer=player(space.parent), poll=0.02, say=lambda line: None)
    assert {path: path.read_bytes() for path in written} == written
    assert read_trials(out) == {out: first} and first.name == "space"
    renamed = space.rename(space.with_name("renamed.yaml"))
    assert len(play(renamed, trials=2).trials) == 2  # the same search, whatever its file is called


def test_a_study_of_before_has_the_name_of_its_file_and_goes_on(space: Path) -> None:
    import optuna

    play(space, trials=1)
    out = space.parent / "search"
    with contextlib.closing(sqlite3.connect(out / "study.db")) as file, file:
        file.execute("UPDATE studies SET study_name = 'before'")
        file.execute("DELETE FROM study_user_attributes WHERE key = 'name'")
    assert [one.name for one in read_trials(out).values()] == ["before"]
    assert len(play(space, trials=2).trials) == 2
    optuna.create_study(study_name="second", storage=f"sqlite:///{out / 'study.db'}")  # as another search once did
    for act in (lambda: read_trials(out), lambda: play(space)):
        with pytest.raises(CheckpointError, match=r"study.db: holds 2 searches \(before, second\)"):
            act()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"text" * 4000, "file is not a database"), (None, "database disk image is malformed")]
)
def test_a_broken_study_is_one_clear_error(space: Path, content: bytes | None, reason: str) -> None:
    play(space, trials=1)
    out = space.parent / "search"
    path = out / "study.db"
    path.write_bytes(path.read_bytes()[:40_000] if content is None else content)
    for act in (lambda: read_trials(out), lambda: play(space, trials=2)):
        with pytest.raises(CheckpointError, match=rf"study.db: cannot be read as the study of a search \({reason}\)$"):
            act()


DRIVER = """
import sys
from pathlib import Path
from jointembed.tuning import tune
folder, pause = Path(sys.argv[1]), sys.argv[2]
command = lambda recipe, run: [sys.executable, str(folder / "player.py"), str(recipe), str(run), pause]
tune(folder / "space.yaml", folder / "search", trainer=command, poll=0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_marks_its_trial_and_runs_it_again(space: Path, number: signal.Signals) -> None:
    folder = space.parent
    search = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), "1.5"], stderr=subprocess.PIPE, text=True)
    log = folder / "search" / "trial-000" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    search.send_signal(number)
    _, said = search.communicate(timeout=60)
    assert search.returncode != 0
    if number == signal.SIGTERM:
        assert Interrupted.__name__ in said and "trial-000 was stopped; the same command goes on" in said
    found = play(space, trials=2)
    states = {one.number: one for one in found.trials}
    again = next(one for one in found.trials if one.note == "0 again.")
    assert states[0].state == "interrupted" and states[0].note == f"tried again as {again.number}"
    assert again.state == "complete" and again.parameters == states[0].parameters
    assert [one.state for one in found.trials].count("complete") == 2  # the interrupted one is not counted


def test_a_trial_that_outlived_its_search_is_not_joined_by_another(space: Path) -> None:
    play(space, trials=1)
    import optuna

    out = space.parent / "search"
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{out / 'study.db'}")
    number = study.ask().number
    (out / f"trial-{number:03d}").mkdir()
    code = (
        "import time, pathlib; from jointembed.training.lock import FolderLock\n"
        f"lock = FolderLock(pathlib.Path({str(out / f'trial-{number:03d}')!r}))\n"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match="in use by another run"):
        play(space)
    holder.kill()
    holder.communicate()
    FolderLock(out).release()


def test_without_optuna_one_line_names_the_extra(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TuneError, match=r"pip install 'jointembed\[tune\]'"):
        play(space)


def test_a_folder_without_a_search(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no study.db with a study in it"):
        read_trials(tmp_path)


# -- the command ----------------------------------------------------------------------------------------------------


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["jointembed", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capsys.readouterr()


def test_the_command_trains_one_real_trial_of_two_steps(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = "recipe: tiny.yaml\nspace: {objective.invariance: {low: 5, high: 20}}\nbudget: {trials: 1, epochs: 0.5}\n"
    (tmp_path / "one.yaml").write_text(text)
    out = tmp_path / "search"
    code, shown, err = say(monkeypatch, capsys, "tune", str(tmp_path / "one.yaml"), "--out", str(out))
    assert code == 0, err
    assert "trial-000: rsum" in err and "trial-000: rsum" not in shown and "| complete |" in shown
    assert (out / "trial-000" / "evaluation" / "validation-full" / "ranks.npz").is_file()
    assert not (out / "trial-000" / "checkpoints").exists() and (out / "trial-000" / "model").is_dir()
    assert [path for path in Path(os.environ["JOINTEMBED_CACHE"]).iterdir() if not path.name.startswith("tokens")]
    for form, part in (("markdown", "| 0 |"), ("json", '"tables"'), ("html", "<table>")):
        code, shown, _ = say(monkeypatch, capsys, "tune", "--show", str(out), "--format", form)
        assert code == 0 and part in shown and "trial-000" in shown


def test_the_command_prints_one_document(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dict(tune.__kwdefaults__ or {}, trainer=player(space.parent))
    monkeypatch.setattr(tune, "__kwdefaults__", options)
    other = space.with_name("other.yaml")
    other.write_text(SPACE)
    out = space.parent / "search"
    both = ["tune", str(space), str(other), "--out", str(out), "--trials", "1"]
    for arguments in (both, ["tune", "--show", str(out)]):
        code, shown, err = say(monkeypatch, capsys, *arguments, "--format", "json")
        assert code == 0 and err.count("trial-000: rsum") == (2 if arguments is both else 0), err
        titles = sorted(one["title"] for one in json.loads(shown)["tables"])
        assert titles == ["other: 1 trials", "space: 1 trials"]


@pytest.mark.parametrize("options", [["--trials", "5"], ["--minutes", "3"], ["--out", "x"]])
def test_what_showing_would_not_heed_is_refused(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("jointembed.cli_tune._show", lambda folder, form: None)
    code, _, err = say(monkeypatch, capsys, "tune", "--show", str(space.parent), *options)
    assert code == 2 and f"{options[0]} does not go with --show, which runs no search" in err


def test_a_number_that_is_no_percentage_keeps_four_digits() -> None:
    trials = [Trial(number, "complete", {"a": 1.0}, value) for number, value in enumerate((0.951, 0.949, 0.04))]
    shown = trials_page(Trials("s", "z_std", "maximize", trials)).markdown()
    assert all(f"| {words} |" in shown for words in ("0.9510", "0.9490", "0.04000"))
    percent = Trials("s", "knn20_top1", "maximize", [Trial(0, "complete", {}, 41.25)])
    assert "| 41.2 |" in trials_page(percent).markdown()


def test_the_command_checks_every_search_first(
    space: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = space.with_name("other.yaml")
    other.write_text(SPACE.replace("budget:", "budgets:"))
    code, _, err = say(monkeypatch, capsys, "tune", str(space), str(other), "--out", str(space.parent / "search"))
    assert code == 2 and "budgets: unknown key" in err and err.count("\n") == 1
    assert not (space.parent / "search").exists()
    code, _, err = say(monkeypatch, capsys, "tune")
    assert code == 2 and "--show" in err
