import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from jointembed.errors import EvaluationError
from jointembed.evaluation.collapse import diagnostics


def some(rows: int = 300, dimension: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def test_equals_the_definitions() -> None:
    image, text = some(), some(300, seed=1) * 3 + 1
    found = diagnostics({"image": image, "text": text})
    for view, z in (("image", image.double()), ("text", text.double())):
        std = z.std(0)
        assert found[view]["std_mean"] == pytest.approx(float(std.mean()), rel=1e-5)
        assert found[view]["std_min"] == pytest.approx(float(std.min()), rel=1e-5)
        correlation = torch.corrcoef(z.T)
        off = correlation[~torch.eye(8, dtype=torch.bool)].abs().mean()
        assert found[view]["covariance"] == pytest.approx(float(off), rel=1e-4)
        assert found[view]["dimension"] == 8
        values = torch.linalg.svdvals(z - z.mean(0)) / np.sqrt(299)
        assert found[view]["spectrum"] == pytest.approx(values.tolist(), rel=1e-4)
        share = torch.linalg.svdvals(z)
        share = share / share.sum()
        assert found[view]["rankme"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-3)
        unit = functional.normalize(z)
        squares = torch.pdist(unit).square()
        assert found[f"uniformity/{view}"] == pytest.approx(float(torch.exp(-2 * squares).mean().log()), rel=1e-5)
    a, b = functional.normalize(image.double()), functional.normalize(text.double())
    assert found["alignment"] == pytest.approx(float((a - b).square().sum(1).mean()), rel=1e-5)
    assert found["gap"] == pytest.approx(float((a.mean(0) - b.mean(0)).norm()), rel=1e-5)


def test_alignment_is_of_the_pairs_given() -> None:
    image = some(20)
    text = image.repeat_interleave(5, 0) * torch.rand(100, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    pairs = np.stack([np.arange(100) // 5, np.arange(100)], axis=1)
    assert diagnostics({"image": image, "text": text}, positives=pairs)["alignment"] == pytest.approx(0, abs=1e-10)
    assert "alignment" not in diagnostics({"image": image, "text": text})
    opposite = diagnostics({"image": image, "text": -text}, positives=pairs)
    assert opposite["alignment"] == pytest.approx(4)
    wrong = pairs[:, [1, 0]]
    with pytest.raises(EvaluationError, match="names image 20"):
        diagnostics({"image": image, "text": text}, positives=wrong)


@pytest.mark.parametrize("number", [0.0, 1.0, -3.7])
def test_complete_collapse_is_plain_to_see(number: float) -> None:
    z = np.full((50, 16), number, dtype=np.float32)
    found = diagnostics({"view": z})
    assert found["view"]["std_min"] <= found["view"]["std_mean"] < 1e-6
    assert found["uniformity/view"] == pytest.approx(0, abs=1e-6)
    assert max(found["view"]["spectrum"]) == pytest.approx(0, abs=1e-5)
    assert "gap" not in found and "alignment" not in found
    if number:
        assert found["view"]["rankme"] == pytest.approx(1, abs=1e-3)


def test_dimensional_collapse_shows_in_rank_spectrum_and_correlation() -> None:
    flat = some(200, 2) @ some(2, 32, seed=1)
    found = diagnostics({"flat": flat, "full": some(200, 32)})
    assert found["flat"]["rankme"] < 2.1 < 20 < found["full"]["rankme"]
    assert found["flat"]["spectrum"][2] < 1e-5 < 0.5 < found["full"]["spectrum"][-1]
    assert found["flat"]["covariance"] > 0.5 > 0.1 > found["full"]["covariance"]
    assert found["flat"]["std_min"] > 0.05


def test_the_gap_between_two_cones_is_the_distance_of_their_means() -> None:
    e = torch.eye(8)
    assert diagnostics({"a": e[:1].repeat(9, 1), "b": e[1:2].repeat(4, 1)})["gap"] == pytest.approx(2**0.5)
    assert "gap" not in diagnostics({"a": some(9, 4), "b": some(9, 5)})


def test_samples_stand_for_all_rows_and_result_is_json() -> None:
    z = some(2000, 16)
    whole, part = (diagnostics({"a": z, "b": z[:1500].bfloat16()}, samples=n) for n in (2000, 700))
    assert part["a"]["rankme"] == pytest.approx(whole["a"]["rankme"], rel=0.02)
    assert part["uniformity/a"] == pytest.approx(whole["uniformity/a"], rel=0.05)
    assert part["gap"] == whole["gap"]
    assert json.loads(json.dumps(whole)) == whole


def test_arrays_of_any_floating_type_are_taken() -> None:
    z = some().numpy()
    assert diagnostics({"a": z.astype(np.float64)}) == diagnostics({"a": z})


def test_misfits_are_refused_by_view() -> None:
    bad = some()
    bad[41, 2] = float("nan")
    with pytest.raises(EvaluationError, match="text embeddings: row 41 holds nan"):
        diagnostics({"image": some(), "text": bad})
    with pytest.raises(EvaluationError, match=r"image embeddings have shape \(1, 8\)"):
        diagnostics({"image": some(1)})
    with pytest.raises(EvaluationError, match="positives pair two views, but there are 1: image"):
        diagnostics({"image": some()}, positives=np.array([[0, 0]]))
