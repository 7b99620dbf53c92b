from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jointembed.data.folder import image_folder
from jointembed.errors import EvaluationError
from jointembed.evaluation import knn
from jointembed.evaluation.accuracy import accuracies, true_ranks
from jointembed.evaluation.knn import knn_accuracy, knn_ranks


def clusters(rows: int, classes: int, dimension: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(99))
    label = torch.randint(classes, (rows,), generator=generator)
    return centre[label] + spread * torch.randn(rows, dimension, generator=generator), label


def sklearn_probabilities(train: Tensor, label: Tensor, test: Tensor, k: int, temperature: float) -> np.ndarray:
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    return model.fit(train.double().numpy(), label.numpy()).predict_proba(test.double().numpy())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.07), (50, 1.0)])
def test_equals_scikit_learn(seed: int, k: int, temperature: float) -> None:
    train, train_label = clusters(400, 12, 24, seed)
    test, label = clusters(150, 12, 24, seed + 100)
    probability = sklearn_probabilities(train, train_label, test, k, temperature)
    found = knn_ranks(train, train_label, test, label, k=[k], temperature=temperature)[k]
    assert np.array_equal(found == 0, probability.argmax(1) == label.numpy())
    order = np.argsort(-probability, axis=1, kind="stable")
    rank = (order == label.numpy()[:, None]).argmax(1)
    voted = probability[np.arange(len(label)), label.numpy()] > 0
    assert np.array_equal(found, np.where(voted, rank, 12))
    accuracy = knn_accuracy(train, train_label, test, label, k=[k], temperature=temperature)
    assert accuracy[f"knn{k}_top1"] == pytest.approx(100 * np.mean(probability.argmax(1) == label.numpy()))
    assert accuracy[f"knn{k}_top5"] == pytest.approx(100 * np.mean(voted & (rank < 5)))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, train_label = clusters(300, 5, 8, 0)
    train = torch.cat([train, train[:100] * 3])
    train_label = torch.cat([train_label, train_label[:100].flip(0)])
    test, label = clusters(90, 5, 8, 1)
    whole = knn_ranks(train, train_label, test, label, k=[1, 7, 150])
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 17)
    monkeypatch.setattr(knn, "_SCORES", 100)
    parts = knn_ranks(train, train_label, test, label, k=[1, 7, 150])
    assert all(np.array_equal(whole[k], parts[k]) for k in whole)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(3, 40), k=st.integers(1, 3))
def test_ties_go_to_the_earlier_row_and_the_smaller_class(seed: int, rows: int, k: int) -> None:
    """Rows out of three directions, so that nearly all are tied, against a plain stable sort."""
    rng = np.random.default_rng(seed)
    directions = np.eye(3, dtype=np.float32)
    train, test = directions[rng.integers(0, 3, rows)], directions[rng.integers(0, 3, 10)]
    train *= 2.0 ** rng.integers(-2, 3, (rows, 1))
    train_label, label = rng.integers(0, 4, rows), rng.integers(0, 4, 10)
    found = knn_ranks(*(torch.from_numpy(one) for one in (train, train_label, test, label)), k=[k])[k]
    cosine = test @ (train / np.linalg.norm(train, axis=1, keepdims=True)).T
    classes = 1 + int(max(train_label.max(), label.max()))
    for row in range(10):
        near = np.argsort(-cosine[row], kind="stable")[:k]
        votes = np.bincount(train_label[near], np.exp(cosine[row, near] / 0.07), minlength=classes)
        place = int(np.flatnonzero(np.argsort(-votes, kind="stable") == label[row])[0])
        assert found[row] == (place if votes[label[row]] > 0 else max(classes, 5))


def test_collapsed_features_score_chance() -> None:
    label = torch.arange(10).repeat(30)
    same = torch.full((300, 16), 0.3)
    for order in (label, label.sort().values):
        found = knn_accuracy(same, order, same, label, k=[20, 200])
        assert found["knn20_top1"] == found["knn200_top1"] == 10.0


def test_a_class_without_a_vote_is_no_answer() -> None:
    train, train_label = torch.eye(4), torch.tensor([0, 1, 2, 3])
    found = knn_accuracy(train, train_label, train, torch.tensor([0, 1, 2, 4]), k=[1])
    assert found == {"knn1_top1": 75.0, "knn1_top5": 75.0}
    found = knn_accuracy(train[:2], train_label[:2], train[:2], torch.tensor([0, 0]), k=[1])  # of two classes
    assert found == {"knn1_top1": 50.0, "knn1_top5": 50.0}


def test_half_precision_and_unlike_scales_are_taken() -> None:
    train, train_label = clusters(200, 5, 16, 0)
    test, label = clusters(60, 5, 16, 1)
    whole = knn_ranks(train.half().float(), train_label, test.half().float(), label, k=[10])[10]
    scale = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    assert np.array_equal(whole, knn_ranks(train.half(), train_label, test.half() * 4, label, k=[10])[10])
    accuracy = np.mean(knn_ranks(train * scale, train_label, test, label, k=[10])[10] == 0)
    assert accuracy == pytest.approx(np.mean(whole == 0), abs=0.02)


def test_misfits_are_refused() -> None:
    train, label = clusters(30, 3, 4, 0)
    with pytest.raises(EvaluationError, match=r"k is \[20, 200\]; .* to the 30 train rows"):
        knn_accuracy(train, label, train, label)
    with pytest.raises(EvaluationError, match="k is "):
        knn_accuracy(train, label, train, label, k=[0])
    with pytest.raises(EvaluationError, match="temperature is 0"):
        knn_accuracy(train, label, train, label, k=[1], temperature=0)
    with pytest.raises(EvaluationError, match="train features have 4 dimensions, test features 3"):
        knn_accuracy(train, label, train[:, :3], label, k=[1])
    with pytest.raises(EvaluationError, match=r"test: 30 rows, but labels are torch.int64 of shape \(29,\)"):
        knn_accuracy(train, label, train, label[1:], k=[1])
    with pytest.raises(EvaluationError, match="train: row 0 has label -1"):
        knn_accuracy(train, torch.full_like(label, -1), train, label, k=[1])
    bad = train.clone()
    bad[7, 1] = float("inf")
    with pytest.raises(EvaluationError, match="test features: row 7 holds a value that is not finite"):
        knn_accuracy(train, label, bad, label, k=[1])


def test_true_ranks_and_accuracies() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]])
    rank = true_ranks(scores, torch.tensor([2, 0, 2]))
    assert rank.tolist() == [1, 0, 2]
    assert accuracies("x", rank) == {"x_top1": pytest.approx(100 / 3), "x_top5": 100.0}


@pytest.mark.data
def test_raw_pixels_of_cifar10(data_folder: Path) -> None:
    """What a trained network must beat."""
    rows = {}
    for split in ("train", "test"):
        data = image_folder(path=str(data_folder / "cifar10_subset" / "cifar10_subset.zip"), split=split)
        assert data.labels is not None
        pixels = np.stack([np.asarray(data.pictures.open(n)).ravel() for n in range(len(data.pictures))])
        rows[split] = torch.from_numpy(pixels / np.float32(255)), torch.from_numpy(data.labels)
    (train, train_label), (test, label) = rows["train"], rows["test"]
    centre = train.mean(0)
    found = knn_accuracy(train - centre, train_label, test - centre, label)
    assert found["knn20_top1"] == pytest.approx(40.9, abs=0.2) and found["knn200_top1"] == pytest.approx(37.45, abs=0.2)
    probability = sklearn_probabilities(train[::5] - centre, train_label[::5], test - centre, 20, 0.07)
    rank = knn_ranks(train[::5] - centre, train_label[::5], test - centre, label, k=[20])[20]
    assert np.mean(rank == 0) == pytest.approx(np.mean(probability.argmax(1) == label.numpy()), abs=1e-3)
