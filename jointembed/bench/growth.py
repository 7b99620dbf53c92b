"""Time and memory of each part as what it works on doubles, and the exponents that fit."""

import io
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from jointembed.bench.loss import embeddings, live_bytes, step
from jointembed.bench.measure import Turn, exponent, take_turns
from jointembed.bench.retrieval import made_up
from jointembed.bench.rivals import known_losses
from jointembed.bench.train_text import caption_texts
from jointembed.bench.views import synthetic_jpegs
from jointembed.branches.branch import Branch
from jointembed.branches.image import TorchvisionEncoder
from jointembed.branches.text import GRU
from jointembed.data import VIEWS
from jointembed.data.tokens import words
from jointembed.errors import RecipeError
from jointembed.evaluation.retrieval import retrieval_ranks
from jointembed.layers import MLP
from jointembed.model import JointEmbedding
from jointembed.objectives.vicreg import VICReg
from jointembed.recipe import nearest

FITTED = 3  # sizes that an exponent is fitted to, from the largest down: the small ones pay what every call pays
Make = Callable[[int], Turn]


def bench_growth(*, what: Sequence[str] | None = None, doublings: int = 4, repeats: int = 3) -> list[dict[str, Any]]:
    """Measure each part at sizes that double, on one processor.

    Args:
        what: names of `PARTS`; None takes all.
        doublings: sizes beyond the first.
        repeats: rounds over the sizes; medians count.

    Returns:
        For each part and each way to grow: `what`, `grows`, `rows` (`size`, `seconds`, `cpu_seconds`, `mb`: the most
        bytes of tensors live at once that were not there before), and `exponents` of `cpu_seconds` and `mb`, fitted to
        the three largest sizes; None where nothing is held.

    Raises:
        RecipeError: no such part.
    """
    for name in what or ():
        if name not in PARTS:
            raise RecipeError(f"no part {name!r}{nearest(name, PARTS)}")
    return [
        {"what": name, "grows": grows} | _series(make, [start << k for k in range(doublings + 1)], repeats)
        for name in what or PARTS
        for grows, start, make in PARTS[name]
    ]


def _series(make: Make, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    turns = {str(size): make(size) for size in sizes}
    times = take_turns(turns, repeats)
    rows = [
        {
            "size": size,
            "seconds": median(one.wall for one in times[str(size)]),
            "cpu_seconds": median(one.cpu for one in times[str(size)]),
            "mb": live_bytes(turns[str(size)]) / 1e6,
        }
        for size in sizes
    ]
    last = rows[-FITTED:]
    exponents = {
        key: exponent([row["size"] for row in last], [row[key] for row in last]) if last[0][key] > 0 else None
        for key in ("cpu_seconds", "mb")
    }
    return {"rows": rows, "exponents": exponents}


# -- what grows -----------------------------------------------------------------------------------------------------


def _loss(n: int, d: int) -> Turn:
    loss, (a, b) = known_losses([])["jointembed"], embeddings(n, d)
    return lambda: step(loss, a, b)


def _encode(inputs: Sequence[Any], view: str) -> Turn:
    model = _model()
    return lambda: model.encode(inputs, view, batch_size=32)


def _captions(count: int) -> Turn:
    return _encode(caption_texts(None, count), "text")


def _pictures(count: int) -> Turn:
    return _encode([files for files, _ in zip(_jpegs(), range(count), strict=False)], "image")


def _retrieval(images: int, texts: int, dimension: int) -> Turn:
    image, text = made_up(images, texts, dimension)
    pairs = np.stack([np.arange(texts) // (texts // images), np.arange(texts)], axis=1)
    return lambda: retrieval_ranks(image, text, pairs)


def _views(count: int, size: int) -> Turn:
    files, views = [file for file, _ in zip(_jpegs(), range(count), strict=False)], VIEWS["vicreg"](size=size)

    def turn() -> None:
        for file in files:
            with Image.open(io.BytesIO(file)) as picture:
                views(picture.convert("RGB"))

    return turn


def _training_step(n: int, d: int) -> Turn:
    branch = Branch(TorchvisionEncoder(model="resnet18"), MLP(512, widths=[d] * 3))
    model = JointEmbedding({"image": branch}, {"view1": "image", "view2": "image"}, VICReg())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    pixels = torch.randint(0, 256, (2, n, 3, 32, 32), dtype=torch.uint8)

    def turn() -> None:
        model({"view1": pixels[0], "view2": pixels[1]})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return turn


PARTS: dict[str, list[tuple[str, int, Make]]] = {
    "loss": [
        ("n (d = 2048)", 64, lambda n: _loss(n, 2048)),
        ("d (n = 128)", 256, lambda d: _loss(128, d)),
    ],
    "embed": [("captions", 64, _captions), ("pictures", 8, _pictures)],
    "retrieval": [
        ("captions (500 pictures)", 2500, lambda texts: _retrieval(500, texts, 256)),
        ("pictures (5 captions each)", 125, lambda images: _retrieval(images, 5 * images, 256)),
        ("d", 64, lambda d: _retrieval(500, 2500, d)),
    ],
    "views": [("pictures", 4, lambda count: _views(count, 96)), ("side", 48, lambda side: _views(4, side))],
    "train": [
        ("n (d = 512)", 8, lambda n: _training_step(n, 512)),
        ("d (n = 16)", 256, lambda d: _training_step(16, d)),
    ],
}


def _model() -> JointEmbedding:
    tokens = words(caption_texts(None, 256), threshold=1, max_length=48)
    return JointEmbedding(
        {
            "image": Branch(TorchvisionEncoder(model="resnet18"), MLP(512, widths=[256])),
            "text": Branch(GRU(tokens.vocabulary, hidden=256), MLP(256, widths=[256])),
        },
        {"image": "image", "text": "text"},
        image=VIEWS["resize"](size=64),
        tokens=tokens,
    ).eval()


def _jpegs() -> Iterator[bytes]:
    """The same few files over and over."""
    files = synthetic_jpegs(4)
    while True:
        yield from files
