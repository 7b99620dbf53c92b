from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from jointembed.data.loader import BatchPlan, Loader, slice_rows, steps_per_epoch
from jointembed.data.records import CaptionData
from jointembed.data.samples import CaptionSamples, draw_view, sample_seed
from jointembed.data.tokens import words
from jointembed.errors import DataError


class Drawn:
    names: list[str]
    """Pictures that are made, not read."""

    def __init__(self, count: int) -> None:
        self.names = [f"{number}.png" for number in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (number, 0, 0))

    def sizes(self) -> list[int]:
        return [1] * len(self.names)


class Noise:
    views: tuple[str, ...] = ("image",)
    random = True

    def __call__(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        return {"image": torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)}


def make_data(items: int = 6, pictures_each: int = 1) -> CaptionData:
    count = items * pictures_each
    return CaptionData(
        "drawn",
        Drawn(count),
        np.repeat(np.arange(items), pictures_each),
        tuple(tuple(f"item {item} caption {k}" for k in range(1 + item % 3)) for item in range(items)),
        tuple(str(number) for number in range(count)),
    )


def make_samples(data: CaptionData, captions: str = "all") -> CaptionSamples:
    return CaptionSamples(data, Noise(), words(data.texts, threshold=1), captions, seed=5)  # type: ignore[arg-type]


def plan(samples: int, batch: int, **changes) -> BatchPlan:
    options = {"seed": 0, "start": 0, "stop": 100, "drop_last": True, "rank": 0, "world": 1} | changes
    return BatchPlan(samples, batch, **options)


def test_every_sample_once_an_epoch() -> None:
    seen = Counter(key for batch in plan(10, 3, stop=12, drop_last=False) for key in batch)
    assert set(seen) == {(epoch, index) for epoch in range(3) for index in range(10)}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_out_the_batches_of_one_process(world: int) -> None:
    whole = list(plan(24, 7, stop=9, drop_last=False))
    parts = [list(plan(24, 7, stop=9, drop_last=False, rank=rank, world=world)) for rank in range(world)]
    assert [sum((part[step] for part in parts), []) for step in range(9)] == whole


def test_starting_late_is_the_rest_of_the_whole() -> None:
    assert list(plan(23, 7, stop=20))[11:] == list(plan(23, 7, start=11, stop=20))


def test_epochs_differ_and_seeds_differ() -> None:
    first, second = list(plan(50, 50, stop=2))
    assert [i for _, i in first] != [i for _, i in second]
    assert [i for _, i in first] != [i for _, i in next(iter(plan(50, 50, seed=1)))]


def test_no_batch_and_empty_ranks_are_refused() -> None:
    with pytest.raises(DataError, match="do not fill one batch of 8"):
        steps_per_epoch(7, 8, True, 1)
    with pytest.raises(DataError, match="leaves a rank of 4 without any"):
        steps_per_epoch(9, 8, False, 4)
    assert steps_per_epoch(17, 8, True, 4) == 2


@pytest.mark.parametrize("captions", ["random", "all"])
def test_same_batches_for_any_number_of_workers(captions: str) -> None:
    samples = make_samples(make_data(), captions)
    runs = []
    for workers in (0, 2):
        before = torch.get_rng_state()
        loader = Loader(samples, plan(len(samples), 2, stop=8), workers=workers)
        runs.append([batch for batch in loader])
        assert torch.equal(before, torch.get_rng_state())  # the global stream is not touched
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["text"]["ids"], other["text"]["ids"])
        assert torch.equal(one["index"], other["index"])


def test_an_epoch_of_all_captions_shows_each_caption_once() -> None:
    data = make_data()
    samples = make_samples(data, "all")
    texts = [samples.pick((0, number))[1] for number in range(len(samples))]
    assert sorted(texts) == list(range(len(data.texts)))
    for number in range(len(samples)):
        picture, text, item = samples.pick((0, number))
        assert data.item[picture] == data.text_item[text] == item


def test_random_captions_reach_every_caption_and_every_rendering() -> None:
    data = make_data(items=3, pictures_each=2)
    samples = make_samples(data, "random")
    assert len(samples) == 6
    assert {samples.pick((epoch, n))[1] for epoch in range(40) for n in range(6)} == set(range(len(data.texts)))
    samples = make_samples(data, "all")
    assert {samples.pick((epoch, n))[0] for epoch in range(40) for n in range(len(samples))} == set(range(6))


def test_a_view_draws_from_its_own_stream() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = draw_view(Noise(), Image.new("RGB", (8, 8)), sample_seed(0, 1, 2))
    again = draw_view(Noise(), Image.new("RGB", (8, 8)), sample_seed(0, 1, 2))
    other = draw_view(Noise(), Image.new("RGB", (8, 8)), sample_seed(0, 1, 3))
    assert torch.equal(one["image"], again["image"]) and not torch.equal(one["image"], other["image"])
    assert torch.equal(before, torch.get_rng_state())


def test_sample_seeds_differ_in_every_argument() -> None:
    grid = [(s, e, i, t) for s in range(4) for e in range(4) for i in range(16) for t in range(2)]
    assert len({sample_seed(*numbers) for numbers in grid}) == len(grid)


def test_cached_representations_replace_pictures() -> None:
    data = make_data()
    rows = torch.arange(6.0)[:, None].expand(6, 4)
    samples = CaptionSamples(data, Noise(), words(data.texts, threshold=1), "all", 0, cached=rows)
    batch = samples[(0, 3)]
    assert batch["image"]["h"][0, 0] == batch["item"][0]
    assert samples.describe([(0, 3)]) == [f"{int(batch['item'][0])}.png"]


def test_slices_cut_text_to_its_own_longest() -> None:
    batch = {"text": {"ids": torch.tensor([[1, 2, 3], [4, 0, 0]]), "length": torch.tensor([3, 1])}}
    assert slice_rows(batch, 1, 2)["text"]["ids"].tolist() == [[4]]


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="no caption, or an empty one"):
        CaptionData("x", Drawn(1), np.zeros(1, dtype=np.int64), ((" ",),), ("7",))
    with pytest.raises(DataError, match="picture 7 shows item 3"):
        CaptionData("x", Drawn(1), np.full(1, 3), (("a",),), ("7",))
    with pytest.raises(DataError, match="equally many"):
        CaptionData("x", Drawn(2), np.zeros(1, dtype=np.int64), (("a",),), ("7",))


def test_positives_join_every_rendering_with_every_caption() -> None:
    data = make_data(items=2, pictures_each=2)
    assert data.positives.tolist() == [[0, 0], [1, 0], [2, 1], [2, 2], [3, 1], [3, 2]]
