"""Corrections of scores against the formulas written out in double precision, and their ties."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jointembed.errors import EvaluationError, RecipeError
from jointembed.evaluation import corrections
from jointembed.evaluation.corrections import CORRECTIONS, CSLS, Euclidean, InvertedSoftmax, MeanRemoval, Whiten
from jointembed.evaluation.protocols import PROTOCOLS, Protocol
from jointembed.evaluation.retrieval import retrieval_ranks

IMAGES, TEXTS, D = 23, 69, 7
OWNER = np.repeat(np.arange(IMAGES), 3)
PAIRS = np.stack([OWNER, np.arange(TEXTS)], axis=1)


def some(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(IMAGES, D, generator=generator) + 0.5
    text = image[OWNER] + 1.5 * torch.randn(TEXTS, D, generator=generator) - 0.3
    return image, text


def cosines(image: Tensor, text: Tensor) -> np.ndarray:
    return (functional.normalize(image.double()) @ functional.normalize(text.double()).T).numpy()


def plain_csls(image: Tensor, text: Tensor, k: int) -> np.ndarray:
    scores = cosines(image, text)
    corrected = np.empty_like(scores)
    for i in range(len(scores)):
        for t in range(scores.shape[1]):
            near_i = np.mean(sorted(scores[i], reverse=True)[:k])
            near_t = np.mean(sorted(scores[:, t], reverse=True)[:k])
            corrected[i, t] = 2 * scores[i, t] - near_i - near_t
    return corrected


def ranks_of_scores(scores: np.ndarray) -> tuple[list[int], list[int]]:
    """Rank of the best positive of every picture, and of the picture of every caption, by sorting."""
    i2t = [1 + int(np.sum(row[OWNER != i] > row[OWNER == i].max())) for i, row in enumerate(scores)]
    t2i = [1 + int(np.sum(np.delete(column, o) > column[o])) for o, column in zip(OWNER, scores.T, strict=True)]
    return i2t, t2i


def assert_ranks(correction: corrections.Correction, image: Tensor, text: Tensor, scores: np.ndarray) -> None:
    scored = correction(image, text)
    found = retrieval_ranks(scored.image, scored.text, PAIRS, normalize=scored.normalize)
    i2t, t2i = ranks_of_scores(scores)
    assert found.i2t.rank.tolist() == i2t and found.t2i.rank.tolist() == t2i


@pytest.mark.parametrize("k", [1, 4, 1000])
@pytest.mark.parametrize("block", [1, 1 << 21])
def test_csls_is_the_formula(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "_BLOCK", block)
    image, text = some()
    wanted = plain_csls(image, text, k)
    scored = CSLS(k=k)(image, text)
    np.testing.assert_allclose((torch.as_tensor(scored.image) @ torch.as_tensor(scored.text).T), wanted, atol=2e-6)
    assert_ranks(CSLS(k=k), image, text, wanted)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_csls_with_a_bank_of_training_rows_sees_nothing_else_of_the_test(k: int) -> None:
    image, text = some()
    bank_image, bank_text = some(7)
    scores = cosines(image, text)
    near_image = -np.sort(-cosines(image, bank_text), axis=1)[:, :k].mean(1)
    near_text = -np.sort(-cosines(bank_image, text), axis=0)[:k].mean(0)
    correction = CSLS(k=k, bank="train")
    assert correction.needs_train and not correction.transductive and CSLS().transductive and not CSLS().needs_train
    with pytest.raises(EvaluationError, match="training embeddings"):
        correction(image, text)
    correction.fit(bank_image, bank_text)
    assert_ranks(correction, image, text, 2 * scores - near_image[:, None] - near_text[None])
    alone = correction(image[:3], text[:9])
    wanted = (2 * scores - near_image[:, None] - near_text[None])[:3, :9]
    np.testing.assert_allclose((torch.as_tensor(alone.image) @ torch.as_tensor(alone.text).T), wanted, atol=2e-6)


def test_inverted_softmax_orders_as_the_formula_does_in_both_directions() -> None:
    image, text = some(1)
    heat = np.exp(cosines(image, text) / 0.1)
    i2t, _ = ranks_of_scores(heat / heat.sum(axis=0, keepdims=True))  # over the queries, which are pictures
    _, t2i = ranks_of_scores(heat / heat.sum(axis=1, keepdims=True))
    scored = InvertedSoftmax(temperature=0.1)(image, text)
    found = retrieval_ranks(scored.image, scored.text, PAIRS, normalize=False)
    assert found.i2t.rank.tolist() == i2t and found.t2i.rank.tolist() == t2i


def test_euclidean_is_the_distance() -> None:
    image, text = some(9)
    scores = -torch.cdist(image.double(), text.double()).square().numpy()
    assert_ranks(Euclidean(), image, text, scores)


def test_mean_removal_is_the_formula() -> None:
    image, text = some(2)
    sides = [functional.normalize(side.double()) for side in (image, text)]
    assert_ranks(MeanRemoval(), image, text, cosines(*(side - side.mean(0) for side in sides)))


@pytest.mark.parametrize("shrink", [0.0, 0.3, 1.0])
def test_whitening_is_of_the_training_embeddings(shrink: float) -> None:
    image, text = some(3)
    known = [side.double() for side in some(4)]
    pooled = (torch.cov(known[0].T) + torch.cov(known[1].T)) / 2
    pooled = (1 - shrink) * pooled + shrink * pooled.diagonal().mean() * torch.eye(D)
    values, vectors = torch.linalg.eigh(pooled)
    half = vectors @ torch.diag(values**-0.5) @ vectors.T  # another root of the same inverse: cosines are equal
    moved = [(side.double() - train.mean(0)) @ half for side, train in zip((image, text), known, strict=True)]
    correction = Whiten(shrink=shrink)
    correction.fit(known[0], known[1])
    assert_ranks(correction, image, text, cosines(*moved))


def test_whitened_training_embeddings_are_white() -> None:
    image, _ = some(5)
    correction = Whiten(shrink=0.0)
    correction.fit(image, image)
    white = torch.as_tensor(correction(image, image).image)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(D), atol=1e-4, rtol=1e-4)


def test_csls_takes_away_what_a_hub_has() -> None:
    angle = torch.deg2rad(torch.tensor([0.0, 40.0, 80.0]))
    image = torch.stack([angle.cos(), angle.sin()], dim=1)
    angle = torch.deg2rad(torch.tensor([-30.0, 25.0, 110.0]))  # the second caption is the nearest to two pictures
    text = torch.stack([angle.cos(), angle.sin()], dim=1)
    plain = retrieval_ranks(image, text, np.stack([np.arange(3)] * 2, axis=1))
    assert plain.i2t.rank.tolist() == [2, 1, 1]
    scored = CSLS(k=1)(image, text)
    assert retrieval_ranks(scored.image, scored.text, [[0], [1], [2]], normalize=False).i2t.rank[0] == 1


@pytest.mark.parametrize("name", CORRECTIONS)
def test_equal_rows_still_tie(name: str) -> None:
    correction = CORRECTIONS[name]()
    image, text = some(6)
    correction.fit(*some(7))
    text[::2] = text[0]
    image[5:9] = image[4]
    scored = correction(image, text)
    for given, made in ((image, torch.as_tensor(scored.image)), (text, torch.as_tensor(scored.text))):
        same = (given[:, None] == given[None]).all(-1)
        assert torch.equal((made[:, None] == made[None]).all(-1), same)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_collapsed_embeddings_are_at_chance(name: str) -> None:
    correction = CORRECTIONS[name]()
    image, text = torch.full((IMAGES, D), 0.3), torch.full((TEXTS, D), 0.3)
    correction.fit(image, text)
    found = PROTOCOLS["full"](image, text, np.arange(IMAGES), OWNER, correct=correction)
    assert found.metrics["rsum"] == pytest.approx(found.chance["rsum"])


def test_folds_are_corrected_one_by_one() -> None:
    image, text = some(8)
    protocol = Protocol("two", pictures=22, folds=2)
    found = protocol(image[:22], text[:66], np.arange(22), OWNER[:66], correct=CSLS(k=3))
    parts = [
        PROTOCOLS["full"](image[a:b], text[3 * a : 3 * b], np.arange(a, b), OWNER[3 * a : 3 * b], correct=CSLS(k=3))
        for a, b in ((0, 11), (11, 22))
    ]
    assert found.metrics["rsum"] == pytest.approx(np.mean([part.metrics["rsum"] for part in parts]))


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("csls", {"k": 0}, "k"),
        ("inverted_softmax", {"temperature": 0.0}, "temperature"),
        ("whiten", {"shrink": 2.0}, "shrink"),
    ],
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"evaluation.correct.{key}"):
        CORRECTIONS[name](**arguments)


def test_whitening_says_what_it_needs() -> None:
    with pytest.raises(EvaluationError, match="needs training embeddings"):
        Whiten()(*some())
    with pytest.raises(EvaluationError, match="cannot be inverted"):
        Whiten(shrink=0.0).fit(*(side[:2] for side in some()))
    assert [name for name, kind in CORRECTIONS.items() if not kind().transductive] == ["whiten", "euclidean"]
