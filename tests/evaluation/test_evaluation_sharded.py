import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from jointembed.cli import evaluate_parts
from jointembed.errors import EvaluationError
from jointembed.evaluation import counting
from jointembed.evaluation.parts import EmbeddingParts, rows_of_pairs
from jointembed.evaluation.retrieval import RetrievalRanks, retrieval_ranks, summarize


def write(folder: Path, rows: np.ndarray, cuts: list[int], *, kind: str = "parquet", group: int = 3) -> EmbeddingParts:
    folder.mkdir()
    first = 0
    for number, part in enumerate(np.split(rows, cuts)):
        path = folder / f"part-{number:06d}.{kind}"
        if kind == "safetensors":
            save_file({"vector": torch.from_numpy(part.copy())}, path)
        else:
            vector = pyarrow.FixedSizeListArray.from_arrays(part.astype(np.float32).ravel(), rows.shape[1])
            if kind == "parquet" and number % 2:
                vector = vector.cast(pyarrow.list_(pyarrow.float32()))
            ids = [f"id{first + row}" for row in range(len(part))]
            table = pyarrow.table({"id": ids, "vector": vector})
            pyarrow.parquet.write_table(table, path, row_group_size=group)
        first += len(part)
    return EmbeddingParts(folder)


def same(found: RetrievalRanks, expected: RetrievalRanks) -> None:
    assert found.k == expected.k
    for name, one in found.directions.items():
        other = expected.directions[name]
        for field in fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), (name, field.name)


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged truth over rows with duplicates, rows of zeros, and scores that tie because numbers are small."""
    rng = np.random.default_rng(seed)
    n_images, n_texts, width = int(rng.integers(2, 90)), int(rng.integers(2, 200)), int(rng.integers(1, 9))
    kind = seed % 3
    shapes = (n_images, width), (n_texts, width)
    draws = [rng.integers(-1, 2, shape) if kind == 0 else rng.standard_normal(shape) for shape in shapes]
    image, text = (np.asarray(one, dtype=np.float32) for one in draws)
    if kind == 1:
        image, text = image[rng.integers(0, n_images, n_images)], text[rng.integers(0, n_texts, n_texts)]
        text[rng.random(n_texts) < 0.1] = 0
    pairs = {(int(rng.integers(n_images)), one) for one in range(n_texts)}
    pairs |= {(one, int(rng.integers(n_texts))) for one in range(n_images)}
    return image, text, np.array(sorted(pairs))


@pytest.mark.parametrize("seed", range(30))
def test_equal_to_ranks_in_memory(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "HEIGHT", 64)
    monkeypatch.setattr(counting, "WIDTH", 64)
    image, text, pairs = case(seed)
    kind = ("parquet", "safetensors")[seed % 2]
    parts = write(tmp_path / "image", image, [1], kind=kind), write(tmp_path / "text", text, [1, 1, 40], kind=kind)
    for normalize in (True, False):
        expected = retrieval_ranks(image, text, pairs, normalize=normalize)
        same(retrieval_ranks(*parts, pairs, normalize=normalize, block=64), expected)
    half = pairs[: len(pairs) // 2]
    expected = retrieval_ranks(image, text, half, t2i_positives=pairs, missing="ignore", k=(2,))
    found = retrieval_ranks(*parts, half, t2i_positives=pairs, missing="ignore", k=(2,))
    same(found, expected)


def test_equal_to_ranks_in_memory_over_tiles_of_full_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    image = rng.standard_normal((1100, 32)).astype(np.float32)
    text = np.concatenate([image + rng.standard_normal(image.shape) for _ in range(8)]).astype(np.float32)
    text[rng.integers(0, 8800, 400)] = text[rng.integers(0, 8800, 400)]
    pairs = np.stack([np.arange(8800) % 1100, np.arange(8800)], axis=1)
    parts = write(tmp_path / "a", image, [900], group=500), write(tmp_path / "b", text, [10, 5000], group=3000)
    expected = retrieval_ranks(image, text, pairs)
    assert expected.i2t.ties.sum() > 20
    same(retrieval_ranks(*parts, pairs, block=1), expected)


def test_collapsed_embeddings_score_chance_over_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "WIDTH", 128)
    row = np.random.default_rng(0).standard_normal(33).astype(np.float32)
    image, text = np.tile(row, (100, 1)), np.tile(row, (500, 1))
    parts = write(tmp_path / "image", image, [30]), write(tmp_path / "text", text, [7, 400], group=50)
    pairs = np.stack([np.arange(500) // 5, np.arange(500)], axis=1)
    found = retrieval_ranks(*parts, pairs)
    same(found, retrieval_ranks(image, text, pairs))
    assert summarize(found) == pytest.approx(summarize(found.blind()))


def test_bad_rows_are_named_by_file(tmp_path: Path) -> None:
    image, text, pairs = case(1)
    text = text[:40]
    pairs = pairs[pairs[:, 1] < 40]
    text[17, 0] = np.nan
    parts = write(tmp_path / "image", image, []), write(tmp_path / "text", text, [10])
    with pytest.raises(EvaluationError, match=r"part-000001\.parquet, row 7 holds nan"):
        retrieval_ranks(*parts, pairs, missing="ignore")
    parts = write(tmp_path / "a", np.ones((4, 2), dtype=np.float32), []), parts[0]
    with pytest.raises(EvaluationError, match="2 dimensions and text embeddings"):
        retrieval_ranks(*parts, pairs)


def test_ranges_are_read_across_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for kind in ("parquet", "safetensors"):
        parts = write(tmp_path / kind, rows, [0, 11, 12, 40], kind=kind)
        assert len(parts) == 50 and parts.width == 3
        for start in range(0, 50, 7):
            for stop in (start, start + 1, start + 20, 60):
                assert np.array_equal(parts.read(start, stop), rows[start:stop])
    assert parts.where(13).endswith("part-000003.safetensors, row 1")


def test_pairs_of_ids(tmp_path: Path) -> None:
    rows = np.eye(5, dtype=np.float32)
    image, text = write(tmp_path / "a", rows, [2]), write(tmp_path / "b", rows, [3], kind="safetensors")
    assert rows_of_pairs(image, text, [("id4", "0"), ("id0", "3")]).tolist() == [[4, 0], [0, 3]]
    with pytest.raises(EvaluationError, match="image id 'id9' is not among the 5"):
        rows_of_pairs(image, text, [("id9", "0")])
    pyarrow.parquet.write_table(
        pyarrow.parquet.read_table(tmp_path / "a" / "part-000000.parquet"), tmp_path / "a/z.parquet"
    )
    with pytest.raises(EvaluationError, match="the id 'id0' is there twice"):
        EmbeddingParts(tmp_path / "a").ids()


def test_pairs_are_read_and_the_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, text, pairs = case(4)
    write(tmp_path / "image", image, [3]), write(tmp_path / "text", text, [9])
    file = tmp_path / "pairs.csv"
    file.write_text("image,text\n" + "".join(f"id{one},id{other}\n" for one, other in pairs))
    evaluate_parts(tmp_path / "image", tmp_path / "text", file)
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == pytest.approx(summarize(retrieval_ranks(image, text, pairs)))
    assert printed["chance"]["rsum"] < 600
    for content, message in (
        ("a,b\n", "expected the header"),
        ("image,text\nid1\n", "line 2"),
        ("image,text\n", "none"),
    ):
        file.write_text(content)
        with pytest.raises(EvaluationError, match=message):
            evaluate_parts(tmp_path / "image", tmp_path / "text", file)


def embedded(folder: Path, rows: np.ndarray, *, model: str = "a" * 64) -> Path:
    """A folder as `jointembed embed` leaves it, of two shards."""
    write(folder, rows, [2])
    same = {"model": {"name": "m", "sha256": model}, "view": "image", "width": rows.shape[1], "normalized": True}
    header = {"format": 1, "precision": "fp32", "data": {"name": "d", "kind": "image", "sha256": "0"}, "shards": 2}
    (folder / "embeddings.json").write_text(json.dumps(header | same))
    for number in range(2):
        size = (folder / f"part-{number:06d}.parquet").stat().st_size
        mark = {"shard": number, "rows": 2, "bytes": size, "sha256": "0", "skipped": []}
        (folder / f"part-{number:06d}.json").write_text(json.dumps(mark | same))
    return folder


def test_a_folder_of_embeddings_must_be_finished(tmp_path: Path) -> None:
    rows = np.eye(5, dtype=np.float32)
    folder = embedded(tmp_path / "a", rows)
    write_stray = pyarrow.parquet.read_table(folder / "part-000000.parquet")
    pyarrow.parquet.write_table(write_stray, folder / "part-000009.parquet")  # of an earlier, longer run
    assert np.array_equal(EmbeddingParts(folder).read(0, 9), rows)
    last = folder / "part-000001.parquet"
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(EvaluationError, match=r"part-000001\.parquet: missing or cut short"):
        EmbeddingParts(folder)
    last.write_bytes(content)
    (folder / "part-000001.json").unlink()
    with pytest.raises(EvaluationError, match=r"1 of 2 shards are not finished \(1\)"):
        EmbeddingParts(folder)
    (folder / "embeddings.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"embeddings\.json: 'format' is missing"):
        EmbeddingParts(folder)


def test_both_sides_are_of_one_model(tmp_path: Path) -> None:
    rows, pairs = np.eye(5, dtype=np.float32), [(f"id{one}", f"id{one}") for one in range(5)]
    image, same = (EmbeddingParts(embedded(tmp_path / name, rows)) for name in ("image", "same"))
    other = EmbeddingParts(embedded(tmp_path / "other", rows, model="b" * 64))
    assert len(rows_of_pairs(image, same, pairs)) == len(rows_of_pairs(image, write(tmp_path / "x", rows, []), pairs))
    with pytest.raises(EvaluationError, match=r"other: embedded by another model \(bbb.*\) than .*image \(aaa"):
        rows_of_pairs(image, other, pairs)


def test_files_that_are_no_embeddings_are_named(tmp_path: Path) -> None:
    rows = np.eye(5, dtype=np.float32)
    write(tmp_path / "a", rows, [])
    (tmp_path / "a" / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match=r"q\.parquet: not a readable parquet file"):
        EmbeddingParts(tmp_path / "a")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["x"]}), tmp_path / "a" / "q.parquet")
    with pytest.raises(
        EvaluationError, match=r"q\.parquet: expected a column 'vector' of lists of numbers; found 'id'"
    ):
        EmbeddingParts(tmp_path / "a")
    pyarrow.parquet.write_table(pyarrow.table({"vector": [[1.0, 2.0]]}), tmp_path / "a" / "q.parquet")
    with pytest.raises(EvaluationError, match=r"q\.parquet: vectors of width 2; those of .* have 5"):
        EmbeddingParts(tmp_path / "a")
    pyarrow.parquet.write_table(pyarrow.table({"vector": [[1.0, 2.0], [3.0], None]}), tmp_path / "ragged.parquet")
    with pytest.raises(EvaluationError, match=r"ragged\.parquet: row group 0 holds a vector of another width"):
        EmbeddingParts(tmp_path / "ragged.parquet").read(0, 3)
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(EvaluationError, match=r"two\.safetensors: expected one matrix, or one named 'vector'; found a"):
        EmbeddingParts(tmp_path / "two.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"x")
    with pytest.raises(EvaluationError, match=r"two\.safetensors: not a readable safetensors"):
        EmbeddingParts(tmp_path / "two.safetensors")
    with pytest.raises(EvaluationError, match="no such file"):
        EmbeddingParts(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"no \.parquet or \.safetensors"):
        EmbeddingParts(tmp_path / "empty")
