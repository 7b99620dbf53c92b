"""The command `jointembed tune`. Heavy imports live inside it, so that help appears at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jointembed.cli_options import refuse

if TYPE_CHECKING:
    from jointembed.report.trials import Trials


def tune(
    context: typer.Context,
    spaces: Annotated[
        list[Path] | None, typer.Argument(metavar="[SPACE ...]", help="YAML files; several run one after the other.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; of several searches, each in a folder of its name.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all, in place of the file's.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="After which no trial of a search begins.")] = None,
    show: Annotated[Path | None, typer.Option(help="Print the trials in this folder, and draw them.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of what is shown: markdown, json or html.")] = "markdown",
) -> None:
    """Search for the best values of a recipe's keys; started again with the same folder, it goes on."""
    if form not in ("markdown", "json", "html"):
        raise typer.BadParameter(f"no format {form!r}; there are markdown, json, html")
    if (show is None) == (not spaces):
        raise typer.BadParameter("give either searches, with --out, or --show FOLDER")
    if show is not None:
        refuse(context, ("out", "trials", "minutes"), "does not go with --show, which runs no search")
        _show(show, form)
        return
    if out is None:
        raise typer.BadParameter("--out: a folder for the search")
    from jointembed.tuning import tune as run
    from jointembed.tuning_space import load_space

    assert spaces is not None
    names = [space.stem for space in spaces]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"two searches have one name: {', '.join(names)}")
    for space in spaces:  # the last one is as right as the first before any work
        load_space(space)
    found: list[Trials] = []
    try:
        for space in spaces:
            folder = out if len(spaces) == 1 else out / space.stem
            found.append(run(space, folder, trials=trials, minutes=minutes, say=_say))
    finally:  # a search that fails hides none of those before it
        _print(found, form)


def _show(folder: Path, form: str) -> None:
    from jointembed.tuning import read_trials, write_trials

    found = read_trials(folder)
    for place, search in found.items():
        write_trials(search, place)
    _print(list(found.values()), form)


def _print(searches: Sequence["Trials"], form: str) -> None:
    """All searches as one document."""
    from jointembed.report.trials import trials_page

    if searches:
        print(getattr(trials_page(*searches), form)())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # what is printed is the table alone
