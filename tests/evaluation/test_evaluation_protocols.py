import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch
from reference import retrieval_reference as reference

from jointembed.errors import EvaluationError
from jointembed.evaluation.corrections import CSLS, Correction, Euclidean, InvertedSoftmax, MeanRemoval
from jointembed.evaluation.files import GroundTruth
from jointembed.evaluation.protocols import PROTOCOLS, first_captions, judged, matches, precision_at_r
from jointembed.evaluation.retrieval import chance, retrieval_metrics, summarize

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# As the two COCO protocols, at a hundredth of the size.
FIRST_FIVE = dataclasses.replace(PROTOCOLS["coco_5k"], pictures=50)
FIVE_FOLDS = dataclasses.replace(PROTOCOLS["coco_1k_5fold"], pictures=50)


@pytest.fixture
def data() -> Data:
    """50 pictures in no order of their items, with five captions each, ten of them with a sixth."""
    rng = np.random.default_rng(0)
    image_item = rng.permutation(50)
    captions = np.full(50, 5)
    captions[rng.choice(50, 10, replace=False)] = 6
    rows = np.repeat(np.arange(50), captions)
    image = rng.standard_normal((50, 12)).astype(np.float32)
    text = image[rows] + 1.5 * rng.standard_normal((260, 12)).astype(np.float32)
    return image, text, image_item, image_item[rows]


def test_the_table_is_what_papers_mean() -> None:
    sizes = {name: (one.pictures, one.captions, one.folds) for name, one in PROTOCOLS.items()}
    assert sizes == {
        "full": (None, None, 1),
        "coco_5k": (5000, 5, 1),
        "coco_1k_5fold": (5000, 5, 5),
        "flickr_1k": (1000, None, 1),
    }
    assert [one.name for one in PROTOCOLS.values()] == list(PROTOCOLS)


def test_matches_are_all_pairs_of_one_item() -> None:
    rng = np.random.default_rng(0)
    image_item, text_item = rng.integers(0, 9, 12), rng.integers(0, 9, 30)
    expected = [[i, t] for i in range(12) for t in range(30) if image_item[i] == text_item[t]]
    assert matches(image_item, text_item).tolist() == expected


def test_first_captions_are_those_that_come_first() -> None:
    item = np.array([3, 0, 3, 3, 0, 7, 3])
    assert first_captions(item, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_captions(item).tolist() == list(range(7))


def test_full_takes_several_pictures_of_an_item() -> None:
    image_item, text_item = np.array([0, 0, 1]), np.array([1, 0, 0])
    image = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    text = np.array([[0, 1], [1, 0], [1, 0.1]], dtype=np.float32)
    found = PROTOCOLS["full"](image, text, image_item, text_item)
    assert found.metrics["rsum"] == pytest.approx(600)
    assert found.ranks.t2i.positives.tolist() == [1, 2, 2]
    assert found.ranks.t2i.item.tolist() == [1, 0, 0]
    assert found.chance == chance(matches(image_item, text_item), 3, 3)


def test_full_names_the_picture_without_a_caption() -> None:
    with pytest.raises(EvaluationError, match="image 1 has no positive"):
        PROTOCOLS["full"](np.eye(3), np.eye(3)[:2], np.arange(3), np.array([0, 2]))
    with pytest.raises(EvaluationError, match="image_item has shape"):
        PROTOCOLS["full"](np.eye(3), np.eye(3), np.arange(2), np.arange(3))


@pytest.mark.parametrize("correct", [None, CSLS(), InvertedSoftmax(), Euclidean(), MeanRemoval()])
def test_embeddings_are_checked_before_they_are_corrected(correct: Correction | None) -> None:
    rows, items = np.eye(4, dtype=np.float32), np.arange(4)
    with pytest.raises(EvaluationError, match="image embeddings have 4 dimensions and text embeddings 3"):
        PROTOCOLS["full"](rows, rows[:, :3], items, items, correct=correct)
    with pytest.raises(EvaluationError, match="text embeddings are of type int64; expected a floating type"):
        PROTOCOLS["full"](rows, np.eye(4, dtype=np.int64), items, items, correct=correct)


def test_coco_counts_the_first_five_captions(data: Data) -> None:
    image, text, image_item, text_item = data
    found = FIRST_FIVE(torch.from_numpy(image), torch.from_numpy(text), image_item, text_item)
    kept: list[int] = []
    for item in image_item:
        kept += np.flatnonzero(text_item == item)[:5].tolist()
    assert len(kept) == 250
    assert found.metrics == retrieval_metrics(image, text[kept], np.argsort(image_item)[text_item[kept]])
    assert np.array_equal(found.ranks.t2i.item, text_item[kept])
    everything = PROTOCOLS["full"](image, text, image_item, text_item).metrics
    assert (found.metrics["n_texts"], everything["n_texts"]) == (250, 260)
    assert everything["rsum"] != found.metrics["rsum"]


def test_captions_may_come_in_any_order(data: Data) -> None:
    image, text, image_item, text_item = data
    first = first_captions(text_item)
    text, text_item = text[first], text_item[first]
    order = np.random.default_rng(0).permutation(250)
    for protocol in (FIRST_FIVE, FIVE_FOLDS):
        moved = protocol(image, text[order], image_item, text_item[order])
        assert moved.metrics == pytest.approx(protocol(image, text, image_item, text_item).metrics)


def test_coco_1k_is_the_mean_of_folds_of_consecutive_pictures(data: Data) -> None:
    image, text, image_item, text_item = data
    found = FIVE_FOLDS(image, text, image_item, text_item)
    folds = []
    for first in range(0, 50, 10):
        kept = [np.flatnonzero(text_item == item)[:5] for item in image_item[first : first + 10]]
        part = text[np.concatenate(kept)]
        folds.append(retrieval_metrics(image[first : first + 10], part, np.repeat(np.arange(10), 5)))
    for name, value in found.metrics.items():
        each = [numbers[name] for numbers in folds]
        assert value == pytest.approx(sum(each) if name == "tied_queries" else np.mean(each), abs=1e-9)
    assert len({numbers["rsum"] for numbers in folds}) == 5
    assert (found.metrics["n_images"], found.metrics["n_texts"]) == (10, 50)
    assert found.chance["t2i_R@1"] == pytest.approx(10)
    assert np.bincount(found.ranks.i2t.fold).tolist() == [10] * 5
    other_order = np.roll(np.arange(50), 3)
    rolled = FIVE_FOLDS(image[other_order], text, image_item[other_order], text_item)
    assert rolled.metrics["rsum"] != found.metrics["rsum"]


def test_folds_refuse_pictures_sorted_by_id(data: Data) -> None:
    karpathy = [391895, 60623, *range(200, 248)]
    assert FIVE_FOLDS(*data, picture_ids=karpathy).metrics == FIVE_FOLDS(*data).metrics
    for ids in (range(7, 57), [str(i) for i in range(80, 130)], [f"COCO_val2014_{i:012d}.jpg" for i in range(50)]):
        with pytest.raises(EvaluationError, match="coco_1k_5fold: pictures are sorted by id"):
            FIVE_FOLDS(*data, picture_ids=list(ids))
    assert FIRST_FIVE(*data, picture_ids=list(range(50))).metrics == FIRST_FIVE(*data).metrics


def test_protocols_refuse_data_of_another_size(data: Data) -> None:
    image, text, image_item, text_item = data
    for name, wanted in (("coco_5k", "5,000"), ("coco_1k_5fold", "5,000"), ("flickr_1k", "1,000")):
        with pytest.raises(EvaluationError, match=f"{name}: needs {wanted} pictures.*found 50 pictures of 50 items"):
            PROTOCOLS[name](*data)
    with pytest.raises(EvaluationError, match="50 pictures of 49 items"):
        FIRST_FIVE(image, text, np.append(image_item[:-1], image_item[0]), text_item)
    few = np.flatnonzero(text_item == image_item[40])[-3:]
    fewer = (image, np.delete(text, few, 0), image_item, np.delete(text_item, few))
    with pytest.raises(EvaluationError, match=r"coco_5k: picture 40 has [23] captions; every picture needs at least 5"):
        FIRST_FIVE(*fewer)
    with pytest.raises(EvaluationError, match=r"picture p40.jpg has"):
        FIRST_FIVE(*fewer, picture_ids=[f"p{i}.jpg" for i in range(50)])


def test_flickr_1k_takes_all_captions_of_1_000_pictures() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(1000), rng.integers(1, 4, 1000))
    image = rng.standard_normal((1000, 6)).astype(np.float32)
    text = image[rows] + 0.3 * rng.standard_normal((len(rows), 6)).astype(np.float32)
    found = PROTOCOLS["flickr_1k"](image, text, np.arange(1000), rows)
    assert found.metrics == retrieval_metrics(image, text, rows)
    assert found.metrics["n_texts"] == len(rows)


def test_precision_at_r_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    query, candidate = rng.standard_normal((15, 6)), rng.standard_normal((40, 6))
    truth = rng.random((15, 40)) < 0.15
    truth[3] = False
    average, precision = precision_at_r(query, torch.from_numpy(candidate), np.argwhere(truth), normalize=False)
    expected = [
        reference.precision_at_r([reference.score(query[q], row) for row in candidate], set(np.flatnonzero(truth[q])))
        for q in range(15)
        if truth[q].any()
    ]
    assert np.stack([average, precision], 1) == pytest.approx(np.array(expected))


def test_precision_at_r_under_ties_is_the_mean_over_their_orders() -> None:
    scores, positives = [2, 2, 2, 5, 1, 1, 5], {0, 3, 4, 5}
    query, candidate = np.ones((1, 1)), np.array(scores, dtype=np.float64)[:, None]
    found = precision_at_r(query, candidate, np.array([[0, p] for p in positives]), normalize=False)
    every = [
        reference.precision_at_r([s + 1e-3 * place[j] for j, s in enumerate(scores)], positives)
        for place in permutations(range(7))
    ]
    assert (found[0][0], found[1][0]) == pytest.approx(tuple(np.mean(every, axis=0)))


def test_answers_that_are_no_candidates_count_in_r() -> None:
    query, candidate = np.ones((1, 1)), np.array([[3.0], [2.0], [1.0]])
    pairs = np.array([[0, 0], [0, 2]])
    average, precision = precision_at_r(query, candidate, pairs, listed=np.array([3]), normalize=False)
    assert average[0] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert precision[0] == pytest.approx(2 / 3)


def test_judged_ranks_only_what_was_judged() -> None:
    image, text = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 0, 2, 3, 3]]
    truth = GroundTruth(
        np.array([[0, 0], [0, 1], [3, 2]]), np.array([[2, 2]]), np.array([2, 0, 0, 1]), np.array([0, 0, 1, 0, 0])
    )
    found = judged(image, text, truth, text_item=np.array([0, 0, 2, 3, 3]))
    assert found.metrics["i2t_R@1"] == 50
    assert found.metrics["t2i_R@1"] == 100
    assert found.metrics["i2t_mAP@R"] == 50
    assert found.metrics["t2i_R-precision"] == 100
    assert found.ranks.i2t.judged.tolist() == [True, False, False, True]
    assert found.ranks.t2i.item.tolist() == [0, 0, 2, 3, 3]
    assert set(summarize(found.ranks)) < set(found.metrics)
