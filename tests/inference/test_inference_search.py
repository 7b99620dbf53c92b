from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_runs import make_embeddings
from PIL import Image

from jointembed.errors import DataError, WeightsError
from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.inference.search import encode_query, search
from jointembed.model import JointEmbedding


@pytest.fixture
def index(model_path: Path, pictures: Path, tmp_path: Path) -> Index:
    return build_index(make_embeddings(model_path, pictures, tmp_path / "embeddings"), tmp_path / "index")


def test_a_picture_finds_itself_and_words_find_what_the_cosine_says(
    index: Index, pictures: Path, model: JointEmbedding
) -> None:
    best = search(index, pictures / "b" / "03.png", 3)
    assert [one.rank for one in best] == [1, 2, 3] and best[0].id == "b/03.png"
    assert best[0].score == pytest.approx(1, abs=1e-5) and best[0].path == str(pictures / "b" / "03.png")
    found = search(index, "a red photo", 11)
    cosines = model.similarity(model.encode_text(["a red photo"]), index.vectors.take(np.arange(11)))[0]
    assert [one.row for one in found] == cosines.argsort(descending=True, stable=True).tolist()
    assert [one.score for one in found] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-5)


def test_texts_are_found_by_words_and_by_a_picture(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("red\ngreen photo\ndark noise\n")
    index = build_index(make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "t"), tmp_path / "index")
    assert search(index, "dark noise", 1)[0].text == "dark noise" and search(index, "dark noise", 1)[0].path is None
    assert len(search(index, Image.open(pictures / "a" / "00.png"), 5)) == 3


def test_every_form_of_a_query(model: JointEmbedding, pictures: Path) -> None:
    path = pictures / "a" / "00.png"
    forms = [path, Image.open(path), np.asarray(Image.open(path)), path.read_bytes()]
    rows = [encode_query(model, form) for form in forms]
    assert all(row.shape == (1, 16) and np.allclose(row, rows[0], atol=1e-6) for row in rows)
    assert np.linalg.norm(encode_query(model, "red " * 10_000)) == pytest.approx(1, abs=1e-5)


def test_equal_scores_are_said_to_be_worth_nothing(
    index: Index, model: JointEmbedding, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search(index, "a red photo", 3)
    assert not caplog.text
    monkeypatch.setattr(index.model(), "encode", lambda inputs, view: np.zeros((1, 16), np.float32))
    search(index, "a red photo", 3)
    assert "the 3 best rows all score 0.0000" in caplog.text


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(model: JointEmbedding, query: str) -> None:
    with pytest.raises(DataError, match="the query is empty"):
        encode_query(model, query)


def test_what_is_no_picture_is_named(model: JointEmbedding, pictures: Path) -> None:
    with pytest.raises(DataError, match=r"notes.txt: not a picture"):
        encode_query(model, pictures / "notes.txt")


def test_a_model_without_such_a_view_says_so(model: JointEmbedding) -> None:
    alone = JointEmbedding({"image": model.branch("image")}, {"image": "image"}, image=model.image)
    with pytest.raises(WeightsError, match="no view for texts; it has image"):
        encode_query(alone, "a dog")
    assert torch.is_tensor(alone.encode([np.zeros((4, 4, 3), np.uint8)], "image", convert_to_numpy=False))
