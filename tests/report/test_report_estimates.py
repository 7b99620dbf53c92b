import json
from pathlib import Path

import pytest
from measured_runs import ENVIRONMENT, ROOT, write_cost

from jointembed.report.estimates import GPUS, estimate, estimate_small
from jointembed.report.plans import Command, cells
from jointembed.report.read import Run, find_runs


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def train(row: str, table: str = "imagenet", column: str = "*") -> Command:
    return next(cell for cell in cells(table) if cell.row[0] == row and cell.column == column).commands[0]


def test_on_the_papers_machine_hours_and_memory_are_the_papers() -> None:
    for method, hours, memory in (("VICReg", 110.0, 11.3), ("Barlow Twins", 120.0, 11.3)):
        found = estimate(train(method), 32, "V100")
        assert found.hours == pytest.approx(hours) and found.memory == pytest.approx(memory) and found.hint == ""
        assert "published" in found.basis
    assert estimate(train("BYOL"), 32, "V100").memory == pytest.approx(3 + 2 * 11.6)  # a batch of 4096, not 2048


def test_hours_go_with_gpus_and_their_kind() -> None:
    one = estimate(train("VICReg"), 32, "V100").hours
    assert one is not None
    assert estimate(train("VICReg"), 8, "V100").hours == pytest.approx(4 * one)
    for kind, gpu in GPUS.items():
        assert estimate(train("VICReg"), 32, kind).hours == pytest.approx(one / gpu.speed) and gpu.source


def test_what_does_not_fit_says_what_to_do() -> None:
    found = estimate(train("VICReg"), 4, "V100")
    assert found.memory == pytest.approx(3 + 8 * 8.3) and "training.micro_batch=128" in found.hint
    assert "32 GB V100" in str(found)


def test_larger_branches_and_parts_of_the_labels_count() -> None:
    shared = estimate(train("VICReg", "flexibility", "shared weights R50"), 8, "A100").hours
    larger = estimate(train("VICReg", "flexibility", "R50 + R101"), 8, "A100").hours
    assert shared and larger and larger / shared == pytest.approx((1 + 1.91) / 2)
    few, more = (estimate(train("Supervised", "semi", column), 8, "A100").hours for column in ("1%", "10%"))
    assert few and more and more / few == pytest.approx(10)


def test_evaluations_detectors_and_captions_have_estimates() -> None:
    for table in ("semi", "transfer", "retrieval"):
        for cell in cells(table):
            for command in cell.commands:
                found = estimate(command, 8, "V100")
                assert found.hours is not None and found.hours > 0 and found.memory and found.basis
    voc = Command("detect", "x", "recipes/detection/voc07_12_c4.yaml")
    assert estimate(voc, 8, "V100").hours == pytest.approx(24_000 * 0.537 / 3600)
    assert estimate(voc, 8, "V100").memory == pytest.approx(4.8)


def measured(folder: Path, recipe: str, accelerator: str, **cost: object) -> list[Run]:
    run = write_cost(folder, recipe, **cost)
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT | {"accelerators": [accelerator]}))
    return find_runs([run])


def test_a_measured_run_counts_rather_than_the_paper(tmp_path: Path) -> None:
    runs = measured(
        tmp_path / "a", "imagenet/vicreg", "NVIDIA A100-SXM4-80GB", samples_per_second=4000.0, world=4,
        peak_device_bytes=20e9,
    )  # fmt: skip
    found = estimate(train("VICReg"), 8, "A100", runs)
    assert found.hours == pytest.approx(1000 * 1_281_167 / (1000 * 8) / 3600) and found.memory == 20.0
    assert found.basis.startswith("measured")
    slower = estimate(train("VICReg"), 8, "V100", runs).hours
    assert slower and slower / found.hours == pytest.approx(GPUS["A100"].speed)  # type: ignore[operator]
    assert "published" in estimate(train("Barlow Twins"), 8, "A100", runs).basis  # another method
    unknown = measured(tmp_path / "b", "imagenet/vicreg", "a GPU of another kind")
    assert "published" in estimate(train("VICReg"), 8, "A100", unknown).basis


def test_a_run_on_other_data_does_not_count(tmp_path: Path) -> None:
    changes = {"elsewhere": "data.train.path=/data/other", "part": "data.train.subset=1percent.txt"}
    for name, change in changes.items():
        write_cost(tmp_path / name, "imagenet/vicreg", change, samples_per_second=4000.0)
        (tmp_path / name / "environment.json").write_text(json.dumps(ENVIRONMENT | {"accelerators": ["A100"]}))
    assert "published" in estimate(train("VICReg"), 8, "A100", find_runs([tmp_path])).basis


def test_data_that_nobody_counted_have_no_hours() -> None:
    for found in (
        estimate(Command("train", "x", "recipes/imagenet/vicreg.yaml", ("data.train.path=/data/other",)), 8, "A100"),
        estimate_small(Command("train", "x", "recipes/small/tiny_imagenet_vicreg.yaml")),
    ):
        assert found.hours is None and str(found) == "hours unknown, its data have no count of pictures here"


def test_small_scale_is_scaled_from_what_was_measured(tmp_path: Path) -> None:
    vicreg, byol = (
        next(cell.commands[0] for cell in cells("imagenet", "small") if cell.row == (row,))
        for row in ("VICReg", "BYOL")
    )
    stated = estimate_small(vicreg)
    assert stated.hours == pytest.approx(40_000 / 52 / 3600) and "stated" in stated.basis and stated.memory is None
    write_cost(tmp_path / "v", "small/cifar10_vicreg", seconds=500.0)
    runs = find_runs([tmp_path])
    assert estimate_small(vicreg, runs).hours == pytest.approx(500 / 3600)
    assert estimate_small(vicreg, runs).memory == pytest.approx(2.0)
    assert estimate_small(byol, runs).hours == pytest.approx(500 / 3600 * 8 / 6)  # two views more forward
    assert "scaled" in estimate_small(byol, runs).basis
