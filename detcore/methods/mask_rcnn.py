"""Mask R-CNN: He et al., "Mask R-CNN", 2017.

A third branch beside class and box: a small fully convolutional network draws a mask for each region, one for every
class, each pixel an independent yes or no, so that classes do not compete. Masks need pixel-exact features, so
quantised RoI pooling gives way to RoIAlign, which samples the map where the region really lies.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet, ResStage
from detcore.detectors import Sizes, TwoStageDetector, rescaled
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.init import init_weights, kaiming_normal
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.rpn import fpn_rpn_head, single_map_rpn_head
from detcore.necks.fpn import FPN
from detcore.ops.losses import ElementwiseLoss, binary_cross_entropy, l1, reduce_mean
from detcore.ops.masks import paste_masks
from detcore.ops.nms import PostProcess
from detcore.ops.regions import Regions, flat_detections, of_class
from detcore.options import forwards
from detcore.structures import Detections, Images, Proposals, Target


class MaskHead(nn.Module):
    """Convolutions, one 2x upsampling, and a mask logit for every class (figure 4).

    Args:
        in_channels: channels of the region's map; width: those of the convolutions and the upsampling.
        depth: number of 3x3 convolutions. block: their kind; predictor: that of the last, 1x1 convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 256, depth: int = 4,
                 block: Block = ConvBlock, predictor: type[nn.Conv2d] = nn.Conv2d):
        super().__init__()
        self.convs = nn.ModuleList([block(width if i else in_channels, width, 3) for i in range(depth)])
        self.upsample = nn.ConvTranspose2d(width if depth else in_channels, width, 2, 2)
        self.conv_logits = predictor(width, num_classes, 1)
        init_weights(self, kaiming_normal)

    def forward(self, x: Tensor) -> Tensor:
        """[r, C, 2 s, 2 s] logits of region maps [r, c, s, s]."""
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(self.upsample(x).relu())

    def loss(self, logits: Tensor, target: Tensor, positives: Regions) -> Tensor:
        """Mean over regions and pixels of the cross-entropy of the true class's mask, 0-dim (section 3), from logits
        [r, C, s, s] and targets [r, s, s]."""
        count = reduce_mean(positives.positive.sum().float()).clamp(min=1)
        error = binary_cross_entropy(of_class(logits, positives.labels), target).mean((1, 2))
        return (error * positives.positive).sum() / count

    def masks(self, x: Tensor, labels: Tensor) -> Tensor:
        """Probabilities [r, 2 s, 2 s] of the masks of classes `labels` [r], from region maps [r, c, s, s]."""
        return of_class(self(x), labels).float().sigmoid()


class MaskRoIHead(RoIHead):
    """The RoI head with a mask branch; options as in `RoIHead`.

    Args:
        mask_roi_align: region features for masks; None: the box branch's own (C4). mask_size: side of the targets.
    """

    def __init__(self, roi_align: MultiScaleRoIAlign, bbox_head: BoxHead, mask_head: MaskHead,
                 mask_roi_align: MultiScaleRoIAlign | None, *, mask_size: int = 28, **options: Any):
        super().__init__(roi_align, bbox_head, **options)
        self.mask_head, self.mask_roi_align, self.mask_size = mask_head, mask_roi_align, mask_size

    def mask_features(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Maps [r, c, s, s] that masks are drawn from, of boxes [r, 4] on images [r]."""
        if self.mask_roi_align is None:
            return self.region_features(features, boxes, image)
        return self.mask_roi_align(features, boxes, image)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals, masks included."""
        samples = self.sample(features, proposals, targets)
        regions, positives = samples.regions(), samples.positives(self.sampler.max_positives)
        losses, x = self.box_loss(features, regions)
        if self.mask_roi_align is None:
            maps = x[torch.searchsorted(regions.index, positives.index)]
        else:
            maps = self.mask_features(features, positives.boxes, positives.image)
        return losses | self.mask_loss(maps, positives, targets)

    def mask_loss(self, maps: Tensor, positives: Regions, targets: list[Target]) -> dict[str, Tensor]:
        """Loss of the masks drawn from maps [r, c, s, s] of the positive regions."""
        target = positives.mask_targets(targets, self.mask_size)
        return {"loss_mask": self.mask_head.loss(self.mask_head(maps), target, positives)}

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
                output_sizes: Sizes | None = None) -> list[Detections]:
        """Detections with masks over each whole image, in its `output_sizes` (h, w) or in the network's input."""
        detections = self.detect(features, proposals, images)
        return with_masks(detections, self.masks(features, detections), images, output_sizes)

    def masks(self, features: Sequence[Tensor], detections: list[Detections]) -> list[Tensor]:
        """For each image, mask probabilities [n, s, s] of its detections."""
        boxes, labels, image = flat_detections(detections)
        masks = self.mask_head.masks(self.mask_features(features, boxes, image), labels)
        return list(masks.split([d.boxes.shape[0] for d in detections]))


def with_masks(detections: list[Detections], masks: list[Tensor], images: Images,
               output_sizes: Sizes | None) -> list[Detections]:
    """Detections moved, in place, to their `output_sizes` (h, w), where their masks are pasted, of which `masks` has
    the probabilities [n, s, s] (section 3.2)."""
    detections = rescaled(detections, images, output_sizes)
    for one, mask, size in zip(detections, masks, output_sizes or images.sizes):
        one.masks = paste_masks(mask, one.boxes, size)
    return detections


@forwards(fpn_rpn_head)
def mask_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
              box_loss: ElementwiseLoss = l1, sampling_ratio: int = 0, aligned: bool = True, block: Block = ConvBlock,
              box_convs: int = 0, mask_convs: int = 4, samples: int = 512,
              mask_predictor: type[nn.Conv2d] = nn.Conv2d, bbox_head: BoxHead | None = None,
              roi_head: Callable[..., MaskRoIHead] = MaskRoIHead, score_threshold: float = 0.05,
              nms_threshold: float = 0.5, max_detections: int = 100, class_agnostic_nms: bool = False,
              **rpn_options: Any) -> TwoStageDetector:
    """Mask R-CNN on a feature pyramid.

    Args:
        width, hidden: channels of pyramid and mask head, and of the box head's layers.
        box_loss: loss of the box head's offsets. samples: regions that train, an image.
        sampling_ratio, aligned: how RoIAlign samples (see `MultiScaleRoIAlign`).
        block: the convolutions of pyramid and heads; box_convs: how many the box head has before its layer.
        mask_convs: how many the mask head has before its upsampling; mask_predictor: kind of its last convolution.
        bbox_head: another box head; roi_head: its kind.
        score_threshold, nms_threshold, max_detections, class_agnostic_nms: see `PostProcess`.
        rpn_options: as in `fpn_rpn_head`.
    """
    align: dict[str, Any] = dict(sampling_ratio=sampling_ratio, aligned=aligned)
    rpn_head = fpn_rpn_head(width, **rpn_options)
    # Unlike Faster R-CNN's, objects that no region overlaps enough keep their best one, as published.
    head = roi_head(
        MultiScaleRoIAlign(**align),
        bbox_head or BoxHead(width, num_classes, hidden=hidden, box_loss=box_loss, convs=box_convs, block=block),
        MaskHead(width, num_classes, width=width, depth=mask_convs, block=block, predictor=mask_predictor),
        MultiScaleRoIAlign(output_size=14, **align), samples=samples, low_quality=True,
        postprocess=PostProcess(score_threshold, nms_threshold, max_detections, class_agnostic_nms=class_agnostic_nms))
    return TwoStageDetector(backbone, FPN(backbone.channels, width, block=block), rpn_head, head)


@forwards(single_map_rpn_head, without=["border"])
def mask_rcnn_c4(backbone: ResNet, num_classes: int = 80, *, samples: int = 512, sampling_ratio: int = 0,
                 score_threshold: float = 0.05, nms_threshold: float = 0.5, max_detections: int = 100,
                 **rpn_options: Any) -> TwoStageDetector:
    """Mask R-CNN on one map of stride 16, whose heads share the backbone's last stage; arguments as in `mask_rcnn`."""
    stage = ResStage(backbone.depth, base_channels=backbone.base_channels)
    rpn_head = single_map_rpn_head(backbone.channels[-1], border=0, **rpn_options)
    head = MaskRoIHead(MultiScaleRoIAlign([16], 14, sampling_ratio=sampling_ratio),
                       BoxHead(stage.channels, num_classes, hidden=0), MaskHead(stage.channels, num_classes, depth=0),
                       None, mask_size=14, shared_head=stage, samples=samples,
                       postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, None, rpn_head, head)
