"""Faster R-CNN: Ren et al., "Faster R-CNN: Towards real-time object detection with region proposal networks", 2015.

Fast R-CNN spent most of its time waiting for proposals. Here RPN makes them from the same feature maps that the
RoI head reads, so they cost almost nothing, and both parts train together in one pass. The variants of the zoo change
one thing each: the features (one map of stride 16, "c4" or "dc5", instead of a pyramid), the box loss, the way regions
are sampled (OHEM), or the suppression at test time (soft-NMS).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detcore.backbones.resnet import ResNet, ResStage
from detcore.detectors import TwoStageDetector
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.rpn import fpn_rpn_head, single_map_rpn_head
from detcore.necks.fpn import FPN
from detcore.ops.losses import ElementwiseLoss, l1
from detcore.ops.nms import PostProcess
from detcore.options import forwards


@forwards(fpn_rpn_head)
def faster_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                box_loss: ElementwiseLoss = l1, decoded: bool = False, box_weight: float = 1.0,
                hard_examples: bool = False, block: Block = ConvBlock, box_convs: int = 0, samples: int = 512,
                sampling_ratio: int = 0, roi_align: MultiScaleRoIAlign | None = None,
                roi_head: Callable[..., RoIHead] = RoIHead, score_threshold: float = 0.05, nms_threshold: float = 0.5,
                max_detections: int = 100, soft_nms: bool = False, **rpn_options: Any) -> TwoStageDetector:
    """Faster R-CNN on a feature pyramid.

    Args:
        width, hidden: channels of the pyramid and of the box head's layers.
        box_loss, decoded, box_weight: loss of the box head's boxes; `decoded` if it compares boxes, not offsets.
        block: the convolutions of pyramid and box head; box_convs: how many the box head has before its layer.
        samples: regions that train, an image. hard_examples: online hard example mining.
        sampling_ratio: RoIAlign's (see `MultiScaleRoIAlign`); roi_align: another pooling; roi_head: another RoI head.
        score_threshold, nms_threshold, max_detections, soft_nms: which detections are kept (see `PostProcess`).
        rpn_options: as in `fpn_rpn_head`.
    """
    rpn_head = fpn_rpn_head(width, **rpn_options)
    bbox_head = BoxHead(width, num_classes, hidden=hidden, box_loss=box_loss, decoded=decoded, box_weight=box_weight,
                        convs=box_convs, block=block)
    head = roi_head(roi_align or MultiScaleRoIAlign(sampling_ratio=sampling_ratio), bbox_head, samples=samples,
                    hard_examples=hard_examples,
                    postprocess=PostProcess(score_threshold, nms_threshold, max_detections, soft_nms=soft_nms))
    return TwoStageDetector(backbone, FPN(backbone.channels, width, block=block), rpn_head, head)


@forwards(single_map_rpn_head, without=["border"])
def faster_rcnn_single_map(backbone: ResNet, num_classes: int = 80, *, tail: str = "c4", hidden: int = 1024,
                           samples: int = 512, sampling_ratio: int = 0, score_threshold: float = 0.05,
                           nms_threshold: float = 0.5, max_detections: int = 100,
                           **rpn_options: Any) -> TwoStageDetector:
    """Faster R-CNN on one map of stride 16, as first published.

    Args:
        tail: "c4": the box head is the backbone's last stage; "dc5": that stage is in the backbone, dilated, and the
            box head has two layers of `hidden` channels. Others as in `faster_rcnn` and `single_map_rpn_head`.
    """
    rpn_head = single_map_rpn_head(backbone.channels[-1], border=-1 if tail == "c4" else 0, **rpn_options)
    options: dict[str, Any] = dict(samples=samples,
                                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    if tail == "c4":
        stage = ResStage(backbone.depth, base_channels=backbone.base_channels)
        head = RoIHead(MultiScaleRoIAlign([16], 14, sampling_ratio=sampling_ratio),
                       BoxHead(stage.channels, num_classes, hidden=0), shared_head=stage, **options)
    else:
        head = RoIHead(MultiScaleRoIAlign([16], sampling_ratio=sampling_ratio),
                       BoxHead(backbone.channels[-1], num_classes, hidden=hidden), **options)
    return TwoStageDetector(backbone, None, rpn_head, head)
