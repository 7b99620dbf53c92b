"""Hubs: candidates that are near to everything. Radovanović, Nanopoulos, Ivanović, JMLR 2010."""

import numpy as np
import torch

from jointembed.evaluation.rows import Matrix, full_precision, read_rows

_BLOCK = 1 << 21  # scores at a time


def occurrences(query: Matrix, candidate: Matrix, *, k: int = 10) -> np.ndarray:
    """How often each candidate is among the k nearest of a query by cosine: N_k, (C,) float64, of sum Q k.

    Candidates that tie for the last places share them, as expected where ties are broken at random.

    Args:
        query: (Q, D) embeddings.
        candidate: (C, D) embeddings.
        k: nearest candidates; all where there are fewer.

    Raises:
        EvaluationError: for values that are not finite.
    """
    device = query.device if isinstance(query, torch.Tensor) else torch.device("cpu")
    with full_precision(device):
        asked = read_rows("query", query, normalize=True, device=device)
        answers = read_rows("candidate", candidate, normalize=True, device=device)
        times = torch.from_numpy(np.bincount(asked.row)).to(device)  # of each different query
        row = torch.from_numpy(answers.row).to(device)
        places = min(k, len(row))
        found = torch.zeros(len(row), dtype=torch.float64, device=device)
        step = max(1, _BLOCK // len(row))
        for some, weight in zip(asked.values.split(step), times.split(step), strict=True):
            scores = (some @ answers.values.T)[:, row]
            last = scores.topk(places).values[:, -1:]
            above, level = scores > last, scores == last
            share = (places - above.sum(1, dtype=torch.float64)) / level.sum(1)
            found += (weight[:, None] * (above + share[:, None] * level)).sum(0)
    return found.cpu().numpy()


def hubness(query: Matrix, candidate: Matrix, *, k: int = 10) -> dict[str, float]:
    """What N_k of the candidates looks like.

    Args:
        query: (Q, D) embeddings.
        candidate: (C, D) embeddings.
        k: of N_k.

    Returns:
        `skewness`, the third moment of N_k around its mean over the cube of its standard deviation (0 where all
        candidates are found equally often, large where there are hubs); `never`, the share of candidates that no query
        finds; `largest`, the largest N_k over the number of queries, 1 for a candidate that every query finds.
    """
    counts = occurrences(query, candidate, k=k)
    centred = counts - counts.mean()
    std = float(np.sqrt(np.mean(centred**2)))
    skewness = float(np.mean(centred**3)) / std**3 if std > 1e-9 * counts.mean() else 0.0
    return {"skewness": skewness, "never": float(np.mean(counts < 1e-9)), "largest": float(counts.max()) / len(query)}
