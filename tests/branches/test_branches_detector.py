from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from jointembed.branches.detector import RCNNFPN, Detector, FasterRCNNC4
from jointembed.branches.image import TorchvisionEncoder
from jointembed.branches.trunk import stages
from jointembed.errors import DataError, RecipeError

SMALL: dict[str, Any] = {"candidates": 100, "proposals": 20, "regions": 16}


def resnet(**options: Any) -> TorchvisionEncoder:
    return TorchvisionEncoder(model="resnet18", widen=0.25, **options)


def fpn(encoder: TorchvisionEncoder | None = None, **options: Any) -> RCNNFPN:
    return RCNNFPN(encoder or resnet(), 3, **(SMALL | {"width": 16, "head": 16} | options))


def batch(*, masks: bool = False, empty: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in ((3, 64, 96), (3, 80, 64))
    ]
    targets: list[dict[str, Tensor]] = []
    for image in images:
        boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]])[: 0 if empty else 2]
        target = {"boxes": boxes, "labels": torch.tensor([1, 3])[: len(boxes)]}
        if masks:
            target["masks"] = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
        targets.append(target)
    return {"images": images, "targets": targets, "index": torch.arange(2)}


MAKERS = {
    "fpn": fpn,
    "masks": lambda: fpn(masks=True),
    "mobilenet": lambda: fpn(TorchvisionEncoder(model="mobilenet_v3_small"), masks=True),
    "frozen": lambda: fpn(norm="frozen", freeze_at=2),
    "c4": lambda: FasterRCNNC4(resnet(), 3, **SMALL),
    "c4 frozen": lambda: FasterRCNNC4(resnet(), 3, norm="frozen", **SMALL),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("empty", [False, True])
def test_every_trained_parameter_gets_a_gradient(name: str, empty: bool) -> None:
    torch.manual_seed(0)
    detector = MAKERS[name]().train()
    terms = detector(batch(masks=detector.has_masks, empty=empty))
    parts = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert set(terms) == {"loss", *parts, *({"loss_mask"} if detector.has_masks else set())}
    assert all(bool(value.isfinite()) for value in terms.values())
    terms["loss"].backward()
    for key, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_the_weight_of_the_proposals_losses() -> None:
    found = []
    for weight in (1.0, 0.2):
        torch.manual_seed(0)
        detector = FasterRCNNC4(resnet(), 3, rpn_weight=weight, **SMALL).train()
        found.append(detector(batch()))
    first, second = found
    of_proposals = first["loss_objectness"] + first["loss_rpn_box_reg"]
    assert torch.allclose(first["loss"] - second["loss"], 0.8 * of_proposals, atol=1e-5)


def test_frozen_norms_and_stages_stay_as_they_are() -> None:
    encoder = resnet()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_()
            module.get_buffer("running_mean").normal_()
    expected = encoder.get_buffer("model.layer2.0.bn1.running_mean").clone()
    detector = fpn(encoder, norm="frozen", freeze_at=2).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    fixed = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(fixed) == 20
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    assert any(torch.equal(tensor, expected) for name, tensor in before.items() if name.endswith("running_mean"))
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    detector(batch())["loss"].backward()
    optimizer.step()
    after = detector.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("running" in name for name in changed)
    assert not any(name.startswith(("features.stages.0.", "features.stages.1.")) for name in changed)
    assert any(name.startswith("features.stages.2.") for name in changed)


def test_trained_norms_move_but_not_those_of_frozen_stages() -> None:
    detector = fpn(freeze_at=1).train()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items() if "running" in name}
    detector(batch())
    after = detector.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith("features.stages.0.")}
    assert any(name.startswith("features.fpn") for name in moved)  # the pyramid has norms of its own


def test_fixed_norms_compute_what_norms_in_evaluation_compute() -> None:
    torch.manual_seed(0)
    encoder = resnet().eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_var").uniform_(0.5, 2)
            module.get_buffer("running_mean").normal_()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.forward_with_maps(x)[1]
        detector = fpn(encoder, norm="frozen").eval()
        for number in range(5):
            x = detector.get_submodule(f"features.stages.{number}")(x)
    assert torch.allclose(x, expected, atol=1e-4)


def test_pictures_are_normalised_by_the_encoders_own_numbers_and_padded_with_their_mean() -> None:
    encoder = resnet()
    encoder.pixels.mean.copy_(torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1))
    encoder.pixels.std.fill_(0.5)
    detector = fpn(encoder)
    padded = detector._padded(
        [torch.full((3, 40, 70), 255, dtype=torch.uint8), torch.zeros(3, 33, 20, dtype=torch.uint8)]
    )
    assert padded.tensors.shape == (2, 3, 64, 96) and padded.image_sizes == [(40, 70), (33, 20)]
    assert torch.allclose(padded.tensors[0, :, 0, 0], torch.tensor([1.6, 1.2, 0.8]))
    assert torch.allclose(padded.tensors[1, :, 0, 0], torch.tensor([-0.4, -0.8, -1.2]))
    assert not padded.tensors[0, :, 40:].any() and not padded.tensors[1, :, :, 20:].any()
    assert "pixels.mean" in detector.state_dict()


def test_detections_come_at_the_size_that_is_asked_for() -> None:
    torch.manual_seed(0)
    detector = fpn(masks=True, score_threshold=0.0, detections=7).eval()
    images = batch()["images"]
    (small, large), sizes = detector.detect(images, [(64, 96), (160, 128)]), ((96, 64), (128, 160))
    for one, (width, height) in zip((small, large), sizes, strict=True):
        assert one["boxes"].shape == (7, 4) and one["masks"].shape == (7, height, width)
        assert one["masks"].dtype == torch.bool and one["scores"].diff().max() <= 0
        assert one["boxes"].min() >= 0 and (one["boxes"].max(0).values <= torch.tensor([width, height] * 2)).all()
        assert set(one["labels"].tolist()) <= {1, 2, 3}
    alone = detector.detect(images[:1], [(128, 192)])[0]
    assert alone["boxes"].shape == (7, 4)
    assert torch.allclose(detector.detect(images[:1], [(64, 96)])[0]["boxes"] * 2, alone["boxes"], atol=1e-3)
    with pytest.raises(DataError, match="training mode"):
        detector.train().detect(images, [(64, 96), (160, 128)])


def test_boxes_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    detector = fpn(score_threshold=0.0).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = detector(batch())
        assert all(value.dtype == torch.float32 for value in terms.values())
        features = detector.features(torch.zeros(1, 3, 64, 64))
        assert all(one.dtype == torch.float32 for one in features.values())
        assert all(one.dtype == torch.float32 for part in detector.rpn.head(list(features.values())) for one in part)
        found = detector.eval().detect(batch()["images"], [(64, 96), (80, 64)])
    boxes = found[0]["boxes"]
    assert not torch.equal(boxes, boxes.bfloat16().float())


@pytest.mark.parametrize(
    ("model", "strides"),
    [("resnet18", [2, 4, 8, 16, 32]), ("mobilenet_v2", [2, 4, 8, 16, 32]), ("convnext_tiny", [4, 8, 16, 32]),
     ("regnet_y_400mf", [2, 4, 8, 16, 32]), ("shufflenet_v2_x0_5", [2, 4, 8, 16, 32]),
     ("mnasnet0_5", [2, 4, 8, 16, 32]), ("vgg11", [1, 2, 4, 8, 16, 32])],
)  # fmt: skip
def test_stages_of_many_architectures(model: str, strides: list[int]) -> None:
    with torch.device("meta"):
        parts = stages(TorchvisionEncoder(model=model))
        assert [part.stride for part in parts] == strides
        assert RCNNFPN(TorchvisionEncoder(model=model), 2).features.first == len(strides) - 4
        x = torch.zeros(1, 3, 128, 128)
        for part in parts:
            x = part.module(x)
            assert x.shape[1:] == (part.channels, 128 // part.stride, 128 // part.stride)


def test_stages_leave_the_statistics_alone() -> None:
    encoder = resnet().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    stages(encoder)
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("model", ["vit_tiny_16", "swin_t", "googlenet"])
def test_encoders_without_stages_are_refused_by_name(model: str) -> None:
    with torch.device("meta"), pytest.raises(RecipeError, match="is no chain of convolutional stages"):
        stages(TorchvisionEncoder(model=model))


def test_strides_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="use a torchvision one"):
        stages(nn.Linear(2, 2))  # type: ignore[arg-type]
    with torch.device("meta"):
        with pytest.raises(RecipeError, match="pyramid needs stages of strides 4, 8, 16, 32; found 1, 2, 4, 8"):
            RCNNFPN(resnet(small_input=True), 2)
        with pytest.raises(RecipeError, match="C4 needs stages of strides 2, 4, 8, 16, 32; found 4, 8, 16, 32"):
            FasterRCNNC4(TorchvisionEncoder(model="convnext_tiny"), 2)
        with pytest.raises(RecipeError, match="stride_stem: this is for ResNets made with small_input"):
            RCNNFPN(resnet(), 2, stride_stem=True)


def test_a_small_stem_gets_its_strides() -> None:
    encoder = resnet(small_input=True)
    weight = encoder.get_parameter("model.conv1.weight")
    detector: Detector = fpn(encoder, stride_stem=True).train()
    assert any(parameter is weight for parameter in detector.parameters())
    assert detector(batch())["loss"].isfinite()
