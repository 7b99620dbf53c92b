"""The command line. Heavy imports live inside the commands, so that help appears at once."""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jointembed.cli_bench import bench_app
from jointembed.cli_data import Overrides, data_app
from jointembed.cli_options import refuse
from jointembed.cli_tune import tune
from jointembed.cli_use import classify, embed, export, index, search, serve
from jointembed.errors import JointEmbedError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Joint embeddings of pictures, words, or any two views: train, evaluate, use.",
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.command()(tune)


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
    except OSError as error:  # not of a closed pipe: at that typer ends by itself
        reason = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        print(f"jointembed: {reason}", file=sys.stderr)
        sys.exit(JointEmbedError.exit_code)
    except (RuntimeError, MemoryError) as error:
        from jointembed.training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-200:]
        print(f"jointembed: out of memory ({reason}); lower the batch, in a recipe evaluation.batch", file=sys.stderr)
        sys.exit(1)


@app.command()
def train(
    context: typer.Context,
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

    _refuse_both(context, resume)
    checked = build.check(load_recipe(recipe, overrides or []))
    run = out or Path("runs") / checked.name
    with distributed.leaving():
        state = runs.train(checked, run, resume=resume, overwrite=overwrite, changed=allow_changed, profile=profile)
        main_rank = distributed.is_main()
    if main_rank and profile:
        _print_profile(run)
    if main_rank:  # alone from here on
        if state["best"] is not None:
            from jointembed.report.curves import metric_text

            select = str(checked.evaluation.select)
            print(f"best validation {select} {metric_text(select, state['best'])} at step {state['best_step']}")
        split = "validation" if checked.data.validation else "train"
        if build.has_captions(checked.data):
            _evaluate_run(run, split)
        else:
            _evaluate_features(run, split)


def _refuse_both(context: typer.Context, resume: bool) -> None:
    if resume:
        refuse(context, ("overwrite",), "does not go with --resume: a run goes on or starts anew")


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
    context: typer.Context,
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
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data in place of a split: a block as in a recipe, {name: coco_captions, images: ..., "
            "annotations: ...}."
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
    _refuse_unheeded(context, embeddings, truth, task, resume)
    if data is not None:
        refuse(context, ("split",), "does not go with --data, which takes its place")
    if embeddings is not None:
        _evaluate_file(embeddings, protocol, truth, correct)
    elif run is not None and task == "voc07":
        _evaluate_svm(run, change or [])
    elif run is not None and task is not None:
        from jointembed.runs_labels import evaluate_task

        _print_features(evaluate_task(run, task, change or [], resume=resume, overwrite=overwrite), run)
    elif run is not None:
        from jointembed.build import has_captions
        from jointembed.runs_evaluate import run_recipe

        if has_captions(run_recipe(run).data):
            _evaluate_run(run, split, protocol, against, correct, data)
        else:
            refuse(context, ("protocol", "against", "correct"), f"needs captions; the data of {run} have none")
            _evaluate_features(run, split, data)


def _refuse_unheeded(
    context: typer.Context, embeddings: Path | None, truth: Path | None, task: str | None, resume: bool
) -> None:
    of_a_run = ("split", "data", "against", "task", "change", "resume", "overwrite")
    for refused, options, why in (
        (embeddings is not None, of_a_run, "does not go with --embeddings, it needs a run folder"),
        (embeddings is None, ("truth",), "needs --embeddings FILE"),
        (truth is not None, ("protocol",), "does not go with --truth, which is a protocol of its own"),
        (task is None, ("change", "resume", "overwrite"), "needs --task"),
        (task is not None and resume, ("overwrite",), "does not go with --resume: a task goes on or starts anew"),
        (
            task is not None,
            ("split", "data", "protocol", "against", "correct"),
            "does not go with --task, which has its own",
        ),
        (task == "voc07", ("resume", "overwrite"), "does not go with --task voc07, which starts anew each time"),
    ):
        if refused:
            refuse(context, options, why)


def _evaluate_svm(run: Path, change: list[str]) -> None:
    from jointembed.runs_svm import evaluate_svm

    keys = dict(one.partition("=")[::2] for one in change)
    if set(keys) != {"root"}:
        raise typer.BadParameter("--task voc07 takes one key, --set root=VOCdevkit")
    _print_features(evaluate_svm(run, keys["root"]), run)


def _evaluate_features(run: Path, split: str, data: str | None = None) -> None:
    from jointembed.runs_evaluate import evaluate_features

    _print_features(evaluate_features(run, split, _other(data)), run)


def _other(data: str | None) -> dict[str, Any] | None:
    """The block that `--data` gives."""
    from jointembed.errors import RecipeError
    from jointembed.recipe import parse_yaml

    block = None if data is None else parse_yaml(data, "--data")
    if block is not None and not isinstance(block, dict):
        raise RecipeError(f"--data: a block such as {{name: coco_captions, ...}} expected, found {data!r}")
    return block


def _print_features(record: dict[str, Any], run: Path) -> None:
    from rich.console import Console

    from jointembed.report.html import write_report

    console = Console()
    console.print(f"{record['data']}, {record['n_images']} pictures", highlight=False, markup=False, soft_wrap=True)
    for name, value in record["metrics"].items():
        console.print(f"  {name:<16} {value:8.2f}", highlight=False, markup=False)
    console.print(f"report: {write_report(run)}", highlight=False, markup=False, soft_wrap=True)


def _evaluate_run(
    run: Path,
    split: str,
    protocol: str | None = None,
    against: Path | None = None,
    correct: str | None = None,
    data: str | None = None,
) -> None:
    import torch
    from rich.console import Console

    from jointembed import runs_evaluate
    from jointembed.build_corrections import correction_of
    from jointembed.report.gallery import write_gallery
    from jointembed.report.html import write_report
    from jointembed.report.read import read_json
    from jointembed.report.retrieval import print_retrieval, print_space

    console = Console()
    result = runs_evaluate.evaluate_run(run, split, protocol, correct=correction_of(correct), other=_other(data))
    write_gallery(
        result.folder,
        image=result.image,
        text=result.text,
        image_names=result.data.pictures.names,
        texts=result.data.texts,
        positives=torch.from_numpy(result.data.positives),
        open_picture=result.data.pictures.open,
        scoring=result.scoring,
    )
    console.print(print_retrieval(result.record))
    console.print(print_space(read_json(result.folder / "collapse.json")))
    if against is not None:
        for line in runs_evaluate.compare_runs(run, against, result.folder.name):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {write_report(run)}", highlight=False, markup=False, soft_wrap=True)


def _evaluate_file(path: Path, protocol: str | None, truth: Path | None, correct: str | None) -> None:
    from rich.console import Console

    from jointembed import runs_evaluate
    from jointembed.build_corrections import correction_of
    from jointembed.report.retrieval import print_retrieval

    record = runs_evaluate.evaluate_file(path, protocol or "full", truth, correct=correction_of(correct))
    Console().print(print_retrieval(record))


for command in (embed, index, search, serve, classify, export):
    app.command()(command)


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
    context: typer.Context,
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
        refuse(context, ("resume", "overwrite", "allow_changed"), "is of a training; a run folder is only evaluated")
        _evaluate_detector(recipe, split)
        return
    _refuse_both(context, resume)
    checked = build_detection.check(load_detection_recipe(recipe, overrides or []))
    runs_detection.split_of(checked, split)  # before hours of training
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
        markup=False,
        soft_wrap=True,
    )
    for name, value in record["metrics"].items():
        console.print(f"  {name:<12} {value:.4g}", highlight=False, markup=False)
    console.print(f"report: {write_detection_report(run)}", highlight=False, markup=False, soft_wrap=True)


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
    from jointembed.evaluation.retrieval import retrieval_ranks, summarize

    image, text = EmbeddingParts(images), EmbeddingParts(texts)
    rows = rows_of_pairs(image, text, read_pairs(pairs))
    ranks = retrieval_ranks(image, text, rows, missing="ignore" if unpaired else "refuse")
    _print_json({"metrics": summarize(ranks), "chance": summarize(ranks.blind())})


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
    context: typer.Context,
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
    refuse(context, ("gpus", "gpu", "scale", "measured"), "needs --plan")
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
