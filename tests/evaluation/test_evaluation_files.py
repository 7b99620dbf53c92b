import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jointembed.errors import EvaluationError
from jointembed.evaluation.files import ground_truth, load_ranks, read_embeddings, save_ranks
from jointembed.evaluation.retrieval import RetrievalRanks, merge_folds, retrieval_ranks, summarize

PAIRS = np.array([[0, 0], [0, 1], [1, 2], [2, 2]])


def some_ranks() -> RetrievalRanks:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    return retrieval_ranks(image, text, PAIRS, missing="ignore", k=(1, 2), image_item=np.array([5, 6, 7, 8]))


def test_ranks_come_back_as_they_were_saved(tmp_path: Path) -> None:
    ranks = merge_folds([some_ranks(), some_ranks()])
    save_ranks(tmp_path / "ranks.npz", ranks)
    back = load_ranks(tmp_path / "ranks.npz")
    assert summarize(back) == summarize(ranks)
    for name, one in ranks.directions.items():
        assert np.array_equal(back.directions[name].item, one.item)
        assert np.array_equal(back.directions[name].fold, one.fold)
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.npz"]


def test_ranks_file_holds_the_agreed_arrays_without_pickles(tmp_path: Path) -> None:
    ranks = some_ranks()
    save_ranks(tmp_path / "ranks.npz", ranks)
    with np.load(tmp_path / "ranks.npz", allow_pickle=False) as arrays:
        for name, one in ranks.directions.items():
            assert np.array_equal(arrays[f"{name}_rank"], one.rank, equal_nan=True)
            assert np.array_equal(arrays[f"{name}_item"], one.item)
            for k in (1, 2):
                assert np.array_equal(arrays[f"{name}_hit@{k}"], one.hit(k), equal_nan=True)
        assert np.isnan(arrays["i2t_rank"]).tolist() == [False, False, False, True]


def test_broken_rank_files_are_refused_by_name(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    save_ranks(good, some_ranks())
    with pytest.raises(EvaluationError, match=r"bad.npz: no such file"):
        load_ranks(bad)
    bad.write_bytes(good.read_bytes()[:300])
    with pytest.raises(EvaluationError, match=r"bad.npz: not a readable npz"):
        load_ranks(bad)
    np.savez(bad, image=np.ones((2, 2)))
    with pytest.raises(EvaluationError, match=r"bad.npz: no array 'i2t_above'"):
        load_ranks(bad)
    with np.load(good) as arrays:
        np.savez(bad, **{**arrays, "t2i_ties": arrays["t2i_ties"][:1]})
    with pytest.raises(EvaluationError, match="not equally long"):
        load_ranks(bad)
    np.savez(bad, i2t_above=np.array([None]))
    with pytest.raises(EvaluationError, match=r"bad.npz: not a readable npz file of plain arrays"):
        load_ranks(bad)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("truth", ["image_of_text", "positives"])
def test_embeddings_are_read(tmp_path: Path, kind: str, truth: str) -> None:
    owner = np.array([0, 0, 1, 2])
    arrays: dict[str, Any] = {
        "image": np.eye(3, 2, dtype=np.float32),
        "text": np.ones((4, 2), dtype=np.float32),
        truth: owner if truth == "image_of_text" else np.stack([owner, np.arange(4)], axis=1),
        "image_ids": np.array([10, 11, 12]),
    }
    path = tmp_path / f"embeddings.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    found = read_embeddings(path)
    assert found.positives.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert (found.image_of_text is None) == (truth == "positives")
    assert found.image_ids is not None and found.image_ids.tolist() == [10, 11, 12]
    assert found.text_ids is None
    assert summarize(retrieval_ranks(found.image, found.text, found.positives))["n_texts"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "no array 'text'; found image, image_of_text"),
        ({"image": np.ones(3)}, r"image has shape \(3,\)"),
        ({"image_of_text": None}, "exactly one of image_of_text"),
        ({"positives": np.array([[0, 0]])}, "exactly one of image_of_text"),
        ({"image_of_text": np.array([0, 1])}, "image_of_text has shape"),
        ({"image_of_text": np.array([0.0, 1.0, 2.0])}, "image_of_text has shape .* float64"),
        ({"image_of_text": np.array([0, 1, 3])}, "names image 3, but there are 3 images"),
        ({"image_of_text": None, "positives": np.array([[0, 0], [0, 0]])}, "given more than once"),
        ({"text_ids": np.arange(5)}, "text_ids has shape"),
    ],
)
def test_embedding_files_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    arrays: dict[str, Any] = {"image": np.eye(3), "text": np.eye(3), "image_of_text": np.arange(3)} | change
    np.savez(tmp_path / "e.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(EvaluationError, match=rf"e.npz: .*{message}"):
        read_embeddings(tmp_path / "e.npz")


def test_unreadable_embedding_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.safetensors: no such file"):
        read_embeddings(tmp_path / "none.safetensors")
    for name in ("e.safetensors", "e.npz"):
        (tmp_path / name).write_bytes(b"neither of them")
        with pytest.raises(EvaluationError, match=rf"{name}: not a readable"):
            read_embeddings(tmp_path / name)
    with pytest.raises(EvaluationError, match=r"e.pt: expected a .safetensors or .npz file"):
        read_embeddings(tmp_path / "e.pt")


def write_truth(folder: Path, i2c: object, c2i: object) -> Path:
    (folder / "some_image_to_caption.json").write_text(json.dumps(i2c))
    (folder / "some_caption_to_image.json").write_text(json.dumps(c2i))
    return folder / "some_caption_to_image.json"


def test_ground_truth_is_read_as_rows(tmp_path: Path) -> None:
    path = write_truth(tmp_path, {"7": [30, 10]}, {"20": [8], "10": [7, 8]})
    for one in (path, tmp_path / "some_image_to_caption.json"):
        truth = ground_truth(one, np.array([8, 7]), np.array([10, 20, 30]))
        assert truth.i2t.tolist() == [[1, 2], [1, 0]]
        assert truth.t2i.tolist() == [[0, 1], [1, 0], [0, 0]]
        assert truth.i2t_listed.tolist() == [0, 2]
        assert truth.t2i_listed.tolist() == [2, 1, 0]


def test_ground_truth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_truth(tmp_path, {"7": [10]}, {"10": [7]})
    with pytest.raises(EvaluationError, match="image id 7 is not among the 1 image ids"):
        ground_truth(path, np.array([8]), np.array([10]))
    with pytest.raises(EvaluationError, match="text id 10 is not among the 1 text ids"):
        ground_truth(path, np.array([7]), np.array([11]))
    with pytest.raises(EvaluationError, match="text ids: 1 of 2 are given more than once"):
        ground_truth(path, np.array([7]), np.array([10, 10]))
    with pytest.raises(EvaluationError, match=r"truth.json: expected a file named"):
        ground_truth(tmp_path / "truth.json", np.array([7]), np.array([10]))
    twice = write_truth(tmp_path, {"7": [10, 10]}, {"10": [7]})
    with pytest.raises(EvaluationError, match="some_image_to_caption.json: image id 7 lists text id 10 twice"):
        ground_truth(twice, np.array([7]), np.array([10]))
    with pytest.raises(EvaluationError, match="not a JSON object"):
        ground_truth(write_truth(tmp_path, [1], {}), np.array([7]), np.array([10]))
    (tmp_path / "some_image_to_caption.json").unlink()
    with pytest.raises(EvaluationError, match=r"some_image_to_caption.json: no such file"):
        ground_truth(path, np.array([7]), np.array([10]))


def test_a_listed_answer_in_a_thousand_may_be_no_row(tmp_path: Path) -> None:
    listed = {"7": list(range(999)), "8": [5, 2000]}
    truth = ground_truth(write_truth(tmp_path, listed, {"5": [7]}), np.array([7, 8]), np.arange(1000))
    assert len(truth.i2t) == 1000
    assert truth.i2t_listed.tolist() == [999, 2]
    listed["8"].append(2001)
    with pytest.raises(EvaluationError, match="text id 2000 .*2 of 1,002 pairs"):
        ground_truth(write_truth(tmp_path, listed, {"5": [7]}), np.array([7, 8]), np.arange(1000))
