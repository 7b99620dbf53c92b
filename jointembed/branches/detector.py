"""Faster R-CNN and Mask R-CNN on any convolutional image encoder; proposals, regions and losses are torchvision's.

Faster R-CNN (Ren et al. 2015) on the fourth stage alone (C4), with the fifth as the head of each region, as MoCo and
VICReg use it on VOC; on a feature pyramid (FPN, Lin et al. 2017); and with masks (Mask R-CNN, He et al. 2017).
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from jointembed.branches.image import TorchvisionEncoder
from jointembed.branches.trunk import Stage, freeze_batch_norm, stages, stride_small_stem
from jointembed.errors import DataError, RecipeError

Norm = Literal["sync", "frozen"]
RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors
PYRAMID_STRIDES = (4, 8, 16, 32)
DIVISIBLE = 32  # a padded batch's sides, px


class Detector(nn.Module):
    """What the two architectures share: normalisation, padding, losses, and what the training loop calls.

    Batches hold `images`, a list of (3, H, W) uint8, and `targets`, a list of `boxes` (n, 4) float32 left, top, right,
    bottom in px, `labels` (n,) int64 1 .. K, and `masks` (n, H, W) uint8 where the detector has masks.
    """

    has_masks = False

    def __init__(
        self,
        encoder: TorchvisionEncoder,
        features: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        *,
        frozen: list[nn.Module],
        rpn_weight: float,
    ) -> None:
        """Put the parts together; `frozen` ones neither learn nor move their statistics."""
        super().__init__()
        self.pixels, self.features, self.rpn, self.roi_heads = encoder.pixels, features, rpn, roi_heads
        self.rpn_weight, self._frozen = rpn_weight, tuple(frozen)
        self.watch = False  # the loop sets it; a detector has no embeddings to look at,
        self.remedies = ("", "")  # nor to warn of
        self.stage: Callable[[str], AbstractContextManager[None]] = _untimed  # a profiler's clock
        for module in self._frozen:
            module.requires_grad_(False)
        heads = (rpn.head, roi_heads.box_predictor, roi_heads.mask_predictor)
        for part in (features, *(head for head in heads if head is not None)):
            part.register_forward_hook(_in_float32)
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> "Detector":
        """Set the mode of whatever trains; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of a batch and its terms: objectness and box of proposals, class, box and mask of regions."""
        with self.stage("forward"):
            images = self._padded(batch["images"])
            features = self.features(images.tensors)
        with self.stage("loss"):
            proposals, of_proposals = self.rpn(images, features, batch["targets"])
            _, of_regions = self.roi_heads(features, proposals, images.image_sizes, batch["targets"])
        loss = sum(of_regions.values()) + self.rpn_weight * sum(of_proposals.values())
        return {"loss": loss, **of_proposals, **of_regions}

    def before_step(self, batch: dict[str, Any]) -> None:
        """Hook of the loop; nothing to do."""

    def end_step(self, progress: float) -> None:
        """Hook of the loop; nothing to do."""

    @torch.no_grad()
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Find objects, in evaluation mode.

        Args:
            images: (3, H, W) uint8, at the size that the network is to see.
            sizes: height and width that boxes and masks are wanted at, px.

        Returns:
            Of each picture `boxes` (n, 4), `scores` (n,) falling, `labels` (n,) 1 .. K and, with masks, `masks`
            (n, H, W) bool.
        """
        if self.training:
            raise DataError("detect: the detector is in training mode; call eval() first")
        padded = self._padded(images)
        features = self.features(padded.tensors)
        proposals, _ = self.rpn(padded, features)
        found, _ = self.roi_heads(features, proposals, padded.image_sizes)
        for one, seen, wanted in zip(found, padded.image_sizes, sizes, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], list(seen), list(wanted))
            if "masks" in one:
                one["masks"] = paste_masks_in_image(one["masks"], one["boxes"], wanted)[:, 0] >= 0.5
        return found

    def _padded(self, images: list[Tensor]) -> ImageList:
        """Normalised pictures in the upper left corners of one tensor, zeros (the mean colour) around them."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        height, width = (-(-max(side) // DIVISIBLE) * DIVISIBLE for side in zip(*sizes, strict=True))
        tensors = torch.zeros(len(images), 3, height, width, device=self.device)
        for row, image, (high, wide) in zip(tensors, images, sizes, strict=True):
            row[:, :high, :wide] = self.pixels(image[None])[0]
        return ImageList(tensors.contiguous(memory_format=torch.channels_last), sizes)


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def _in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Under autocast: boxes are computed in float32, since bf16 tells positions of 300 px apart by 2 px only."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return OrderedDict((name, one.float()) for name, one in output.items())
    return type(output)(_in_float32(module, inputs, one) for one in output)


class _OneMap(nn.Sequential):
    """Stages of which only the last maps are used, as the one level `0`."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return OrderedDict([("0", super().forward(x))])


class FasterRCNNC4(Detector):
    """Faster R-CNN on the maps of the fourth stage; the fifth, run on each region, is the head. ResNets only.

    Args:
        encoder: its parameters are taken over, not copied.
        categories: K, without the background.
        norm: `sync`: batch norm trains, its statistics are the whole batch's over all ranks, and one more follows the
            fifth stage (MoCo's protocol); `frozen`: the encoder's statistics and affine parameters stay as they are.
        freeze_at: stages from the picture on that do not train (1: the stem).
        stride_stem: see `trunk.stride_small_stem`.
        rpn_weight: factor on the two losses of proposals; .2 in VICReg's VOC07+12 (appendix C.3).
        candidates: boxes kept before suppression, in training; half of them in evaluation.
        proposals: boxes kept after suppression, in training; at most 1000 in evaluation.
        regions: sampled a picture for the head's loss, a quarter of them objects.
        score_threshold: weaker detections are left out.
        detections: most a picture.

    Raises:
        RecipeError: an encoder without five stages of strides 2, 4, 8, 16, 32.
    """

    def __init__(
        self,
        encoder: TorchvisionEncoder,
        categories: int,
        *,
        norm: Norm = "sync",
        freeze_at: int = 0,
        stride_stem: bool = False,
        rpn_weight: float = 1.0,
        candidates: int = 12000,
        proposals: int = 2000,
        regions: int = 512,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        """See the class."""
        parts = _stages(encoder, norm, stride_stem)
        if [part.stride for part in parts] != [2, 4, 8, 16, 32]:
            raise RecipeError(f"detector: C4 needs stages of strides 2, 4, 8, 16, 32; found {_strides(parts)}")
        *lower, last = parts
        extra = [nn.BatchNorm2d(last.channels)] if norm == "sync" else []
        head = nn.Sequential(last.module, *extra, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        anchors = AnchorGenerator(((32, 64, 128, 256, 512),), (RATIOS,))
        super().__init__(
            encoder,
            _OneMap(*(part.module for part in lower)),
            _proposals(lower[-1].channels, anchors, candidates, proposals),
            _regions(
                MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
                head,
                FastRCNNPredictor(last.channels, categories + 1),
                regions,
                score_threshold,
                detections,
            ),
            frozen=[part.module for part in lower[:freeze_at]],
            rpn_weight=rpn_weight,
        )


class _Pyramid(nn.Module):
    """Stages with a feature pyramid on the maps of the last of them."""

    def __init__(self, parts: list[Stage], used: int, width: int, norm: type[nn.Module] | None) -> None:
        super().__init__()
        self.stages, self.first = nn.ModuleList(part.module for part in parts), len(parts) - used
        channels = [part.channels for part in parts[self.first :]]
        self.fpn = FeaturePyramidNetwork(channels, width, extra_blocks=LastLevelMaxPool(), norm_layer=norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number >= self.first:
                maps[str(number - self.first)] = x
        return self.fpn(maps)


class RCNNFPN(Detector):
    """Faster R-CNN on a feature pyramid over the stages of strides 4 to 32; with `masks`, Mask R-CNN.

    Args:
        encoder: its parameters are taken over, not copied.
        categories: K, without the background.
        masks: predict a mask of each object too.
        norm: `sync`: batch norm trains, in the pyramid too, its statistics are the whole batch's over all ranks;
            `frozen`: the encoder's statistics and affine parameters stay as they are, and the pyramid has none.
        freeze_at: stages from the picture on that do not train (1: the stem).
        stride_stem: see `trunk.stride_small_stem`.
        width: of the pyramid and the mask head.
        head: width of the two layers of the box head.
        rpn_weight: factor on the two losses of proposals.
        candidates: boxes a level kept before suppression, in training; half of them in evaluation.
        proposals: boxes kept after suppression, in training; at most 1000 in evaluation.
        regions: sampled a picture for the heads' losses, a quarter of them objects.
        score_threshold: weaker detections are left out.
        detections: most a picture.

    Raises:
        RecipeError: an encoder without stages of strides 4, 8, 16, 32.
    """

    def __init__(
        self,
        encoder: TorchvisionEncoder,
        categories: int,
        *,
        masks: bool = False,
        norm: Norm = "sync",
        freeze_at: int = 0,
        stride_stem: bool = False,
        width: int = 256,
        head: int = 1024,
        rpn_weight: float = 1.0,
        candidates: int = 2000,
        proposals: int = 1000,
        regions: int = 512,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        """See the class."""
        parts = _stages(encoder, norm, stride_stem)
        used = len(PYRAMID_STRIDES)
        if tuple(part.stride for part in parts[-used:]) != PYRAMID_STRIDES:
            raise RecipeError(f"detector: a pyramid needs stages of strides 4, 8, 16, 32; found {_strides(parts)}")
        levels = [str(number) for number in range(used)]
        sizes = tuple((8 * stride,) for stride in (*PYRAMID_STRIDES, 2 * PYRAMID_STRIDES[-1]))
        regions_of = _regions(
            MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
            TwoMLPHead(width * 7 * 7, head),
            FastRCNNPredictor(head, categories + 1),
            regions,
            score_threshold,
            detections,
        )
        if masks:
            regions_of.mask_roi_pool = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
            regions_of.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
            regions_of.mask_predictor = MaskRCNNPredictor(width, width, categories + 1)
        super().__init__(
            encoder,
            _Pyramid(parts, used, width, nn.BatchNorm2d if norm == "sync" else None),
            _proposals(width, AnchorGenerator(sizes, (RATIOS,) * len(sizes)), candidates, proposals),
            regions_of,
            frozen=[part.module for part in parts[:freeze_at]],
            rpn_weight=rpn_weight,
        )
        self.has_masks = masks


DETECTORS: dict[str, type[Detector]] = {"faster_rcnn_c4": FasterRCNNC4, "rcnn_fpn": RCNNFPN}


def _stages(encoder: TorchvisionEncoder, norm: Norm, stride_stem: bool) -> list[Stage]:
    if stride_stem:
        stride_small_stem(encoder)
    parts = stages(encoder)
    if norm == "frozen":
        for part in parts:
            freeze_batch_norm(part.module)
    return parts


def _strides(parts: list[Stage]) -> str:
    return ", ".join(str(part.stride) for part in parts)


def _proposals(width: int, anchors: AnchorGenerator, candidates: int, proposals: int) -> RegionProposalNetwork:
    return RegionProposalNetwork(
        anchors,
        RPNHead(width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": candidates, "testing": candidates // 2},
        post_nms_top_n={"training": proposals, "testing": min(proposals, 1000)},
        nms_thresh=0.7,
    )


def _regions(
    pool: MultiScaleRoIAlign,
    head: nn.Module,
    predictor: nn.Module,
    regions: int,
    score_threshold: float,
    detections: int,
) -> RoIHeads:
    return RoIHeads(
        pool,
        head,
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=0.5,
        detections_per_img=detections,
    )
