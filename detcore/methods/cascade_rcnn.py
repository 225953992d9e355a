"""Cascade R-CNN: Cai & Vasconcelos, "Cascade R-CNN: Delving into high quality object detection", 2018.

A box head trained at IoU 0.5 accepts sloppy boxes; one trained at 0.7 would be precise, but sees too few positives.
Cascade R-CNN chains three heads. Each refines the boxes of the one before, so each can ask for more: 0.5, 0.6, 0.7.
Boxes get better from stage to stage, and with them the positives that the next stage learns from. Cascade Mask R-CNN
adds a mask head to every stage.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.backbones.resnet import ResNet
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import SmoothL1
from detcore.ops.matching import IoUMatcher, Sampler
from detcore.methods.fast_rcnn import KEEP, BoxHead, Keep, Samples, assign_regions, pick_detections, sample_regions
from detcore.methods.faster_rcnn import FasterRCNN
from detcore.methods.mask_rcnn import MaskHead, MaskRCNN, concatenate, mask_targets, positive_slots
from detcore.methods.rpn import FPN_TEST, Limits, Proposals, RPNHead, fpn_anchors
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

# Each stage asks for more overlap, corrects smaller errors, and weighs less (sections 4.1 and 4.3).
STAGE_IOU = (0.5, 0.6, 0.7)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
CASCADE_TRAIN = Limits(2000, 2000)


class CascadeRoIHead(nn.Module):
    """Three box heads in a row; with `mask_heads`, a mask head beside each.

    Args:
        bbox_heads: a head a stage, with class-agnostic boxes.
        samples: regions that train, an image and stage.
        keep: which detections are kept at test time.
    """

    def __init__(self, pool: MultiScaleRoIAlign, bbox_heads: Sequence[BoxHead], *, mask_heads: Sequence[MaskHead] = (),
                 mask_pool: MultiScaleRoIAlign | None = None, mask_size: int = 28, samples: int = 512,
                 keep: Keep = KEEP):
        super().__init__()
        self.bbox_roi_extractor, self.mask_size = pool, mask_size
        self.mask_pool: Any = mask_pool
        self.bbox_head: Any = nn.ModuleList(bbox_heads)
        if mask_heads:
            self.mask_head: Any = nn.ModuleList(mask_heads)
        self.keep = keep
        self.matchers = [IoUMatcher(iou, iou) for iou in STAGE_IOU]
        self.sampler = Sampler(samples, 0.25)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of every stage, named s0, s1, s2 (equation 8)."""
        losses: dict[str, Tensor] = {}
        for i, (head, matcher, weight) in enumerate(zip(self.bbox_head, self.matchers, STAGE_WEIGHTS)):
            samples = sample_regions(assign_regions(proposals, targets, matcher, head.num_classes), self.sampler)
            index, boxes, image = samples.rois()
            logits, deltas = head(self.bbox_roi_extractor(features, boxes, image))
            stage = head.loss(logits, deltas, samples)
            if hasattr(self, "mask_head"):
                stage["loss_mask"] = self.mask_loss(self.mask_head[i], features, samples, targets)
            losses |= {f"s{i}.{name}": v * weight if "loss" in name else v for name, v in stage.items()}
            if i + 1 < len(self.bbox_head):
                proposals = self.next_proposals(head, samples, index, deltas, images)
        return losses

    def mask_loss(self, head: MaskHead, features: Sequence[Tensor], samples: Samples, targets: list[Target]) -> Tensor:
        """The mask loss of one stage's positives."""
        index = positive_slots(samples, self.sampler.max_positives)
        boxes, image = samples.boxes.flatten(0, 1)[index], index // samples.valid.shape[1]
        return head.loss(head(self.mask_pool(features, boxes, image)), samples.labels.flatten()[index],
                         mask_targets(targets, samples, index, self.mask_size), samples.positive.flatten()[index])

    @torch.no_grad()
    def next_proposals(self, head: BoxHead, samples: Samples, index: Tensor, deltas: Tensor,
                       images: Images) -> Proposals:
        """A stage's samples, refined; the objects' own boxes are left out, the next stage adds them anew."""
        boxes = samples.boxes.flatten(0, 1)
        refined = boxes.index_copy(0, index, head.decode(boxes[index], deltas)).view_as(samples.boxes)
        refined = box.clip(refined, box.size_tensor(images.sizes, refined))
        return Proposals(refined, refined.new_ones(refined.shape[:2]), samples.valid & ~samples.is_truth)

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images) -> list[Detections]:
        """Boxes of the last stage, scored by the mean of all stages' logits (section 4.1)."""
        index = proposals.valid.flatten().nonzero()[:, 0]
        boxes, image = proposals.boxes.flatten(0, 1)[index], index // proposals.valid.shape[1]
        sizes = box.size_tensor(images.sizes, boxes)[image]
        total = torch.zeros((), device=boxes.device)
        for head in self.bbox_head:
            logits, deltas = head(self.bbox_roi_extractor(features, boxes, image))
            total = total + logits.float()
            boxes = box.clip(head.decode(boxes, deltas), sizes)
        scores = self.bbox_head[-1].scores(total / len(self.bbox_head))
        return pick_detections(boxes[:, None], scores, image, len(images), self.keep)

    def masks(self, features: Sequence[Tensor], found: list[Detections]) -> list[Tensor]:
        """For each image, mask probabilities [n, s, s] of its detections: the mean of the stages'."""
        boxes, labels, image = concatenate(found)
        x, row = self.mask_pool(features, boxes, image), torch.arange(labels.shape[0], device=labels.device)
        stages = torch.stack([head(x)[row, labels].float().sigmoid() for head in self.mask_head])
        return list(stages.mean(0).split([d.boxes.shape[0] for d in found]))


def cascade_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                 anchor_scale: float = 8, border: int = 0, samples: int = 512, rpn_samples: int = 256,
                 sampling: int = 0, train_limits: Limits = CASCADE_TRAIN,
                 test_limits: Limits = FPN_TEST) -> FasterRCNN:
    """Cascade R-CNN; `border` is RPN's (see `RPNHead`), `sampling` RoIAlign's (see `MultiScaleRoIAlign`)."""
    head = CascadeRoIHead(MultiScaleRoIAlign(sampling=sampling), _box_heads(width, num_classes, hidden), samples=samples)
    rpn_head = _rpn_head(width, anchor_scale, border, rpn_samples, train_limits, test_limits)
    return FasterRCNN(backbone, FPN(backbone.channels, width), rpn_head, head, num_classes)


def cascade_mask_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                      anchor_scale: float = 8, border: int = 0, samples: int = 512, rpn_samples: int = 256,
                      sampling: int = 0, train_limits: Limits = CASCADE_TRAIN,
                      test_limits: Limits = FPN_TEST) -> MaskRCNN:
    """Cascade Mask R-CNN; options as in `cascade_rcnn`."""
    head = CascadeRoIHead(MultiScaleRoIAlign(sampling=sampling), _box_heads(width, num_classes, hidden), samples=samples,
                          mask_heads=[MaskHead(width, num_classes, width=width) for _ in STAGE_IOU],
                          mask_pool=MultiScaleRoIAlign(size=14, sampling=sampling))
    rpn_head = _rpn_head(width, anchor_scale, border, rpn_samples, train_limits, test_limits)
    return MaskRCNN(backbone, FPN(backbone.channels, width), rpn_head, head, num_classes)


def _box_heads(width: int, num_classes: int, hidden: int) -> list[BoxHead]:
    return [BoxHead(width, num_classes, hidden=hidden, agnostic=True, stds=stds, box_loss=SmoothL1())
            for stds in STAGE_STDS]


def _rpn_head(width: int, anchor_scale: float, border: int, samples: int, train_limits: Limits,
              test_limits: Limits) -> RPNHead:
    return RPNHead(width, fpn_anchors(anchor_scale), border=border, box_loss=SmoothL1(1 / 9), samples=samples,
                   train_limits=train_limits, test_limits=test_limits)
