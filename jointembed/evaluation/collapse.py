"""Is the embedding space used, or has it collapsed: the content of collapse.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointembed.errors import EvaluationError
from jointembed.evaluation.hubness import hubness
from jointembed.evaluation.retrieval import check_pairs
from jointembed.evaluation.rows import Matrix, read_rows
from jointembed.objectives.statistics import mean_absolute_correlation, rankme, singular_values, std_per_dimension

_CHUNK = 4096  # pairs at a time


def diagnostics(
    embeddings: Mapping[str, Matrix], *, positives: np.ndarray | Tensor | None = None, samples: int = 4096
) -> dict[str, Any]:
    """Measure each view's embeddings, and how two views lie to one another.

    For each view a dict: `std_mean` and `std_min` of the dimensions (both 0 in collapse; of the embeddings as given),
    `covariance`, the mean absolute correlation of different dimensions (1 where they all say the same), `rankme`
    (Garrido et al. 2023), `dimension` D, and `spectrum`, the standard deviations along the principal axes, descending:
    singular values of the centred embeddings over sqrt(N - 1) (Jing et al. 2022; zeros: dimensional collapse).
    On the unit sphere: `uniformity/<view>`, log mean exp(-2 d^2) over pairs of different rows (Wang & Isola 2020; 0 in
    collapse, about -4 where uniform), and for two views `alignment`, the mean d^2 of positive pairs (Wang & Isola
    2020; 0 to 4), `gap`, the distance between the views' means (Liang et al. 2022; 0 to 2), and of both directions
    `hubness_<number>/<view>_to_<view>`: what `evaluation.hubness` says of the 10 nearest.

    Args:
        embeddings: view -> (N, D).
        positives: (P, 2) rows of the first and of the second of two views that belong together; by default row n goes
            with row n, and there is no alignment where the views have unequal numbers of rows.
        samples: at most so many evenly spaced rows stand for a view in what takes more than one pass.

    Returns:
        What `json.dumps` can write.

    Raises:
        EvaluationError: naming the view, for values that are not finite or fewer than two rows.
    """
    found: dict[str, Any] = {}
    unit: dict[str, Tensor] = {}
    for view, given in embeddings.items():
        unit[view] = _unit_rows(view, given)
        rows = _evenly_spaced(given, samples)
        found[view] = _of_one_view(rows)
        found[f"uniformity/{view}"] = _uniformity(_evenly_spaced(unit[view], samples))
    if len(unit) != 2:
        if positives is not None:
            raise EvaluationError(f"positives pair two views, but there are {len(unit)}: {', '.join(unit)}")
        return found
    a, b = unit.values()
    if a.shape[1] != b.shape[1]:
        return found
    if positives is None and len(a) == len(b):
        positives = np.stack([np.arange(len(a))] * 2, axis=1)
    if positives is not None:
        found["alignment"] = _alignment(a, b, torch.from_numpy(check_pairs(positives, len(a), len(b))))
    found["gap"] = float((a.mean(0, dtype=torch.float64) - b.mean(0, dtype=torch.float64)).norm())
    (first, x), (second, y) = unit.items()
    for way, asked, answers in ((f"{first}_to_{second}", x, y), (f"{second}_to_{first}", y, x)):
        found |= {f"hubness_{name}/{way}": value for name, value in hubness(asked, answers).items()}
    return found


def _unit_rows(view: str, given: Matrix) -> Tensor:
    """(N, D) float32 rows of length 1 on the CPU; raises EvaluationError naming the view."""
    if given.ndim != 2 or len(given) < 2 or given.shape[1] < 1:
        raise EvaluationError(f"{view} embeddings have shape {tuple(given.shape)}; expected at least 2 rows")
    rows = read_rows(view, given, normalize=True, device=torch.device("cpu"))
    return rows.values if len(rows.values) == len(given) else rows.values[torch.from_numpy(rows.row)]


def _evenly_spaced(rows: Matrix, samples: int) -> Tensor:
    kept = np.unique(np.linspace(0, len(rows) - 1, min(samples, len(rows))).round().astype(np.int64))
    chosen = rows[torch.from_numpy(kept).to(rows.device)] if isinstance(rows, Tensor) else torch.from_numpy(rows[kept])
    return chosen.detach().float().cpu()


def _of_one_view(rows: Tensor) -> dict[str, Any]:
    std = std_per_dimension(rows)
    spectrum = singular_values(rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    return {
        "std_mean": float(std.mean()),
        "std_min": float(std.min()),
        "covariance": float(mean_absolute_correlation(rows)),
        "rankme": float(rankme(rows)),
        "dimension": rows.shape[1],
        "spectrum": spectrum.tolist(),
    }


def _uniformity(unit: Tensor) -> float:
    total = 0.0
    squares = unit.double().square().sum(1)
    for first in range(0, len(unit), 1024):
        block = unit[first : first + 1024].double()
        distance = squares[first : first + 1024, None] + squares - 2 * block @ unit.double().T
        total += float(torch.exp(-2 * distance.clamp_min(0)).sum())
    n = len(unit)
    return float(np.log((total - n) / (n * (n - 1))))


def _alignment(a: Tensor, b: Tensor, pairs: Tensor) -> float:
    total = sum(float((a[some[:, 0]] - b[some[:, 1]]).double().square().sum()) for some in pairs.split(_CHUNK))
    return total / len(pairs)
