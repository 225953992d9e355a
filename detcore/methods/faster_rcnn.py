"""Faster R-CNN: Ren et al., "Faster R-CNN: Towards real-time object detection with region proposal networks", 2015.

Fast R-CNN spent most of its time waiting for proposals. Here RPN makes them from the same feature maps that the
region head reads, so they cost almost nothing, and both parts train together in one pass. The variants of the zoo
change one thing each: the features (one map of stride 16, "c4" or "dc5", instead of a pyramid), the box loss, the way
regions are sampled (OHEM), the suppression at test time (soft-NMS), or the proposal network (FCOS).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import l1
from detcore.methods.fast_rcnn import KEEP, BoxHead, Keep, ResStage, RoIHead, to_output
from detcore.methods.fcos import FCOS_STRIDES, FCOSHead
from detcore.methods.rpn import (
    FPN_STRIDES,
    FPN_TEST,
    FPN_TRAIN,
    SINGLE_MAP_TEST,
    SINGLE_MAP_TRAIN,
    Limits,
    RPNHead,
    fpn_anchors,
    single_map_anchors,
)
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target


class FasterRCNN(nn.Module):
    """Backbone, pyramid, proposal head and region head: every two-stage detector has this form."""

    takes_proposals = False

    def __init__(self, backbone: ResNet, neck: nn.Module | None, rpn_head: nn.Module, roi_head: nn.Module,
                 num_classes: int):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        # An `RPNHead` and a `RoIHead`, or other methods' with the same verbs.
        self.rpn_head: Any = rpn_head
        self.roi_head: Any = roi_head
        self.num_classes = num_classes

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name: the proposal head's, then the region head's."""
        return self.loss_from(self.features(images.tensor), images, targets)

    def loss_from(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses, from feature maps."""
        losses, proposals = self.rpn_head.loss_and_proposals(features, images, targets)
        return losses | self.roi_head.loss(features, proposals, images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections of each image, in its `output_sizes` (h, w) or in the network's input."""
        return self.predict_from(self.features(images.tensor), images, output_sizes)

    def predict_from(self, features: Sequence[Tensor], images: Images,
                     output_sizes: list[tuple[int, int]] | None) -> list[Detections]:
        """The detections, from feature maps."""
        found = self.roi_head.predict(features, self.rpn_head.proposals(features, images), images)
        return to_output(found, images, output_sizes)


def faster_rcnn(backbone: ResNet, num_classes: int = 80, *, neck: str = "fpn", width: int = 256, hidden: int = 1024,
                anchor_scale: float = 8, box_loss: Callable[[Tensor, Tensor], Tensor] = l1, decoded: bool = False,
                box_weight: float = 1.0, hard_examples: bool = False, keep: Keep = KEEP,
                fcos_proposals: bool = False, block: Block = ConvBlock, box_convs: int = 0, samples: int = 512,
                rpn_samples: int = 256, sampling: int = 0, train_limits: Limits | None = None,
                test_limits: Limits | None = None) -> FasterRCNN:
    """Faster R-CNN.

    Args:
        neck: "fpn"; "c4": one map, region head is the backbone's last stage; "dc5": one dilated map.
        width, hidden: channels of the pyramid and of the region head's layers.
        box_loss, decoded, box_weight: loss of the region head's boxes; `decoded` if it compares boxes, not offsets.
        hard_examples: online hard example mining. keep: which detections are kept at test time.
        fcos_proposals: an FCOS head proposes instead of RPN.
        block: the convolutions of pyramid and region head; box_convs: how many the region head has before its layer.
        sampling: RoIAlign's (see `MultiScaleRoIAlign`).
        train_limits, test_limits: proposals kept; by default what the neck needs.
    """
    pyramid, strides = None, (16,)  # type: tuple[FPN | None, tuple[int, ...]]
    if neck != "fpn":
        width = backbone.channels[-1]
    elif fcos_proposals:
        pyramid, strides = FPN(backbone.channels, width, start=1, extra="output", relu_extra=True), FCOS_STRIDES
    else:
        pyramid, strides = FPN(backbone.channels, width, block=block), FPN_STRIDES[:4]

    limits: dict[str, Any] = dict(train_limits=train_limits or (FPN_TRAIN if pyramid else SINGLE_MAP_TRAIN),
                                  test_limits=test_limits or (FPN_TEST if pyramid else SINGLE_MAP_TEST))
    rpn_head: RPNHead | FCOSHead
    if fcos_proposals:
        rpn_head = FCOSHead(width, 1, strides, **limits)
    else:
        anchors = fpn_anchors(anchor_scale) if pyramid else single_map_anchors()
        rpn_head = RPNHead(width, anchors, border=0 if neck == "dc5" else -1, samples=rpn_samples, **limits)

    box_options: dict[str, Any] = dict(box_loss=box_loss, decoded=decoded, box_weight=box_weight)
    options: dict[str, Any] = dict(samples=samples, hard_examples=hard_examples, keep=keep)
    if neck == "c4":
        tail = ResStage(backbone.depth, base_channels=backbone.base_channels)
        bbox_head = BoxHead(tail.channels, num_classes, hidden=0, **box_options)
        head = RoIHead(MultiScaleRoIAlign(strides, 14, sampling=sampling), bbox_head, shared_head=tail, **options)
    else:
        bbox_head = BoxHead(width, num_classes, hidden=hidden, convs=box_convs, block=block, **box_options)
        head = RoIHead(MultiScaleRoIAlign(strides, sampling=sampling), bbox_head, **options)
    return FasterRCNN(backbone, pyramid, rpn_head, head, num_classes)
