"""A whole training step of captions against cached picture representations: a GRU, as VSE++ trains it."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from jointembed.bench.rivals import known_losses, plain_vicreg
from jointembed.bench.steps import LR, WEIGHT_DECAY, Step, chosen_precision, peaks, step_by_step, step_table
from jointembed.branches.branch import Branch
from jointembed.branches.text import GRU
from jointembed.data.samples import Batch
from jointembed.data.tokens import pad, words
from jointembed.errors import DataError
from jointembed.layers import MLP
from jointembed.model import JointEmbedding
from jointembed.objectives.vicreg import VICReg

FEATURES, HIDDEN, EMBEDDING = 1280, 512, 300  # MobileNetV2's representation; recipes/flickr8k_vicreg.yaml
Item = tuple[Tensor, list[int]]


def bench_text(
    *, captions: Path | None, batch: int, width: int, repeats: int, precision: str, hidden: int = HIDDEN
) -> dict[str, Any]:
    """GRU retrieval with VICReg on cached representations; see `bench.train.bench_train`.

    The other sides sort the batch by length and pack it, as VSE++ does, in float32 with torch's default Adam.

    Args:
        captions: COCO captions file; None makes captions up, whose lengths are those of COCO's.
        batch: captions.
        width: of the expanders, of two layers each.
        repeats: measured steps.
        precision: of our side.
        hidden: state of the GRU.
    """
    torch.manual_seed(0)
    texts = caption_texts(captions, 16 * batch)
    tokens = words(texts, threshold=1, max_length=48)
    rows = torch.randn(len(texts), FEATURES, generator=torch.Generator().manual_seed(0))
    items: list[Item] = list(zip(rows, tokens.encode(texts), strict=True))
    core = text_model(tokens.vocabulary, width, hidden)
    networks: dict[str, _Network] = {"authors": _Network(core)}
    losses: dict[str, Callable] = {"authors": plain_vicreg}
    if find_spec("lightly") is not None:
        networks["lightly"], losses["lightly"] = _Network(core), known_losses(["lightly"])["lightly"]
    sides: dict[str, Step] = {name: _Loop(one, losses[name], items, batch) for name, one in networks.items()}
    steps = repeats + 2
    chosen = chosen_precision(precision)
    with torch.no_grad():
        first = next(text_batches(items, batch, 1))
        before = copy.deepcopy(core.state_dict())
        values = {"jointembed": float(core(first)["loss"])}
        core.load_state_dict(before)
        values |= {name: float(losses[name](*copy.deepcopy(one)(items[:batch]))) for name, one in networks.items()}
    times, stages = step_by_step(
        core, text_batches(items, batch, steps), sides, steps=steps, precision=chosen, optimizer="adam"
    )
    memory = peaks(core, text_batches(items, batch, 1), sides, chosen)
    return step_table(times, memory, stages) | {
        "values": values,
        "precision": chosen,
        "batch": batch,
        "width": width,
        "hidden": hidden,
    }


def text_model(vocabulary: int, width: int, hidden: int) -> JointEmbedding:
    """Cached representations and a GRU, with an expander of two layers each."""
    image = Branch(_Cached(), MLP(FEATURES, widths=[width] * 2), train="none")
    text = Branch(GRU(vocabulary, embedding=EMBEDDING, hidden=hidden), MLP(hidden, widths=[width] * 2))
    return JointEmbedding({"image": image, "text": text}, {"image": "image", "text": "text"}, VICReg())


def text_batches(items: Sequence[Item], batch: int, steps: int) -> Iterator[Batch]:
    """Batches in order."""
    for step in range(steps):
        part = _part(items, step * batch, batch)
        index = torch.arange(batch)
        image = {"h": torch.stack([row for row, _ in part])}
        yield {"index": index, "item": index, "image": image, "text": pad([ids for _, ids in part])}


def caption_texts(file: Path | None, count: int) -> list[str]:
    """Captions of a COCO file, from the first on; or made-up ones of 8 to 30 words, 10.5 in the mean, as COCO's.

    Raises:
        DataError: a file that holds too few.
    """
    if file is not None:
        annotations = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        if len(annotations) < count:
            raise DataError(f"{file}: {len(annotations)} captions, {count} are needed")
        return [one["caption"] for one in annotations[:count]]
    draw = np.random.default_rng(0)
    lengths = np.minimum(8 + draw.geometric(0.29, count) - 1, 30)
    ranks = np.minimum(draw.zipf(1.3, lengths.sum()), 8000)
    ends = np.cumsum(lengths)
    return [
        " ".join(f"word{rank}" for rank in ranks[end - length : end])
        for end, length in zip(ends, lengths, strict=True)
    ]  # fmt: skip


class _Cached(nn.Module):
    """Stands for the encoder whose representations are at hand."""

    width = FEATURES


def _part(items: Sequence[Item], start: int, batch: int) -> list[Item]:
    return [items[number % len(items)] for number in range(start, start + batch)]


class _Network(nn.Module):
    """The same layers as ours, with our weights, over packed captions."""

    def __init__(self, core: JointEmbedding) -> None:
        super().__init__()
        text = core.branch("text")
        gru = copy.deepcopy(text.encoder)
        self.words, self.rnn = gru.get_submodule("words"), gru.get_submodule("rnn")
        self.heads = nn.ModuleList(copy.deepcopy(core.branch(view).expander) for view in ("image", "text"))

    def forward(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        items = sorted(items, key=lambda one: -len(one[1]))
        lengths = [len(ids) for _, ids in items]
        padded = torch.zeros(len(items), lengths[0], dtype=torch.int64)
        for row, (_, ids) in enumerate(items):
            padded[row, : len(ids)] = torch.tensor(ids)
        _, last = self.rnn(pack_padded_sequence(self.words(padded), lengths, batch_first=True))
        return self.heads[0](torch.stack([row for row, _ in items])), self.heads[1](last[-1])


class _Loop:
    def __init__(self, network: _Network, loss: Callable, items: Sequence[Item], batch: int) -> None:
        self.network, self.loss, self.items, self.batch, self.seen = network, loss, items, batch, 0
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LR["adam"], weight_decay=WEIGHT_DECAY)

    def __call__(self) -> float:
        loss = self.loss(*self.network(_part(self.items, self.seen, self.batch)))
        self.seen += self.batch
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
