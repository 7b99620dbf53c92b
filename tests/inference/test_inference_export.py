import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import GRU, RESNET, TEXTS, VIT, load, save_model
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from jointembed.branches import ENCODERS
from jointembed.cli import main
from jointembed.errors import JointEmbedError, WeightsError
from jointembed.inference import export as exporting
from jointembed.inference.export import export_model
from jointembed.model import JointEmbedding

BERT = {
    "name": "transformers_text",
    "model": None,
    "config": {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 20,
    },
}  # fmt: skip
HF_VIT = {
    "name": "transformers_vision",
    "model": None,
    "config": {
        "model_type": "vit", "image_size": 32, "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16,
    },
    "pool": "cls",
}  # fmt: skip
READERS: dict[str, dict[str, Any]] = {
    "gru": GRU,
    "two_ways": GRU | {"layers": 2, "bidirectional": True},
    "two_ways_mean": GRU | {"bidirectional": True, "pool": "mean"},
    "bag_of_words": {"name": "bag_of_words", "embedding": 8},
    "transformer": {"name": "text_transformer", "width": 16, "depth": 1, "heads": 2, "pool": "cls"},
    "bert": BERT,
}
LOOKERS: dict[str, dict[str, Any]] = {
    "resnet": RESNET,
    "mirrored": RESNET | {"mirror": True},
    "vit": VIT,
    "hf_vit": HF_VIT,
}


def padded(folder: Path, described: dict[str, Any], texts: list[str], size: int | None) -> dict[str, np.ndarray]:
    """Texts as the description beside a graph says they are fed, without any code of the package."""
    preprocessing = described["preprocessing"]
    tokenizer = Tokenizer.from_file(str(folder / preprocessing["tokenizer"]))
    longest = preprocessing["max_length"]
    ids = [one.ids for one in tokenizer.encode_batch(texts)]
    ids = [one if len(one) <= longest else [*one[: longest - 1], one[-1]] for one in ids]
    size = size or max(map(len, ids))
    rows = [one + [preprocessing["padding"]["id"]] * (size - len(one)) for one in ids]
    return {"ids": np.array(rows, dtype=np.int64), "length": np.array([len(one) for one in ids], dtype=np.int64)}


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(count)]


def pixels(model: JointEmbedding, shown: list[Image.Image]) -> np.ndarray:
    assert model.image is not None
    return torch.stack([model.image(one)["image"] for one in shown]).numpy()


def check_equal(found: np.ndarray, expected: Any, tolerance: float) -> None:
    """Equal numbers, of rows that are not all the same."""
    assert np.abs(found - expected).max() < tolerance
    assert len(found) == 1 or np.ptp(found, axis=0).max() > 0.01


@pytest.mark.parametrize(("looker", "reader"), [("mirrored", "gru"), ("vit", "two_ways")])
def test_onnxruntime_gives_what_torch_gives(tmp_path: Path, looker: str, reader: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = save_model(tmp_path / "model", {"image": LOOKERS[looker], "text": READERS[reader]})
    model = load(folder)
    done = {one.branch: one for one in export_model(folder, tmp_path / "out", form="onnx")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "image.onnx", "image.onnx.json", "text.onnx", "text.onnx.json", "tokenizer.json",
    }  # fmt: skip
    described = {name: json.loads(one.description.read_text()) for name, one in done.items()}
    for name, one in described.items():
        assert one["largest_difference_from_torch"] == done[name].difference < 1e-4
        for file, digest in one["sha256"].items():
            assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == digest
    image, text = (onnxruntime.InferenceSession(done[name].file) for name in ("image", "text"))
    for count in (1, 4):
        [found] = image.run(["vector"], {"input": pixels(model, pictures(count))})
        check_equal(found, model.encode_image(pictures(count)), 1e-4)
    for texts in ([TEXTS[2]], TEXTS, [TEXTS[1]] * 6 + TEXTS[:1]):
        [found] = text.run(["vector"], padded(tmp_path / "out", described["text"], texts, None))
        check_equal(found, model.encode_text(texts), 1e-4)
    lengths = padded(tmp_path / "out", described["text"], TEXTS, 12)  # more padding changes nothing
    check_equal(text.run(["vector"], lengths)[0], model.encode_text(TEXTS), 1e-4)


@pytest.mark.parametrize("reader", ["two_ways_mean", "bag_of_words", "transformer", "bert"])
def test_other_readers_in_onnx(tmp_path: Path, reader: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = save_model(tmp_path / "model", {"text": READERS[reader]})
    [done] = export_model(folder, tmp_path / "out", form="onnx")
    session = onnxruntime.InferenceSession(done.file)
    for texts in ([TEXTS[0]], TEXTS):
        fed = padded(tmp_path / "out", json.loads(done.description.read_text()), texts, None)
        check_equal(session.run(["vector"], fed)[0], load(folder).encode_text(texts), 1e-4)


@pytest.mark.parametrize("reader", list(READERS))
def test_readers_in_torch_export(tmp_path: Path, reader: str) -> None:
    folder = save_model(tmp_path / "model", {"text": READERS[reader]})
    [done] = export_model(folder, tmp_path / "out")
    described = json.loads(done.description.read_text())
    program = torch.export.load(done.file).module()
    shape = described["inputs"][0]["shape"]
    recurrent = READERS[reader]["name"] == "gru"
    assert shape == (["batch", 12] if recurrent else ["batch", "length"])
    for texts in ([TEXTS[0]], TEXTS):
        fed = padded(tmp_path / "out", described, texts, 12 if recurrent else None)
        found = program(**{name: torch.from_numpy(one) for name, one in fed.items()})
        check_equal(found.numpy(), load(folder).encode_text(texts), 1e-5)
    for size in (7, 13) if recurrent else (13,):  # a wrong length is refused, not cut or misread
        with pytest.raises(Exception, match="size"):
            program(ids=torch.zeros(2, size, dtype=torch.int64), length=torch.tensor([3, 2]))


@pytest.mark.parametrize("looker", list(LOOKERS))
def test_lookers_in_torch_export(tmp_path: Path, looker: str) -> None:
    folder = save_model(tmp_path / "model", {"image": LOOKERS[looker]})
    model = load(folder)
    [done] = export_model(folder, tmp_path / "out")
    program = torch.export.load(done.file).module()
    for count in (1, 3):
        found = program(input=torch.from_numpy(pixels(model, pictures(count))))
        check_equal(found.numpy(), model.encode_image(pictures(count)), 1e-5)
    with pytest.raises(Exception, match="size"):
        program(input=torch.zeros(2, 3, 48, 48, dtype=torch.uint8))


def test_representations_of_planes_and_waveforms_unscaled(tmp_path: Path) -> None:
    planes = {"luminance": RESNET | {"channels": 1}, "chroma": RESNET | {"channels": 2}}
    cmc = {"name": "cmc", "size": 32, "flip": 0.0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    folder = save_model(tmp_path / "planes", planes, image=cmc, max_length=None, embedding="h")
    [chroma] = export_model(folder, tmp_path / "out", branch="chroma", normalize=False)
    model, described = load(folder), json.loads(chroma.description.read_text())
    assert described["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 2, 32, 32]}]
    assert described["output"] | {"name": ""} == {
        "name": "", "shape": ["batch", 64], "dtype": "float32", "embedding": "h", "centred": True, "normalized": False,
        "similarity": "cosine: divide each row by its length first",
    }  # fmt: skip
    assert "mean" not in described["preprocessing"]
    given = torch.randn(3, 2, 32, 32)
    found = torch.export.load(chroma.file).module()(input=given)
    expected = model.encode(given, "chroma", normalize=False)
    assert np.allclose(found.numpy(), expected, atol=1e-5) and not np.allclose(np.linalg.norm(expected, axis=1), 1)

    sound = {"name": "waveform_mel_center", "rate": 4000, "seconds": 0.5, "mels": 16, "fft": 256, "hop": 64,
             "high": 2000.0}  # fmt: skip
    ears = {"waveform": {"name": "waveform_resnet", "channels": 4}}
    folder = save_model(tmp_path / "ears", ears, image=sound, max_length=None)
    [ear] = export_model(folder, tmp_path / "ear")
    wave = torch.randn(3000) * 0.1
    model = load(folder)
    assert model.image is not None
    heard = torch.export.load(ear.file).module()(input=wave[500:2500][None, None])
    assert np.allclose(heard[0].numpy(), model.encode(wave, "waveform"), atol=1e-5)
    assert "4000 samples a second" in json.loads(ear.description.read_text())["preprocessing"]["steps"][0]


class Fickle(nn.Module):
    """Whether it doubles depends on a value, which no graph can hold."""

    width = 3

    def forward(self, x: Tensor) -> Tensor:
        h = x.float().mean((2, 3))
        return h * 2 if float(h.sum()) > 0 else h


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "fickle", Fickle)
    folder = save_model(tmp_path / "fickle", {"image": {"name": "fickle"}})
    with pytest.raises(JointEmbedError, match="branch 'image': Fickle cannot be exported to torch"):
        export_model(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    folder = save_model(tmp_path / "model", {"image": RESNET})
    with pytest.raises(WeightsError, match="no branch 'text' in this model; it has image"):
        export_model(folder, tmp_path / "out", branch="text")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(JointEmbedError, match="differs from torch by [^:]*$"):
        export_model(folder, tmp_path / "out")
    model = load(folder)
    model.branch("image").encoder.get_parameter("model.conv1.weight").data.zero_()  # all pictures are one to it
    model.get_buffer("centre_image").copy_(
        model.get_buffer("centre_image") + torch.as_tensor(model.encode_image(pictures(1), normalize=False))[0]
    )
    model.save_pretrained(folder)
    with pytest.raises(JointEmbedError, match="differs from torch by .*: centring leaves .* it has collapsed"):
        export_model(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(JointEmbedError, match=r"pip install 'jointembed\[onnx\]'"):
        export_model(folder, tmp_path / "out", form="onnx")


def test_views_of_one_branch_with_different_centres_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", {"net": RESNET}, views={"left": "net", "right": "net"})
    with pytest.raises(WeightsError, match="its views left, right have different centres"):
        export_model(folder, tmp_path / "out")
    model = load(folder)
    model.get_buffer("centre_left").copy_(model.get_buffer("centre_right"))
    model.save_pretrained(folder)
    [done] = export_model(folder, tmp_path / "out")
    assert json.loads(done.description.read_text())["views"] == ["left", "right"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", {"text": READERS["bag_of_words"]})
    for arguments, code in ((["--branch", "text"], 0), (["--branch", "image"], 1), (["--format", "tflite"], 2)):
        monkeypatch.setattr(
            sys, "argv", ["jointembed", "export", str(folder), "--out", str(tmp_path / "o"), *arguments]
        )
        with pytest.raises(SystemExit) as stop:
            main()
        assert (stop.value.code or 0) == code
    assert "text.pt2" in capsys.readouterr().out and (tmp_path / "o" / "text.pt2").is_file()
