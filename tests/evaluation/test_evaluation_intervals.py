import numpy as np
import pytest

from jointembed.errors import EvaluationError
from jointembed.evaluation.intervals import intervals, paired_difference, resample
from jointembed.evaluation.retrieval import RetrievalRanks, merge_folds, retrieval_ranks, summarize

PAIRS = np.stack([np.arange(200) // 4, np.arange(200)], axis=1)  # 50 images with 4 texts each


def make(noise: float, seed: int = 0, **options: object) -> RetrievalRanks:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((50, 8)).astype(np.float32)
    text = image.repeat(4, axis=0) + noise * np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    return retrieval_ranks(image, text, PAIRS, **options)  # type: ignore[arg-type]


def by_hand(ranks: RetrievalRanks, drawn: np.ndarray) -> dict[str, float]:
    """The numbers of queries written out as often as their item was drawn."""
    found: dict[str, float] = {}
    chosen = {
        name: np.concatenate([np.flatnonzero(one.item == item) for item in drawn])
        for name, one in ranks.directions.items()
    }
    for name, rows in chosen.items():
        for k in ranks.k:
            found[f"{name}_R@{k}"] = 100 * float(np.mean(ranks.directions[name].hit(k)[rows]))
    found["rsum"] = sum(found.values())
    for name, rows in chosen.items():
        rank = ranks.directions[name].rank[rows]
        found |= {f"{name}_medr": float(np.floor(np.median(rank))), f"{name}_meanr": float(np.mean(rank))}
    return found


def test_resamples_are_what_writing_the_drawn_queries_out_gives() -> None:
    ranks = make(1.5)
    found = resample(ranks, samples=20, seed=3)
    rng = np.random.default_rng(3)
    for sample in range(20):
        expected = by_hand(ranks, rng.integers(0, 50, 50))
        assert {name: values[sample] for name, values in found.items()} == pytest.approx(expected)


def test_every_number_that_depends_on_ranks_has_an_interval_around_it() -> None:
    ranks = make(1.5)
    numbers, found = summarize(ranks), intervals(ranks, samples=400)
    assert set(numbers) - set(found) == {"tied_queries", "n_images", "n_texts"}
    for name, (low, high) in found.items():
        assert low <= numbers[name] <= high
    assert found["rsum"][0] < found["rsum"][1]
    wider = intervals(ranks, samples=400, level=0.99)["rsum"]
    assert wider[0] < found["rsum"][0] < found["rsum"][1] < wider[1]


def test_width_is_the_standard_error_of_items() -> None:
    ranks = make(1.5)
    hits = ranks.i2t.hit(1)
    low, high = intervals(ranks, samples=4000, seed=1)["i2t_R@1"]
    assert (high - low) / 2 == pytest.approx(1.96 * 100 * hits.std() / np.sqrt(50), rel=0.1)
    by_item = ranks.t2i.hit(1).reshape(50, 4).mean(axis=1)
    low, high = intervals(ranks, samples=4000, seed=1)["t2i_R@1"]
    assert (high - low) / 2 == pytest.approx(1.96 * 100 * by_item.std() / np.sqrt(50), rel=0.1)


def test_captions_of_one_item_are_drawn_together() -> None:
    pairs = np.stack([np.zeros(200, dtype=np.int64) + np.arange(200) // 4, np.arange(200)], axis=1)
    image = np.repeat(np.eye(2, dtype=np.float32), 25, axis=0)
    text = np.repeat(np.eye(2, dtype=np.float32), 100, axis=0)
    alike = retrieval_ranks(image, text, pairs, image_item=np.arange(50) // 25, text_item=np.arange(200) // 100)
    alone = retrieval_ranks(image, text, pairs)
    assert len(np.unique(resample(alike, samples=200, seed=0)["t2i_R@1"])) == 1
    assert np.array_equal(alike.t2i.rank, alone.t2i.rank)
    two = make(1.5, image_item=np.arange(50) // 25, text_item=np.arange(200) // 100)
    assert len(np.unique(resample(two, samples=200, seed=0)["t2i_R@1"])) <= 3


def test_seed_fixes_the_intervals() -> None:
    ranks = make(1.5)
    assert intervals(ranks, samples=50, seed=4) == intervals(ranks, samples=50, seed=4)
    assert intervals(ranks, samples=50, seed=4) != intervals(ranks, samples=50, seed=5)


def test_blocks_of_resamples_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = make(1.5)
    whole = resample(ranks, samples=30, seed=0)
    monkeypatch.setattr("jointembed.evaluation.intervals._AT_ONCE", 1400)  # 7 at a time
    for name, values in resample(ranks, samples=30, seed=0).items():
        assert np.array_equal(values, whole[name])


def test_folds_are_resampled_one_by_one() -> None:
    good, bad = make(0.1), make(5.0, image_item=np.arange(50, 100))
    merged = merge_folds([good, bad])
    drawn = resample(merged, samples=300, seed=0)
    numbers = summarize(merged)
    for name in ("t2i_R@1", "t2i_meanr", "rsum"):
        assert np.mean(drawn[name]) == pytest.approx(numbers[name], rel=0.05)
    # Both folds always count half: the spread is that of the folds, not of how many items either of them got.
    spread = np.hypot(*[np.std(resample(one, samples=300, seed=1)["t2i_R@1"]) for one in (good, bad)]) / 2
    assert np.std(drawn["t2i_R@1"]) == pytest.approx(spread, rel=0.2)


def test_queries_that_were_not_judged_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((50, 8)), rng.standard_normal((200, 8))
    few = retrieval_ranks(image, text, PAIRS[:40], missing="ignore")
    alone = intervals(few, samples=200)
    assert all(np.isfinite(value) for pair in alone.values() for value in pair)
    one_way = retrieval_ranks(image, text, PAIRS[:2], t2i_positives=PAIRS[10:12], missing="ignore")
    found = intervals(one_way, samples=50)  # some resamples have no query of one direction at all
    assert np.isfinite(found["i2t_meanr"]).all()
    assert np.isfinite(found["t2i_medr"]).all()


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    worse, better = make(1.5), make(1.3)
    found = paired_difference(better, worse)
    a, b = summarize(better), summarize(worse)
    for name, one in found.items():
        assert one.difference == a[name] - b[name]
        assert one.low <= one.high
    assert found["rsum"].low > 0
    assert found["rsum"].share < 0.05
    assert intervals(better)["rsum"][0] < intervals(worse)["rsum"][1]
    plain = paired_difference(make(0.1), make(5.0), samples=100)["rsum"]
    assert plain.share == pytest.approx(2 / 101)  # no resample on the other side, but no more than 100 were drawn
    turned = paired_difference(worse, better)["rsum"]
    assert (turned.low, turned.high) == pytest.approx((-found["rsum"].high, -found["rsum"].low))
    assert turned.share == found["rsum"].share


def test_a_run_does_not_differ_from_itself() -> None:
    for one in paired_difference(make(1.0), make(1.0), samples=20).values():
        assert one == (0, 0, 0, 1)


def test_only_runs_on_the_same_queries_are_paired() -> None:
    ranks = make(1.0)
    image, text = np.eye(50, 8), np.ones((200, 8))
    for other, message in (
        (make(1.0, k=(1, 5)), "different K"),
        (make(1.0, image_item=np.arange(1, 51)), "i2t: query 0 has item 0 in one run and 1"),
        (retrieval_ranks(image, text, PAIRS[:-4], missing="ignore"), "i2t: query 49 has positives 4"),
        (retrieval_ranks(image[:49], text[:196], PAIRS[:196]), "50 queries among 200 candidates"),
    ):
        with pytest.raises(EvaluationError, match=message):
            paired_difference(ranks, other)


def test_a_bootstrap_that_makes_no_interval_is_refused() -> None:
    with pytest.raises(EvaluationError, match="samples is 1"):
        intervals(make(1.0), samples=1)
    with pytest.raises(EvaluationError, match="level is 95"):
        intervals(make(1.0), level=95, samples=10)
