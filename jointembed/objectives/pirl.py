"""PIRL: a picture and its jigsaw resemble one memory. Misra, van der Maaten, CVPR 2020."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from jointembed.errors import RecipeError
from jointembed.layers import Embedding
from jointembed.objectives.contrast import Partition, PatchHead, log_mean_exp, nce, scores
from jointembed.objectives.memory import Bank
from jointembed.objectives.objective import Objective, ViewShape, check_shared
from jointembed.objectives.statistics import BatchError

Convention = Literal["official", "paper"]
VIEWS = ("view1", "patches")


def pirl_loss(
    picture: Tensor,
    jigsaw: Tensor,
    memory: Tensor,
    negative: Tensor,
    *,
    weight: float = 0.5,
    temperature: float = 0.07,
    left_out: Tensor | None = None,
    partition: Partition | None = None,
) -> dict[str, Tensor]:
    """NCE of the jigsaw against the memory, and of the picture: weight L(m, g) + (1 - weight) L(m, f) (eq. 5).

    L is -log h(m, z) - sum over negatives m' of log(1 - h(m', z)) (eq. 4). In eq. 3 h(m, z) is exp(s) / (exp(s) + S), S
    the sum of exp(s') over the negatives m' of z; with a `partition`, as in the authors' code, S is their number times
    the mean of exp(s') in the first step. s is the cosine divided by the temperature.

    Args:
        picture: (N, D) f(v), the head's output for pictures.
        jigsaw: (N, D) g(v), that for jigsaws.
        memory: (N, D) m of the same samples.
        negative: (K, D) m' of others.
        weight: lambda, of the jigsaw's loss.
        temperature: tau.
        left_out: (N, K) bool, true where a negative is the sample itself.
        partition: None for eq. 3.

    Returns:
        `loss`, and detached its two parts `jigsaw` and `picture`.

    Raises:
        BatchError: (a ValueError) if the shapes differ.
    """
    found = [scores(query, memory, negative, temperature, left_out) for query in (jigsaw, picture)]
    of_jigsaw, of_picture = (
        nce(one, log_mean_exp(one.negative) if partition is None else partition(one.negative)) for one in found
    )
    loss = weight * of_jigsaw + (1 - weight) * of_picture
    return {"loss": loss, "jigsaw": of_jigsaw.detach(), "picture": of_picture.detach()}


class PIRL(Objective):
    """PIRL of the views `view1` and `patches`, with a memory of every sample and its own heads on h.

    The memory follows the pictures' embeddings. The expander is left out of the branch (`widths: []`).

    Args:
        width: D, of both heads.
        patches: of a jigsaw.
        negatives: drawn from the memory in a step, for the whole batch.
        momentum: of the memory.
        temperature: tau.
        weight: lambda, of the jigsaw's loss.
        convention: whose normalisation of h, the authors' code or the paper's; see `pirl_loss`.
    """

    picture_head: nn.Module
    jigsaw_head: nn.Module
    bank: Bank

    def __init__(
        self,
        *,
        width: int = 128,
        patches: int = 9,
        negatives: int = 32000,
        momentum: float = 0.5,
        temperature: float = 0.07,
        weight: float = 0.5,
        convention: Convention = "official",
    ) -> None:
        """See the class. Raises RecipeError for a number out of range."""
        super().__init__()
        if min(temperature, width, patches, negatives) <= 0 or not (0 <= weight <= 1 and 0 <= momentum < 1):
            raise RecipeError(
                "objective: temperature, width, patches and negatives must be positive, weight and momentum within 0 "
                f"and 1, found {temperature}, {width}, {patches}, {negatives}, {weight} and {momentum}"
            )
        if convention not in get_args(Convention):
            raise RecipeError(f"objective.convention: must be official or paper, found {convention!r}")
        self.width, self.patches, self.negatives, self.momentum_of_bank = width, patches, negatives, momentum
        self.temperature, self.weight = temperature, weight
        self.partition = Partition() if convention == "official" else None

    def check_views(self, views: Iterable[str]) -> None:
        """Raise RecipeError unless the views are `view1` and `patches`."""
        if set(views) != set(VIEWS):
            raise RecipeError(f"objective: PIRL needs the views {' and '.join(VIEWS)}, found {', '.join(views)}")

    def check_branches(self, views: Mapping[str, str]) -> None:
        """Raise RecipeError unless both views go through one branch."""
        check_shared(views, "PIRL", "its jigsaws are embedded by the network of the pictures")

    def attach(self, views: Mapping[str, ViewShape], samples: int) -> None:
        """Make the heads and the memory. Raises RecipeError if the branch has an expander."""
        shape = views["view1"]
        if shape.z != shape.h:
            raise RecipeError(f"branches.{shape.branch}.expander: PIRL has its own heads on h; make it widths: []")
        self.picture_head = nn.Linear(shape.h, self.width)
        self.jigsaw_head = PatchHead(shape.h, self.patches, self.width)
        self.bank = Bank(samples, self.width, momentum=self.momentum_of_bank)

    def forward(
        self,
        online: Mapping[str, Embedding],
        target: Mapping[str, Embedding] | None = None,
        index: Tensor | None = None,
        item: Tensor | None = None,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of `pirl_loss`."""
        if index is None:
            raise BatchError("PIRL needs the numbers of the samples (index)")
        picture, jigsaw = self.picture_head(online["view1"].h), self.jigsaw_head(online["patches"].h)
        drawn = self.bank.draw(self.negatives)
        self.bank.hold(index, picture)
        return pirl_loss(
            picture, jigsaw, self.bank.rows[index], self.bank.rows[drawn], weight=self.weight,
            temperature=self.temperature, left_out=drawn == index[:, None], partition=self.partition,
        )  # fmt: skip

    def before_step(self, batch: Mapping[str, Any]) -> None:
        """Begin anew where the first step was left out."""
        if self.partition is not None:
            self.partition.drop()

    def end_step(self, progress: float) -> None:
        """Move the memory."""
        self.bank.commit()
        if self.partition is not None:
            self.partition.commit()
