"""An untrained model, a folder of pictures, and embeddings made of them in this process."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_runs import TINY, write_captions

from jointembed import build
from jointembed.data.records import CaptionData
from jointembed.inference.embed import set_centres
from jointembed.inference.inputs import open_source
from jointembed.inference.worker import EmbedWorker, Settings, embed_worker
from jointembed.model import JointEmbedding, model_folder
from jointembed.recipe import load_recipe


def save_model(root: Path, seed: int) -> Path:
    """An untrained model whose vectors are well spread: 16 numbers, a picture and a text view."""
    recipe_file = root / f"recipe{seed}.yaml"
    data = root / f"data{seed}"
    write_captions(data)
    recipe_file.write_text(TINY.replace("ROOT", str(data)))
    recipe = build.check(load_recipe(recipe_file, ["branches.image.encoder.model=squeezenet1_1"]))
    train = build.dataset(recipe, "train")
    assert isinstance(train, CaptionData)
    torch.manual_seed(seed)
    model = build.make_model(recipe, build.tokens_of(recipe, train)).eval()
    set_centres(model, train, seed=0)
    model.save_pretrained(root / f"model{seed}", card="# a card")
    return root / f"model{seed}"


def write_pictures(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(5)
    for number in range(count):
        path = folder / ("b" if number % 2 else "a") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    return folder


def make_embeddings(model_path: Path, data: Path | str, out: Path, *, shard_size: int = 4, **settings: object) -> Path:
    """`jointembed embed` in this process."""
    worker = embed_worker(model_path, str(data), out, Settings(**settings), shard_size=shard_size)  # type: ignore[arg-type]
    worker.run(0, 1)
    return out


def make_worker(model: JointEmbedding, path: Path, data: Path | str, out: Path, **settings: object) -> EmbedWorker:
    """A worker that shares a loaded model."""
    source = open_source(str(data), shard_size=4)
    return EmbedWorker(model, model_folder(path), source, out, Settings(**settings))  # type: ignore[arg-type]
