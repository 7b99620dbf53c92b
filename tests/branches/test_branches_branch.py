"""What a branch trains, what it leaves alone, and what it takes."""

import pytest
import torch
from torch import Tensor, nn

from jointembed.branches import ENCODERS, EXPANDERS
from jointembed.branches.branch import Branch
from jointembed.branches.image import TorchvisionEncoder
from jointembed.errors import DataError, RecipeError
from jointembed.layers import MLP


def tiny_encoder() -> TorchvisionEncoder:
    return TorchvisionEncoder(model="resnet18", widen=0.125, small_input=True)


def one_step(branch: Branch) -> None:
    """A training step as the loop does it: the whole model is put into training mode first."""
    model = nn.ModuleDict({"image": branch})
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    branch(torch.randn(4, 3, 16, 16)).z.square().mean().backward()
    optimizer.step()


def changed(branch: Branch, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in branch.state_dict().items() if not torch.equal(tensor, before[name])}


def snapshot(branch: Branch) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in branch.state_dict().items()}


def test_everything_trains_by_default() -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[8, 4]))
    before = snapshot(branch)
    one_step(branch)
    assert not branch.frozen and (branch.width, branch.embedding_width) == (64, 4)
    kept = {name for name in before if name.startswith("encoder.pixels")}
    assert {name for name in before if name.startswith("encoder") and name not in kept} <= changed(branch, before)


def test_a_frozen_encoder_is_left_alone_batch_norm_statistics_included() -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[8, 4]), train="none")
    before = snapshot(branch)
    one_step(branch)
    assert branch.frozen and not branch.encoder.training and branch.expander.training
    touched = changed(branch, before)
    assert touched and all(name.startswith("expander") for name in touched)
    assert branch(torch.randn(2, 3, 16, 16)).h.grad_fn is None


@pytest.mark.parametrize("prefix", ["layer4", "model.layer4"])
def test_a_partly_frozen_encoder_trains_the_named_part_only(prefix: str) -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[8, 4]), train=[prefix])
    before = snapshot(branch)
    one_step(branch)
    touched = {name for name in changed(branch, before) if name.startswith("encoder")}
    assert touched == {name for name in before if name.startswith("encoder.model.layer4")}
    assert not branch.frozen
    modes = {
        name: module.training for name, module in branch.encoder.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert all(mode == name.startswith("model.layer4") for name, mode in modes.items())
    assert branch.encoder.training  # what holds the parts does what it does in training
    branch.eval()
    assert not any(module.training for module in branch.modules())


def test_a_prefix_is_a_whole_name() -> None:
    encoder = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    encoder.width = 4  # type: ignore[assignment]
    branch = Branch(encoder, MLP(4, widths=[]), train=["1"])
    assert {name for name, p in branch.encoder.named_parameters() if p.requires_grad} == {"1.weight", "1.bias"}


def test_an_unknown_prefix_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no parameter under 'layer5'; nearest is 'layer"):
        Branch(tiny_encoder(), MLP(64, widths=[4]), train=["layer4", "layer5"])


def test_no_prefix_is_frozen() -> None:
    assert Branch(tiny_encoder(), MLP(64, widths=[4]), train=[]).frozen


def test_cached_representations_skip_the_encoder() -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[8, 4]), train="none").eval()
    x = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    whole = branch(x)
    cached = branch({"h": whole.h})
    assert cached.h is whole.h and torch.equal(cached.z, whole.z) and cached.maps is None
    with pytest.raises(DataError, match="width 63, this encoder gives 64"):
        branch({"h": whole.h[:, :63]})
    with pytest.raises(RecipeError, match="no feature maps"):
        branch({"h": whole.h}, maps=True)


def test_maps_come_with_the_same_pass() -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[4])).eval()
    x = torch.randn(2, 3, 16, 16)
    found = branch(x, maps=True)
    assert found.maps is not None and found.maps.shape == (2, 64, 2, 2)
    torch.testing.assert_close(found.maps.mean((2, 3)), found.h)
    assert torch.equal(found.z, branch(x).z)


def test_an_encoder_without_maps_is_refused_by_name() -> None:
    text = Branch(ENCODERS["bag_of_words"](9, embedding=6), MLP(6, widths=[4]))
    with pytest.raises(RecipeError, match="BagOfWords gives no feature maps"):
        text({"ids": torch.ones(1, 2, dtype=torch.int64), "length": torch.tensor([2])}, maps=True)


def test_patches_of_a_picture_stay_together() -> None:
    branch = Branch(tiny_encoder(), MLP(64, widths=[8, 4])).eval()
    patches = torch.randn(2, 5, 3, 16, 16)
    found = branch(patches, maps=True)
    assert found.maps is not None
    assert found.h.shape == (2, 5, 64) and found.z.shape == (2, 5, 4) and found.maps.shape == (2, 5, 64, 2, 2)
    torch.testing.assert_close(found.z[1], branch(patches[1]).z)


def test_every_name_of_the_tables_is_a_module_of_a_known_modality() -> None:
    assert {name: kind.modality for name, kind in ENCODERS.items()} == {  # type: ignore[attr-defined]
        "torchvision": "image",
        "transformers_vision": "image",
        "gru": "text",
        "bag_of_words": "text",
        "text_transformer": "text",
        "transformers_text": "text",
        "waveform_resnet": "audio",
    }
    assert EXPANDERS["mlp"] is MLP
