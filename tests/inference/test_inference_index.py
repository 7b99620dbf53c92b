import json
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_runs import make_embeddings

from jointembed.errors import DataError, EmbeddingsError
from jointembed.inference import index_build
from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.inference.places import open_place
from jointembed.model import JointEmbedding


@pytest.fixture
def embeddings(model_path: Path, pictures: Path, tmp_path: Path) -> Path:
    return make_embeddings(model_path, pictures, tmp_path / "embeddings")


@pytest.fixture
def folder(embeddings: Path, tmp_path: Path) -> Path:
    build_index(embeddings, tmp_path / "index")
    return tmp_path / "index"


def test_rows_ids_paths_and_model_come_back(folder: Path, pictures: Path, model: JointEmbedding) -> None:
    index = Index.open(folder)
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.glob("*/*.png"))
    assert list(index.ids) == names and (len(index), index.width, index.kind) == (11, 16, "exact")
    assert index.ids[-1] == names[-1] and index.ids[2:4] == names[2:4] and index.texts is None
    with pytest.raises(IndexError):
        index.ids[11]
    with pytest.raises(IndexError):
        index.ids[-12]
    vectors = model.encode_image([Path(str(path)) for path in index.paths])
    np.testing.assert_allclose(index.vectors.take(np.arange(11)), vectors, atol=1e-6)
    texts = ["a red photo", "noise"]
    assert np.array_equal(index.model().encode_text(texts), model.encode_text(texts)) and index.model() is index.model()


def test_search_finds_each_picture_by_itself_and_orders_the_rest(folder: Path, model: JointEmbedding) -> None:
    index = Index.open(folder)
    queries = np.asarray(model.encode_image([Path(str(path)) for path in index.paths]))
    scores, rows = index.search(queries, 4)
    assert scores.shape == rows.shape == (11, 4) and scores.dtype == np.float32 and rows.dtype == np.int64
    assert rows[:, 0].tolist() == list(range(11)) and np.allclose(scores[:, 0], 1, atol=1e-5)
    expected = np.sort(queries.astype(np.float64) @ queries.astype(np.float64).T, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    tensor_scores, tensor_rows = index.search(torch.from_numpy(queries), 99)
    assert tensor_rows.shape == (11, 11) and np.array_equal(tensor_scores[:, :4], scores)


def test_many_files_of_vectors_are_one_index(
    embeddings: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "_PART", 4 * 16 * 4)
    index = build_index(embeddings, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("vectors-*"))) == 3
    queries = index.vectors.take(np.arange(11))
    for one, two in zip(index.search(queries, 5), Index.open(folder).search(queries, 5), strict=True):
        np.testing.assert_array_equal(one, two)


def test_vectors_that_were_not_normalised_are(model_path: Path, pictures: Path, folder: Path, tmp_path: Path) -> None:
    plain = make_embeddings(model_path, pictures, tmp_path / "plain", normalize=False)
    vectors = build_index(plain, tmp_path / "normalised").vectors.take(np.arange(11))
    np.testing.assert_allclose(vectors, Index.open(folder).vectors.take(np.arange(11)), atol=1e-6)


def test_an_index_of_texts_keeps_them(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red\ngreen photo\n")
    make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "texts")
    index = build_index(tmp_path / "texts", tmp_path / "index")
    assert index.texts is not None and list(index.texts) == ["red", "green photo"]
    assert list(index.paths) == [None, None] and index.info["view"] == "text"


def test_the_emoji_can_be_indexed_and_their_places_hold_no_path_of_a_machine(model_path: Path, tmp_path: Path) -> None:
    make_embeddings(model_path, "emoji:test", tmp_path / "emoji", shard_size=500)
    index = build_index(tmp_path / "emoji", tmp_path / "index")
    assert len(index) == 400 and all(str(path).startswith("emoji://test/") for path in index.paths)
    assert open_place(index.paths[399] or "").size == (64, 64)
    assert sum(path.stat().st_size for path in (tmp_path / "index").glob("*.*")) < 60_000


def test_files_may_be_read_by_whom_the_folder_may(folder: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.*")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((2, 8), np.float32), 1, r"queries of shape \(2, 8\); this index takes \(Q, 16\)"),
        (np.zeros(16, np.float32), 1, r"queries of shape \(16,\)"),
        (np.full((1, 16), np.nan, np.float32), 1, "query 0 is not finite"),
        (np.zeros((1, 16), np.float32), 0, "k is 0; expected 1 or more"),
    ],
)
def test_bad_queries_are_named(folder: Path, queries: Any, k: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Index.open(folder).search(queries, k)


def change(folder: Path, **changes: Any) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_file(folder: Path, name: str) -> None:
    path = folder / "index.json"
    info = json.loads(path.read_text())
    info["files"][name] = info["files"].pop("rows.parquet")
    path.write_text(json.dumps(info))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "index: not an index, it has no index.json"),
        (lambda f: (f / "index.json").write_bytes(pickle.dumps(Trap())), "index.json: not UTF-8"),
        (lambda f: cut(f / "index.json"), "index.json: broken JSON"),
        (lambda f: (f / "index.json").write_text("[]"), "index.json: not the description of an index"),
        (lambda f: change(f, format=2), "index.json: format 2 is of a newer version; this one reads up to 1"),
        (lambda f: change(f, kind="hnsw"), "index.json: kind 'hnsw'; there are exact, flat, ivf_pq"),
        (lambda f: change(f, rows=12), "11 vectors and 11 ids; index.json says 12"),
        (lambda f: change(f, width=8), r"vectors-00000.safetensors: holds \(11, 16\)"),
        (lambda f: change(f, view=None), "index.json: 'view' is missing"),
        (lambda f: change(f, files={}), "names no file rows.parquet"),
        (lambda f: rename_file(f, "../../rows.parquet"), "names no file rows.parquet"),
        (lambda f: cut(f / "vectors-00000.safetensors"), "vectors-00000.safetensors: .* cut short or altered"),
        (lambda f: flip(f / "vectors-00000.safetensors"), "vectors-00000.safetensors: altered, its SHA-256"),
        (lambda f: (f / "vectors-00000.safetensors").unlink(), "vectors-00000.safetensors: missing"),
        (lambda f: flip(f / "rows.parquet"), "rows.parquet: altered"),
        (lambda f: flip(f / "model" / "model.safetensors"), "model.safetensors: altered"),
        (lambda f: (f / "model" / "config.json").write_bytes(pickle.dumps(Trap())), "config.json: .* altered"),
    ],
)
@pytest.mark.fault(5, "index: description and model")
def test_faulty_folders_are_refused_and_execute_nothing(
    folder: Path, fault: Callable, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    fault(folder)
    with pytest.raises(EmbeddingsError, match=message):
        Index.open(folder)
    assert not Path("executed").exists()


@pytest.mark.fault(11, "a file outside that an index names")
def test_a_file_outside_the_folder_is_never_read(folder: Path) -> None:
    path = folder / "index.json"
    info = json.loads(path.read_text())
    info["files"]["../outside"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(info))
    with pytest.raises(EmbeddingsError, match="'../outside' is no file of an index"):
        Index.open(folder)


def test_without_verification_only_sizes_are_compared(folder: Path) -> None:
    flip(folder / "vectors-00000.safetensors")
    assert len(Index.open(folder, verify=False)) == 11
    cut(folder / "vectors-00000.safetensors")
    with pytest.raises(EmbeddingsError, match="cut short"):
        Index.open(folder, verify=False)


def test_a_folder_is_replaced_only_when_told_and_only_an_index(embeddings: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingsError, match="index: is there already; --overwrite replaces it"):
        build_index(embeddings, folder)
    (folder / "stale").write_text("x")
    build_index(embeddings, folder, overwrite=True)
    assert not (folder / "stale").exists() and not list(tmp_path.glob(".*"))
    with pytest.raises(EmbeddingsError, match="embeddings: is no index; it is not replaced"):
        build_index(embeddings, embeddings, overwrite=True)


@pytest.mark.parametrize(
    ("fault", "options", "message"),
    [
        (lambda e: (e / "part-000001.json").unlink(), {}, r"1 of 3 shards are not finished"),
        (lambda e: flip(e / "part-000002.parquet"), {}, "part-000002.parquet: cut short or altered"),
        (lambda e: flip(e / "model" / "model.safetensors"), {}, "not the model that made the vectors"),
        (lambda e: None, {"kind": "hnsw"}, "no kind 'hnsw' of index; there are exact, flat, ivf_pq"),
        (lambda e: None, {"lists": 3}, "belong to the kind ivf_pq, not to exact"),
    ],
)
def test_what_cannot_be_indexed_is_named_and_nothing_is_left(
    embeddings: Path, tmp_path: Path, fault: Callable, options: dict, message: str
) -> None:
    fault(embeddings)
    with pytest.raises(EmbeddingsError, match=message):
        build_index(embeddings, tmp_path / "new", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings", "pictures"}


def test_an_id_that_is_there_twice_is_named(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("".join(f'{{"text": "red", "key": {n % 2}}}\n' for n in range(3)))
    from jointembed.inference.worker import Settings, embed_worker

    out = tmp_path / "embeddings"
    embed_worker(model_path, str(tmp_path / "captions.jsonl"), out, Settings(), id_column="key").run(0, 1)
    with pytest.raises(EmbeddingsError, match="the id '0' is there twice"):
        build_index(out, tmp_path / "index")
