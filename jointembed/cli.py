"""The command line. Heavy imports live inside the commands, so that help appears at once."""

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jointembed.cli_bench import bench_app
from jointembed.cli_tune import tune
from jointembed.errors import JointEmbedError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Joint embeddings of pictures, words, or any two views: train, evaluate, use.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: get and check.")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.command()(tune)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Keys of the recipe to set.")]


def main() -> None:
    """Entry point: errors of our own are one line on stderr and an exit code."""
    # threads that spin at every barrier bring a shared machine to a halt; must be set before torch loads OpenMP
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")  # a locale that cannot say a word must not stop a run
    try:
        app(standalone_mode=True)
    except JointEmbedError as error:
        if not error.shared or os.environ.get("RANK", "0") == "0":
            print(f"jointembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (RuntimeError, MemoryError) as error:
        from jointembed.training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-200:]
        print(f"jointembed: out of memory ({reason}); lower the batch, in a recipe evaluation.batch", file=sys.stderr)
        sys.exit(1)


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
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a step goes.")] = False,
) -> None:
    """Train a model by a recipe, and report on it."""
    from jointembed import build, distributed, runs
    from jointembed.recipe import load_recipe

    checked = build.check(load_recipe(recipe, overrides or []))
    run = out or Path("runs") / checked.name
    with distributed.leaving():
        state = runs.train(checked, run, resume=resume, overwrite=overwrite, changed=allow_changed, profile=profile)
        main_rank = distributed.is_main()
    if main_rank and profile:
        _print_profile(run)
    if main_rank:  # alone from here on
        if state["best"] is not None:
            print(f"best validation {checked.evaluation.select} {state['best']:.1f} at step {state['best_step']}")
        split = "validation" if checked.data.validation else "train"
        if build.has_captions(checked.data):
            _evaluate_run(run, split, None, None)
        else:
            _evaluate_features(run, split)


def _print_profile(run: Path) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    profile = json.loads((run / "profile.json").read_text(encoding="utf-8"))
    table = Table(title=f"a step, mean of {profile['steps']}")
    for column in ("stage", "ms", "%"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in profile["stages"]:
        table.add_row(row["stage"], f"{row['milliseconds']:.1f}", f"{row['percent']:.1f}")
    Console().print(table)


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
    correct: Annotated[
        str | None,
        typer.Option(
            help="Of retrieval, in place of the recipe's: csls, inverted_softmax, mean_removal (these look at all "
            "queries together), whiten, euclidean, none; or a block {name: csls, k: 5}."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of pictures with labels: linear, semi1, semi10, places205, inat18, by the loop; voc07, linear SVMs."
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c, a key of the task's recipe; of voc07 root=VOCdevkit.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted task.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the task anew.")] = False,
) -> None:
    """Measure a run: R@1/5/10 with intervals and chance level, or the accuracies of its representations."""
    if (run is None) == (embeddings is None):
        raise typer.BadParameter("give either a run folder or --embeddings FILE")
    if embeddings is not None:
        _evaluate_file(embeddings, protocol, truth, correct)
    elif run is not None and task == "voc07":
        _evaluate_svm(run, change or [])
    elif run is not None and task is not None:
        from jointembed.runs_labels import evaluate_task

        _print_features(evaluate_task(run, task, change or [], resume=resume, overwrite=overwrite), run)
    elif run is not None:
        from jointembed.build import has_captions
        from jointembed.runs import run_recipe

        if has_captions(run_recipe(run).data):
            _evaluate_run(run, split, protocol, against, correct)
        else:
            _evaluate_features(run, split)


def _evaluate_svm(run: Path, change: list[str]) -> None:
    from jointembed.runs_svm import evaluate_svm

    keys = dict(one.partition("=")[::2] for one in change)
    if set(keys) != {"root"}:
        raise typer.BadParameter("--task voc07 takes one key, --set root=VOCdevkit")
    _print_features(evaluate_svm(run, keys["root"]), run)


def _evaluate_features(run: Path, split: str) -> None:
    from jointembed.runs import evaluate_features

    _print_features(evaluate_features(run, split), run)


def _print_features(record: dict[str, Any], run: Path) -> None:
    from rich.console import Console

    from jointembed.report.html import write_report

    console = Console()
    console.print(f"{record['data']}, {record['n_images']} pictures", highlight=False, soft_wrap=True)
    for name, value in record["metrics"].items():
        console.print(f"  {name:<16} {value:8.2f}", highlight=False)
    console.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True)


def _evaluate_run(
    run: Path, split: str, protocol: str | None, against: Path | None, correct: str | None = None
) -> None:
    import torch
    from rich.console import Console

    from jointembed import runs
    from jointembed.build_corrections import correction_of
    from jointembed.report.gallery import write_gallery
    from jointembed.report.html import write_report
    from jointembed.report.read import read_json
    from jointembed.report.retrieval import print_retrieval, print_space

    console = Console()
    result = runs.evaluate_run(run, split, protocol, correct=correction_of(correct))
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
    console.print(print_space(read_json(result.folder / "collapse.json")))
    if against is not None:
        for line in runs.compare_runs(run, against, result.folder.name):
            console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True)


def _evaluate_file(path: Path, protocol: str | None, truth: Path | None, correct: str | None) -> None:
    from rich.console import Console

    from jointembed import runs
    from jointembed.build_corrections import correction_of
    from jointembed.report.retrieval import print_retrieval

    record = runs.evaluate_file(path, protocol or "full", truth, correct=correction_of(correct))
    Console().print(print_retrieval(record))


ViewOption = Annotated[str | None, typer.Option(help="View of the model; the first that takes such data if not given.")]
ColumnOption = Annotated[str | None, typer.Option(help="Column of the texts or pictures, in files that have columns.")]
IdColumnOption = Annotated[str | None, typer.Option(help="Column of the ids.")]
ShardSizeOption = Annotated[int, typer.Option(help="Inputs a shard; a tar archive is one shard.")]
BatchOption = Annotated[int, typer.Option(help="Inputs through the branch at once.")]
WorkersOption = Annotated[int, typer.Option(help="Processes that decode pictures.")]
MaxBadOption = Annotated[int, typer.Option(help="Bad inputs a worker may skip; they are listed in skipped.jsonl.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, or bf16 under autocast.")]


@app.command()
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


@app.command()
def index(
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

    check_free(out, overwrite=overwrite)
    embeddings = Path(source)
    if data is not None:  # kept until the index is there: a second try goes on
        embeddings = out.with_name(f".{out.name}.embeddings")
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the pictures; RUN/plots if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="What is embedded; validation if there is one.")] = None,
    tsne: Annotated[bool, typer.Option("--tsne", help="Draw the map by t-SNE instead of PCA.")] = False,
) -> None:
    """Draw curves, spectrum, similarities of matched and unmatched pairs, and a map of the embeddings."""
    from jointembed.runs_plots import plot_run

    done = plot_run(run, out or run / "plots", split=split, tsne=tsne)
    for path in done.files:
        print(path)
    for name, reason in done.skipped.items():
        print(f"{name}: not drawn, {reason}")


@app.command()
def env() -> None:
    """Print what a bug report needs: versions, hardware, threads, relevant variables; no secrets."""
    from jointembed.environment import report

    _print_json(report())


@app.command()
def detect(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE_OR_RUN", help="YAML file, or a run folder to evaluate.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<recipe name> if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="What to evaluate: train, validation or test.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Empty an existing run folder first.")] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although recipe, data or ranks changed.")
    ] = False,
) -> None:
    """Train an object detector on any image encoder, measure AP of boxes and masks, and draw what it finds."""
    from jointembed import build_detection, distributed, runs_detection
    from jointembed.recipe_detection import load_detection_recipe

    if recipe.is_dir():
        if overrides or out is not None:
            raise typer.BadParameter("a run folder is evaluated as it is; it takes neither keys nor --out")
        _evaluate_detector(recipe, split)
        return
    checked = build_detection.check(load_detection_recipe(recipe, overrides or []))
    run = out or Path("runs") / checked.name
    with distributed.leaving():
        runs_detection.train(checked, run, resume=resume, overwrite=overwrite, changed=allow_changed)
        main_rank = distributed.is_main()
    if main_rank:  # alone from here on
        _evaluate_detector(run, split)


def _evaluate_detector(run: Path, split: str | None) -> None:
    from rich.console import Console

    from jointembed import runs_detection
    from jointembed.report.detection import write_detection_report, write_drawings

    result = runs_detection.evaluate(run, split)
    write_drawings(result.folder, result.data, result.found)
    console = Console()
    record = result.record
    console.print(
        f"{record['data']}, {record['split']}: {record['n_images']} pictures, {record['n_objects']} objects, "
        f"{record['n_detections']} detections",
        highlight=False,
        soft_wrap=True,
    )
    for name, value in record["metrics"].items():
        console.print(f"  {name:<12} {value:.4g}", highlight=False)
    console.print(f"report: {write_detection_report(run)}", highlight=False, soft_wrap=True)


@app.command("evaluate-parts")
def evaluate_parts(
    images: Annotated[Path, typer.Argument(help="Folder of embedded pictures: parquet or safetensors parts.")],
    texts: Annotated[Path, typer.Argument(help="Folder of embedded texts.")],
    pairs: Annotated[Path, typer.Argument(help="CSV with the columns image and text: ids that belong together.")],
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Pictures and texts in no pair are allowed: candidates, no queries.")
    ] = False,
) -> None:
    """R@K of embeddings that do not fit in memory, exact, with ties and chance level."""
    from jointembed.evaluation.parts import EmbeddingParts, read_pairs, rows_of_pairs
    from jointembed.evaluation.retrieval import summarize
    from jointembed.evaluation.sharded import sharded_ranks

    image, text = EmbeddingParts(images), EmbeddingParts(texts)
    rows = rows_of_pairs(image, text, read_pairs(pairs))
    ranks = sharded_ranks(image, text, rows, missing="ignore" if unpaired else "refuse")
    _print_json({"metrics": summarize(ranks), "chance": summarize(ranks.blind())})


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


@app.command()
def baselines(
    recipe: Annotated[Path, typer.Argument(help="YAML file, of pictures with classes.")],
    out: Annotated[Path, typer.Option(help="Folder, which `jointembed table` takes as it takes runs.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
) -> None:
    """Judge raw pixels and the untrained network as runs of this recipe are judged."""
    from jointembed import build
    from jointembed.recipe import load_recipe
    from jointembed.runs_baselines import measure_baselines

    for record in measure_baselines(build.check(load_recipe(recipe, overrides or [])), out, split):
        print(f"{record['task']}, {record['data']}, {record['n_images']} pictures")
        print("\n".join(f"  {name:<16} {value:8.2f}" for name, value in record["metrics"].items()))


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="imagenet, semi, transfer, flexibility, retrieval, ablation or cost.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders of them at any depth.")] = None,
    form: Annotated[str, typer.Option("--format", help="markdown, json or html; of a plan markdown or json.")] = (
        "markdown"
    ),
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the commands, one a line, with hours and memory.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Of a plan: GPUs that share a training.")] = 8,
    gpu: Annotated[str, typer.Option(help="Of a plan: V100, A100 or H100.")] = "V100",
    scale: Annotated[str, typer.Option(help="Of a plan: full, or small for two cores.")] = "full",
    measured: Annotated[
        list[Path] | None, typer.Option("--runs", help="Of a plan: runs whose cost counts, not the paper's.")
    ] = None,
) -> None:
    """One of the paper's tables beside what these runs measured; or the plan of how to fill it."""
    from jointembed.recipe import nearest
    from jointembed.report import paper

    if name not in paper.TABLES:
        raise typer.BadParameter(f"no table {name!r}{nearest(name, paper.TABLES)}")
    if plan:
        _print_plan(name, form, gpus, gpu, scale, [*(measured or []), *(runs or [])])
        return
    if form not in ("markdown", "json", "html"):
        raise typer.BadParameter(f"no format {form!r}; there are markdown, json, html")
    from jointembed.report.results import table_page

    print(getattr(table_page(name, runs or []), form)())


def _print_plan(name: str, form: str, gpus: int, gpu: str, scale: str, measured: list[Path]) -> None:
    from jointembed.report.estimates import GPUS
    from jointembed.report.planning import plan, plan_json, plan_text
    from jointembed.report.plans import SCALES
    from jointembed.report.read import find_runs

    known = next((one for one in SCALES[name] if one == scale), None)
    if known is None:
        raise typer.BadParameter(f"no {scale!r} scale of {name}; there is {', '.join(SCALES[name])}")
    if gpu not in GPUS:
        raise typer.BadParameter(f"no GPU {gpu!r}; there are {', '.join(GPUS)}")
    if form not in ("markdown", "json"):
        raise typer.BadParameter(f"a plan has no format {form!r}; there are markdown, json")
    planned = plan(name, known, gpus=gpus, kind=gpu, measured=find_runs(measured))
    print(plan_json(planned) if form == "json" else plan_text(name, known, planned, gpus=gpus, kind=gpu))


def _print_json(result: Any) -> None:
    import json

    print(json.dumps(result, indent=1))
