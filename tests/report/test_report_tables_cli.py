"""`jointembed table`, as one types it, and its page in a browser."""

import html
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from measured_runs import ROOT, run_of, write_evaluation
from test_report_browser import browse, chromium, complaints  # noqa: F401 - a fixture

from jointembed.cli import main
from jointembed.report import paper
from jointembed.report.plans import cells

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jointembed", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code if isinstance(stop.value.code, int) else 0), *capsys.readouterr()

    return run


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Runs of eight methods of the ImageNet table, three seeds of one of them, and the linear evaluation of some."""
    for number, cell in enumerate(cells("imagenet", "small")):
        if cell.row[0] in ("SimCLR", "MoCo v2", "SimSiam", "BYOL", "SwAV", "Barlow Twins", "VICReg", "W-MSE"):
            for seed in range(3 if cell.row == ("VICReg",) else 1):
                numbers = {"knn20_top1": 40.0 + number + seed, "linear_top1": 50.0, "std": 0.4, "rankme": 60.0}
                run = run_of(cell.commands[0], tmp_path / "runs", seed, features=numbers)
                write_evaluation(run, "linear", {"linear_top1": 52.0 + seed, "linear_top5": 94.0})
    return tmp_path / "runs"


@pytest.mark.parametrize("name", paper.TABLES)
def test_every_table_in_every_format(say: Say, name: str, measured: Path) -> None:
    for form, start in (("markdown", "**"), ("json", "{"), ("html", "<!doctype html>")):
        code, out, err = say("table", name, str(measured), "--format", form)
        assert code == 0 and out.startswith(start) and not err
        assert "VICReg" in out and (form != "json" or len(json.loads(out)["tables"][0]["rows"]) >= 3)


@pytest.mark.parametrize("name", paper.TABLES)
def test_every_table_has_a_plan(say: Say, name: str) -> None:
    code, out, _ = say("table", name, "--plan", "--gpus", "16", "--gpu", "H100")
    assert code == 0 and "on 16 H100" in out.splitlines()[0] and "--num_processes 16" in out
    assert json.loads(say("table", name, "--plan", "--format", "json")[1])[0]["hours"] > 0


def test_a_plan_counts_what_was_measured(say: Say, tmp_path: Path) -> None:
    from measured_runs import write_cost

    write_cost(tmp_path / "v", "small/cifar10_vicreg", seconds=3600.0)
    code, out, _ = say("table", "ablation", "--plan", "--scale", "small", "--runs", str(tmp_path))
    (line,) = [line for line in out.splitlines() if "vicreg-bn/var-cov/seed0 " in line]
    assert code == 0 and "1.0 h, 2 GB, measured, 1 runs" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagnet"], "no table 'imagnet'; did you mean 'imagenet'"),
        (["imagenet", "--format", "pdf"], "no format 'pdf'"),
        (["transfer", "--plan", "--scale", "small"], "no 'small' scale of transfer; there is full"),
        (["imagenet", "--plan", "--gpu", "B200"], "no GPU 'B200'; there are V100, A100, H100"),
        (["imagenet", "--plan", "--format", "html"], "a plan has no format 'html'"),
        (["imagenet", "nowhere"], "nowhere: no such run folder"),
        (["cost", "--runs", "nowhere"], "--runs needs --plan"),
    ],
)
def test_bad_arguments_are_named(say: Say, arguments: list[str], message: str) -> None:
    code, _, err = say("table", *arguments)
    assert code != 0 and message in " ".join(err.replace("│", "").split())


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_of_a_table_is_no_wider_than_its_window(
    say: Say,
    measured: Path,
    tmp_path: Path,
    chromium: str,  # noqa: F811 - the fixture
    width: int,
) -> None:
    _, page, _ = say("table", "imagenet", str(measured), "--format", "html")
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"""<!doctype html><title>?</title>
        <iframe style="width: {width}px; border: 0" srcdoc="{html.escape(page)}"></iframe>
        <script>
        document.querySelector("iframe").onload = event => {{
            const inner = event.target.contentDocument, root = inner.documentElement
            const rows = inner.querySelector("table").tBodies[0].rows
            const name = rows[0].cells[0].getBoundingClientRect().width
            document.title = [root.clientWidth, root.scrollWidth, rows.length, name < root.clientWidth / 2].join(" ")
        }}</script>""",
        encoding="utf-8",
    )
    done = browse(chromium, probe, tmp_path / "profile", "--dump-dom")
    rows = len(paper.IMAGENET.rows) + 1  # W-MSE
    assert f"<title>{width} {width} {rows} true</title>" in done.stdout
    assert complaints(done.stderr) == []
