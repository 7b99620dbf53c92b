import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jointembed.cli_bench import bench_app

SMALL = {
    "loss": ["--rows", "8", "--widths", "16", "--repeats", "1"],
    "loss --grid": ["--rows", "8", "--widths", "16", "--repeats", "1", "--plot", "PLOT"],
    "train": ["--kind", "text", "--batch", "4", "--width", "8", "--repeats", "1"],
    "retrieval": ["--images", "10", "--texts", "20", "--dimension", "8", "--repeats", "1"],
    "growth": ["--what", "retrieval", "--doublings", "1", "--repeats", "1", "--plot", "PLOT"],
}


@pytest.mark.parametrize("command", SMALL)
def test_a_command_writes_its_result_and_the_machine(command: str, tmp_path: Path) -> None:
    options = [str(tmp_path / "plot.png") if one == "PLOT" else one for one in SMALL[command]]
    done = CliRunner().invoke(bench_app, [*command.split(), *options, "--out", str(tmp_path / "deep" / "found.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "deep" / "found.json").read_text())
    assert found["machine"]["versions"]["torch"] and len(found) > 1
    assert (tmp_path / "plot.png").exists() == ("PLOT" in SMALL[command])


def test_without_a_file_the_result_is_printed_and_agrees() -> None:
    done = CliRunner().invoke(bench_app, ["loss", *SMALL["loss"]])
    assert done.exit_code == 0
    assert all(row["gradient_error"] < 1e-4 for row in json.loads(done.output)["rows"])


MEASURED = {  # command -> what measures, what draws, below jointembed.bench
    "loss": ("loss.bench_loss", "plots.plot_grid"),
    "curves": ("curves.bench_curves", "plots.plot_curves"),
    "views": ("views.bench_views", "plots.plot_views"),
    "growth": ("growth.bench_growth", "plots.plot_growth"),
    "retrieval-scale": ("retrieval_scale.bench_retrieval_scale", "retrieval_scale.plot"),
}


@pytest.mark.parametrize("command", MEASURED)
def test_a_plot_that_fails_costs_no_result(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, draw = (f"jointembed.bench.{name}" for name in MEASURED[command])
    row = {"n": 12345}
    found = [row] if command in ("loss", "growth") else {"losses": row, "pipelines": row, "rows": [row]}
    monkeypatch.setattr(measure, lambda **options: found)
    monkeypatch.setattr(draw, lambda *arguments: 1 / 0)
    done = CliRunner().invoke(bench_app, [command, "--plot", "plot.png"])
    assert isinstance(done.exception, ZeroDivisionError) and json.loads(done.output)
    assert '"n": 12345' in done.output


@pytest.mark.parametrize(
    "options", [["--objective", "simclr"], ["--objective", "vicreg", "--objective", "barlow_twins"], ["--share"]]
)
def test_a_plot_without_one_authors_formula_is_refused_before_any_work(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("loss.bench_loss", "share.loss_share"):
        monkeypatch.setattr(f"jointembed.bench.{work}", lambda **options: 1 / 0)
    done = CliRunner().invoke(bench_app, ["loss", *options, "--plot", "plot.png"])
    assert done.exit_code == 2 and "authors' formula: vicreg or" in " ".join(done.output.replace("│", "").split())


def test_every_benchmark_has_a_command() -> None:
    done = CliRunner().invoke(bench_app, ["--help"])
    for name in ("loss", "train", "curves", "embed", "growth", "retrieval", "retrieval-scale", "exactness", "search"):
        assert f" {name} " in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "--objective", "vicreg"], "--objective does not go with --grid, which is of vicreg"),
        (["--share", "--grid"], "--grid does not go with --share, which has its own"),
        (["--share", "--rows", "64"], "--rows does not go with --share"),
        (["--share", "--widths", "64"], "--widths does not go with --share"),
        (["--share", "--objective", "swav"], "--objective does not go with --share"),
    ],
)
def test_what_loss_would_not_heed_is_refused_before_any_work(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for work in ("loss.bench_loss", "loss.bench_grid", "share.loss_share"):
        monkeypatch.setattr(f"jointembed.bench.{work}", lambda **options: 1 / 0)
    done = CliRunner().invoke(bench_app, ["loss", *options])
    assert done.exit_code == 2 and message in done.output
