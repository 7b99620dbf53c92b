"""Torchvision encoders: every family, its options, and what they do with pixels."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from jointembed.branches.architectures import architectures
from jointembed.branches.image import IMAGENET_MEAN, IMAGENET_STD, TorchvisionEncoder
from jointembed.errors import RecipeError, WeightsError

FAMILIES = {  # width, feature maps of a 224 px picture
    "alexnet": (4096, (256, 6, 6)),
    "convnext_tiny": (768, (768, 7, 7)),
    "densenet121": (1024, (1024, 7, 7)),
    "efficientnet_b0": (1280, (1280, 7, 7)),
    "googlenet": (1024, (1024, 7, 7)),
    "inception_v3": (2048, (2048, 5, 5)),
    "maxvit_t": (512, (512, 7, 7)),
    "mnasnet0_5": (1280, (1280, 7, 7)),
    "mobilenet_v2": (1280, (1280, 7, 7)),
    "mobilenet_v3_small": (1024, (576, 7, 7)),
    "regnet_y_400mf": (440, (440, 7, 7)),
    "resnet18": (512, (512, 7, 7)),
    "resnet152": (2048, (2048, 7, 7)),
    "resnext50_32x4d": (2048, (2048, 7, 7)),
    "shufflenet_v2_x0_5": (1024, (1024, 7, 7)),
    "squeezenet1_1": (512, (512, 13, 13)),
    "swin_t": (768, (768, 7, 7)),
    "swin_v2_t": (768, (768, 7, 7)),
    "vgg11_bn": (4096, (512, 7, 7)),
    "vit_b_32": (768, (768, 7, 7)),
    "vit_s_16": (384, (384, 14, 14)),
    "wide_resnet50_2": (2048, (2048, 7, 7)),
}


@pytest.mark.parametrize("model", FAMILIES)
def test_width_and_maps_of_every_family(model: str) -> None:
    width, maps = FAMILIES[model]
    x = torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    with torch.device("meta"):
        encoder = TorchvisionEncoder(model=model)
        h, found = encoder.forward_with_maps(x)
    assert encoder.width == width and h.shape == (2, width) and found.shape == (2, *maps)
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())


def test_every_family_of_torchvision_is_covered() -> None:
    kinds = set()
    for name in architectures():
        if name in FAMILIES or name == "resnet200":
            continue
        stem = name.split("_")[0].rstrip("0123456789").rstrip("x")
        kinds.add(stem)
        assert any(one.startswith(stem[:6]) for one in FAMILIES), name
    assert len(kinds) > 10


@pytest.mark.parametrize(
    ("arguments", "million"),
    [  # published sizes of the backbones, classifier left out
        ({"model": "resnet50"}, 23.5),
        ({"model": "resnet50", "widen": 2}, 93.9),
        ({"model": "resnet200", "widen": 2}, 250.1),
        ({"model": "vit_s_16"}, 21.7),
        ({"model": "vit_tiny_16"}, 5.5),
    ],
)
def test_named_and_widened_models_have_the_published_size(arguments: dict[str, Any], million: float) -> None:
    with torch.device("meta"):
        encoder = TorchvisionEncoder(**arguments)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(million, abs=0.05)


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_half_width_and_small_stem(model: str) -> None:
    encoder = TorchvisionEncoder(model=model, widen=0.5, small_input=True)
    full = TorchvisionEncoder(model=model)
    assert encoder.width == full.width // 2
    h, maps = encoder.forward_with_maps(torch.randn(2, 3, 32, 32))
    assert h.shape == (2, encoder.width) and maps.shape == (2, encoder.width, 4, 4)
    assert full.forward_with_maps(torch.randn(2, 3, 32, 32))[1].shape[2:] == (1, 1)


@pytest.mark.parametrize(("model", "widen"), [("resnet18", 0.5), ("resnet50", 0.5), ("resnet50", 1.0)])
def test_a_stem_keeps_its_channels_whatever_the_width_behind_it(model: str, widen: float) -> None:
    encoder = TorchvisionEncoder(model=model, widen=widen, stem=48, channels=1)
    sizes = {name: tuple(weight.shape[:2]) for name, weight in encoder.named_parameters() if weight.ndim == 4}
    assert next(iter(sizes.values())) == (48, 1)
    assert next(shape for name, shape in sizes.items() if "layer1.0.conv1" in name)[1] == 48
    assert encoder(torch.rand(2, 1, 64, 64)).shape == (2, encoder.width)
    assert encoder.width == TorchvisionEncoder(model=model, widen=widen).width
    with pytest.raises(RecipeError, match="encoder.stem: 0 channels"):
        TorchvisionEncoder(model=model, widen=widen, stem=0)
    with pytest.raises(RecipeError, match="encoder.stem: this is for a ResNet"):
        TorchvisionEncoder(model="mobilenet_v2", stem=32)


def test_zero_init_residual_starts_every_block_as_its_shortcut() -> None:
    for widen in (1.0, 0.5):
        encoder = TorchvisionEncoder(model="resnet18", zero_init_residual=True, widen=widen)
        last = [module for name, module in encoder.named_modules() if name.endswith("bn2")]
        assert len(last) == 8 and not any(module.weight.any() for module in last)


def test_uint8_is_the_normalised_float_path() -> None:
    encoder = TorchvisionEncoder(model="resnet18", widen=0.25, small_input=True).eval()
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before = x.clone()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder(x), encoder((x / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)
    assert not torch.allclose(encoder(x), encoder(x.float()), atol=1e-2)


def test_float_pictures_are_taken_as_they_are() -> None:
    encoder = TorchvisionEncoder(model="resnet18", widen=0.25, small_input=True).eval()
    plain = encoder.model
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(encoder(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"widen": 0.5}, {"widen": 0.5, "small_input": True}])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_float_planes_of_another_number(channels: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(model="resnet18", channels=channels, **options).eval()
    x = torch.randn(2, channels, 32, 32)
    torch.testing.assert_close(encoder(x), encoder.model(x), rtol=1e-4, atol=1e-5)
    stem, usual = encoder.model.conv1, TorchvisionEncoder(model="resnet18", **options).model.conv1
    assert isinstance(stem, nn.Conv2d) and isinstance(usual, nn.Conv2d)
    assert stem.weight.shape == (len(usual.weight), channels, *usual.weight.shape[2:]) and stem.stride == usual.stride
    fan_out = stem.weight[:, 0].numel()
    assert float(stem.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    with pytest.raises(
        RecipeError, match=f"encoder.channels: {channels} planes of bytes reach an encoder of {channels}"
    ):
        encoder(torch.zeros(2, channels, 32, 32, dtype=torch.uint8))
    with pytest.raises(RecipeError, match=f"encoder.channels: 3 planes of bytes reach an encoder of {channels}"):
        encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_planes_of_another_number_than_the_encoders_are_refused() -> None:
    encoder = TorchvisionEncoder(model="mobilenet_v3_small")
    with pytest.raises(RecipeError, match="encoder.channels: 1 planes of floats reach an encoder of 3"):
        encoder(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("widen", [1.0, 0.5])
def test_layer_norm_tells_nothing_of_other_pictures(model: str, widen: float) -> None:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(model=model, norm="layer", widen=widen, zero_init_residual=True)
    kinds = {type(one).__name__ for one in encoder.modules() if "Norm" in type(one).__name__}
    assert kinds == {"GroupNorm"}
    assert all(one.num_groups == 1 for one in encoder.modules() if isinstance(one, nn.GroupNorm))
    assert encoder.width == round(widen * TorchvisionEncoder(model=model).width)
    last = "bn2" if model == "resnet18" else "bn3"
    assert not any(one.weight.any() for name, one in encoder.named_modules() if name.endswith(f".{last}"))
    x = torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]), rtol=1e-4, atol=1e-4)  # in training mode
    plain = TorchvisionEncoder(model=model, widen=widen)
    assert not torch.allclose(plain(x)[:2], plain(x[:2]), atol=1e-3)


@pytest.mark.parametrize("model", ["mobilenet_v2", "mnasnet0_5", "squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_the_classifiers_dropout_is_gone(model: str) -> None:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(model=model)  # in training mode; batch norm sees the same batch twice
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_16"])
def test_mirror_is_the_mean_of_both_ways_round_and_for_evaluation_alone(model: str) -> None:
    encoder = TorchvisionEncoder(model=model, mirror=True)
    plain = TorchvisionEncoder(model=model)
    plain.load_state_dict(encoder.state_dict())
    side = 224 if model == "vit_tiny_16" else 64
    x = torch.randn(2, 3, side, side)
    encoder.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), (plain(x) + plain(x.flip(-1))) / 2)
        torch.testing.assert_close(encoder(x), encoder(x.flip(-1)))
        h, levels = encoder.forward_with_levels(x)
        assert torch.equal(h, encoder(x))
        for one, other in zip(levels, plain.forward_with_levels(x)[1], strict=True):
            torch.testing.assert_close(one, other)
        encoder.train(), plain.train()
        torch.testing.assert_close(encoder(x), plain(x))


def test_vision_transformer_of_another_size() -> None:
    encoder = TorchvisionEncoder(model="vit_tiny_16", image_size=32, patch_size=8)
    h, maps = encoder.forward_with_maps(torch.randn(2, 3, 32, 32))
    assert h.shape == (2, 192) and maps.shape == (2, 192, 4, 4)
    with pytest.raises(RecipeError, match="pictures of 48x40 px reach a vision transformer of 32"):
        encoder(torch.randn(2, 3, 40, 48))


def test_maps_of_a_vision_transformer_are_its_patches_in_place() -> None:
    encoder = TorchvisionEncoder(model="vit_tiny_16", image_size=32, patch_size=8).eval()
    vit = encoder.model
    assert isinstance(vit, models.VisionTransformer)
    seen: list[Tensor] = []
    vit.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    maps = encoder.forward_with_maps(torch.randn(1, 3, 32, 32))[1]
    assert torch.equal(maps[0, :, 2, 3], seen[0][0, 1 + 2 * 4 + 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet51"}, "no classification model 'resnet51'; nearest is 'resnet"),
        ({"model": "fasterrcnn_resnet50_fpn"}, "no classification model"),
        ({"model": "mobilenet_v2", "small_input": True}, "encoder.small_input: this is for a ResNet; .* MobileNetV2"),
        ({"model": "mobilenet_v2", "zero_init_residual": True}, "encoder.zero_init_residual"),
        ({"model": "mobilenet_v2", "channels": 1}, "encoder.channels: this is for a ResNet; .* MobileNetV2"),
        ({"model": "mobilenet_v2", "norm": "layer"}, "encoder.norm: this is for a ResNet; .* MobileNetV2"),
        ({"model": "vit_b_16", "widen": 0.5}, "encoder.widen"),
        ({"model": "resnet18", "widen": 0.001}, "encoder.widen: 0.001 leaves none"),
        ({"model": "resnet18", "image_size": 64}, "encoder.image_size: this is for a VisionTransformer"),
        ({"model": "vit_b_16", "patch_size": 8}, "encoder.patch_size: vit_b_16 has a fixed one"),
    ],
)
def test_options_a_model_does_not_have_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TorchvisionEncoder(**arguments)


def test_torchvision_names_go_out_and_come_back() -> None:
    encoder = TorchvisionEncoder(model="resnet18").eval()
    plain = models.resnet18()
    result = plain.load_state_dict(encoder.model.state_dict(), strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"} and not result.unexpected_keys
    plain.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(plain.eval()(x), encoder(x), rtol=1e-4, atol=1e-5)


# -- torchvision's published weights --------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """MobileNetV2's weights in TORCH_HOME, or beside the local data."""
    if "JOINTEMBED_DATA" in os.environ and "TORCH_HOME" not in os.environ:
        monkeypatch.setenv("TORCH_HOME", str(Path(os.environ["JOINTEMBED_DATA"]).parent / "weights"))
    if not (Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth").is_file():
        pytest.skip("no mobilenet_v2-b0353104.pth in TORCH_HOME")


@pytest.mark.data
@pytest.mark.usefixtures("published")
def test_published_weights_by_name() -> None:
    encoder = TorchvisionEncoder(model="mobilenet_v2", weights="IMAGENET1K_V1").eval()
    plain = models.mobilenet_v2(weights="IMAGENET1K_V1").eval()
    x = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = plain.features((x / 255 - mean) / std).mean((2, 3))
    torch.testing.assert_close(encoder(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.data
@pytest.mark.usefixtures("published")
def test_the_published_file_loads_as_a_file_too() -> None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth"
    by_file = TorchvisionEncoder(model="mobilenet_v2", weights=str(file)).state_dict()
    by_name = TorchvisionEncoder(model="mobilenet_v2", weights="IMAGENET1K_V1").state_dict()
    assert by_file.keys() == by_name.keys() and all(torch.equal(by_file[key], by_name[key]) for key in by_name)


def test_weights_that_torchvision_does_not_have_name_those_it_has() -> None:
    with pytest.raises(WeightsError, match="mobilenet_v2 has only IMAGENET1K_V1, IMAGENET1K_V2"):
        TorchvisionEncoder(model="mobilenet_v2", weights="IMAGENET1K_V9")
    with pytest.raises(WeightsError, match="no such file"):
        TorchvisionEncoder(model="vit_s_16", weights="IMAGENET1K_V1")


def test_published_weights_fit_the_published_architecture_only() -> None:
    with pytest.raises(WeightsError, match="fit none of small_input, widen, stem, channels, norm"):
        TorchvisionEncoder(model="resnet18", weights="IMAGENET1K_V1", small_input=True)
    with pytest.raises(WeightsError, match="fit none of"):
        TorchvisionEncoder(model="resnet18", weights="IMAGENET1K_V1", norm="layer")


def test_published_weights_that_cannot_be_had_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"IMAGENET1K_V1 of resnet18: resnet18-\w+.pth cannot be had.*no network"):
        TorchvisionEncoder(model="resnet18", weights="IMAGENET1K_V1")


def test_published_positions_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        stored = models.vit_b_32().state_dict()
        monkeypatch.setattr(models.ViT_B_32_Weights, "get_state_dict", lambda self, **options: stored)
        encoder = TorchvisionEncoder(model="vit_b_32", weights="IMAGENET1K_V1", image_size=96)
    assert encoder.model.get_parameter("encoder.pos_embedding").shape == (1, 1 + 9, 768)
    assert encoder.model.image_size == 96


def test_mean_and_std_are_those_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = models.squeezenet1_1().state_dict()
    chosen = models.SqueezeNet1_1_Weights
    monkeypatch.setattr(chosen, "get_state_dict", lambda self, **options: stored)
    preset = chosen.IMAGENET1K_V1.transforms
    monkeypatch.setattr(chosen.IMAGENET1K_V1.value, "transforms", lambda: preset(mean=(0.5,) * 3, std=(0.25,) * 3))
    encoder = TorchvisionEncoder(model="squeezenet1_1", weights="IMAGENET1K_V1")
    assert encoder.pixels.mean.flatten().tolist() == [0.5] * 3
    fresh = TorchvisionEncoder(model="squeezenet1_1")
    fresh.load_state_dict(encoder.state_dict())
    assert fresh.pixels.std.flatten().tolist() == [0.25] * 3
