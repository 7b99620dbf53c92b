import numpy as np
import pytest
import torch

from jointembed.evaluation import scores
from jointembed.evaluation.retrieval import retrieval_ranks

CPU = torch.device("cpu")


def test_rows_are_scaled_and_equal_ones_merged() -> None:
    given = np.array([[3, 4], [0, 0], [3, 4], [0, -1], [6, 8], [-0.0, -1]], dtype=np.float64)
    merged = scores.merge_equal("image", given, normalize=True)
    assert merged.number.tolist() == [0, 1, 0, 2, 0, 2]
    assert merged.longest == 1
    rows = scores.make_rows(given, merged, np.array([2, 0, 1]), CPU)
    assert rows.values.dtype == torch.float32
    assert rows.values.numpy() == pytest.approx(np.array([[0, -1], [0.6, 0.8], [0, 0]]))
    assert rows.row.tolist() == [1, 2, 1, 0, 1, 0]
    assert rows.members.tolist() == [3, 5, 0, 2, 4, 1]
    assert rows.start.tolist() == [0, 2, 5, 6]
    plain = scores.read_rows("image", given, normalize=False, device=CPU)
    assert plain.values.tolist() == [[3, 4], [0, 0], [0, -1], [6, 8]]
    assert scores.merge_equal("image", given, normalize=False).longest == 10


def test_rows_that_differ_late_are_not_merged() -> None:
    given = torch.zeros(5, 4000)
    given[:, -1] = torch.tensor([1.0, 2, 1, 3, 2])
    rows = scores.read_rows("text", given, normalize=False, device=CPU)
    assert rows.row.tolist() == [0, 1, 0, 2, 1]


def test_reading_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((50, 6)).astype(np.float32)[rng.integers(0, 50, 50)]
    whole = scores.read_rows("text", given, normalize=True, device=CPU)
    monkeypatch.setattr(scores, "_CHUNK", 7)
    parts = scores.read_rows("text", given, normalize=True, device=CPU)
    assert torch.equal(whole.values, parts.values)
    assert np.array_equal(whole.row, parts.row)
    expected = given / np.linalg.norm(given, axis=1, keepdims=True)
    assert parts.values[torch.from_numpy(parts.row)].numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("tile", "most"), [(1, 10**5), (16, 10**5), (64, 10**5), (64, 5), (1 << 20, 1)])
def test_size_of_tiles_does_not_matter(monkeypatch: pytest.MonkeyPatch, tile: int, most: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-2, 3, (30, 3)).astype(np.float32)  # many equal rows, many ties
    text = rng.integers(-2, 3, (70, 3)).astype(np.float32)
    pairs = np.unique(np.stack([rng.integers(0, 30, 90), rng.integers(0, 70, 90)], axis=1), axis=0)
    whole = retrieval_ranks(image, text, pairs, normalize=False, missing="ignore")
    monkeypatch.setattr(scores, "_TILE", tile)
    monkeypatch.setattr(scores, "_MOST_TILES", most)
    for block in (None, 1, 4):
        parts = retrieval_ranks(image, text, pairs, normalize=False, missing="ignore", block=block)
        for name, one in whole.directions.items():
            assert np.array_equal(parts.directions[name].above, one.above)
            assert np.array_equal(parts.directions[name].ties, one.ties)
            assert np.array_equal(parts.directions[name].tied_positives, one.tied_positives)


def test_precision_settings_are_left_as_they_were() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    with pytest.raises(KeyError), scores.full_precision(CPU):
        assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        raise KeyError
    assert [backend.fp32_precision for backend in backends] == before
