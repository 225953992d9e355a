"""Mask Scoring R-CNN: Huang et al., "Mask Scoring R-CNN", 2019.

Mask R-CNN ranks its masks by the score of the class, which says nothing about how well the mask is drawn. Here a small
head looks at the region's features together with the predicted mask, and regresses the mask's IoU with the object.
At test time the class score times that IoU is the mask's score. Boxes stay ranked as before; masks that are
drawn well rise, and mask AP with them.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.init import init_normal, init_weights, kaiming_normal
from detcore.methods.mask_rcnn import MaskRoIHead, mask_rcnn
from detcore.ops.losses import reduce_mean
from detcore.ops.masks import bitmaps
from detcore.ops.regions import Regions, flat_detections, of_class
from detcore.options import forwards
from detcore.structures import Detections, Target

CONVS = 4
LOSS_WEIGHT = 0.5
DRAWN = 0.5  # what a mask's logits exceed inside, in training: not its probabilities, as published


class MaskIoUHead(nn.Module):
    """Regresses the IoU of a drawn mask with its object, for every class (section 3.2).

    Args:
        in_channels: channels of the region's map, of side `size`; width: of the convolutions; hidden: of the layers.
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 256, hidden: int = 1024, size: int = 14):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(width if i else in_channels + 1, width, 3, 2 if i == CONVS - 1 else 1, 1)
                                    for i in range(CONVS)])
        self.fcs = nn.ModuleList([nn.Linear(width * (size // 2) ** 2, hidden), nn.Linear(hidden, hidden)])
        self.fc_mask_iou = nn.Linear(hidden, num_classes)
        init_weights(self, kaiming_normal)
        init_normal(self.fc_mask_iou, 0.01)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[r, C] IoU of region maps [r, c, s, s] and mask logits [r, 2 s, 2 s]."""
        x = torch.cat([x, torch.max_pool2d(mask.sigmoid()[:, None], 2).to(x.dtype)], 1)
        for conv in self.convs:
            x = conv(x).relu()
        x = x.flatten(1)
        for fc in self.fcs:
            x = fc(x).relu()
        return self.fc_mask_iou(x)


def iou_targets(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """[r] IoU of drawn masks with whole objects, of which regions may see only a part (section 3.3).

    Args:
        logits: [r, s, s] mask logits; target: [r, s, s] the object's mask within the region.
        inside: [r] the share of the object that is within the region.
    """
    drawn = (logits > DRAWN).float()
    overlap = (drawn * target).sum((1, 2))
    whole = target.sum((1, 2)) / (inside + 1e-7)
    return overlap / (drawn.sum((1, 2)) + whole - overlap).clamp(min=1e-6)


def share_inside(targets: list[Target], regions: Regions) -> Tensor:
    """[r] the share of each region's object that lies within the region."""
    boxes = regions.boxes
    masks = bitmaps([t.masks for t in targets], boxes.device)
    counts = torch.tensor([0] + [len(m) for m in masks[:-1]]).cumsum(0).to(boxes.device, non_blocking=True)
    stacked = torch.cat([*masks, masks[0].new_zeros(1, *masks[0].shape[1:])])  # never empty
    # Sums over boxes come from a table of sums over all upper left corners.
    table = F.pad(stacked.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))
    h, w = stacked.shape[1:]
    corner = boxes.trunc().long()
    limit = torch.tensor([w, h, w, h]).to(boxes.device, non_blocking=True)
    x1, y1, x2, y2 = torch.minimum(corner.clamp(min=0), limit).unbind(1)
    x2, y2 = x2.maximum(x1 + 1).clamp(max=w), y2.maximum(y1 + 1).clamp(max=h)
    index = (counts[regions.image] + regions.matched).clamp(max=len(stacked) - 1)
    within = table[index, y2, x2] - table[index, y1, x2] - table[index, y2, x1] + table[index, y1, x1]
    return within / (table[index, h, w] + 1e-7)


class MaskScoringRoIHead(MaskRoIHead):
    """The RoI head with masks, and `mask_iou_head`, which scores them; arguments as in `MaskRoIHead`."""

    not_exportable = "its masks are scored in a second round whose size depends on the picture"

    def __init__(self, *args: Any, mask_iou_head: MaskIoUHead, **options: Any):
        super().__init__(*args, **options)
        self.mask_iou_head = mask_iou_head

    def mask_loss(self, maps: Tensor, positives: Regions, targets: list[Target]) -> dict[str, Tensor]:
        """Loss of the masks, and squared error of their IoU where they meet the object at all."""
        target, logits = positives.mask_targets(targets, self.mask_size), self.mask_head(maps)
        own = of_class(logits, positives.labels)
        iou = of_class(self.mask_iou_head(maps, own), positives.labels).float()
        true_iou = iou_targets(own.detach(), target, share_inside(targets, positives))
        meets = (true_iou > 0) & positives.positive
        error = ((iou - true_iou).square() * meets).sum() / reduce_mean(meets.sum().float()).clamp(min=1)
        return {"loss_mask": self.mask_head.loss(logits, target, positives), "loss_mask_iou": LOSS_WEIGHT * error}

    def masks(self, features: Sequence[Tensor], detections: list[Detections]) -> list[Tensor]:
        """For each image, mask probabilities [n, s, s] of its detections, which are scored and sorted anew in place."""
        boxes, labels, image = flat_detections(detections)
        maps = self.mask_features(features, boxes, image)
        own = of_class(self.mask_head(maps), labels)
        iou = of_class(self.mask_iou_head(maps, own), labels).float()
        drawn, counts = [], [len(d) for d in detections]
        for one, mask, factor in zip(detections, own.float().sigmoid().split(counts), iou.split(counts)):
            one.scores, order = (one.scores * factor).sort(descending=True)
            one.boxes, one.labels = one.boxes[order], one.labels[order]
            drawn.append(mask[order])
        return drawn


@forwards(mask_rcnn, without=["roi_head"])
def ms_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
            **options: Any) -> TwoStageDetector:
    """Mask Scoring R-CNN; options as in `mask_rcnn`."""
    def roi_head(*parts: Any, **options: Any) -> MaskScoringRoIHead:
        mask_iou_head = MaskIoUHead(width, num_classes, width=width, hidden=hidden)
        return MaskScoringRoIHead(*parts, mask_iou_head=mask_iou_head, **options)

    return mask_rcnn(backbone, num_classes, width=width, hidden=hidden, roi_head=roi_head, **options)
