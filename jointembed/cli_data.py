"""The commands `jointembed data ...`. Heavy imports live inside them, so that help appears at once."""

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(no_args_is_help=True, help="Data sets: get and check.")
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Keys of the recipe to set.")]


@data_app.command("check")
def data_check(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose data sets are read, every picture decoded.")],
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, validation or test.")] = None,
    decode: Annotated[bool, typer.Option(help="Decode every picture.")] = True,
) -> None:
    """Read a recipe's data sets, decode every picture, and say what is in them and what is wrong."""
    from jointembed import build
    from jointembed.data.check import check
    from jointembed.recipe import load_recipe

    checked = build.check(load_recipe(recipe, overrides or []))
    good = True
    for name in [split] if split else [s for s in build.SPLITS if getattr(checked.data, s) is not None]:
        report = check(build.dataset(checked, name, whole=True), decode=decode)
        print(f"{name}:")
        print("\n".join(f"  {line}" for line in report.lines()))
        good = good and report.ok
    if not good:
        raise typer.Exit(1)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="What to download; `list` shows the names.")],
    out: Annotated[Path, typer.Option(help="Folder.")] = Path("data"),
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be given again.")] = None,
) -> None:
    """Download a data set, resumably, and check its sums."""
    from rich.progress import DownloadColumn, Progress, TaskID

    from jointembed.data.download import SOURCES, get

    if name == "list":
        print("\n".join(sorted(SOURCES)))
        return
    with Progress(*Progress.get_default_columns(), DownloadColumn()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done, total=total)

        fetched = get(name, out, parts=part, progress=show)
    for one in fetched:
        print(one)
