import math
from typing import Any

import numpy as np
import pytest
import torch

from jointembed.bench.retrieval import made_up
from jointembed.errors import EvaluationError
from jointembed.evaluation import counting
from jointembed.evaluation.retrieval import RetrievalRanks, retrieval_ranks

CPU = torch.device("cpu")
ALL = [torch.bfloat16, torch.float32, torch.float64]


def whole_numbers(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Many equal rows, many ties, texts that several images share, queries without a positive."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-2, 3, (30, 3)).astype(np.float32)
    text = rng.integers(-2, 3, (70, 3)).astype(np.float32)
    return image, text, np.unique(np.stack([rng.integers(0, 30, 90), rng.integers(0, 70, 90)], axis=1), axis=0)


def near_ones(seed: int, apart: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings about one direction, as of a model without centring: no low precision tells them apart."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(64)
    image = centre + apart * rng.standard_normal((40, 64))
    text = np.repeat(image, 3, axis=0) + apart * rng.standard_normal((120, 64))
    image, text = image.astype(np.float32), text.astype(np.float32)
    text[rng.integers(0, 120, 12)] = text[rng.integers(0, 120, 12)]
    return image, text, np.stack([np.arange(120) // 3, np.arange(120)], axis=1)


def counts(ranks: RetrievalRanks) -> list[np.ndarray]:
    return [getattr(one, name) for one in ranks.directions.values() for name in ("above", "ties", "tied_positives")]


def by_definition(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> list[np.ndarray]:
    """Cosines in float64, every candidate compared with every query's best positive."""
    rows = [one.astype(np.float64) for one in (image, text)]
    units = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-300) for one in rows]
    found = []
    for scores, truth in ((units[0] @ units[1].T, pairs), (units[1] @ units[0].T, pairs[:, ::-1])):
        positive = np.zeros(scores.shape, dtype=bool)
        positive[tuple(truth.T)] = True
        best = np.where(positive, scores, -math.inf).max(1, keepdims=True)
        above, level = scores > best + 1e-12, np.abs(scores - best) <= 1e-12
        asked = positive.any(1)
        found += [(above & ~positive).sum(1) * asked, (level & ~positive).sum(1) * asked, (level & positive).sum(1)]
    return found


@pytest.mark.parametrize("most_near", [0.0, 1 / 64, math.inf])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_precision_does_not_matter(monkeypatch: pytest.MonkeyPatch, first: int, most_near: float) -> None:
    monkeypatch.setattr(counting, "precisions", lambda _: ALL[first:])
    monkeypatch.setattr(counting, "_MOST_NEAR", most_near)
    for case in (whole_numbers(0), near_ones(1, 1.0), near_ones(2, 1e-2), near_ones(3, 1e-4)):
        found = counts(retrieval_ranks(*case, missing="ignore"))
        for one, other in zip(found, by_definition(*case), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(("height", "width", "piece"), [(1, 1, 1), (3, 16, 5), (7, 64, 100), (30, 70, 1 << 18)])
def test_size_of_tiles_does_not_matter(monkeypatch: pytest.MonkeyPatch, height: int, width: int, piece: int) -> None:
    cases = whole_numbers(0), near_ones(1, 1e-2)
    whole = [counts(retrieval_ranks(*case, normalize=False, missing="ignore")) for case in cases]
    monkeypatch.setattr(counting, "HEIGHT", height)
    monkeypatch.setattr(counting, "WIDTH", width)
    monkeypatch.setattr(counting, "_PIECE", piece)
    for case, expected in zip(cases, whole, strict=True):
        for block in (1, 4, 1000):
            found = counts(retrieval_ranks(*case, normalize=False, missing="ignore", block=block))
            assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", ALL[:2])
@pytest.mark.parametrize("kind", ["unit", "lengths", "aligned", "tiny"])
def test_the_true_score_is_within_the_margin(dtype: torch.dtype, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 48, generator=generator) for n in (50, 70))
    if kind == "lengths":
        image *= torch.logspace(-6, 6, 50)[:, None]
    if kind == "aligned":  # everything rounded off points the same way
        image = torch.full((50, 48), 1 + 2.0**-9) + torch.rand(50, 1, generator=generator) * 2.0**-9
        text = image.repeat(2, 1)[:70] * (1 + 2.0**-10)
    if kind == "tiny":
        image, text = image * 2.0**-140, text * 2.0**-140
    normalize = kind in ("unit", "aligned")
    sides = counting._Side("image", image, normalize, CPU), counting._Side("text", text, normalize, CPU)
    counter = counting._Counter(sides, np.array([[0, 0]]), (np.array([True]),) * 2, 1, 100)
    rows = [side.read(0, 100) for side in sides]
    true = rows[0].exact(slice(None)) @ rows[1].exact(slice(None)).T
    rounded = [one.rounded(dtype) for one in rows]
    scores = torch.mm(rounded[0][0], rounded[1][0].T)
    for column in range(70):  # as if each text in turn were the best positive of every image
        counter.best = [true[:, column], true[0].expand(70)]
        low, high = counter._bounds(0, slice(0, 50), rounded, dtype)
        assert not bool(((scores > high[:, None]) & (true <= true[:, [column]])).any())
        assert not bool(((scores < low[:, None]) & (true >= true[:, [column]])).any())
        assert bool((low < high).all())


def test_most_scores_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []
    single = 0
    product, dots = counting._Counter._product, counting._dots

    def noted(self: Any, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        made.append(images.dtype)
        return product(self, images, texts)

    def counted(images: Any, texts: Any, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        nonlocal single
        single += len(row)
        return dots(images, texts, row, column)

    monkeypatch.setattr(counting._Counter, "_product", noted)
    monkeypatch.setattr(counting, "_dots", counted)
    monkeypatch.setattr(counting, "precisions", lambda _: ALL)
    monkeypatch.setattr(counting, "HEIGHT", 100)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((400, 256)).astype(np.float32)
    text = image + rng.standard_normal((400, 256)).astype(np.float32)
    pairs = np.stack([np.arange(400)] * 2, axis=1)
    retrieval_ranks(image, text, pairs)
    assert made == [torch.bfloat16] * 4
    assert 3 * 400 <= single < 4 * 400  # the positives once, then in both directions; hardly anything else
    made.clear()
    retrieval_ranks(*near_ones(0, 1e-9))  # collapsed but for rounding: after the first tile nothing else is tried
    assert made == [torch.bfloat16, torch.float32, torch.float64]


def test_equal_scores_of_different_rows_tie() -> None:
    image = np.array([[1, 2, 3], [5, 5, 5]], dtype=np.float32)
    text = np.array([[3, 1, 2], [1, 2, 3], [2, 3, 1], [1, 1, 1]], dtype=np.float32)
    ranks = retrieval_ranks(image, text, np.array([[0, 0], [1, 0]]), missing="ignore")
    assert ranks.i2t.ties.tolist() == [1, 2]  # to (1, 2, 3), (2, 3, 1) is as near; to (5, 5, 5) every order is
    assert ranks.i2t.above.tolist() == [2, 1]


def test_a_product_that_is_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    product = counting._Counter._product
    monkeypatch.setattr(counting._Counter, "_product", lambda *given: product(*given) * 0.9)
    with pytest.raises(EvaluationError, match="less exact than its precision"):
        retrieval_ranks(*near_ones(0, 1.0))


def test_scores_as_near_as_float64_can_tell_are_ranked_all_the_same() -> None:
    image, text = made_up(1000, 5000, 1024)
    centre = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    pairs = np.stack([np.arange(5000) // 5, np.arange(5000)], axis=1)
    ranks = retrieval_ranks(centre + 1e-4 * image, centre + 1e-4 * text, pairs)
    for one in ranks.directions.values():
        assert (one.ties >= 0).all() and (one.above + one.ties + one.tied_positives <= one.candidates).all()
