import json
from pathlib import Path
from typing import Any

import pytest
from measured_runs import ENVIRONMENT, write_cost, write_evaluation, write_run

from jointembed.report.results import table_page
from jointembed.report.tables import Number

SMALL = "small/cifar10_{}"


def rows(*paths: Path) -> dict[str, dict[str, Any]]:
    return {str(row["method"]): dict(row) for row in table_page("cost", paths).tables[0].rows}


def measured(row: dict[str, Any]) -> dict[str, float]:
    return {key.partition("/")[2]: round(row[key].value, 4) for key in row if key.startswith("measured/")}


def test_published_ratios_are_to_vicreg() -> None:
    found = rows()
    assert list(found) == ["SwAV", "SwAV (multi-crop)", "BYOL", "Barlow Twins", "VICReg"]
    assert found["BYOL"]["published/time"] == Number(10 / 11, digits=2)
    assert str(found["SwAV (multi-crop)"]["published/memory"]) == "1.14" and measured(found["VICReg"]) == {}


def test_ratios_are_to_vicreg_in_the_same_setting(tmp_path: Path) -> None:
    for seed, speed in enumerate((100.0, 140.0)):
        write_cost(tmp_path / f"v{seed}", SMALL.format("vicreg"), f"seed={seed}", samples_per_second=speed)
    write_cost(tmp_path / "b", SMALL.format("byol"), samples_per_second=60.0, peak_process_bytes=3e9, seconds=720.0)
    found = rows(tmp_path)
    assert measured(found["BYOL"]) == {"speed": 60.0, "hours": 5.0, "GB": 3.0, "time": 2.0, "memory": 1.5}
    assert found["VICReg"]["measured/speed"].std == pytest.approx(800**0.5) and found["VICReg"]["seeds"] == "0, 1"
    assert measured(found["VICReg"])["time"] == 1.0 and found["BYOL"]["hardware"] == "a CPU, 2 cores"


@pytest.mark.parametrize(
    "change", ["loader.batch=64", "branches.net.encoder.model=resnet34", "data.train.fraction=0.5"]
)
def test_no_ratio_between_other_batches_backbones_or_data(tmp_path: Path, change: str) -> None:
    write_cost(tmp_path / "v", SMALL.format("vicreg"))
    write_cost(tmp_path / "b", SMALL.format("byol"), change)
    assert set(measured(rows(tmp_path)["BYOL"])) == {"speed", "hours", "GB"}


def test_no_ratio_between_other_hardware(tmp_path: Path) -> None:
    write_cost(tmp_path / "v", SMALL.format("vicreg"))
    run = write_cost(tmp_path / "b", SMALL.format("byol"), peak_device_bytes=9e9)
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT | {"accelerators": ["NVIDIA A100"], "world": 4}))
    found = rows(tmp_path)["BYOL"]
    assert measured(found) == {"speed": 150.0, "hours": 2.0833, "GB": 9.0} and found["hardware"] == "4 x NVIDIA A100"


def test_what_has_no_cost_is_said_and_baselines_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "waiting", SMALL.format("vicreg"))
    write_evaluation(write_run(tmp_path / "base", SMALL.format("vicreg")), "pixels", {"knn20_top1": 1.0})
    notes = [note for note in table_page("cost", [tmp_path]).tables[0].notes if "no cost.json" in note]
    assert len(notes) == 1 and notes[0].startswith(str(tmp_path / "waiting"))
