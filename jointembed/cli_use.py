"""The commands that use a trained model. Heavy imports live inside them, so that help appears at once."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jointembed.cli_options import refuse

ViewOption = Annotated[str | None, typer.Option(help="View of the model; the first that takes such data if not given.")]
ColumnOption = Annotated[str | None, typer.Option(help="Column of the texts or pictures, in files that have columns.")]
IdColumnOption = Annotated[str | None, typer.Option(help="Column of the ids.")]
ShardSizeOption = Annotated[int, typer.Option(help="Inputs a shard; a tar archive is one shard.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Inputs through the branch at once.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]
MaxBadOption = Annotated[int, typer.Option(help="Bad inputs a worker may skip; they are listed in skipped.jsonl.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")]


def embed(
    run: Annotated[str, typer.Argument(help="Run folder, model folder or hub id.")],
    data: Annotated[
        str, typer.Argument(help="Folder of pictures; .txt, .csv, .jsonl; tar shards; parquet; emoji:test.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of embeddings; started again, it is filled on.")],
    view: ViewOption = None,
    column: ColumnOption = None,
    id_column: IdColumnOption = None,
    shard_size: ShardSizeOption = 10_000,
    batch: BatchOption = 64,
    workers: WorkersOption = 0,
    precision: PrecisionOption = "fp32",
    normalize: Annotated[bool, typer.Option(help="Scale vectors to length 1.")] = True,
    max_bad: MaxBadOption = 0,
    rank: Annotated[int | None, typer.Option(help="Number of this worker; from the environment if not given.")] = None,
    world: Annotated[int | None, typer.Option(help="Number of workers; from the environment if not given.")] = None,
) -> None:
    """Embed pictures or texts: one input shard, one parquet of ids and vectors; started again, it goes on."""
    options = {"column": column, "id_column": id_column, "shard_size": shard_size}
    settings = {"batch": batch, "workers": workers, "precision": precision, "normalize": normalize, "max_bad": max_bad}
    _embed(run, data, out, view, options, settings, rank, world)


def _embed(
    run: str, data: str, out: Path, view: str | None, options: dict[str, Any], settings: dict[str, Any],
    rank: int | None = None, world: int | None = None,
) -> None:  # fmt: skip
    import time

    from jointembed.inference.ranks import device_of, rank_and_world
    from jointembed.inference.worker import Settings, embed_worker

    if settings["precision"] not in ("fp32", "bf16"):
        raise typer.BadParameter(f"no precision {settings['precision']!r}; there are fp32, bf16")
    own, workers = rank_and_world(os.environ, rank=rank, world=world)
    worker = embed_worker(run, data, out, Settings(view=view, device=device_of(os.environ), **settings), **options)
    todo = worker.todo(own, workers)
    print(f"rank {own} of {workers}: {len(todo)} of {worker.header['shards']} shards to do", flush=True)
    start, done = time.perf_counter(), [0]

    def finished(mark: dict[str, Any]) -> None:
        done[0] += mark["rows"]
        speed = done[0] / (time.perf_counter() - start)
        skipped = f", {len(mark['skipped'])} skipped" if mark["skipped"] else ""
        print(f"shard {mark['shard']}: {mark['rows']} rows{skipped}, {speed:.1f} a second", flush=True)

    worker.run(own, workers, finished)


def index(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder of embeddings; or, with DATA, a run, model folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Index folder.")],
    data: Annotated[str | None, typer.Argument(help="What to embed first, as `jointembed embed` takes it.")] = None,
    kind: Annotated[str, typer.Option(help="exact; with FAISS flat or ivf_pq.")] = "exact",
    lists: Annotated[int | None, typer.Option(help="ivf_pq: inverted lists.")] = None,
    code_bytes: Annotated[int | None, typer.Option(help="ivf_pq: bytes a vector.")] = None,
    probes: Annotated[int | None, typer.Option(help="ivf_pq: lists looked into for a query.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="ivf_pq: texts, one a line, to measure the recall on; else rows of the index.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    view: ViewOption = None,
    column: ColumnOption = None,
    id_column: IdColumnOption = None,
    batch: BatchOption = 64,
    workers: WorkersOption = 0,
    precision: PrecisionOption = "fp32",
    max_bad: MaxBadOption = 0,
) -> None:
    """Make embeddings searchable: exact by default, or by FAISS with the recall measured."""
    import shutil

    from jointembed.data.json_file import read_text
    from jointembed.inference.index_build import build_index, check_free

    if data is None:
        of_embedding = ("view", "column", "id_column", "batch", "workers", "precision", "max_bad")
        refuse(context, of_embedding, "needs DATA to embed; in a folder of embeddings that is done")
    check_free(out, overwrite=overwrite)
    embeddings = Path(source)
    if data is not None:  # kept until the index is there: a second try goes on
        embeddings = out.with_name(f".{out.name}.embeddings")
        if overwrite or not any(embeddings.glob("part-*.json")):  # nothing finished that would be lost
            shutil.rmtree(embeddings, ignore_errors=True)
        settings = {"batch": batch, "workers": workers, "precision": precision, "max_bad": max_bad}
        _embed(source, data, embeddings, view, {"column": column, "id_column": id_column}, settings, 0, 1)
    texts = None if queries is None else [line for line in read_text(queries).splitlines() if line.strip()]
    made = build_index(
        embeddings, out, kind=kind, lists=lists, code_bytes=code_bytes, probes=probes, queries=texts,
        overwrite=overwrite,
    )  # fmt: skip
    if data is not None:
        shutil.rmtree(embeddings)
    recall = "".join(f", {name} {value:.1f}" for name, value in made.info.get("recall", {}).items() if "@" in name)
    print(f"{out}: {len(made)} rows of width {made.width}, {made.kind}{recall}")


def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Index folder.")],
    words: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A picture to look for instead of words.")] = None,
    top: Annotated[int, typer.Option(help="Answers.")] = 10,
    gallery: Annotated[Path | None, typer.Option(help="Also write the answers to this HTML page.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare the SHA-256 of every file of the index.")] = True,
) -> None:
    """Search an index by words or by a picture."""
    from jointembed.data.pictures import open_picture
    from jointembed.inference.index import Index
    from jointembed.inference.places import open_place
    from jointembed.inference.search import search as find
    from jointembed.report.answers import Shown, write_answers

    if (words is None) == (picture is None):
        raise typer.BadParameter("give either words or --picture FILE")
    opened = Index.open(folder, verify=verify)
    answers = find(opened, words if picture is None else picture, top)
    _print_ranked(
        ["score", "id", "path" if opened.texts is None else "text"],
        [(f"{one.score:.4f}", one.id, (one.path if one.text is None else one.text) or "") for one in answers],
    )
    if gallery is not None:
        shown = [Shown(one.rank, one.score, one.id, one.text, one.path) for one in answers]
        question = open_picture(picture) if picture is not None else words or ""
        subtitle = f"{len(answers)} best of {len(opened):,} rows, scores are cosines"
        page = write_answers(gallery, question=question, subtitle=subtitle, answers=shown, open_picture=open_place)
        print(f"gallery: {page}")


def serve(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Index folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other lets others see the pictures.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    top: Annotated[int, typer.Option(min=1, max=100, help="Answers to a question.")] = 24,
    verify: Annotated[bool, typer.Option(help="Compare the SHA-256 of every file of the index.")] = True,
) -> None:
    """Search an index on a local web page, by words or by a picture."""
    from jointembed.inference.serve import serve as run

    run(folder, host=host, port=port, top=top, verify=verify)


def classify(
    source: Annotated[str, typer.Argument(help="Index of pictures; or, with PICTURES, a run, model folder or hub id.")],
    pictures: Annotated[list[Path] | None, typer.Argument(help="Picture files; the rows of the index if none.")] = None,
    classes: Annotated[str, typer.Option(help="Names, separated by commas; or @FILE, one a line.")] = "",
    template: Annotated[list[str] | None, typer.Option(help="What is said of a class; may be given again.")] = None,
    top: Annotated[int, typer.Option(help="Classes a picture.")] = 1,
    show: Annotated[int, typer.Option(help="Rows to print.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all rows to this JSON Lines file.")] = None,
) -> None:
    """Zero-shot classification: which class name is nearest to each picture."""
    from collections import Counter

    from jointembed.data.json_file import read_text
    from jointembed.inference.zero_shot import TEMPLATE, classify_pictures

    names = read_text(Path(classes[1:])).splitlines() if classes.startswith("@") else classes.split(",")
    rows = classify_pictures(source, pictures or [], names, template or [TEMPLATE], top)
    first = [(f"{row.scores[0]:.4f}", row.id, ", ".join(row.classes)) for row in rows[:show]]
    _print_ranked(["score", "id", "class"], first)
    print(", ".join(f"{name} {count}" for name, count in Counter(row.classes[0] for row in rows).most_common()))
    if out is not None:
        import dataclasses
        import json

        out.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows), encoding="ascii")
        print(f"{len(rows)} rows: {out}")


def _print_ranked(heads: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", *heads, box=None)
    for rank, cells in enumerate(rows, start=1):  # a file name may hold control characters, a terminal obeys them
        table.add_row(str(rank), *(Text(cell if cell.isprintable() else ascii(cell)) for cell in cells))
    Console().print(table)


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs and the JSON beside each.")],
    form: Annotated[str, typer.Option("--format", help="torch (torch.export), or onnx.")] = "torch",
    branch: Annotated[str | None, typer.Option(help="Only this branch.")] = None,
    normalize: Annotated[bool, typer.Option(help="Let the graphs scale their vectors to length 1.")] = True,
) -> None:
    """Export each branch, centring included, as a graph for other runtimes; compared with torch before it is kept."""
    from jointembed.inference.export import SUFFIX, export_model

    if form not in SUFFIX:
        raise typer.BadParameter(f"no format {form!r}; there are {', '.join(SUFFIX)}")
    for one in export_model(source, out, form=form, branch=branch, normalize=normalize):
        print(f"{one.file}: within {one.difference:.1e} of torch; how to feed it: {one.description}")
