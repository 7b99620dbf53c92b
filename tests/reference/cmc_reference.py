"""CMC's losses, sample by sample and negative by negative."""

import torch
from torch import Tensor


def discriminator(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    return torch.exp((x / x.norm()) @ (y / y.norm()) / temperature)


def info_nce(queries: Tensor, memory: Tensor, negative: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """Eq. 3."""
    loss = queries.new_zeros(())
    for i, query in enumerate(queries):
        right = discriminator(query, memory[i], temperature)
        every = right
        for k, other in enumerate(negative):
            if not left_out[i, k]:
                every = every + discriminator(query, other, temperature)
        loss = loss - torch.log(right / every)
    return loss / len(queries)


def nce(queries: Tensor, memory: Tensor, negative: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """Eq. 12 with 500 samples; the constant Z is 500 times the mean score of noise in these very rows."""
    samples = 500
    table = torch.stack(
        [torch.stack([discriminator(query, other, temperature) for other in negative]) for query in queries.detach()]
    )
    z = samples * float(table[~left_out].mean())
    loss = queries.new_zeros(())
    for i, query in enumerate(queries):
        others = [other for k, other in enumerate(negative) if not left_out[i, k]]
        noise = len(others) / samples
        data = discriminator(query, memory[i], temperature) / z
        loss = loss - torch.log(data / (data + noise))
        for other in others:
            data = discriminator(query, other, temperature) / z
            loss = loss - torch.log(noise / (data + noise))
    return loss / len(queries)


def cmc(kind: str, a: Tensor, b: Tensor, memories, negatives, left_out: Tensor, temperature: float = 0.07) -> Tensor:
    """Eq. 5: both ways."""
    one_way = {"nce": nce, "infonce": info_nce}[kind]
    return one_way(a, memories[1], negatives[1], left_out, temperature) + one_way(
        b, memories[0], negatives[0], left_out, temperature
    )
