from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import retrieval_reference as reference

from jointembed.errors import EvaluationError
from jointembed.evaluation.retrieval import (
    RetrievalRanks,
    chance,
    hit_probability,
    merge_folds,
    retrieval_metrics,
    retrieval_ranks,
    summarize,
)


def random_case(seed: int) -> dict[str, Any]:
    """Ragged captions, some shared by several images; rows that tie exactly; every third case is scaled to length 1."""
    rng = np.random.default_rng(seed)
    n_images, dimension = int(rng.integers(1, 13)), int(rng.integers(1, 6))
    captions = rng.integers(1, 6, n_images)
    owner = rng.permutation(np.repeat(np.arange(n_images), captions))
    pairs = {(int(i), t) for t, i in enumerate(owner)}
    for _ in range(int(rng.integers(0, 4))):
        pairs.add((int(rng.integers(n_images)), int(rng.integers(len(owner)))))
    normalize = seed % 3 == 0
    if normalize:  # ties between equal rows only: other equal cosines would depend on rounding
        image, text = rng.standard_normal((n_images, dimension + 6)), rng.standard_normal((len(owner), dimension + 6))
    else:  # small whole numbers: every score is exact
        image = rng.integers(-2, 3, (n_images, dimension)).astype(np.float64)
        text = rng.integers(-2, 3, (len(owner), dimension)).astype(np.float64)
    for rows in (image, text):  # duplicates
        again = rng.random(len(rows)) < 0.3
        rows[again] = rows[rng.integers(0, len(rows), again.sum())]
    order = rng.permutation(len(pairs))
    return {
        "image": image.astype(np.float32),
        "text": text.astype(np.float32),
        "pairs": np.array(sorted(pairs))[order],
        "normalize": normalize,
        "block": int(rng.integers(1, 8)) if rng.random() < 0.7 else 1000,
    }


def unit(rows: np.ndarray) -> list[list[float]]:
    return [[float(x) for x in row / np.sqrt(np.sum(row.astype(np.float64) ** 2))] for row in rows.astype(np.float64)]


@pytest.mark.parametrize("seed", range(200))
def test_equals_the_brute_force_reference(seed: int) -> None:
    case = random_case(seed)
    ranks = retrieval_ranks(
        case["image"], case["text"], case["pairs"], normalize=case["normalize"], block=case["block"], k=(1, 3, 10)
    )
    rows = (unit(case["image"]), unit(case["text"])) if case["normalize"] else (case["image"], case["text"])
    pairs = {(int(i), int(t)) for i, t in case["pairs"]}
    for name, expected in reference.queries(*rows, pairs).items():
        found = ranks.directions[name]
        assert list(zip(found.above, found.ties, found.tied_positives, strict=True)) == expected
        for q, one in enumerate(expected):
            assert one is not None
            assert found.rank[q] == pytest.approx(float(reference.rank(*one)), abs=1e-12)
            for k in (1, 3, 10):
                assert found.hit(k)[q] == pytest.approx(float(reference.hit(*one, k)), abs=1e-12)
    numbers = reference.metrics(*rows, pairs, (1, 3, 10))
    assert summarize(ranks) == pytest.approx(numbers, abs=1e-9)
    assert list(summarize(ranks)) == list(numbers)


def test_the_random_cases_have_ties_duplicates_and_shared_texts() -> None:
    cases = [random_case(seed) for seed in range(200)]
    tied = sum(summarize(retrieval_ranks(c["image"], c["text"], c["pairs"]))["tied_queries"] > 0 for c in cases)
    assert tied > 100
    assert sum(len(np.unique(c["image"], axis=0)) < len(c["image"]) for c in cases) > 50
    assert sum(len(c["pairs"]) > len(c["text"]) for c in cases) > 50


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 4), st.integers(1, 12))
def test_hit_and_rank_are_means_over_every_order_of_the_ties(above: int, tied: int, positives: int, k: int) -> None:
    exact = reference.hit_by_enumeration(above, tied, positives, k)
    assert exact == reference.hit(above, tied, positives, k)
    found = hit_probability(np.array([above]), np.array([tied]), np.array([positives]), k)
    assert found[0] == pytest.approx(float(exact), abs=1e-14)
    mean_rank = reference.rank_by_enumeration(above, tied, positives)
    assert mean_rank == reference.rank(above, tied, positives)
    assert mean_rank == above + 1 + Fraction(tied, positives + 1)


def test_numbers_by_hand() -> None:
    image = np.eye(3, dtype=np.float32)
    text = np.array([[9, 1, 0], [1, 9, 0], [0, 9, 1], [0, 0, 1]], dtype=np.float32)
    # Image 1 finds its own text and one of image 0 at the same score; text 1 finds its image second.
    assert retrieval_metrics(image, text, [0, 0, 1, 2], k=(1, 2)) == pytest.approx(
        {
            "i2t_R@1": 100 * 2.5 / 3,
            "i2t_R@2": 100.0,
            "t2i_R@1": 75.0,
            "t2i_R@2": 100.0,
            "rsum": 250 / 3 + 275.0,
            "i2t_medr": 1.0,
            "i2t_meanr": 3.5 / 3,
            "t2i_medr": 1.0,
            "t2i_meanr": 1.25,
            "tied_queries": 1.0,
            "n_images": 3.0,
            "n_texts": 4.0,
        }
    )


PAIRS = np.stack([np.arange(60) // 3, np.arange(60)], axis=1)  # 20 images with 3 texts each


def some_embeddings(seed: int = 0, dimension: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(20, dimension, generator=generator)
    return image, image.repeat_interleave(3, 0) + torch.randn(60, dimension, generator=generator)


def same(a: RetrievalRanks, b: RetrievalRanks) -> bool:
    fields = ("above", "ties", "tied_positives", "positives")
    return all(
        np.array_equal(getattr(a.directions[name], field), getattr(b.directions[name], field))
        for name in a.directions
        for field in fields
    )


@pytest.mark.parametrize("dimension", [1, 7, 64, 1000])
@pytest.mark.parametrize("kind", ["constant", "one image", "one text", "zeros"])
def test_collapsed_embeddings_score_chance_exactly(kind: str, dimension: int) -> None:
    image, text = some_embeddings(dimension=dimension)
    image = image[:1].repeat(20, 1) if kind in ("constant", "one image") else image
    text = text[:1].repeat(60, 1) if kind in ("constant", "one text") else text
    image, text = (image * 0, text * 0) if kind == "zeros" else (image, text)
    found = summarize(retrieval_ranks(image, text, PAIRS, block=7))
    level = chance(PAIRS, 20, 60)
    for direction, collapsed in (("i2t", kind != "one image"), ("t2i", kind != "one text")):
        if collapsed:
            for name in (f"{direction}_R@1", f"{direction}_R@5", f"{direction}_R@10", f"{direction}_meanr"):
                assert found[name] == level[name]
    assert level["t2i_R@1"] == pytest.approx(5)
    assert level["i2t_R@1"] == pytest.approx(5)
    assert level["t2i_R@10"] == pytest.approx(50)
    assert level["t2i_meanr"] == pytest.approx(10.5)


def test_chance_of_queries_with_several_positives() -> None:
    level = chance([[0, 1], [1], []], 3, 3, k=(1, 2))  # image 2 has no text, text 2 no image
    assert level["i2t_R@1"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)
    assert level["i2t_R@2"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert level["t2i_R@1"] == pytest.approx(100 * (1 / 3 + 2 / 3) / 2)
    assert level["tied_queries"] == 4


def test_equal_captions_tie_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((40, 300)).astype(np.float32)
    text = np.repeat(image, 5, axis=0) + rng.standard_normal((200, 300)).astype(np.float32)
    text[-1] = text[0]  # a caption of image 39 that says what one of image 0 says
    pairs = np.stack([np.arange(200) // 5, np.arange(200)], axis=1)
    for block in (1, 3, 17, 39, 40):
        ranks = retrieval_ranks(image, text, pairs, block=block)
        assert ranks.t2i.rank[0] != ranks.t2i.rank[-1]
        best_is_shared = ranks.i2t.ties[0] == 1
        scores = (image[0] / np.linalg.norm(image[0])) @ (text[:5] / np.linalg.norm(text[:5], axis=1, keepdims=True)).T
        assert best_is_shared == (scores.argmax() == 0)
        assert summarize(ranks)["tied_queries"] == int(best_is_shared)


def test_an_image_repeated_once_per_caption_does_not_cap_a_perfect_model() -> None:
    image = np.eye(6, dtype=np.float32)
    repeated = image.repeat(5, axis=0)
    pairs = np.array([(i, t) for i in range(30) for t in range(30) if i // 5 == t // 5])
    assert summarize(retrieval_ranks(repeated, repeated, pairs))["rsum"] == pytest.approx(600)
    one_each = np.stack([np.arange(30)] * 2, axis=1)  # as wrong code pairs them
    assert summarize(retrieval_ranks(repeated, repeated, one_each))["i2t_R@1"] == pytest.approx(20)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 19, 20, 1000])
def test_block_size_does_not_matter(block: int) -> None:
    image, text = some_embeddings()
    rng = np.random.default_rng(block)
    scattered = np.unique(np.concatenate([PAIRS, rng.integers(0, 20, (9, 2))]), axis=0)
    for pairs in (PAIRS, scattered):
        assert same(retrieval_ranks(image, text, pairs, block=block), retrieval_ranks(image, text, pairs))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_order_of_rows_and_directions_do_not_matter(seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    image, text = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (9, 14))
    pairs = np.unique(np.stack([rng.integers(0, 9, 20), rng.integers(0, 14, 20)], 1), axis=0)
    ranks = retrieval_ranks(image, text, pairs, normalize=False, missing="ignore", block=block)
    a, b = rng.permutation(9), rng.permutation(14)
    moved = np.stack([np.argsort(a)[pairs[:, 0]], np.argsort(b)[pairs[:, 1]]], axis=1)
    other = retrieval_ranks(image[a], text[b], moved, normalize=False, missing="ignore")
    swapped = retrieval_ranks(text, image, pairs[:, ::-1], normalize=False, missing="ignore")
    for field in ("above", "ties", "tied_positives", "positives"):
        assert np.array_equal(getattr(ranks.i2t, field)[a], getattr(other.i2t, field))
        assert np.array_equal(getattr(ranks.t2i, field)[b], getattr(other.t2i, field))
        assert np.array_equal(getattr(ranks.i2t, field), getattr(swapped.t2i, field))
    for direction in ranks.directions.values():
        asked = direction.judged
        assert np.all((direction.rank[asked] >= 1) & (direction.rank[asked] <= direction.candidates))
        assert np.all(direction.hit(1)[asked] <= direction.hit(5)[asked] + 1e-15)
        assert np.isnan(direction.rank[~asked]).all()


def test_a_pair_given_per_direction_counts_in_that_direction_only() -> None:
    image, text = some_embeddings()
    one_way = np.array([[0, 59], [7, 0]])
    other_way = np.array([[3, 4]])
    both = retrieval_ranks(image, text, one_way, t2i_positives=other_way, missing="ignore")
    first = retrieval_ranks(image, text, one_way, missing="ignore")
    second = retrieval_ranks(image, text, other_way, missing="ignore")
    assert np.array_equal(both.i2t.rank, first.i2t.rank, equal_nan=True)
    assert np.array_equal(both.t2i.rank, second.t2i.rank, equal_nan=True)
    assert both.i2t.judged.nonzero()[0].tolist() == [0, 7]
    assert both.t2i.judged.nonzero()[0].tolist() == [4]


def test_lists_and_arrays_of_any_floating_type_say_the_same() -> None:
    image, text = (rows.bfloat16().float() for rows in some_embeddings())
    expected = retrieval_ranks(image, text, PAIRS)
    lists = [list(range(3 * i, 3 * i + 3)) for i in range(20)]
    assert same(retrieval_ranks(image, text, lists), expected)
    changes: list[Callable[[torch.Tensor], torch.Tensor | np.ndarray]] = [
        torch.Tensor.bfloat16,
        torch.Tensor.double,
        torch.Tensor.numpy,
        lambda x: x.double().numpy(),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.T.contiguous().T,
        lambda x: torch.cat([x, x], dim=1)[:, :16].requires_grad_(),
    ]
    for change in changes:
        assert same(retrieval_ranks(change(image), change(text), torch.from_numpy(PAIRS)), expected)
    read_only = image.numpy()[::-1]
    read_only.flags.writeable = False
    flipped = np.stack([19 - PAIRS[:, 0], PAIRS[:, 1]], axis=1)
    assert np.array_equal(retrieval_ranks(read_only, text, flipped).t2i.rank, expected.t2i.rank)


def test_scale_matters_only_without_normalizing() -> None:
    image, text = some_embeddings()
    factor = torch.tensor([2.0 ** (i % 7 - 3) for i in range(60)])[:, None]
    assert same(retrieval_ranks(image, text * factor, PAIRS), retrieval_ranks(image, text, PAIRS))
    assert not same(
        retrieval_ranks(image, text * factor, PAIRS, normalize=False),
        retrieval_ranks(image, text, PAIRS, normalize=False),
    )
    assert same(retrieval_ranks(image * 2.0**120, text * 2.0**-120, PAIRS), retrieval_ranks(image, text, PAIRS))


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
def test_values_that_are_not_finite_are_refused_with_their_row(side: str, value: float, normalize: bool) -> None:
    image, text = some_embeddings()
    {"image": image, "text": text}[side][13, 5] = value
    with pytest.raises(EvaluationError, match=rf"{side} embeddings: row 13 holds {value}"):
        retrieval_ranks(image, text, PAIRS, normalize=normalize)
    with pytest.raises(EvaluationError, match="row 13"):
        retrieval_metrics(image.numpy(), text.numpy(), PAIRS[:, 0])


def test_values_beyond_float32_are_refused() -> None:
    image, text = some_embeddings()
    with pytest.raises(EvaluationError, match="image embeddings: row 0 holds"):
        retrieval_ranks(image.double() * 1e60, text, PAIRS)
    large = retrieval_ranks(image * 2.0**70, text * 2.0**70, PAIRS, normalize=False)  # no sum of squares fits float32
    assert same(large, retrieval_ranks(image, text, PAIRS, normalize=False))
    assert same(retrieval_ranks(image * 2.0**100, text * 2.0**100, PAIRS), retrieval_ranks(image, text, PAIRS))


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        (np.array([[0, 0], [20, 1]]), "pair 1 names image 20, but there are 20 images"),
        (np.array([[0, 0], [1, 60]]), "pair 1 names text 60, but there are 60 texts"),
        (np.array([[0, 0], [-1, 1]]), "pair 1 names image -1"),
        (np.concatenate([PAIRS, PAIRS[7:8]]), "image 2 and text 7 is given more than once"),
        (PAIRS[:-3], "image 19 has no positive"),
        (np.delete(PAIRS, 5, axis=0), "text 5 has no positive"),
        (np.empty((0, 2), dtype=np.int64), "empty"),
        (PAIRS.astype(np.float64), r"float64; expected whole \(P, 2\) pairs"),
        (PAIRS.T, r"shape \(2, 60\)"),
        ([[0, 1], [2]], "list the texts of 2 images, but there are 20"),
        ([[0.5]] + [[i] for i in range(1, 20)], r"positives\[0\].*float64"),
    ],
)
def test_positives_that_do_not_fit_are_refused(positives: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        retrieval_ranks(*some_embeddings(), positives)


def test_other_misfits_are_refused() -> None:
    image, text = some_embeddings()
    for arguments, message in (
        ((image[:, :5], text, PAIRS), "5 dimensions and text embeddings 16"),
        ((image[0], text, PAIRS), r"image embeddings have shape \(16,\)"),
        ((image, text[:0], PAIRS), r"text embeddings have shape \(0, 16\)"),
        ((image.long(), text, PAIRS), "image embeddings are of type torch.int64"),
        ((image, text.tolist(), PAIRS), "text embeddings are a list"),
    ):
        with pytest.raises(EvaluationError, match=message):
            retrieval_ranks(*arguments)
    for options, message in (
        ({"k": (1, 1)}, "k is"),
        ({"k": (0,)}, "k is"),
        ({"k": (2.5,)}, "k is"),
        ({"block": 0}, "block is 0"),
        ({"missing": "skip"}, "missing is 'skip'"),
        ({"image_item": np.arange(3)}, "image_item has shape"),
    ):
        with pytest.raises(EvaluationError, match=message):
            retrieval_ranks(image, text, PAIRS, **options)
    with pytest.raises(EvaluationError, match="image_of_text"):
        retrieval_metrics(image, text, np.arange(59))


def test_queries_without_a_positive_are_left_out_but_stay_candidates() -> None:
    image = np.eye(4, dtype=np.float32)
    text = np.eye(4, dtype=np.float32)[[1, 1, 2]]
    with pytest.raises(EvaluationError, match="missing='ignore'"):
        retrieval_ranks(image, text, np.array([[0, 0]]))
    ranks = retrieval_ranks(image, text, np.array([[0, 0], [1, 1]]), missing="ignore", k=(1, 2))
    assert ranks.i2t.rank[:2].tolist() == [2.0, 1.5]
    assert np.isnan(ranks.i2t.rank[2:]).all()
    assert summarize(ranks)["i2t_R@1"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert summarize(ranks)["n_images"] == 4


def test_clusters_are_images_unless_items_are_given() -> None:
    image, text = some_embeddings()
    ranks = retrieval_ranks(image, text, PAIRS)
    assert np.array_equal(ranks.i2t.item, np.arange(20))
    assert np.array_equal(ranks.t2i.item, np.arange(60) // 3)
    ranks = retrieval_ranks(image, text, PAIRS, image_item=np.arange(20) // 2, text_item=np.arange(60) // 6)
    assert np.array_equal(ranks.i2t.item, np.arange(20) // 2)
    assert np.array_equal(ranks.t2i.item, np.arange(60) // 6)


@pytest.fixture
def low_precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_scores_are_exact_whatever_the_process_asked_for(low_precision: None) -> None:
    # One positive, and a negative that is behind by less than bfloat16 can tell.
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(64, 512, generator=generator)
    near = image + 1e-3 * torch.randn(64, 512, generator=generator)
    text, pairs = torch.cat([image, near]), np.stack([np.tile(np.arange(64), 2), np.arange(128)], axis=1)
    own = pairs[:64]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks = retrieval_ranks(image, text, own, missing="ignore")
    assert summarize(ranks)["i2t_R@1"] == 100
    assert summarize(ranks)["tied_queries"] == 0
    assert torch.get_float32_matmul_precision() == "medium"


def test_folds_are_averaged() -> None:
    image, text = some_embeddings()
    halves = [
        retrieval_ranks(image[i : i + 10], text[3 * i : 3 * i + 30], PAIRS[:30], image_item=np.arange(i, i + 10))
        for i in (0, 10)
    ]
    merged = summarize(merge_folds(halves))
    for name, value in merged.items():
        each = [summarize(half)[name] for half in halves]
        assert value == pytest.approx(sum(each) if name == "tied_queries" else np.mean(each))
    with pytest.raises(EvaluationError, match="equally many candidates"):
        merge_folds([halves[0], retrieval_ranks(image, text, PAIRS)])
