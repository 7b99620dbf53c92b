import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from embedding_runs import make_embeddings, save_model, write_pictures
from pyarrow import parquet
from tiny_runs import TINY, write_captions

from jointembed import build, runs
from jointembed.branches.weights import read_state
from jointembed.data.audio import open_sound
from jointembed.data.caption_parquet import caption_parquet
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.folder import image_folder
from jointembed.data.hub import caption_dataset
from jointembed.data.pictures import open_picture
from jointembed.data.tokens import pretrained
from jointembed.errors import JointEmbedError
from jointembed.evaluation.files import load_ranks, read_embeddings
from jointembed.evaluation.parts import EmbeddingParts
from jointembed.inference.detect import load_detector
from jointembed.inference.embeddings import read_header
from jointembed.inference.frozen import cached_rows
from jointembed.inference.index import Index
from jointembed.inference.index_build import build_index
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe, load_recipe


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def torch_file(payload: Payload) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": payload}, out)
    return out.getvalue()


def npy_file(payload: Payload) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([payload], dtype=object), allow_pickle=True)
    return out.getvalue()


def npz_file(payload: Payload) -> bytes:
    out = io.BytesIO()
    names = ("image", "text", "image_of_text", "k", "i2t_above")
    np.savez(out, allow_pickle=True, **{name: np.array([payload], dtype=object) for name in names})
    return out.getvalue()


def parquet_file(payload: Payload) -> bytes:
    """The extension type of old pyarrow, whose metadata is a pickle."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(payload)}
    names = ("id", "path", "image", "text", "caption", "image_id")
    schema = pyarrow.schema([pyarrow.field(name, pyarrow.binary(), metadata=metadata) for name in names])
    out = io.BytesIO()
    parquet.write_table(pyarrow.table([[pickle.dumps(payload)]] * len(names), schema=schema), out)
    return out.getvalue()


FORMS: dict[str, Callable[[Payload], bytes]] = {
    "pickle": pickle.dumps,
    "torch": torch_file,
    "npy": npy_file,
    "npz": npz_file,
    "parquet": parquet_file,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a trained run, a model, embeddings and an index; each test takes its own copy of what it spoils."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOINTEMBED_CACHE", str(root / "cache"))
        write_captions(root / "data")
        (root / "tiny.yaml").write_text(TINY.replace("ROOT", str(root / "data")))
        runs.train(recipe_of(root), root / "run")
        model = save_model(root, 0)
        make_embeddings(model, write_pictures(root / "pictures", 6), root / "embeddings")
        build_index(root / "embeddings", root / "index")
    return root


def recipe_of(root: Path) -> Recipe:
    return build.check(load_recipe(root / "tiny.yaml", ["training.epochs=1"]))


def resigned(folder: Path, name: str) -> None:
    """An attacker who can write the file can write its sum too."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if (folder / "manifest.json").is_file() and name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"][name] = digest
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if (folder / "index.json").is_file() and name != "index.json":
        info = json.loads((folder / "index.json").read_text())
        info["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
        (folder / "index.json").write_text(json.dumps(info))


def resume(name: str) -> Callable[[Path, bytes], object]:
    def load(root: Path, content: bytes) -> object:
        folder = sorted((root / "run" / "checkpoints").glob("step-*"))[-1]
        (folder / name).write_bytes(content)
        resigned(folder, name)
        return runs.train(recipe_of(root), root / "run", resume=True)

    return load


def index(name: str) -> Callable[[Path, bytes], object]:
    def load(root: Path, content: bytes) -> object:
        (root / "index" / name).write_bytes(content)
        resigned(root / "index", name)
        opened = Index.open(root / "index")
        return opened.model()

    return load


def faiss_index(root: Path, content: bytes) -> object:
    folder = root / "index"
    (folder / "index.faiss").write_bytes(content)
    info = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(info | {"kind": "ivf_pq"}))
    resigned(folder, "index.faiss")
    opened = Index.open(folder)
    return opened.search(opened.vectors.take(np.array([0])), 1)


def model(name: str) -> Callable[[Path, bytes], object]:
    def load(root: Path, content: bytes) -> object:
        (root / "model0" / name).write_bytes(content)
        return JointEmbedding.from_pretrained(root / "model0")

    return load


def cache(pattern: str) -> Callable[[Path, bytes], object]:
    def load(root: Path, content: bytes) -> object:
        found = sorted((root / "cache").glob(pattern))
        assert found, f"nothing cached as {pattern}"
        for path in found:
            path.write_bytes(content)
        return runs.train(recipe_of(root), root / "again")

    return load


def file(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    def load(root: Path, content: bytes) -> object:
        path = root / "alone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return load


def frozen_rows(root: Path, content: bytes) -> object:
    encoder = torch.nn.Linear(2, 2)
    shutil.rmtree(root / "rows", ignore_errors=True)
    cached_rows(encoder, {}, lambda: torch.zeros(1, 2), root / "rows")
    next((root / "rows").iterdir()).write_bytes(content)
    return cached_rows(encoder, {}, lambda: torch.zeros(1, 2), root / "rows")


def unreadable_list(root: Path, content: bytes) -> object:
    recipe = build.check(load_recipe(root / "tiny.yaml", ["data.skip_unreadable=0.1"]))
    for old in (root / "cache").glob("unreadable-*.json"):
        old.unlink()
    build.dataset(recipe, "train")
    next((root / "cache").glob("unreadable-*.json")).write_bytes(content)
    return build.dataset(recipe, "train")


def saved_dataset(root: Path, content: bytes) -> object:
    folder = root / "saved"
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}], "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "data.arrow").write_bytes(content)
    return caption_dataset(path=str(folder), split="train")


def shard(root: Path, content: bytes) -> object:
    """A shard's index is a cache: one that is none is made again, and the shard itself is the same payload."""
    (root / "one.tar").write_bytes(content)
    (root / "one.tar.json.index.json").write_bytes(content)
    return caption_shards(shards=str(root / "one.tar"))


def transformers_folder(root: Path, content: bytes) -> object:
    folder = root / "bert"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(content)
    return pretrained([], model=str(folder))


def detector(root: Path, content: bytes) -> object:
    folder = root / "detector"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(content)
    return load_detector(folder)


FILES: dict[str, Callable[[Path, bytes], object]] = {
    "weights .pth": file("w.pth", read_state),
    "weights .safetensors": file("w.safetensors", read_state),
    **{f"model folder {name}": model(name) for name in ("model.safetensors", "config.json", "tokenizer.json")},
    "transformers folder": transformers_folder,
    "detector": detector,
    **{
        f"checkpoint {name}": resume(name)
        for name in (
            "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json",
        )
    },
    **{
        f"index {name}": index(name)
        for name in (
            "index.json", "rows.parquet", "vectors-00000.safetensors", "model/config.json", "model/model.safetensors",
            "model/tokenizer.json",
        )
    },
    "index index.faiss": faiss_index,
    "embeddings header": file("embeddings.json", lambda path: read_header(path.parent)),
    "embeddings parquet": file("part-00000.parquet", lambda path: EmbeddingParts(path.parent)),
    "embeddings npz": file("e.npz", read_embeddings),
    "embeddings safetensors": file("e.safetensors", read_embeddings),
    "ranks npz": file("ranks.npz", load_ranks),
    "cache of tokens": cache("tokens-*.safetensors"),
    "cache of a run's representations": cache("[!t]*.safetensors"),
    "cache of representations": frozen_rows,
    "cache of unreadable pictures": unreadable_list,
    "recipe": file("recipe.yaml", load_recipe),
    "captions JSON": file("c.json", lambda path: coco_captions(images=str(path.parent), annotations=str(path))),
    "captions parquet": file("c.parquet", lambda path: caption_parquet(files=str(path))),
    "shard and its index": shard,
    "data set of the library datasets": saved_dataset,
    "folder of pictures": file("p/a.png", lambda path: image_folder(path=str(path.parent.parent)).pictures.open(0)),
    "zip of pictures": file("p.zip", lambda path: image_folder(path=str(path))),
    "picture": file("p.jpg", open_picture),
    "sound": file("s.wav", open_sound),
}  # fmt: skip


@pytest.mark.fault(5, "control: the payloads do execute where they are unpickled")
def test_the_payloads_would_execute(tmp_path: Path) -> None:
    loaders: dict[str, Callable[[bytes], object]] = {
        "pickle": pickle.loads,
        "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "npy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "npz": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["image"],
    }
    for name, load in loaders.items():
        load(FORMS[name](Payload(tmp_path / name)))
        assert (tmp_path / name).is_dir(), name


NEEDED = {"checkpoint": ("run", "cache"), "index": ("index",), "model": ("model0",), "cache": ("cache",)}


@pytest.mark.fault(5, "a pickle, torch, npy, npz and parquet payload as every file that is ever loaded")
@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.filterwarnings("ignore")  # what torch, transformers and datasets say of such files
def test_nothing_executes(name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, root = tmp_path / "executed", tmp_path / "root"
    for part in NEEDED.get(name.partition(" ")[0], ()):
        shutil.copytree(made / part, root / part)
    root.mkdir(exist_ok=True)
    shutil.copy(made / "tiny.yaml", root)
    monkeypatch.setenv("JOINTEMBED_CACHE", str(root / "cache"))
    for form, write in FORMS.items():
        try:
            FILES[name](root, write(Payload(target)))
        except JointEmbedError as error:
            assert str(error), form
        else:
            # what a reader may rightly take: a parquet whose unknown type it passes over
            assert form == "parquet" and "parquet" in name, f"{form} was taken for {name}"
        assert not target.exists(), f"{form} executed"
