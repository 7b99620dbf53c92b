"""What an objective remembers between steps: a queue of the newest rows, and a bank with a row for every sample.

Both are buffers: equal on all ranks, and in the checkpoint. A step's rows are held back until `commit`, which the
objective calls in `end_step`: so a loss sees the rows of earlier steps alone, and a refused step leaves no trace.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import gather_without_grad


def _unit_rows(count: int, width: int) -> Tensor:
    """Random rows of length 1, the same ones on every rank, whatever was drawn there before."""
    rows = torch.randn(count, width, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return functional.normalize(rows, dim=1).to(torch.get_default_device())


class Queue(nn.Module):
    """The newest K rows of all ranks, first in, first out (MoCo: He et al., CVPR 2020, section 3.1).

    It starts with random rows of length 1.

    Args:
        size: K.
        width: D.

    Attributes:
        rows: (K, D), in no order of age.
        count: () int64, rows that went in so far; `count % K` is where the next one goes.
    """

    rows: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("rows", _unit_rows(size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._held: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether none of the random rows is left."""
        return int(self.count) >= len(self.rows)

    def hold(self, rows: Tensor) -> None:
        """Keep this rank's rows (n, D) for `commit`, in the place of those held before."""
        self._held = rows.detach()

    def commit(self) -> None:
        """Put in what is held. Every rank must call it."""
        if self._held is not None:
            self.enqueue(self._held)
            self._held = None

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Put in the rows of all ranks, in rank order.

        Args:
            rows: (n, D) of this rank, as they shall be kept; n may differ between ranks, and their sum may exceed K.
        """
        rows = gather_without_grad(rows)
        size = len(self.rows)
        newest = rows[-size:]
        places = torch.arange(len(rows) - len(newest), len(rows), device=self.rows.device)
        self.rows[(self.count + places) % size] = newest.to(self.rows.dtype)
        self.count += len(rows)


class Bank(nn.Module):
    """A row of length 1 for every training sample, which follows its embeddings (Wu et al., CVPR 2018, section 3.2).

    It starts with random rows.

    Args:
        samples: in the training set.
        width: D.
        momentum: share of the old row in the new one.

    Attributes:
        rows: (samples, D).
        step: () int64, number of commits; it decides what `draw` draws.
    """

    rows: Tensor
    step: Tensor

    def __init__(self, samples: int, width: int, *, momentum: float = 0.5) -> None:
        """See the class."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows", _unit_rows(samples, width))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._held: tuple[Tensor, Tensor] | None = None

    def draw(self, number: int) -> Tensor:
        """Numbers (K,) of random samples, repetitions allowed: the same on every rank, and until the next commit.

        A caller that uses their rows as negatives must leave out each sample's own number.
        """
        generator = torch.Generator("cpu").manual_seed(int(self.step))
        return torch.randint(len(self.rows), (number,), generator=generator, device="cpu").to(self.rows.device)

    def hold(self, index: Tensor, rows: Tensor) -> None:
        """Keep this rank's sample numbers (n,) and embeddings (n, D) for `commit`, in the place of those before."""
        self._held = index, rows.detach()

    def commit(self) -> None:
        """Move the rows towards what is held, and count the step. Every rank must call it."""
        if self._held is not None:
            self.update(*self._held)
            self._held = None
        self.step += 1

    @torch.no_grad()
    def update(self, index: Tensor, rows: Tensor) -> None:
        """Move rows of the bank: to momentum * old + (1 - momentum) * new, of length 1.

        Args:
            index: (n,) numbers of this rank's samples; of those that are equal, the last one in rank order counts.
            rows: (n, D) their embeddings, of any length.
        """
        index, rows = gather_without_grad(index), gather_without_grad(rows)
        numbers, group = index.unique(return_inverse=True)
        order = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(numbers).scatter_reduce_(0, group, order, "amax")
        new = functional.normalize(rows[last].to(self.rows.dtype), dim=1)
        self.rows[numbers] = functional.normalize(self.rows[numbers].lerp(new, 1 - self.momentum), dim=1)
