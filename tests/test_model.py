import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jointembed import build
from jointembed.errors import DataError, JointEmbedError, WeightsError
from jointembed.inference.embed import cached_rows, embed_captions, set_centres
from jointembed.model import JointEmbedding


@pytest.fixture
def model(tiny_recipe: Callable) -> JointEmbedding:
    recipe = tiny_recipe()
    torch.manual_seed(0)
    return build.make_model(recipe, build.tokens_of(recipe, build.dataset(recipe, "train"))).eval()


@pytest.fixture
def saved(model: JointEmbedding, tmp_path: Path) -> Path:
    model.get_buffer("centre_text").fill_(0.5)
    model.save_pretrained(tmp_path / "model", card="# a card")
    return tmp_path / "model"


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_every_form_of_a_picture_gives_the_same_embedding(model: JointEmbedding, tmp_path: Path) -> None:
    array = picture()
    Image.fromarray(array).save(tmp_path / "a.png")
    forms: list[Any] = [
        array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1), tmp_path / "a.png",
        str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(),
    ]  # fmt: skip
    rows = model.encode_image(forms)
    assert isinstance(rows, np.ndarray) and rows.shape == (6, 16) and rows.dtype == np.float32
    assert np.abs(rows - rows[0]).max() < 1e-6
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_texts_come_back_in_their_order_for_any_batch_size(model: JointEmbedding) -> None:
    texts = ["a red photo", "noise", "a dark blue green light square noise", "red"]
    one_by_one = np.concatenate([model.encode_text([text]) for text in texts])
    assert np.allclose(model.encode_text(texts, batch_size=3), one_by_one, atol=1e-6)
    rows = model.encode_text(texts, convert_to_numpy=False, normalize=False)
    assert isinstance(rows, torch.Tensor) and not torch.allclose(rows.norm(dim=1), torch.ones(4))
    assert model.encode_text([]).shape == (0, 16)


def test_similarity_is_the_cosine(model: JointEmbedding) -> None:
    a, b = torch.randn(3, 5), np.random.default_rng(0).normal(size=(2, 5))
    expected = torch.nn.functional.cosine_similarity(a[:, None], torch.from_numpy(b).float()[None], dim=-1)
    assert torch.allclose(model.similarity(a, b), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_text("a dog"), "takes a list of inputs, not one str"),
        (lambda m: m.encode_text(["a", " "]), "text 1: expected words"),
        (lambda m: m.encode_text([None]), "text 0: expected words"),
        (lambda m: m.encode_image([3]), "input 0: not a picture but int"),
        (lambda m: m.encode_image([np.zeros((4, 4))]), r"input 0: an array must be \(H, W, 3\) uint8"),
        (lambda m: m.encode_image([torch.zeros(3, 4, 4)]), r"input 0: a tensor must be \(3, H, W\) uint8"),
        (lambda m: m.encode_image(["absent.jpg"]), "absent.jpg: no such picture"),
        (lambda m: m.encode(["a"], "audio"), "no view 'audio' in this model; it has image, text"),
        (lambda m: m({"image": torch.zeros(1)}), "the batch has no view 'text'"),
    ],
)
def test_bad_inputs_are_named(model: JointEmbedding, call: Callable, message: str) -> None:
    with pytest.raises(JointEmbedError, match=message):
        call(model)
    assert not model.training


def test_saved_and_loaded_alike(model: JointEmbedding, saved: Path) -> None:
    loaded = JointEmbedding.from_pretrained(saved)
    assert np.array_equal(loaded.encode_text(["a red photo"]), model.encode_text(["a red photo"]))
    assert np.array_equal(loaded.encode_image([picture()]), model.encode_image([picture()]))
    assert (saved / "README.md").read_text() == "# a card"
    assert JointEmbedding.from_pretrained(saved.parent).config["name"] == "tiny"  # a run folder
    with pytest.raises(JointEmbedError, match="without an objective"):
        loaded(
            {
                "image": {"h": torch.zeros(2, 1024)},
                "text": {"ids": torch.ones(2, 1).long(), "length": torch.ones(2).long()},
            }
        )


def test_saving_replaces_the_folder_whole(model: JointEmbedding, saved: Path) -> None:
    (saved / "stale.txt").write_text("x")
    model.save_pretrained(saved)
    assert not (saved / "stale.txt").exists() and not list(saved.parent.glob(".model*"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def rename_key(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["branches.text.encoder.wurds.weight"] = tensors.pop("branches.text.encoder.words.weight")
    save_file(tensors, folder / "model.safetensors")


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (rename_key, "wurds"),
        (cut, "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Trap())), "model.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: change_config(f, format=2), "format 2 is of a newer version"),
        (lambda f: change_config(f, views={"image": "nowhere"}), "nowhere"),
        (lambda f: (f / "config.json").write_text("[]"), "not the config of a jointembed model"),
        (lambda f: (f / "config.json").write_bytes(pickle.dumps(Trap())), "cannot be read"),
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
)  # fmt: skip
def test_faulty_folders_are_refused_and_execute_nothing(
    saved: Path, fault: Callable, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    fault(saved)
    with pytest.raises(JointEmbedError, match=message):
        JointEmbedding.from_pretrained(saved)
    assert not Path("executed").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such model folder"):
        JointEmbedding.from_pretrained(tmp_path / "absent")


def test_centres_are_the_means_of_the_vectors(model: JointEmbedding, tiny_recipe: Callable) -> None:
    data = build.caption_data(tiny_recipe(), "train")
    set_centres(model, data, seed=0)
    found = embed_captions(model, data, batch=5)
    assert found.image.mean(dim=0).abs().max() < 1e-5 and found.text.mean(dim=0).abs().max() < 1e-5
    assert found.image.shape == (12, 16) and found.text.shape == (24, 16)
    centre = model.get_buffer("centre_image").clone()
    set_centres(model, data, seed=0)
    assert torch.allclose(model.get_buffer("centre_image"), centre, atol=1e-6)  # not of the centred vectors


def test_cached_rows_are_keyed_by_weights_and_inputs_and_read_back(tmp_path: Path) -> None:
    encoder, calls = torch.nn.Linear(2, 2), []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.full((3, 2), float(len(calls)))

    first = cached_rows(encoder, {"data": "a"}, compute, tmp_path)
    assert torch.equal(cached_rows(encoder, {"data": "a"}, compute, tmp_path), first) and len(calls) == 1
    cached_rows(encoder, {"data": "b"}, compute, tmp_path)
    with torch.no_grad():
        encoder.weight.add_(1)
    cached_rows(encoder, {"data": "a"}, compute, tmp_path)
    assert len(calls) == 3
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match="delete the file"):
        cached_rows(encoder, {"data": "a"}, compute, tmp_path)


def test_a_view_without_a_branch_is_refused(model: JointEmbedding) -> None:
    with pytest.raises(JointEmbedError, match="view 'audio' goes to branch 'ear'"):
        JointEmbedding({}, {"audio": "ear"})
    with pytest.raises(DataError, match="cached representations have width 3"):
        model.branch("image")({"h": torch.zeros(2, 3)})
