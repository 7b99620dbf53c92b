import json
import os
import pickle
import socketserver
import stat
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from jointembed import build
from jointembed.errors import DataError, JointEmbedError, RecipeError, WeightsError
from jointembed.inference import frozen
from jointembed.inference.embed import embed_captions, embed_sample, set_centres
from jointembed.inference.frozen import cached_rows
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


def test_one_input_gives_one_row_as_in_sentence_transformers(model: JointEmbedding, tmp_path: Path) -> None:
    assert np.array_equal(model.encode_text("red noise"), model.encode_text(["red noise"])[0])
    array = picture()
    Image.fromarray(array).save(tmp_path / "a.png")
    [expected] = model.encode_image([array])
    for one in (array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1), tmp_path / "a.png",
                str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):  # fmt: skip
        row = model.encode_image(one)
        assert row.shape == (16,) and np.abs(row - expected).max() < 1e-6
    assert torch.equal(torch.as_tensor(model.encode_text("red", convert_to_tensor=True)).norm().round(), torch.ones(()))


def test_batches_of_arrays_columns_and_iterators(model: JointEmbedding, tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    arrays = np.stack([picture(0), picture(1), picture(2)])
    expected = model.encode_image(list(arrays))
    assert np.allclose(model.encode_image(arrays), expected, atol=1e-6)
    assert np.allclose(model.encode_image(torch.from_numpy(arrays).permute(0, 3, 1, 2)), expected, atol=1e-6)
    assert np.allclose(model.encode_image(iter(arrays)), expected, atol=1e-6)  # type: ignore[arg-type]
    names = []
    for number, array in enumerate(arrays):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(array).save(names[-1])
    data = Dataset.from_dict({"image": names, "words": ["red", "a dark noise", "blue"]})
    data = data.cast_column("image", ImageFeature())
    assert np.allclose(model.encode_image(data["image"], batch_size=2), expected, atol=1e-6)
    assert np.allclose(model.encode_text(data["words"]), model.encode_text(["red", "a dark noise", "blue"]), atol=1e-6)
    assert np.allclose(model.encode_text(np.array(["red", "blue"])), model.encode_text(["red", "blue"]))  # type: ignore[arg-type]


def test_prepared_floats_go_to_the_branch_as_they_are(model: JointEmbedding) -> None:
    assert model.image is not None
    pixels = model.image(Image.fromarray(picture()))["image"].float() / 255
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    prepared = (pixels - mean) / std
    expected = model.encode_image([picture()])
    assert np.abs(model.encode_image(prepared[None]) - expected).max() < 1e-5
    assert np.abs(model.encode_image(prepared) - expected[0]).max() < 1e-5


def test_progress_goes_to_stderr_and_the_model_to_the_device(
    model: JointEmbedding, capsys: pytest.CaptureFixture[str]
) -> None:
    model.train()
    model.encode_text(["a", "b"], show_progress=True, device="cpu", batch_size=1)
    out, err = capsys.readouterr()
    assert not out and "encoding text" in err and model.training


def test_similarity_is_the_cosine(model: JointEmbedding) -> None:
    a, b = torch.randn(3, 5), np.random.default_rng(0).normal(size=(2, 5))
    expected = torch.nn.functional.cosine_similarity(a[:, None], torch.from_numpy(b).float()[None], dim=-1)
    assert torch.allclose(model.similarity(a, b), expected, atol=1e-6)
    assert torch.allclose(model.similarity(a[1], b), expected[1:2], atol=1e-6)
    assert torch.allclose(model.similarity(a, b[0]), expected[:, :1], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_text("  "), "text 0: expected words"),
        (lambda m: m.encode_text(["a"], batch_size=0), "batch_size must be at least 1, found 0"),
        (lambda m: m.encode_text(["a", " "]), "text 1: expected words"),
        (lambda m: m.encode_text([None]), "text 0: expected words"),
        (lambda m: m.encode_image([3]), "input 0: not a picture but int"),
        (lambda m: m.encode_image([np.zeros((4, 4))]), r"input 0: an array must be \(H, W, 3\) uint8"),
        (lambda m: m.encode_image([torch.zeros(4, 4, 3).byte()]), r"input 0: a tensor must be \(3, H, W\) uint8"),
        (lambda m: m.encode_image([torch.zeros(3, 4, 4)]), r"input 0: .* pipeline does, \(3, 32, 32\).* \(3, 4, 4\)"),
        (lambda m: m.encode_image(torch.full((1, 3, 32, 32), torch.nan)), "input 0: has values that are not finite"),
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
    assert (saved / "README.md").read_text() == "# a card" == loaded.card
    loaded.save_pretrained(saved.parent / "again")
    assert (saved.parent / "again" / "README.md").read_text() == "# a card"
    assert JointEmbedding.from_pretrained(saved.parent).config["name"] == "tiny"  # a run folder
    with pytest.raises(JointEmbedError, match="without an objective"):
        loaded(
            {
                "image": {"h": torch.zeros(2, 1024)},
                "text": {"ids": torch.ones(2, 1).long(), "length": torch.ones(2).long()},
            }
        )


def test_a_config_of_another_version_is_saved_without_its_own_keys_and_loaded_with_them(
    tiny_recipe: Callable, tmp_path: Path
) -> None:
    bert, old = tmp_path / "bert", {"gradient_checkpointing": False}
    size: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**size, vocab_size=50)).save_pretrained(bert)
    (bert / "config.json").write_text(json.dumps(json.loads((bert / "config.json").read_text()) | old))
    recipe = tiny_recipe(f"branches.text.encoder={{name: transformers_text, model: {bert}}}")
    model = build.make_model(recipe, build.tokens_of(recipe, build.dataset(recipe, "train"))).eval()
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["branches"]["text"]["encoder"]["config"]
    assert "gradient_checkpointing" not in saved and saved["hidden_size"] == 8
    for config in (saved, saved | old):  # the second as earlier versions saved it
        change_encoder(tmp_path / "model", config=config)
        loaded = JointEmbedding.from_pretrained(tmp_path / "model")
        assert np.array_equal(loaded.encode_text(["a red photo"]), model.encode_text(["a red photo"]))
    with pytest.raises(RecipeError, match=r"branches.text.encoder.config.hidden_sise: bert has no such key"):
        tiny_recipe("branches.text.encoder={name: transformers_text, config: {model_type: bert, hidden_sise: 8}}")


@pytest.mark.parametrize(
    ("branch", "encoder", "message"),
    [
        ("image", "{name: torchvision, model: vit_tiny_16, image_size: 225}", r"branches.image.encoder: Input shape"),
        ("image", "{name: torchvision, model: resnet18, widen: 0}", "encoder.widen: 0.0 leaves none"),
        ("text", "{name: text_transformer, heads: 0}", "encoder.heads: 0 heads do not divide"),
        ("text", "{name: gru, hidden: 0}", "branches.text.encoder: hidden_size must be"),
        ("text", "{name: gru, dropout: 2}", "branches.text.encoder: dropout probability has to be between 0 and 1"),
        ("text", "{name: bag_of_words, embedding: -1}", "branches.text.encoder: .*negative dimension"),
    ],
)
def test_what_a_library_refuses_of_an_encoder_is_said_by_its_path(
    tiny_recipe: Callable, branch: str, encoder: str, message: str
) -> None:
    recipe = tiny_recipe(f"branches.{branch}.encoder={encoder}")
    with pytest.raises(RecipeError, match=message):
        build.make_model(recipe, build.tokens_of(recipe, build.dataset(recipe, "train")))


def test_saving_replaces_the_folder_whole(model: JointEmbedding, saved: Path) -> None:
    (saved / "stale.txt").write_text("x")
    model.save_pretrained(saved)
    assert not (saved / "stale.txt").exists() and not list(saved.parent.glob(".model*"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_all_files_are_readable_as_the_umask_says(model: JointEmbedding, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "model", card="# a card")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {mode}


class FakeHub:
    """Stands in for `HfApi`, and keeps what it is given."""

    calls: list[dict[str, Any]] = []
    refuses = False

    def __init__(self, token: str | None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        if self.refuses:
            raise LocalTokenNotFoundError("Token is required,\nrun `hf auth login`")
        self.calls.append({"create": repo_id, "token": self.token, **options})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.calls.append({"files": files, **options})
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/me/dogs/commit/1", commit_message="", commit_description="", oid="1"
        )


def test_push_to_hub_uploads_what_is_saved(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    model = JointEmbedding.from_pretrained(saved)
    card = '# dogs\nmodel = JointEmbedding.from_pretrained("runs/dogs/model")\n'
    address = model.push_to_hub("me/dogs", card=card, private=True, token="hf_x", revision="main")
    assert address == "https://huggingface.co/me/dogs/commit/1"
    made, sent = FakeHub.calls
    assert made == {"create": "me/dogs", "token": "hf_x", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "me/dogs" and sent["revision"] == "main" and sent["create_pr"] is False
    assert set(sent["files"]) == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert b'from_pretrained("me/dogs")' in sent["files"]["README.md"]
    for name, content in sent["files"].items():
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    again = JointEmbedding.from_pretrained(tmp_path / "got")
    assert np.array_equal(again.encode_text("a red photo"), model.encode_text("a red photo"))
    monkeypatch.setattr(FakeHub, "refuses", True)
    with pytest.raises(WeightsError, match="me/dogs: the hub did not take the model .Token is required, run"):
        model.push_to_hub("me/dogs")


class Closing(socketserver.BaseRequestHandler):
    """Takes a request, and closes the connection without an answer."""

    def handle(self) -> None:
        self.request.recv(1 << 16)


def test_a_hub_that_closes_the_connection_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        try:
            with pytest.raises(WeightsError, match="me/dogs: no such folder, .* did not give it .RemoteProtocolError"):
                JointEmbedding.from_pretrained("me/dogs")
        finally:
            server.shutdown()


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


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_encoder(folder: Path, **changes: object) -> None:
    branches = json.loads((folder / "config.json").read_text())["branches"]
    branches["text"]["encoder"] |= changes
    change_config(folder, branches=branches)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (rename_key, "wurds"),
        (cut, "model.safetensors"),
        (lambda f: change_tensors(f, lambda t: t.pop("centre_text")), "centre_text"),
        (lambda f: change_tensors(f, lambda t: t.update(centre_text=torch.zeros(3))), "centre_text"),
        (lambda f: change_tensors(f, lambda t: t.update(more=torch.zeros(3))), "more"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors"),
        (only_a_pickle, "model.safetensors"),
        (lambda f: (f / "tokenizer.json").write_bytes(pickle.dumps(Trap())), "tokenizer.json"),
        (lambda f: change_encoder(f, name="gruu"), "'gruu'; it does not fit version"),
        (lambda f: change_encoder(f, hiden=3), "hiden"),
        (lambda f: change_encoder(f, hidden=3), "model.safetensors"),
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
@pytest.mark.fault(5, "model folder: config, weights, tokenizer")
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
    centred = set_centres(model, data, seed=0)
    found = embed_captions(model, data, batch=5)
    again = embed_sample(model, data, seed=0)
    assert torch.equal(again.image, centred.image) and torch.equal(again.text, centred.text)
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


def test_two_processes_may_write_the_same_cached_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, rows = torch.nn.Linear(2, 2), torch.ones(3, 2)
    write = frozen.save_tensors

    def write_while_another_does(tensors: Any, path: Path) -> None:
        write(tensors, path)
        monkeypatch.setattr(frozen, "save_tensors", write)
        other = get_context("fork").Process(target=cached_rows, args=(encoder, {}, lambda: rows, tmp_path))
        other.start()
        other.join()
        assert other.exitcode == 0

    monkeypatch.setattr(frozen, "save_tensors", write_while_another_does)
    cached_rows(encoder, {}, lambda: rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # nothing is left over
    assert torch.equal(cached_rows(encoder, {}, pytest.fail, tmp_path), rows)


def test_a_view_without_a_branch_is_refused(model: JointEmbedding) -> None:
    with pytest.raises(JointEmbedError, match="view 'audio' goes to branch 'ear'"):
        JointEmbedding({}, {"audio": "ear"})
    with pytest.raises(DataError, match="cached representations have width 3"):
        model.branch("image")({"h": torch.zeros(2, 3)})
