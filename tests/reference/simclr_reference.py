"""NT-Xent as eq. 1 of the paper says it, row by row."""

import torch
from torch import Tensor


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.1, item: list[int] | None = None) -> Tensor:
    """Mean of 2N cross-entropies; other rows of the same item are left out of the sums."""
    n = len(a)
    rows, items = torch.cat([a, b]), (item or list(range(n))) * 2
    loss = a.new_zeros(())
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        sums, own = a.new_zeros(()), a.new_zeros(())
        for k in range(2 * n):
            if k == i or (items[k] == items[i] and k != partner):
                continue
            term = torch.exp(torch.dot(rows[i], rows[k]) / (rows[i].norm() * rows[k].norm()) / temperature)
            sums = sums + term
            own = term if k == partner else own
        loss = loss - torch.log(own / sums)
    return loss / (2 * n)
