import numpy as np
import pytest
import torch

from jointembed.evaluation import rows

CPU = torch.device("cpu")


def test_rows_are_scaled_and_equal_ones_merged() -> None:
    given = np.array([[3, 4], [0, 0], [3, 4], [0, -1], [6, 8], [-0.0, -1]], dtype=np.float64)
    found = rows.read_rows("image", given, normalize=True, device=CPU)
    assert found.values.dtype == torch.float32
    assert found.values.numpy() == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, -1]]))
    assert found.row.tolist() == [0, 1, 0, 2, 0, 2]
    assert found.members.tolist() == [0, 2, 4, 1, 3, 5]
    assert found.start.tolist() == [0, 3, 4, 6]
    plain = rows.read_rows("image", given, normalize=False, device=CPU)
    assert plain.values.tolist() == [[3, 4], [0, 0], [0, -1], [6, 8]]


def test_rows_that_differ_late_are_not_merged() -> None:
    given = torch.zeros(5, 4000)
    given[:, -1] = torch.tensor([1.0, 2, 1, 3, 2])
    found = rows.read_rows("text", given, normalize=False, device=CPU)
    assert found.row.tolist() == [0, 1, 0, 2, 1]


def test_reading_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((50, 6)).astype(np.float32)[rng.integers(0, 50, 50)]
    whole = rows.read_rows("text", given, normalize=True, device=CPU)
    monkeypatch.setattr(rows, "_CHUNK", 7)
    parts = rows.read_rows("text", given, normalize=True, device=CPU)
    assert torch.equal(whole.values, parts.values)
    assert np.array_equal(whole.row, parts.row)
    expected = given / np.linalg.norm(given, axis=1, keepdims=True)
    assert parts.values[torch.from_numpy(parts.row)].numpy() == pytest.approx(expected, abs=1e-6)


def test_precision_settings_are_left_as_they_were() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    with pytest.raises(KeyError), rows.full_precision(CPU):
        assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        raise KeyError
    assert [backend.fp32_precision for backend in backends] == before
