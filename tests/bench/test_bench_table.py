import json
from pathlib import Path

from jointembed.bench.loss import bench_grid, bench_loss
from jointembed.bench.measure import machine
from jointembed.bench.retrieval import bench_retrieval
from jointembed.bench.table import FILES, speed_table

SIDES = {"jointembed": {"cpu_ratio": 1.0}, "authors": {"cpu_ratio": 2.5}}


def test_lines_of_what_was_measured_and_of_what_was_not(tmp_path: Path) -> None:
    found: dict[str, dict] = {
        "loss": {"rows": bench_loss(ns=[256], ds=[8], repeats=1, rivals=["authors"])},
        "loss_grid": {"rows": bench_grid(ns=[4], ds=[4], repeats=1)},
        "train_image": {"image": {"sides": SIDES}},
        "retrieval": bench_retrieval(images=4, texts=8, dimension=4, repeats=1),
    }
    for name, one in found.items():
        content = one | {"machine": machine() | {"command": "jointembed bench it --out here", "load": 7.2, "cores": 2}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    table = speed_table(tmp_path)
    assert "| training step of image, time of authors over ours | `jointembed bench it` | 2.5 | 2 |" in table
    assert (
        "n 256, d 8, time of authors over ours" in table and "the smallest ratio to the authors', at n 4, d 4" in table
    )
    assert table.count("not measured yet") == len(FILES) - len(found)
    assert table.count("load 7: a shared machine") == len(found)


def test_the_published_files_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "docs" / "bench"
    assert "training step of image" in speed_table(folder)
    for path in (folder / f"{name}.json" for name in FILES):
        assert not path.exists() or json.loads(path.read_text())["machine"]["command"].startswith("jointembed bench")
