from pathlib import Path

import numpy as np
import pytest
from embedding_runs import make_embeddings

from jointembed.errors import DataError
from jointembed.inference.index_build import build_index
from jointembed.inference.zero_shot import class_vectors, classify_pictures, zero_shot, zero_shot_index
from jointembed.model import JointEmbedding

CLASSES = ["red", "green square", "noise"]


def test_a_class_is_the_mean_of_its_templates(model: JointEmbedding) -> None:
    found = class_vectors(model, CLASSES, ["a photo of a {}", "{} light"])
    for number, name in enumerate(CLASSES):
        rows = np.asarray(model.encode_text([f"a photo of a {name}", f"{name} light"]))
        mean = rows.mean(axis=0)
        np.testing.assert_allclose(found[number], mean / np.linalg.norm(mean), atol=1e-5)


def test_classes_are_those_of_the_highest_cosine_and_ties_go_by_number() -> None:
    classes = np.eye(3, dtype=np.float32)
    scores, numbers = zero_shot(np.array([[0.6, 0.0, 0.8], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]]), classes, 2)
    assert numbers.tolist() == [[2, 0], [2, 0], [0, 1]] and scores[0].tolist() == pytest.approx([0.8, 0.6])
    assert zero_shot(np.eye(3), classes, 99)[1].shape == (3, 3)


def test_files_and_rows_of_an_index_get_the_same_classes(
    model_path: Path, pictures: Path, tmp_path: Path, model: JointEmbedding
) -> None:
    build_index(make_embeddings(model_path, pictures, tmp_path / "e"), tmp_path / "index")
    templates = ["a photo of a {}"]
    of_rows = classify_pictures(tmp_path / "index", [], CLASSES, templates, 2)
    files = [Path(str(row.path)) for row in of_rows]
    of_files = classify_pictures(model_path, files, CLASSES, templates, 2)
    assert len(of_rows) == 11 and [row.classes for row in of_rows] == [row.classes for row in of_files]
    one = model.similarity(model.encode_image(files[:1]), model.encode_text([f"a photo of a {c}" for c in CLASSES]))
    assert of_files[0].classes[0] == CLASSES[int(one[0].argmax())]
    assert of_files[0].scores[0] == pytest.approx(float(one.max()), abs=1e-5)
    of_index_model = classify_pictures(tmp_path / "index", files[:2], CLASSES, templates)
    assert [row.classes for row in of_index_model] == [row.classes[:1] for row in of_files[:2]]


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        (["red"], ["{}"], "1 classes; there is nothing to tell apart"),
        (["red", " red "], ["{}"], "the class 'red' is named twice"),
        (["red", " "], ["{}"], "a class has no name"),
        (["red", "green"], ["a photo"], r"template 'a photo': expected one \{\}"),
        (["red", "green"], ["{} {}"], r"template '\{\} \{\}': expected one"),
    ],
)
def test_classes_that_make_no_sense_are_named(
    model: JointEmbedding, classes: list[str], templates: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        class_vectors(model, classes, templates)


def test_a_run_needs_pictures_and_an_index_pictures_in_it(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index; name the pictures to classify"):
        classify_pictures(model_path, [], CLASSES, ["{}"])
    with pytest.raises(DataError, match="0 classes a picture"):
        classify_pictures(model_path, [], CLASSES, ["{}"], 0)
    (tmp_path / "captions.txt").write_text("red\nnoise\n")
    texts = build_index(make_embeddings(model_path, tmp_path / "captions.txt", tmp_path / "t"), tmp_path / "index")
    with pytest.raises(DataError, match="an index of texts; classes are for pictures"):
        zero_shot_index(texts, np.zeros((2, 16)))
