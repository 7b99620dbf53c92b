from collections import Counter

import numpy as np
import pytest

from jointembed.data.loader import BatchPlan, Loader
from jointembed.data.order import Layout, WindowedOrder, epoch_order, regrouped
from jointembed.errors import DataError

SIZES = (30, 0, 7, 100, 51, 12, 30, 1, 64)
TOTAL = sum(SIZES)


def whole_order(sizes: tuple[int, ...], window: int, seed: int, epoch: int, interleave: int = 8) -> np.ndarray:
    return WindowedOrder(Layout(sizes, window, interleave), seed, epoch)[:]


@pytest.mark.parametrize("window", [1, 10, 64, 1000])
@pytest.mark.parametrize("interleave", [1, 3, 20])
def test_every_sample_once_whatever_window_and_interleave(window: int, interleave: int) -> None:
    for epoch in range(3):
        order = whole_order(SIZES, window, 5, epoch, interleave=interleave)
        assert order.dtype == np.int64 and sorted(order) == list(range(TOTAL))


def test_any_part_is_that_part_of_the_whole() -> None:
    whole = WindowedOrder(Layout(SIZES, 32, 3), 1, 2)[:]
    rng = np.random.default_rng(0)
    for _ in range(200):  # asked for in any order: what was computed before leaves no trace
        start, stop = sorted(rng.integers(0, TOTAL + 1, 2))
        assert np.array_equal(WindowedOrder(Layout(SIZES, 32, 3), 1, 2)[start:stop], whole[start:stop])
    order = WindowedOrder(Layout(SIZES, 32, 3), 1, 2)
    parts = [order[start : start + 9] for start in range(0, TOTAL, 9)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_seeds_and_epochs_differ_and_are_the_same_again() -> None:
    one = whole_order(SIZES, 32, 0, 0)
    assert np.array_equal(one, whole_order(SIZES, 32, 0, 0))
    for seed, epoch in ((0, 1), (1, 0)):
        assert (one != whole_order(SIZES, 32, seed, epoch)).mean() > 0.9


def test_few_shards_are_open_at_once_and_each_is_read_forwards() -> None:
    sizes, window, interleave = (500,) * 40, 400, 4
    order = whole_order(sizes, window, 3, 0, interleave=interleave)
    shard = order // 500
    for start in range(0, len(order), window):
        assert len(set(shard[start : start + window])) <= 2 * interleave
    for number in range(40):
        places = order[shard == number] % 500
        # a sample is read at most a window's share before or after its turn
        assert np.abs(places - np.arange(500)).max() <= 2 * window / interleave
    batches = [set(shard[start : start + 64]) for start in range(0, len(order), 64)]
    assert np.mean([len(batch) for batch in batches]) > interleave - 0.5  # a batch mixes the open shards


def test_neighbours_are_torn_apart() -> None:
    order = whole_order((1000,) * 10, 1000, 0, 0)
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01


def test_samples_that_are_captions_follow_their_pictures() -> None:
    layout = regrouped(Layout((2, 3), 8, 2), np.array([5, 0, 1, 1, 4]))
    assert layout == Layout((5, 6), 8, 2)
    assert regrouped(None, np.array([1])) is None


def test_a_layout_of_other_samples_and_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="shards of 5 samples for a data set of 6"):
        epoch_order(Layout((2, 3), 8, 2), 6, 0)
    for window, interleave in ((0, 1), (1, 0)):
        with pytest.raises(DataError, match="must be at least 1"):
            WindowedOrder(Layout((2, 3), window, interleave), 0, 0)
    with pytest.raises(ValueError, match="forwards"):
        WindowedOrder(Layout((2, 3), 4, 1), 0, 0)[::-1]


def plan(**changes) -> BatchPlan:
    options = {"seed": 4, "start": 0, "stop": 3 * 20, "drop_last": False, "rank": 0, "world": 1} | changes
    return BatchPlan(TOTAL, 16, order=epoch_order(Layout(SIZES, 40, 2), TOTAL, 4), **options)


@pytest.mark.parametrize("world", [1, 3])
def test_a_plan_over_shards_loses_and_doubles_none_on_any_rank_from_any_step(world: int) -> None:
    steps = plan().per_epoch * 3
    whole = list(plan(stop=steps))
    assert set(Counter(key for batch in whole for key in batch).values()) == {1}
    assert sum(map(len, whole)) == 3 * TOTAL
    for start in range(0, steps, 5):
        parts = [list(plan(start=start, stop=steps, rank=rank, world=world)) for rank in range(world)]
        assert [sum((part[step] for part in parts), []) for step in range(steps - start)] == whole[start:]


class Keys:
    """Samples that are their own keys."""

    def __len__(self) -> int:
        return TOTAL

    def __getitems__(self, keys: list) -> dict:
        return {"keys": keys}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_out_the_batches(workers: int) -> None:
    loader = Loader(Keys(), plan(start=7, stop=30), workers=workers)  # type: ignore[arg-type]
    assert [batch["keys"] for batch in loader] == list(plan(start=7, stop=30))
