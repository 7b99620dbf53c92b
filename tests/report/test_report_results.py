"""The tables beside what was measured: every number in its cell, none where it does not belong."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from measured_runs import run_of, write_evaluation, write_run

from jointembed.report import paper
from jointembed.report.plans import Cell, cells
from jointembed.report.results import REGULARIZATION, SWITCHES, table_page
from jointembed.report.tables import Number, Table, published_cell

SMALL = "small/cifar10_{}"


def first(name: str, *paths: Path) -> Table:
    return table_page(name, paths).tables[0]


def lines(table: Table, method: str) -> list[dict[str, Any]]:
    return [dict(row) for row in table.rows if row["method"] == method]


def values(row: dict[str, Any], prefix: str = "measured/") -> dict[str, float]:
    return {key: cell.value for key, cell in row.items() if key.startswith(prefix) and isinstance(cell, Number)}


@pytest.mark.parametrize("name", ["imagenet", "semi", "transfer", "flexibility", "ablation"])
def test_without_runs_every_cell_of_the_paper_is_there_and_nothing_measured(name: str) -> None:
    table, printed = first(name), paper.TABLES[name]
    assert len(table.rows) == len(printed.rows)
    for row, known in zip(table.rows, printed.rows, strict=True):
        shown = [cell for key, cell in row.items() if "published" in key]
        wanted = known.cells[len(SWITCHES) :] if name == "ablation" else known.cells
        assert shown == [published_cell(cell) for cell in wanted] and row["method"] == known.method
        assert not any("published" not in key and isinstance(cell, Number) for key, cell in row.items())
    for form in ("markdown", "json", "html"):
        assert "VICReg" in getattr(table_page(name, []), form)()


def test_seeds_are_a_mean_and_the_source_says_of_what(tmp_path: Path) -> None:
    for seed, value in enumerate((40.0, 41.0, 45.0)):
        metrics = {"knn20_top1": value, "std": 0.5, "z_rankme": 9.0}
        write_run(tmp_path / f"seed{seed}", SMALL.format("vicreg"), f"seed={seed}", features=metrics)
    write_evaluation(tmp_path / "seed1", "linear", {"linear_top1": 60.0, "linear_top5": 95.0})
    page = table_page("imagenet", [tmp_path])
    (row,) = lines(page.tables[0], "VICReg")
    assert values(row) == {"measured/kNN": 42.0, "measured/top-1": 60.0, "measured/top-5": 95.0}
    assert str(row["measured/kNN"]) == "42.0 ± 2.6 (1)" and str(row["measured/top-1"]) == "60.0 (2)"
    assert row["trained"] == "cifar10_subset.zip train, resnet18 x0.5, batch 128, 4 epochs"
    knn, linear = page.tables[1].rows
    assert (knn["source"], knn["seeds"], knn["split"], knn["pictures"]) == (1, "0, 1, 2", "validation", 2000)
    assert knn["runs"] == " ".join(str(tmp_path / f"seed{seed}") for seed in range(3))
    assert knn["RankMe z"] == Number(9.0, std=0.0) and knn["std h"] == Number(0.5, std=0.0, digits=3)
    assert linear["command"] == "jointembed train it ; jointembed evaluate it --task linear"
    assert str(linear["top-1"]) == "60.0 [57.8, 62.1]"  # Wilson, 1,200 of 2,000
    assert len(page.tables[0].rows) == len(paper.IMAGENET.rows)


def test_the_same_seed_again_is_no_repetition(tmp_path: Path) -> None:
    for name, value in (("a", 40.0), ("b", 50.0)):
        write_run(tmp_path / name, SMALL.format("vicreg"), features={"knn20_top1": value})
    rows = lines(first("imagenet", tmp_path), "VICReg")
    assert [str(row["measured/kNN"]) for row in rows] == ["40.0 (1)", "50.0 (2)"]


@pytest.mark.parametrize(
    ("override", "merged"),
    [
        ("loader.timeout=1200", True),
        ("training.rank_timeout=1200", True),
        ("training.skip_nonfinite=3", True),
        ("evaluation.batch=64", True),
        ("evaluation.evaluators=[{name: knn}, {name: linear}]", True),  # a number more, and the same choice
        ("evaluation.select=z_std", False),
        ("evaluation.every=15", False),
        ("evaluation.evaluators=[{name: knn, temperature: 0.2}, {name: collapse}]", False),
    ],
)
def test_runs_whose_model_was_picked_by_other_rules_are_no_seeds(tmp_path: Path, override: str, merged: bool) -> None:
    for seed, overrides in enumerate(((), (override,))):
        recipe = SMALL.format("vicreg")
        write_run(tmp_path / f"{seed}", recipe, f"seed={seed}", *overrides, features={"knn20_top1": 40.0 + seed})
    rows = lines(first("imagenet", tmp_path), "VICReg")
    assert len(rows) == (1 if merged else 2)


@pytest.mark.parametrize("key", ["settings", "correct"])
def test_runs_that_were_evaluated_in_other_ways_are_no_seeds(tmp_path: Path, key: str) -> None:
    one: dict[str, Any] = {"settings": {"training": {"epochs": 1}}, "correct": {"name": "csls", "k": 5}}
    for seed, way in enumerate((one[key], None, one[key])):
        run = write_run(tmp_path / str(seed), SMALL.format("vicreg"), f"seed={seed}")
        way = way | {"seed": seed} if key == "settings" and way else way  # a seed of its own is still a repetition
        write_evaluation(run, "linear", {"linear_top1": 40.0 + seed}, **{key: way})
    rows = lines(first("imagenet", tmp_path), "VICReg")
    assert [str(row["measured/top-1"]) for row in rows] == ["41.0 ± 1.4 (1)", "41.0 (2)"]


def test_no_published_number_stands_beside_another_method(tmp_path: Path) -> None:
    changes = {
        "VICReg (without BN)": ("vicreg", "branches.net.expander.norm=none"),
        "VICReg (var)": ("vicreg", "objective.covariance=0"),
        "SimSiam (without stop gradient)": ("simsiam", "objective.stop_gradient=false"),
        "BYOL (without momentum encoder, var + cov)": ("byol", "objective.target=false", "regularize={variance: 1}"),
        "SimCLR (var)": ("simclr", "regularize={variance: 1, covariance: 0}"),
        "MoCo": ("moco_v1",),
        "MoCo v2": ("moco_v2",),
        "SwAV (multi-crop)": ("swav_multicrop",),
        "W-MSE": ("w_mse",),
    }
    for number, (recipe, *overrides) in enumerate(changes.values()):
        write_run(tmp_path / str(number), SMALL.format(recipe), *overrides, features={"knn20_top1": float(number)})
    write_run(tmp_path / "two", "small/flexibility_different", features={"knn20_top1": 99.0})
    table = first("imagenet", tmp_path)
    for number, method in enumerate([*changes]):
        (row,) = lines(table, method)
        assert values(row) == {"measured/kNN": float(number)}
        assert any("published" in key for key in row) == (method in ("MoCo", "MoCo v2", "SwAV (multi-crop)"))
    assert values(lines(table, "VICReg (two branches)")[0]) == {"measured/kNN": 99.0}
    assert values(lines(table, "VICReg")[0]) == {}


def where(cell: Cell) -> dict[str, Any]:
    return dict(zip(("method", *(SWITCHES if cell.table == "ablation" else ())), cell.row, strict=True))


@pytest.mark.parametrize("name", ["ablation", "flexibility"])
def test_every_cell_of_the_plan_lands_in_its_cell_of_the_table(name: str, tmp_path: Path) -> None:
    planned = cells(name, "small")
    for number, cell in enumerate(planned):
        run_of(cell.commands[0], tmp_path, features={"knn20_top1": float(number), "rankme": 5.0, "z_rankme": 3.0})
    page = table_page(name, [tmp_path])
    table, sources = page.tables
    assert len(table.rows) == len(paper.TABLES[name].rows)
    for number, cell in enumerate(planned):
        (row,) = [row for row in table.rows if where(cell).items() <= row.items()]
        found = row[f"{cell.column}/kNN"]
        assert isinstance(found, Number) and (found.value, found.source) == (float(number), number + 1)
    assert [row["source"] for row in sources.rows] == list(range(1, len(planned) + 1))
    assert all(row["RankMe h"] == Number(5.0) and row["RankMe z"] == Number(3.0) for row in sources.rows)
    assert not any("Left out" in note for note in table.notes)


def test_a_cell_that_was_not_run_stays_empty(tmp_path: Path) -> None:
    cell = next(one for one in cells("ablation", "small") if one.commands[0].run == "ablation/simsiam-sg/var")
    run_of(cell.commands[0], tmp_path, features={"knn20_top1": 30.0})
    table = first("ablation", tmp_path)
    filled = [(row["method"], key) for row in table.rows for key in row if key.endswith("/kNN")]
    assert filled == [("SimSiam", "var/kNN")]
    assert "| SimSiam | no | yes | no | no | collapse |  | 56.8 | 30.0 (1) | 66.1 |  |" in table.markdown()


def test_runs_on_other_data_have_a_line_of_their_own(tmp_path: Path) -> None:
    for number, epochs in enumerate((4, 8)):
        for column, more in (("var", ["objective.covariance=0"]), ("all", [])):
            folder = tmp_path / f"{column}{epochs}"
            overrides = [f"training.epochs={epochs}", *more]
            write_run(folder, SMALL.format("vicreg"), *overrides, features={"knn20_top1": 10.0 * number})
    rows = [
        row for row in lines(first("ablation", tmp_path), "VICReg") if row["BN"] == "yes" and row["predictor"] == "no"
    ]
    assert [row["trained"].rpartition(", ")[2] for row in rows] == ["4 epochs", "8 epochs"]
    found = [[row[f"{column}/kNN"].value for column in ("var", "var + cov")] for row in rows]
    assert found == [[0.0, 0.0], [10.0, 10.0]]


def test_what_has_no_place_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "moco", SMALL.format("moco_v2"), features={"knn20_top1": 40.0})
    write_run(tmp_path / "waiting", SMALL.format("vicreg"))
    notes = first("ablation", tmp_path).notes
    assert "Left out, without a row or column here, evaluations of: MoCo v2 (1)." in notes
    assert f"{tmp_path / 'waiting'}: no evaluation in it yet." in notes


def test_the_classifier_of_a_supervised_run_counts_by_its_share_of_the_labels(tmp_path: Path) -> None:
    judged = "evaluation.evaluators=[{name: classifier}, {name: knn}]"
    for value, share in enumerate(("null", "0.01", "0.1", "0.5")):
        metrics = {"classifier_top1": 10.0 * value, "classifier_top5": 10.0 * value + 1}
        run = tmp_path / share
        write_run(run, SMALL.format("supervised"), judged, f"data.train.fraction={share}", features=metrics)
    (row,) = lines(first("imagenet", tmp_path), "Supervised")
    assert values(row) == {"measured/top-1": 0.0, "measured/top-5": 1.0}
    found = [values(row) for row in lines(first("semi", tmp_path), "Supervised")]
    assert found == [
        {"measured/top-1, 1%": 10.0, "measured/top-5, 1%": 11.0},
        {"measured/top-1, 10%": 20.0, "measured/top-5, 10%": 21.0},
    ]


def test_fine_tuning_and_transfer_stand_in_one_line_of_their_run(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        "imagenet/vicreg",
        semi1={"semi1_top1": 54.0, "semi1_top5": 79.0},
        semi10={"semi10_top1": 69.0},
        places205={"places205_top1": 54.5},
        inat18={"inat18_top1": 47.5},
        voc07={"svm_voc07": 86.5, "svm_area": 88.0},
    )
    (row,) = lines(first("semi", run), "VICReg")
    assert values(row) == {"measured/top-1, 1%": 54.0, "measured/top-5, 1%": 79.0, "measured/top-1, 10%": 69.0}
    write_detection(tmp_path / "voc", "voc07_12_c4", str(run), {"voc07_AP50": 0.824, "bbox_AP": 0.5})
    write_detection(tmp_path / "coco", "coco_mask_rcnn_fpn", f"{run}/model", {"bbox_AP": 0.394, "segm_AP": 0.364})
    page = table_page("transfer", [tmp_path])
    (row,) = lines(page.tables[0], "VICReg")
    assert values(row) == pytest.approx(
        {
            "measured/Places205": 54.5, "measured/iNat18": 47.5, "measured/VOC07": 86.5,
            "measured/VOC07+12 det": 82.4, "measured/COCO det": 39.4, "measured/COCO seg": 36.4,
        }
    )  # fmt: skip
    assert {row["task"] for row in page.tables[1].rows} >= {"VOC detection", "COCO detection", "voc07"}


def write_detection(folder: Path, recipe: str, start: str | None, metrics: dict[str, float], weights: str = "") -> None:
    from jointembed.recipe_detection import load_detection_recipe

    root = Path(__file__).parents[2] / "recipes" / "detection" / f"{recipe}.yaml"
    overrides = [f"init_from={start}", "encoder=null"] if start else [f"encoder.weights={weights or 'null'}"]
    load_detection_recipe(root, overrides)  # what a run of it would hold
    tree = yaml.safe_load(root.read_text())
    tree |= (
        {"init_from": start, "encoder": None} if start else {"encoder": tree["encoder"] | {"weights": weights or None}}
    )
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    write_evaluation(folder, "detection", metrics)


def test_detectors_that_start_from_no_run(tmp_path: Path) -> None:
    write_detection(tmp_path / "a", "coco_mask_rcnn_fpn", None, {"bbox_AP": 0.2})
    write_detection(tmp_path / "b", "coco_mask_rcnn_fpn", None, {"bbox_AP": 0.3}, "IMAGENET1K_V1")
    write_detection(tmp_path / "c", "coco_mask_rcnn_fpn", "gone/run", {"bbox_AP": 0.4})
    table = first("transfer", tmp_path)
    assert values(lines(table, "random weights")[0]) == {"measured/COCO det": 20.0}
    assert values(lines(table, "Supervised")[0]) == {"measured/COCO det": 30.0}
    assert values(lines(table, "from gone/run, which is not here")[0]) == {"measured/COCO det": 40.0}


def test_baselines_stand_apart_and_are_no_runs(tmp_path: Path) -> None:
    base = write_run(tmp_path / "baselines", SMALL.format("vicreg"))
    write_evaluation(base, "pixels", {"knn20_top1": 41.0, "rankme": 100.0}, preparation="centred")
    write_evaluation(base, "untrained", {"knn20_top1": 28.0, "z_rankme": 7.0})
    run_of(cells("ablation", "small")[0].commands[0], tmp_path, features={"knn20_top1": 45.0})
    table, judged, sources = table_page("ablation", [tmp_path]).tables
    assert [(row["method"], row["kNN 20"].value, row["trained"]) for row in judged.rows] == [  # type: ignore[union-attr]
        ("raw pixels", 41.0, "centred"),
        ("untrained network", 28.0, "resnet18 x0.5"),
    ]
    assert len(sources.rows) == 1 and sum("/kNN" in key for row in table.rows for key in row) == 1
    assert json.loads(table_page("imagenet", [tmp_path]).json())["tables"][1]["title"] == "What runs are judged against"


def test_columns_of_the_ablation_are_those_of_the_paper() -> None:
    assert paper.ABLATION.columns == (*SWITCHES, *REGULARIZATION)
