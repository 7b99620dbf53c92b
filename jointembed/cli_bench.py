"""The commands `jointembed bench ...`. Heavy imports live inside the commands, as in `cli`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jointembed.cli_options import refuse

bench_app = typer.Typer(no_args_is_help=True, help="Speed and memory, side by side with the alternatives.")

Repeats = Annotated[int, typer.Option(min=1, help="Rounds of each, interleaved; medians count.")]
Out = Annotated[Path | None, typer.Option(help="JSON file, with the machine's description; printed if not given.")]
Plot = Annotated[Path | None, typer.Option(help="PNG to draw the result in.")]


@bench_app.command("loss")
def bench_loss(
    context: typer.Context,
    rows: Annotated[list[int] | None, typer.Option(help="Batch sizes n.")] = None,
    widths: Annotated[list[int] | None, typer.Option(help="Embedding widths d.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="vicreg, barlow_twins, w_mse, simclr, swav; may be given again.")
    ] = None,
    repeats: Repeats = 5,
    grid: Annotated[bool, typer.Option("--grid", help="VICReg over n 16-4096 and d 64-16384.")] = False,
    share: Annotated[
        bool, typer.Option("--share", help="The loss's part of a ResNet-50's step at n = 256, d = 8192.")
    ] = False,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Losses, forward and backward, against the authors' formulas written plainly and against lightly's."""
    from jointembed.bench import loss, plots
    from jointembed.bench.rivals import PLAIN
    from jointembed.bench.share import loss_share

    if share:
        refuse(context, ("rows", "widths", "objective", "grid"), "does not go with --share, which has its own")
    if grid:
        refuse(context, ("objective",), "does not go with --grid, which is of vicreg")
    objectives = ["vicreg"] if grid else objective or ["vicreg"]
    if plot is not None and (share or len(objectives) > 1 or objectives[0] not in PLAIN):
        raise typer.BadParameter(f"--plot draws one objective against its authors' formula: {' or '.join(PLAIN)}")
    if share:
        _give({"share": loss_share(repeats=repeats)}, out)
        return
    if grid:
        found = loss.bench_grid(ns=rows or loss.GRID_N, ds=widths or loss.GRID_D, repeats=repeats)
    else:
        found = [
            row for name in objectives for row in loss.bench_loss(ns=rows, ds=widths, repeats=repeats, objective=name)
        ]
    _give({"rows": found}, out)
    if plot is not None:
        plots.plot_grid(found, plot)


@bench_app.command("train")
def bench_train(
    pictures: Annotated[Path | None, typer.Option(help="Folder of JPEGs; made up if not given.")] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO captions file; made up if not given.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="image, text; both if not given.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step; 64 pictures, 256 captions if not given.")] = None,
    size: Annotated[int, typer.Option(help="Side of the views in px.")] = 128,
    width: Annotated[int, typer.Option(help="Width of the expanders.")] = 2048,
    repeats: Repeats = 5,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32, of our side.")] = "auto",
    out: Out = None,
) -> None:
    """A training step from JPEG or captions to updated weights, against lightly's loop and the authors'."""
    from jointembed.bench.train import bench_train as measure

    given: dict[str, Any] = {} if batch is None else {"batch": batch}
    _give(
        measure(
            pictures=pictures, captions=captions, kinds=kind or ["image", "text"], size=size, width=width,
            repeats=repeats, precision=precision, **given,
        ),
        out,
    )  # fmt: skip


@bench_app.command("curves")
def bench_curves(
    pictures: Annotated[Path | None, typer.Option(help="Folder of JPEGs; made up if not given.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each precision.")] = 100,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 64,
    size: Annotated[int, typer.Option(help="Side of the views in px.")] = 128,
    width: Annotated[int, typer.Option(help="Width of the expander.")] = 2048,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """The loss of the same training in float32 and in what `precision: auto` takes here."""
    from jointembed.bench.curves import bench_curves as measure
    from jointembed.bench.plots import plot_curves

    found = measure(pictures=pictures, steps=steps, batch=batch, size=size, width=width)
    _give(found, out)
    if plot is not None:
        plot_curves(found["losses"], plot)


@bench_app.command("embed")
def bench_embed(
    captions: Annotated[Path | None, typer.Option(help="COCO captions file; made up if not given.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of JPEGs; made up if not given.")] = None,
    text_model: Annotated[
        Path | None, typer.Option(help="Folder of a sentence-transformers model; the installed MiniLM if not given.")
    ] = None,
    count: Annotated[int, typer.Option(help="Captions and, an eighth of it, pictures.")] = 1024,
    batch: Annotated[int, typer.Option(help="Inputs through the branch at once.")] = 64,
    repeats: Repeats = 5,
    out: Out = None,
) -> None:
    """Captions and pictures a second by `encode`, against sentence-transformers and a plain torchvision loop."""
    from jointembed.bench.embed import bench_embed as measure

    _give(
        measure(captions=captions, pictures=pictures, text_model=text_model, count=count, batch=batch, repeats=repeats),
        out,
    )


@bench_app.command("views")
def bench_views(
    pictures: Annotated[Path | None, typer.Option(help="Folder of JPEGs; made up if not given.")] = None,
    side: Annotated[int | None, typer.Option(help="Longer side in px to which they are resized first.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 32,
    size: Annotated[int, typer.Option(min=8, help="Side of the views in px.")] = 224,
    small: Annotated[int, typer.Option(min=4, help="Side of the small crops in px.")] = 96,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="vicreg, vicreg_small, multi_crop, caption_crop, caption_resize; may be given again."),
    ] = None,
    repeats: Repeats = 3,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Decoded and augmented pictures a second from JPEG, against Pillow and torchvision as the authors wrote them."""
    from jointembed.bench.plots import plot_views
    from jointembed.bench.views import bench_views as measure

    found = measure(
        pictures=pictures, side=side, count=count, repeats=repeats, size=size, small=small, pipelines=pipeline
    )
    _give(found, out)
    if plot is not None:
        plot_views(found["pipelines"], plot)


@bench_app.command("growth")
def bench_growth(
    what: Annotated[
        list[str] | None, typer.Option(help="loss, embed, retrieval, views, train; all if not given.")
    ] = None,
    doublings: Annotated[int, typer.Option(min=1, help="Sizes of each are doubled so often.")] = 4,
    repeats: Repeats = 3,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Time and memory as n, d, pictures and captions double, with the fitted exponents."""
    from jointembed.bench.growth import bench_growth as measure
    from jointembed.bench.plots import plot_growth

    found = measure(what=what, doublings=doublings, repeats=repeats)
    _give({"series": found}, out)
    if plot is not None:
        plot_growth(found, plot)


@bench_app.command("retrieval")
def bench_retrieval(
    images: Annotated[int, typer.Option(help="Pictures.")] = 5000,
    texts: Annotated[int, typer.Option(help="Captions.")] = 25000,
    dimension: Annotated[int, typer.Option(help="Width of the embeddings.")] = 1024,
    repeats: Repeats = 3,
    out: Out = None,
) -> None:
    """The retrieval metrics against the bare matrix product, CLIP-benchmark's formula and a per-query loop."""
    from jointembed.bench.retrieval import bench_retrieval as measure

    _give(measure(images=images, texts=texts, dimension=dimension, repeats=repeats), out)


@bench_app.command("retrieval-scale")
def bench_retrieval_scale(
    texts: Annotated[list[int] | None, typer.Option(help="Captions; give two or more, rising.")] = None,
    images: Annotated[int, typer.Option(help="Pictures, each a query, with five captions.")] = 1000,
    dimension: Annotated[int, typer.Option(help="Width of the embeddings.")] = 128,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw seconds and memory in.")] = None,
) -> None:
    """Ranks from sharded files as the captions grow, in bounded memory, and what that says of a billion."""
    from jointembed.bench.retrieval_scale import bench_retrieval_scale as measure
    from jointembed.bench.retrieval_scale import plot as draw

    found = measure(texts=texts or [10_000, 100_000, 1_000_000], images=images, dimension=dimension)
    _print_json(found)
    if plot is not None:
        draw(found["rows"], plot)


@bench_app.command("exactness")
def bench_exactness(
    out: Annotated[Path, typer.Option(help="Folder for the table, as Markdown and JSON.")] = Path("exactness"),
    objective: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
    costs: Annotated[bool, typer.Option(help="Also time covariance over ranks and measure micro-batches.")] = True,
) -> None:
    """Every objective on 2 and 4 processes, in micro-batches and resumed, against one process in one piece."""
    from jointembed.bench.exactness import write_report

    print(write_report(out, objectives=objective, costs=costs))


@bench_app.command("search")
def bench_search(
    rows: Annotated[list[int] | None, typer.Option(help="Vectors; 10k, 100k and 1M if not given.")] = None,
    width: Annotated[int, typer.Option(help="Width of the vectors.")] = 128,
    repeats: Annotated[int, typer.Option(help="Runs of each; the median counts.")] = 5,
    ivf_pq: Annotated[bool, typer.Option("--ivf-pq", help="FAISS's IVF-PQ too.")] = False,
) -> None:
    """Searching an index: latency of one query, queries a second of 64 at once."""
    from jointembed.bench.search import bench_search as measure

    _print_json(measure(rows=rows or [10_000, 100_000, 1_000_000], width=width, repeats=repeats, ivf_pq=ivf_pq))


def _give(found: dict[str, Any], out: Path | None) -> None:
    """Print a result with the machine it was measured on, or write it."""
    from jointembed.bench.measure import machine

    found = found | {"machine": machine()}
    if out is None:
        _print_json(found)
    else:
        import json

        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(out)


def _print_json(result: Any) -> None:
    import json

    print(json.dumps(result, indent=1))
