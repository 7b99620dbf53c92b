import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from embedding_runs import make_embeddings, make_worker, write_pictures
from PIL import Image
from pyarrow import parquet

from jointembed.errors import DataError, EmbeddingsError, JointEmbedError
from jointembed.inference import files
from jointembed.inference.embeddings import read_header, read_rows
from jointembed.inference.worker import Settings, embed_worker
from jointembed.model import JointEmbedding

SIGKILL = -signal.SIGKILL


def rows(folder: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Every row of finished embeddings, in order."""
    parts = list(read_rows(folder, read_header(folder), rows=3))
    return [row for table, _ in parts for row in table.to_pylist()], np.concatenate([vectors for _, vectors in parts])


def assert_same(folder: Path, other: Path) -> None:
    for one, two in zip(rows(folder), rows(other), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def whole(model_path: Path, pictures: Path, tmp_path: Path) -> Path:
    """Embeddings made in one go."""
    return make_embeddings(model_path, pictures, tmp_path / "whole")


def test_pictures_become_the_vectors_that_encode_gives(whole: Path, pictures: Path, model: JointEmbedding) -> None:
    found, vectors = rows(whole)
    paths = [Path(row["path"]) for row in found]
    assert [row["id"] for row in found] == [path.relative_to(pictures).as_posix() for path in paths] and len(
        found
    ) == 11
    np.testing.assert_allclose(vectors, model.encode_image(paths), atol=1e-6)
    assert np.ptp(vectors, axis=0).max() > 0.1  # not all the same


def test_the_parquet_is_as_other_tools_expect_it(whole: Path) -> None:
    table = parquet.read_table(whole / "part-000001.parquet")
    assert table.column_names == ["id", "path", "vector"] and table.num_rows == 4
    assert table.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 16)
    mark = json.loads((whole / "part-000001.json").read_text())
    assert (mark["rows"], mark["view"], mark["width"], mark["normalized"]) == (4, "image", 16, True)
    assert mark["sha256"] == files.sha256_of(whole / "part-000001.parquet")
    assert table.schema.metadata[b"jointembed.model"].decode() == mark["model"]["sha256"]
    assert JointEmbedding.from_pretrained(whole).width("image") == 16  # complete in itself


def test_decoding_processes_batches_and_normalisation(
    whole: Path, model_path: Path, pictures: Path, tmp_path: Path, model: JointEmbedding
) -> None:
    other = make_embeddings(model_path, pictures, tmp_path / "other", workers=2, batch=3, normalize=False)
    (found, plain), (expected, unit) = rows(other), rows(whole)
    assert found == expected
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), unit, atol=1e-6)
    assert abs(np.linalg.norm(plain, axis=1) - 1).max() > 0.01


def test_texts_keep_their_words(model_path: Path, tmp_path: Path, model: JointEmbedding) -> None:
    texts = ["a red photo", "noise", "a dark blue green light square noise", "red", "light noise"]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    found, vectors = rows(make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "out", shard_size=2))
    assert [(row["id"], row["path"], row["text"]) for row in found] == [
        (f"captions:{n}", None, text) for n, text in enumerate(texts, start=1)
    ]
    np.testing.assert_allclose(vectors, model.encode_text(texts), atol=1e-5)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_in_any_order_make_the_same_rows(
    world: int, whole: Path, model: JointEmbedding, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made: list[dict[str, Any]] = []
    for rank in reversed(range(world)):
        worker = make_worker(model, model_path, pictures, out)
        assert worker.todo(rank, world) == list(range(rank, 3, world))
        worker.run(rank, world, made.append)
    assert sorted(mark["shard"] for mark in made) == [0, 1, 2]
    assert_same(out, whole)


def test_a_second_run_does_nothing_and_what_went_missing_is_made_again(
    whole: Path, model: JointEmbedding, model_path: Path, pictures: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("part-*")}
    worker = make_worker(model, model_path, pictures, whole)
    made: list[dict[str, Any]] = []
    worker.run(0, 1, made.append)
    assert not made and before == {path.name: path.stat().st_mtime_ns for path in whole.glob("part-*")}
    shutil.copytree(whole, tmp_path / "copy")
    (whole / "part-000000.parquet").unlink()
    with open(whole / "part-000002.parquet", "ab") as file:
        file.write(b"x")
    worker.run(0, 1, made.append)
    assert [mark["shard"] for mark in made] == [0, 2] and "made again" in caplog.text
    assert_same(whole, tmp_path / "copy")


# -- kill -9 --------------------------------------------------------------------------------------------------------


def killed_at_rename(number: int, after: bool, run: Callable[[], object]) -> None:
    """Run in a process that kills itself at its n-th rename."""
    real, calls = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    run()


def killed_while_writing(run: Callable[[], object]) -> None:
    """Run in a process that kills itself when the second parquet is half written."""
    real, calls = parquet.ParquetWriter.write_table, [0]

    def write_table(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    parquet.ParquetWriter.write_table = write_table
    run()


# renames of a run of 3 shards: 1 the header, 2 parquet, 3 mark, 4 parquet, 5 mark, 6 parquet, 7 mark, 8 skipped.jsonl
KILLS = [(number, after) for number in range(1, 9) for after in (False, True)]


@pytest.mark.parametrize("moment", [*KILLS, None], ids=lambda moment: str(moment))
def test_killed_at_any_rename_and_started_again_no_row_is_lost_or_doubled(
    moment: Any, whole: Path, model: JointEmbedding, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def run() -> None:
        make_worker(model, model_path, pictures, out).run(0, 1)

    target, arguments = (killed_while_writing, ()) if moment is None else (killed_at_rename, moment)
    process = get_context("fork").Process(target=target, args=(*arguments, run))
    process.start()
    process.join()
    assert process.exitcode == SIGKILL
    if moment not in [(number, after) for number, after in KILLS if number > 7 or (number, after) == (7, True)]:
        with pytest.raises(EmbeddingsError, match="not finished|no embeddings.json"):
            rows(out)
    run()
    assert_same(out, whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}  # nothing is left over


def slow_pictures(folder: Path) -> Path:
    folder.mkdir()
    gradient = np.linspace(0, 255, 1600, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(gradient, (1600, 1))] * 3, axis=2)).save(folder / "00.png", compress_level=1)
    for number in range(1, 24):
        shutil.copy(folder / "00.png", folder / f"{number:02d}.png")
    return folder


def test_the_command_killed_from_outside_goes_on(model_path: Path, tmp_path: Path) -> None:
    data, out = slow_pictures(tmp_path / "data"), tmp_path / "out"
    command = [sys.executable, "-m", "jointembed", "embed", str(model_path), str(data), "--out", str(out)]
    command += ["--shard-size", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (out / "part-000001.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert process.returncode == SIGKILL
    done = len(list(out.glob("part-*.json")))
    assert 2 <= done < 12
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and f"{12 - done} of 12 shards to do" in again.stdout, again.stderr
    found, vectors = rows(out)
    assert [row["id"] for row in found] == [f"{number:02d}.png" for number in range(24)]
    assert np.abs(vectors - vectors[0]).max() == 0 and not list(out.glob(".*"))


@pytest.mark.ddp
def test_two_processes_of_torchrun_share_the_work(
    whole: Path, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "jointembed",
    ]
    command += ["embed", str(model_path), str(pictures), "--out", str(tmp_path / "out"), "--shard-size", "4"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rank 0 of 2: 2 of 3 shards" in done.stdout and "rank 1 of 2: 1 of 3 shards" in done.stdout
    assert_same(tmp_path / "out", whole)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_another_model_view_or_data_is_refused_by_name(
    whole: Path, model_path: Path, other_model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    def again(model: Path = model_path, data: Path = pictures, shard_size: int = 4, **settings: object) -> None:
        make_embeddings(model, data, whole, shard_size=shard_size, **settings)

    with pytest.raises(
        EmbeddingsError, match=r"whole: holds embeddings of another model: 'tiny' \(\w{12}\) and 'tiny'"
    ):
        again(model=other_model_path)
    with pytest.raises(EmbeddingsError, match="normalized is True there and False here"):
        again(normalize=False)
    with pytest.raises(EmbeddingsError, match="precision is 'fp32' there and 'bf16' here"):
        again(precision="bf16")
    with pytest.raises(EmbeddingsError, match="cut into 3 shards there and 2 here; keep --shard-size"):
        again(shard_size=6)
    (tmp_path / "captions.txt").write_text("a red photo\n" * 9)
    with pytest.raises(EmbeddingsError, match="view is 'image' there and 'text' here"):
        again(data=tmp_path / "captions.txt")
    with pytest.raises(EmbeddingsError, match="holds embeddings of other data: name"):
        again(data=write_pictures(tmp_path / "others", 12))
    Image.new("RGB", (4, 4)).save(pictures / "new.png")
    with pytest.raises(EmbeddingsError, match="data that has changed needs another folder"):
        again()


def test_a_view_that_does_not_fit_is_refused(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds pictures; expected texts"):
        make_embeddings(model_path, pictures, tmp_path / "out", view="text")
    with pytest.raises(JointEmbedError, match="no view 'audio' in this model; it has image, text"):
        make_embeddings(model_path, pictures, tmp_path / "out", view="audio")


def test_parts_of_nobody_are_not_joined(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"")
    with pytest.raises(EmbeddingsError, match="holds parts but no embeddings.json"):
        make_embeddings(model_path, pictures, tmp_path / "out")


def test_a_bad_picture_stops_by_name_or_is_listed(
    whole: Path, model: JointEmbedding, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("a/04.png", "b/01.png"):
        path = pictures / name
        path.write_bytes(path.read_bytes()[:300])
    out = tmp_path / "out"
    with pytest.raises(DataError, match="a/04.png: cannot be decoded"):
        make_worker(model, model_path, pictures, out).run(0, 1)
    with pytest.raises(DataError, match=r"b/01.png: cannot be decoded .* \(2 bad inputs; --max-bad 1\)"):
        make_worker(model, model_path, pictures, out, max_bad=1).run(0, 1)
    assert not (out / "part-000001.json").exists() and not list(out.glob(".*"))
    for _ in range(2):  # again: nothing is listed twice
        make_worker(model, model_path, pictures, out, max_bad=2, workers=1).run(0, 1)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in skipped] == ["a/04.png", "b/01.png"] and "cannot be decoded" in skipped[0]["error"]
    (found, vectors), (everything, expected) = rows(out), rows(whole)
    kept = [n for n, row in enumerate(everything) if row["id"] not in ("a/04.png", "b/01.png")]
    assert [row["id"] for row in found] == [everything[n]["id"] for n in kept]
    np.testing.assert_allclose(vectors, expected[kept], atol=1e-6)


def test_bad_texts_are_counted_too(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red\n\nblue\n")
    with pytest.raises(DataError, match="captions.txt, record 2: the caption is empty"):
        make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "out")
    found, _ = rows(make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "out", max_bad=1))
    assert [row["text"] for row in found] == ["red", "blue"]


def tar_member(root: Path) -> Path:
    with tarfile.open(root / "0.tar", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(write_pictures(root / "pictures", 1) / "a" / "00.png", "caf\xe9.png")
    return root / "0.tar"


def folder_of(root: Path, made: Path) -> Path:
    folder = root / "caf\udce9"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    return made.rename(folder / made.name)


def json_id(root: Path) -> Path:
    (root / "a.jsonl").write_text('{"text": "red", "name": "\\ud800"}\n')
    return root / "a.jsonl"


def parquet_file(root: Path) -> Path:
    parquet.write_table(pyarrow.table({"text": ["red"]}), root / "a.parquet")
    return root / "a.parquet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tar_member, r"'0/caf\\udce9.png' is not valid Unicode"),
        (lambda root: folder_of(root, write_pictures(root / "pictures", 1)), r"caf\\udce9/.*' is not valid Unicode"),
        (json_id, r"a.jsonl: '\\ud800' is not valid Unicode"),
        (lambda root: folder_of(root, parquet_file(root)), r"caf\\udce9/a.parquet' is not valid Unicode"),
    ],
)
def test_names_that_no_parquet_can_hold_are_named(
    make: Callable, message: str, model_path: Path, tmp_path: Path
) -> None:
    data = make(tmp_path)
    id_column = "name" if data.suffix == ".jsonl" else None
    with pytest.raises(DataError, match=message):
        embed_worker(model_path, str(data), tmp_path / "out", Settings(), id_column=id_column).run(0, 1)
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_shard_without_a_good_picture_has_no_row(model_path: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 1)
    (pictures / "a" / "00.png").write_bytes(b"")
    out = make_embeddings(model_path, pictures, tmp_path / "out", max_bad=1)
    assert parquet.read_table(out / "part-000000.parquet").num_rows == 0


def test_a_vector_that_is_not_finite_is_refused(
    model: JointEmbedding, model_path: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.vectors
    monkeypatch.setattr(model, "vectors", lambda view, inputs: real(view, inputs) / 0.0)
    with pytest.raises(EmbeddingsError, match="a/00.png: the model's vector is not finite"):
        make_worker(model, model_path, pictures, tmp_path / "out").run(0, 1)


# -- what reading refuses -------------------------------------------------------------------------------------------


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f: (f / "embeddings.json").unlink(), "has no embeddings.json"),
        (lambda f: change(f / "embeddings.json", format=2), "format 2 is of a newer version"),
        (lambda f: change(f / "embeddings.json", width="16"), "embeddings.json: 'width' is missing or no int"),
        (lambda f: (f / "embeddings.json").write_text("{"), "embeddings.json: broken JSON"),
        (lambda f: (f / "part-000001.json").unlink(), r"1 of 3 shards are not finished \(1\)"),
        (lambda f: change(f / "part-000001.json", view="text"), "part-000001.json: view is 'text'"),
        (lambda f: change(f / "part-000001.json", rows=None), "part-000001.json: 'rows' is missing"),
        (lambda f: (f / "part-000001.parquet").unlink(), "part-000001.parquet: missing"),
        (lambda f: flip(f / "part-000001.parquet"), "part-000001.parquet: cut short or altered"),
        (lambda f: change(f / "embeddings.json", width=8), "part-000000.json: width is 16; .* says 8"),
    ],
)
def test_faulty_embeddings_are_named(whole: Path, fault: Callable, message: str) -> None:
    fault(whole)
    with pytest.raises(EmbeddingsError, match=message):
        rows(whole)


def test_files_aside_of_living_processes_stay(tmp_path: Path) -> None:
    alive = files.aside_of(tmp_path / "a").with_name(files.aside_of(tmp_path / "a").name.replace(str(os.getpid()), "1"))
    dead = alive.with_name(alive.name.replace(".1.part", ".999999999.part"))
    for path in (alive, dead, files.aside_of(tmp_path / "a")):
        path.write_bytes(b"")
    files.remove_leftovers(tmp_path)
    assert alive.exists() and files.aside_of(tmp_path / "a").exists() and not dead.exists()
