from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from jointembed.data.folder import image_folder
from jointembed.errors import EvaluationError
from jointembed.evaluation.accuracy import true_ranks
from jointembed.evaluation.linear_probe import (
    PROTOCOLS,
    LinearClassifier,
    ProbeProtocol,
    _held_out,
    _sgd,
    fast_probe,
    fit_fast,
    fit_logistic,
    logistic_probe,
    protocol_probe,
)


def clusters(rows: int, classes: int, dimension: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(99))
    label = torch.randint(classes, (rows,), generator=generator)
    return centre[label] + spread * torch.randn(rows, dimension, generator=generator), label


def sklearn_right(train: Tensor, label: Tensor, test: Tensor, test_label: Tensor, l2: float) -> np.ndarray:
    model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, solver="newton-cholesky")
    model.fit(train.double().numpy(), label.numpy())
    return model.predict(test.double().numpy()) == test_label.numpy()


# converged


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_converged_is_scikit_learns_optimum(seed: int, l2: float) -> None:
    train, label = clusters(300, 7, 20, seed)
    train = train * 3 + 10
    test, test_label = clusters(1000, 7, 20, seed + 50)
    test = test * 3 + 10
    right = sklearn_right(train, label, test, test_label, l2)
    found = logistic_probe(train, label, test, test_label, l2=l2)
    assert found["logistic_top1"] == pytest.approx(100 * right.mean(), abs=0.5)
    assert found["logistic_top5"] >= found["logistic_top1"]
    classifier = fit_logistic(train, label, 7, l2=l2)
    x = classifier.weight.requires_grad_(), classifier.bias.requires_grad_()
    loss = functional.cross_entropy(train.double() @ x[0] + x[1], label) + 0.5 * l2 * x[0].square().sum()
    assert all(float(one.abs().max()) < 1e-4 for one in torch.autograd.grad(loss, x))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, label = clusters(200, 5, 8, 0)
    whole = fit_logistic(train, label, 5, l2=0.01)
    monkeypatch.setattr("jointembed.evaluation.linear_probe._AT_ONCE", 8 * 30)
    parts = fit_logistic(train, label, 5, l2=0.01)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-3)
    assert torch.allclose(whole(train), parts(train), atol=1e-3)


def test_what_does_not_converge_is_no_number() -> None:
    train, label = clusters(100, 3, 5, 0)
    with pytest.raises(EvaluationError, match="did not converge in 2 steps at l2 1e-06"):
        logistic_probe(train, label, train, label, l2=1e-6, max_steps=2)
    with pytest.raises(EvaluationError, match="l2 is 0"):
        logistic_probe(train, label, train, label, l2=0)


@pytest.mark.data
def test_converged_is_within_half_a_point_on_cifar10(data_folder: Path) -> None:
    rows = {}
    for split in ("train", "test"):
        data = image_folder(path=str(data_folder / "cifar10_subset" / "cifar10_subset.zip"), split=split)
        assert data.labels is not None
        picked = range(0, len(data.pictures), 1 if split == "test" else 4)
        small = [np.asarray(data.pictures.open(n).resize((8, 8), 4), dtype=np.float32).ravel() for n in picked]
        rows[split] = torch.from_numpy(np.stack(small) / 255), torch.from_numpy(data.labels[list(picked)])
    right = sklearn_right(*rows["train"], *rows["test"], l2=1e-3)
    found = logistic_probe(*rows["train"], *rows["test"], l2=1e-3)
    assert found["logistic_top1"] == pytest.approx(100 * right.mean(), abs=0.5) and found["logistic_top1"] > 30


# SGD


def test_many_probes_are_each_what_torch_trains() -> None:
    x, label = clusters(150, 4, 6, 0)
    x = x.double()
    lr, decay = torch.tensor([0.02, 0.5]).double(), torch.tensor([0.1, 0.001]).double()
    protocol = ProbeProtocol(lr=0.5, epochs=3, batch=40, steps=(1,))
    weight = _sgd(torch.cat([x, torch.ones(150, 1)], 1), label, 4, lr, decay, protocol, seed=5)
    for number in range(2):
        layer = nn.Linear(6, 4).double()
        start = 0.01 * torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(5))
        layer.weight.data, layer.bias.data = start[:, 0].T.double(), torch.zeros(4).double()
        optimizer = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9, weight_decay=float(decay[number]))
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = float(lr[number]) * (0.5 if epoch == 0 else 0.05)
            for some in np.split(np.random.default_rng([5, 0, epoch]).permutation(150), [40, 80, 120]):
                optimizer.zero_grad()
                functional.cross_entropy(layer(x[some]), label[some]).backward()
                optimizer.step()
        assert torch.allclose(weight[:-1, number].T, layer.weight, atol=1e-12)
        assert torch.allclose(weight[-1, number], layer.bias, atol=1e-12)


def test_a_fast_probe_comes_near_the_optimum() -> None:
    train, label = clusters(2000, 5, 16, 0)
    test, test_label = clusters(2000, 5, 16, 1)
    for scale, shift in ((1.0, 0.0), (100.0, 30.0), (1e-3, 0.01)):
        found = fast_probe(train * scale + shift, label, test * scale + shift, test_label)
        best = max(
            logistic_probe(train, label, test, test_label, l2=l2)["logistic_top1"] for l2 in (1e-4, 1e-3, 1e-2, 1e-1)
        )
        assert found["linear_top1"] > best - 1.5
        assert set(found) == {"linear_top1", "linear_top5", "linear_lr", "linear_l2"}
    again = fast_probe(train, label, test, test_label)
    assert again == fast_probe(train, label, test, test_label)


def test_the_choice_is_made_without_the_test_rows() -> None:
    train, label = clusters(400, 3, 8, 0)
    test, _ = clusters(50, 3, 8, 1)
    chosen = fast_probe(train, label, test, torch.zeros(50, dtype=torch.int64))
    other = fast_probe(train, label, -test, torch.full((50,), 2))
    assert {chosen[name] == other[name] for name in ("linear_lr", "linear_l2")} == {True}


def test_a_rate_that_diverges_is_not_chosen() -> None:
    train, label = clusters(300, 3, 8, 0)
    fit = partial(fit_fast, train, label, 3, l2=[10.0], epochs=10, batch=64, held_out=0.1, seed=0)
    assert fit(rates=[1e30, 0.1])[1] == {"lr": 0.1, "l2": 10.0}
    with pytest.raises(EvaluationError, match="every learning rate of .* diverged"):
        fit(rates=[1e30])


def test_rows_held_out_are_of_every_class() -> None:
    label = np.repeat(np.arange(5), [100, 50, 20, 200, 30])
    out, kept = _held_out(label, 0.1, seed=0)
    assert np.bincount(label[out]).tolist() == [10, 5, 2, 20, 3]
    assert sorted([*out.tolist(), *kept.tolist()]) == list(range(400))
    assert [len(one) for one in _held_out(label[:2], 0.1, seed=0)] == [1, 1]


def test_collapsed_features_score_chance() -> None:
    """A constant, and a constant with rounding noise, tell nothing."""
    label = torch.arange(4).repeat(100)
    same = torch.full((400, 8), 0.3)
    assert fast_probe(same, label, same, label)["linear_top1"] == 25.0
    noise = 1 + 1e-7 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert fast_probe(same, label, same * noise, label)["linear_top1"] < 40


def test_protocols() -> None:
    imagenet = PROTOCOLS["imagenet"]
    assert (imagenet.lr, imagenet.epochs, imagenet.batch, imagenet.momentum) == (0.02, 100, 256, 0.9)
    assert imagenet.weight_decay == 1e-6
    assert [imagenet.rate(epoch) for epoch in (0, 50)] == pytest.approx([0.02, 0.01])
    assert imagenet.rate(99) == pytest.approx(0.02 * 0.5 * (1 + np.cos(0.99 * np.pi)))
    places = PROTOCOLS["places205"]
    assert [places.rate(epoch) for epoch in (0, 6, 7, 14, 27)] == pytest.approx([3e-3, 3e-3, 3e-4, 3e-5, 3e-6])
    train, label = clusters(1000, 3, 16, 0, spread=1.0)
    test, test_label = clusters(300, 3, 16, 1, spread=1.0)
    found = protocol_probe(train, label, test, test_label)
    assert found["protocol_top1"] == pytest.approx(
        logistic_probe(train, label, test, test_label, l2=1e-3)["logistic_top1"], abs=2
    )
    with pytest.raises(EvaluationError, match="diverged at learning rate 1e"):
        protocol_probe(train, label, test, test_label, protocol=ProbeProtocol(lr=1e30, epochs=9, weight_decay=1e30))


def test_misfits_are_refused() -> None:
    train, label = clusters(30, 3, 4, 0)
    with pytest.raises(EvaluationError, match="train features have 4 dimensions, test features 3"):
        fast_probe(train, label, train[:, :3], label)
    with pytest.raises(EvaluationError, match="1 train rows, 0.1 of them held out"):
        fast_probe(train[:1], label[:1], train, label)
    with pytest.raises(EvaluationError, match="1.0 of them held out"):
        fast_probe(train, label, train, label, held_out=1.0)
    with pytest.raises(EvaluationError, match="0 rates"):
        fast_probe(train, label, train, label, rates=[])
    bad = train.clone()
    bad[3, 0] = float("nan")
    with pytest.raises(EvaluationError, match="train features: row 3"):
        logistic_probe(bad, label, train, label, l2=0.1)


def test_a_label_that_train_lacks_is_never_right() -> None:
    train, label = clusters(60, 3, 4, 0)
    found = logistic_probe(train, label, train, torch.full_like(label, 9), l2=0.1)
    assert found["logistic_top1"] == 0
    assert true_ranks(LinearClassifier(torch.zeros(4, 3), torch.zeros(3))(train), label).max() <= 2
