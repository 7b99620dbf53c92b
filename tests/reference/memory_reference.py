"""A queue and a memory bank, row by row."""

from collections import deque

from torch import Tensor


def queue(start: Tensor, batches: list[Tensor]) -> set[tuple[float, ...]]:
    """The K rows that are left."""
    rows = deque((tuple(row.tolist()) for row in start), maxlen=len(start))
    for batch in batches:
        rows.extend(tuple(row.tolist()) for row in batch)
    return set(rows)


def bank(rows: Tensor, batches: list[tuple[list[int], Tensor]], momentum: float) -> Tensor:
    """The rows after some steps; of equal numbers in a step the last one counts."""
    rows = rows.clone()
    for numbers, embeddings in batches:
        newest = dict(zip(numbers, embeddings, strict=True))
        for number, z in newest.items():
            moved = momentum * rows[number] + (1 - momentum) * z / z.norm()
            rows[number] = moved / moved.norm()
    return rows
