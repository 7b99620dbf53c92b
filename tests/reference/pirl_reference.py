"""PIRL's loss, sample by sample and negative by negative."""

import torch
from torch import Tensor


def similarity(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    return torch.exp(torch.dot(x, y) / (x.norm() * y.norm()) / temperature)


def one(query: Tensor, own: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """Eq. 3-4: the posterior's denominator adds up the negatives of the query."""
    noise = sum((similarity(query, other, temperature) for other in negatives), query.new_zeros(()))
    right = similarity(query, own, temperature)
    loss = -torch.log(right / (right + noise))
    for other in negatives:
        wrong = similarity(query, other, temperature)
        loss = loss - torch.log(1 - wrong / (wrong + noise))
    return loss


def one_normalised(
    query: Tensor, own: Tensor, negatives: list[Tensor], temperature: float, z: float, samples: int
) -> Tensor:
    """The authors' code: P = exp(s) / Z, and the noise is uniform over the samples."""
    m, uniform = len(negatives), 1 / samples
    right = similarity(query, own, temperature) / z
    loss = -torch.log(right / (right + m * uniform))
    for other in negatives:
        wrong = similarity(query, other, temperature) / z
        loss = loss - torch.log(m * uniform / (wrong + m * uniform))
    return loss


def kept(negative: Tensor, left_out: Tensor | None, i: int) -> list[Tensor]:
    return [row for k, row in enumerate(negative) if left_out is None or not left_out[i, k]]


def first_z(query: Tensor, negative: Tensor, temperature: float, samples: int, left_out: Tensor | None = None) -> float:
    """Z: the number of samples times the mean over all queries and their negatives."""
    values = [
        float(similarity(q, other, temperature))
        for i, q in enumerate(query.detach())
        for other in kept(negative, left_out, i)
    ]
    return samples * sum(values) / len(values)


def pirl(
    picture: Tensor,
    jigsaw: Tensor,
    memory: Tensor,
    negative: Tensor,
    weight: float = 0.5,
    temperature: float = 0.07,
    left_out: Tensor | None = None,
    samples: int | None = None,
) -> Tensor:
    """Eq. 5; with `samples` the authors' form, Z from the jigsaws, which go first."""
    z = 0.0 if samples is None else first_z(jigsaw, negative, temperature, samples, left_out)
    loss = picture.new_zeros(())
    for share, queries in ((weight, jigsaw), (1 - weight, picture)):
        for i, query in enumerate(queries):
            others = kept(negative, left_out, i)
            if samples is None:
                part = one(query, memory[i], others, temperature)
            else:
                part = one_normalised(query, memory[i], others, temperature, z, samples)
            loss = loss + share * part / len(queries)
    return loss
