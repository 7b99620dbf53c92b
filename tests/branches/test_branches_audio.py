import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from jointembed.branches import ENCODERS
from jointembed.branches.audio import WaveformResNet
from jointembed.errors import RecipeError
from jointembed.recipe import check_block


def test_it_is_a_resnet18_over_time() -> None:
    with torch.device("meta"):
        encoder, picture = WaveformResNet(), resnet18()
        h = encoder(torch.empty(2, 1, 44100 * 5))
    assert encoder.width == 512 and h.shape == (2, 512)
    sizes = [sum(one.weight.numel() for one in net.modules() if isinstance(one, kind)) for net, kind in
             ((encoder, nn.Conv1d), (picture, nn.Conv2d))]  # fmt: skip
    stem = 64 * 7 * 7
    assert sizes[0] - stem == sizes[1] - 3 * stem  # one channel in the place of three
    norms = [sum(isinstance(one, kind) for one in net.modules()) for net, kind in
             ((encoder, nn.BatchNorm1d), (picture, nn.BatchNorm2d))]  # fmt: skip
    assert norms[0] == norms[1] == 20


def test_places_see_as_much_as_those_of_a_picture_squared() -> None:
    encoder = WaveformResNet(channels=2)
    x = torch.randn(1, 1, 8192)
    assert encoder.stages(encoder.stem(x)).shape == (1, 16, 8192 // 32**2)


def test_a_resnet34_has_more_blocks() -> None:
    assert len(WaveformResNet(blocks=(3, 4, 6, 3), channels=2).stages) == 16


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    encoder = WaveformResNet(channels=2)
    encoder(torch.randn(3, 1, 3000)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_a_recipe_names_it() -> None:
    block = check_block({"name": "waveform_resnet", "channels": 8}, ENCODERS, "encoder")
    assert block == {"name": "waveform_resnet", "blocks": (2, 2, 2, 2), "channels": 8}


@pytest.mark.parametrize("shape", [(2, 2, 500), (2, 500)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"float waveforms \(N, 1, T\) expected, found torch.float32 \(2, "):
        WaveformResNet(channels=2)(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"blocks": (2, 2)}, {"blocks": (2, 2, 0, 2)}, {"channels": 0}])
def test_impossible_sizes_are_refused(arguments: dict) -> None:
    with pytest.raises(RecipeError, match="four stages of blocks"):
        WaveformResNet(**arguments)
