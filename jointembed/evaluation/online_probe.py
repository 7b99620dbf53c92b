"""A linear classifier that is trained beside an encoder, to watch it: no gradient flows back, no label gets further."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.distributed import sum_over_ranks
from jointembed.evaluation.accuracy import TOP, true_ranks
from jointembed.objectives.statistics import full_precision


class OnlineProbe(nn.Module):
    """Softmax regression on detached representations, one step of SGD a batch.

    It reports on a batch before it learns from it, so its numbers are of samples that it has not been trained on in
    this epoch; the encoder has, and the views are augmented: they are no substitute for a linear evaluation.

    All its state are buffers: optimizers of the encoder do not see it, checkpoints keep it. Representations are centred
    by a running mean and the rate is relative to their mean squared length, so that it needs no tuning to an encoder
    (normalised least mean squares: Haykin, Adaptive Filter Theory, chapter 6).
    """

    weight: Tensor
    bias: Tensor
    momentum: Tensor
    centre: Tensor
    steps: Tensor

    def __init__(self, width: int, classes: int, *, lr: float = 0.5, momentum: float = 0.9) -> None:
        """Start at zero, that is, at chance.

        Args:
            width: R.
            classes: C.
            lr: learning rate, relative.
            momentum: of the steps.
        """
        super().__init__()
        self.lr, self.share = lr, momentum
        for name, shape in (
            ("weight", (width, classes)),
            ("bias", (classes,)),
            ("momentum", (width + 1, classes)),
            ("centre", (width,)),
            ("steps", ()),
        ):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def forward(self, h: Tensor) -> Tensor:
        """Scores (N, C) of detached representations (N, R)."""
        with full_precision(h):
            return (h.detach().float() - self.centre) @ self.weight + self.bias

    @torch.no_grad()
    def step(self, h: Tensor, label: Tensor) -> dict[str, float]:
        """Report on a batch, then learn from it; every rank calls it, with as many rows as it has.

        Args:
            h: (n, R) representations; whatever graph they have is left alone.
            label: (n,) int64.

        Returns:
            `online/top1`, `online/top5` in percent and `online/loss`, of all ranks' rows.
        """
        scores = self(h)
        with full_precision(h):
            h = h.detach().float()
            error = scores.softmax(1) - functional.one_hot(label, scores.shape[1])
            hits = [float((true_ranks(scores, label) < top).sum()) for top in TOP]
            loss = float(functional.cross_entropy(scores, label, reduction="sum"))
            x = h - self.centre
            lengths = [float(one.square().sum()) for one in (x, h)]
            numbers = x.new_tensor([len(h), *hits, loss, *lengths])
            sums = sum_over_ranks(torch.cat([numbers, h.sum(0), (x.T @ error).flatten(), error.sum(0)]))
            count, *hit, loss, length, whole = sums[: len(numbers)].tolist()
            mean, gradient = (sums[len(numbers) :] / count).split([x.shape[1], self.momentum.numel()])
            self.momentum.mul_(self.share).add_(gradient.view_as(self.momentum))
            # what is below a thousandth of the representations is rounding, and not to be blown up to a feature
            self.weight.sub_(self.momentum[:-1], alpha=self.lr * count / max(length, 1e-6 * whole, 1e-30))
            self.bias.sub_(self.momentum[-1], alpha=self.lr)
            self.steps += 1
            moved = (mean - self.centre) * max(0.01, 1 / float(self.steps))
            self.centre += moved
            self.bias += moved @ self.weight  # the scores stay what they were
        return {f"online/top{top}": 100 * one / count for top, one in zip(TOP, hit, strict=True)} | {
            "online/loss": loss / count
        }
