"""Faster R-CNN: Ren et al., "Faster R-CNN: Towards real-time object detection with region proposal networks", 2015.

Fast R-CNN spent most of its time waiting for proposals. Here RPN makes them from the same feature maps that the
region head reads, so they cost almost nothing, and both parts train together in one pass. The variants of the zoo
change one thing each: the features (one map of stride 16, "c4" or "dc5", instead of a pyramid), the box loss, the way
regions are sampled (OHEM), the suppression at test time (soft-NMS), or the proposal network (FCOS).
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.layers.roi import RoIPyramid
from detcore.losses import l1
from detcore.methods.fast_rcnn import BoxHead, ResStage, RoIHead, to_output
from detcore.methods.fcos import FCOSHead
from detcore.methods.rpn import Limits, RPNHead, fpn_anchors, single_map_anchors
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

# A single map has all its anchors on one level, so more of them enter and leave NMS.
SINGLE_MAP_TRAIN, SINGLE_MAP_TEST = Limits(12000, 2000), Limits(6000, 1000)


class FasterRCNN(nn.Module):
    """Backbone, pyramid, proposal head and region head: every two-stage detector has this form."""

    takes_proposals = False

    def __init__(self, backbone: ResNet, neck: FPN | None, rpn_head: RPNHead | FCOSHead, roi_head: RoIHead,
                 num_classes: int):
        super().__init__()
        self.backbone, self.neck, self.rpn_head, self.roi_head = backbone, neck, rpn_head, roi_head
        self.num_classes = num_classes

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        x = self.backbone(x)
        return self.neck(x) if self.neck is not None else x

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name: the proposal head's, then the region head's."""
        features = self.features(images.tensor)
        losses, proposals = self.rpn_head.loss_and_proposals(features, images, targets)
        return losses | self.roi_head.loss(features, proposals, images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections of each image, in its `output_sizes` (h, w) or in the network's input."""
        features = self.features(images.tensor)
        found = self.roi_head.predict(features, self.rpn_head.proposals(features, images), images)
        return to_output(found, images, output_sizes)


def faster_rcnn(backbone: ResNet, num_classes: int = 80, *, neck: str = "fpn", width: int = 256, hidden: int = 1024,
                anchor_scale: float = 8, box_loss: Callable[[Tensor, Tensor], Tensor] = l1, decoded: bool = False,
                box_weight: float = 1.0, hard_examples: bool = False, suppress: str = "nms", fcos_proposals: bool = False,
                samples: int = 512, rpn_samples: int = 256, train_limits: Limits = Limits(2000, 1000),
                test_limits: Limits = Limits(1000, 1000)) -> FasterRCNN:
    """Faster R-CNN.

    Args:
        neck: "fpn"; "c4": one map, region head is the backbone's last stage; "dc5": one dilated map.
        width, hidden: channels of the pyramid and of the region head's layers.
        box_loss, decoded, box_weight: loss of the region head's boxes; `decoded` if it compares boxes, not offsets.
        hard_examples: online hard example mining. suppress: "nms" or "soft_nms".
        fcos_proposals: an FCOS head proposes instead of RPN.
    """
    box_options = dict(box_loss=box_loss, decoded=decoded, box_weight=box_weight)
    if neck == "fpn" and not fcos_proposals:
        pyramid = FPN(backbone.channels, width)
        rpn_head = RPNHead(width, fpn_anchors(anchor_scale), samples=rpn_samples, train_limits=train_limits,
                           test_limits=test_limits)
        head = RoIHead(RoIPyramid(), BoxHead(width, num_classes, hidden=hidden, **box_options), samples=samples,
                       hard_examples=hard_examples, suppress=suppress)
        return FasterRCNN(backbone, pyramid, rpn_head, head, num_classes)
    if neck == "fpn":
        pyramid = FPN(backbone.channels, width, start=1, extra="output", relu_extra=True)
        strides = (8, 16, 32, 64, 128)
        proposer = FCOSHead(width, 1, strides, train_limits=train_limits, test_limits=test_limits)
        head = RoIHead(RoIPyramid(strides), BoxHead(width, num_classes, hidden=hidden))
        return FasterRCNN(backbone, pyramid, proposer, head, num_classes)
    channels = backbone.channels[-1]
    rpn_head = RPNHead(channels, single_map_anchors(), border=0 if neck == "dc5" else -1,
                       train_limits=SINGLE_MAP_TRAIN, test_limits=SINGLE_MAP_TEST)
    if neck == "dc5":
        head = RoIHead(RoIPyramid([16]), BoxHead(channels, num_classes, hidden=hidden))
    else:
        tail = ResStage(backbone.depth, base_channels=backbone.base_channels)
        head = RoIHead(RoIPyramid([16], 14), BoxHead(tail.channels, num_classes, hidden=0), shared_head=tail)
    return FasterRCNN(backbone, None, rpn_head, head, num_classes)
