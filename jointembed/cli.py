"""The command line. Heavy imports live inside the commands, so that help appears at once."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jointembed.errors import JointEmbedError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Joint embeddings of pictures, words, or any two views: train, evaluate, use.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: get and check.")
table_app = typer.Typer(no_args_is_help=True, help="The published tables, with what was measured beside them.")
bench_app = typer.Typer(no_args_is_help=True, help="Speed and memory, side by side with the alternatives.")
app.add_typer(data_app, name="data")
app.add_typer(table_app, name="table")
app.add_typer(bench_app, name="bench")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Keys of the recipe to set.")]


def main() -> None:
    """Entry point: errors of our own are one line on stderr and an exit code."""
    # threads that spin at every barrier bring a shared machine to a halt; must be set before torch loads OpenMP
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app(standalone_mode=True)
    except JointEmbedError as error:
        print(f"jointembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<recipe name> if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Empty an existing run folder first.")] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although recipe, data or ranks changed.")
    ] = False,
) -> None:
    """Train a model by a recipe, and report on it."""
    from jointembed import build
    from jointembed.recipe import load_recipe

    checked = build.check(load_recipe(recipe, overrides or []))
    run = out or Path("runs") / checked.name
    try:
        state = build.train(checked, run, resume=resume, overwrite=overwrite, changed=allow_changed)
        main_rank = build.distributed.is_main()
    finally:
        build.distributed.shut_down()
    if main_rank:  # alone from here on
        if state["best"] is not None:
            print(f"best validation {checked.evaluation.select} {state['best']:.1f} at step {state['best_step']}")
        _evaluate_run(run, "validation" if checked.data.validation else "train", None, None)


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run folder.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    protocol: Annotated[str | None, typer.Option(help="full, coco_5k, coco_1k_5fold, flickr_1k.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Evaluate a safetensors or npz file instead: image, text, image_of_text.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run evaluated on the same split: adds the paired difference.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Explicit ground truth for the file (CxC, ECCV).")] = None,
) -> None:
    """Measure R@1/5/10 with intervals and chance level, and write the report."""
    if (run is None) == (embeddings is None):
        raise typer.BadParameter("give either a run folder or --embeddings FILE")
    if embeddings is not None:
        _evaluate_file(embeddings, protocol, truth)
    elif run is not None:
        _evaluate_run(run, split, protocol, against)


def _evaluate_run(run: Path, split: str, protocol: str | None, against: Path | None) -> None:
    import torch
    from rich.console import Console

    from jointembed import build
    from jointembed.report.gallery import write_gallery
    from jointembed.report.html import write_report
    from jointembed.report.tables import print_retrieval

    console = Console()
    result = build.evaluate_run(run, split, protocol)
    write_gallery(
        result.folder,
        image=result.embeddings.image,
        text=result.embeddings.text,
        image_names=result.data.pictures.names,
        texts=result.data.texts,
        positives=torch.from_numpy(result.data.positives),
        open_picture=result.data.pictures.open,
    )
    console.print(print_retrieval(result.record))
    if against is not None:
        for line in build.compare_runs(run, against, result.folder.name):
            console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True)


def _evaluate_file(path: Path, protocol: str | None, truth: Path | None) -> None:
    from rich.console import Console

    from jointembed import build
    from jointembed.report.tables import print_retrieval

    Console().print(print_retrieval(build.evaluate_file(path, protocol or "full", truth)))


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
        report = check(build.dataset(checked, name), decode=decode)
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


@table_app.command("retrieval")
def table_retrieval(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders.")] = None,
    form: Annotated[str, typer.Option("--format", help="markdown, json or html.")] = "markdown",
) -> None:
    """The paper's COCO image-text table beside what these runs measured."""
    from jointembed.report.tables import retrieval_table

    _print_table(retrieval_table(runs or []), form)


@bench_app.command("loss")
def bench_loss(
    rows: Annotated[list[int] | None, typer.Option(help="Batch sizes n.")] = None,
    widths: Annotated[list[int] | None, typer.Option(help="Embedding widths d.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each, interleaved; medians count.")] = 5,
) -> None:
    """The VICReg loss, forward and backward, against the authors' formula written plainly."""
    from jointembed.bench.loss import bench_loss as measure

    _print_json(measure(ns=rows or [64, 256, 1024], ds=widths or [2048, 8192], repeats=repeats))


@bench_app.command("retrieval")
def bench_retrieval(
    images: Annotated[int, typer.Option(help="Pictures.")] = 5000,
    texts: Annotated[int, typer.Option(help="Captions.")] = 25000,
    dimension: Annotated[int, typer.Option(help="Width of the embeddings.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Runs of each, interleaved; medians count.")] = 3,
) -> None:
    """The retrieval metrics against the bare matrix product and a per-query loop."""
    from jointembed.bench.retrieval import bench_retrieval as measure

    _print_json(measure(images=images, texts=texts, dimension=dimension, repeats=repeats))


def _print_json(result: Any) -> None:
    import json

    print(json.dumps(result, indent=1))


def _print_table(table: Any, form: str) -> None:
    if form not in ("markdown", "json", "html"):
        raise typer.BadParameter(f"no format {form!r}; there are markdown, json, html")
    print(getattr(table, form)())
