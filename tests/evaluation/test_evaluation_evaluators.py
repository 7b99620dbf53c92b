import pytest
import torch

from jointembed.evaluation.evaluators import Collapse, Features


def test_collapse_is_seen_in_rows_and_in_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(200, 8, generator=generator)
    point = torch.ones(200, 8) + 1e-6 * torch.randn(200, 8, generator=generator)
    found = Collapse()(None, Features(spread, None, z=point))
    assert set(found) == set(Collapse.numbers)
    assert found["std"] == pytest.approx(1.0, abs=0.1) and found["relative_std"] == pytest.approx(1.0, abs=0.1)
    assert found["rankme"] > 7.5 and found["z_rankme"] == pytest.approx(1.0, abs=0.01)
    assert found["z_std"] < 1e-5 and found["z_relative_std"] < 1e-5


def test_relative_std_does_not_depend_on_the_scale() -> None:
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(1)) + 2
    one, other = (Collapse()(None, Features(scale * rows, None)) for scale in (1.0, 1e-3))
    assert one["relative_std"] == pytest.approx(other["relative_std"]) and 0 < one["relative_std"] < 1
    assert one["std"] == pytest.approx(1000 * other["std"]) and "z_std" not in one
