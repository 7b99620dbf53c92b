"""SwAV and its Sinkhorn iterations, number by number."""

import torch
from torch import Tensor


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Q = diag(u) exp(S / epsilon) diag(v): prototypes to equal sums, then samples, again and again."""
    n, k = scores.shape
    q = torch.exp(scores / epsilon)
    q = q / q.sum()
    for _ in range(iterations):
        for j in range(k):
            q[:, j] = q[:, j] / q[:, j].sum() / k
        for i in range(n):
            q[i] = q[i] / q[i].sum() / n
    return torch.stack([row / row.sum() for row in q])


def swav(
    views: dict[str, Tensor],
    prototypes: Tensor,
    assigned: list[str],
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queues: dict[str, Tensor] | None = None,
) -> Tensor:
    """The mean over assigned views, other views and samples of the cross-entropy of codes and predictions."""
    scores = {}
    for view, z in views.items():
        scores[view] = torch.stack([torch.stack([row @ c / row.norm() for c in prototypes]) for row in z])
    loss, terms = prototypes.new_zeros(()), 0
    for a in assigned:
        known = scores[a].detach()
        before = 0
        if queues is not None:
            before = len(queues[a])
            known = torch.cat([queues[a] @ prototypes.detach().T, known])
        codes = sinkhorn(known, epsilon, iterations)[before:]
        for v in views:
            if v == a:
                continue
            for i in range(len(codes)):
                exponentials = torch.exp(scores[v][i] / temperature)
                for k in range(len(prototypes)):
                    loss = loss - codes[i, k] * torch.log(exponentials[k] / exponentials.sum())
                terms += 1
    return loss / terms
