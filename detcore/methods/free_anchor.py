"""FreeAnchor: Zhang et al., "FreeAnchor: Learning to match anchors for visual object detection", 2019.

A threshold on IoU says which anchors learn an object before the network has seen any, and the best anchor of a thin or
bent object may lie off its box. FreeAnchor lets training decide. Every object has a bag of anchors, and training asks
that one of them at least classifies and locates it (recall). An anchor whose box lands on no object shall be
background (precision). Both are likelihoods, maximised together; in place of the best anchor of a bag stands a mean
that leans to the best ones, and at the start, when all are bad, to none. The network is RetinaNet's, so is inference.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.methods.retinanet import RetinaHead
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import per_anchor
from detcore.ops.losses import SmoothL1, log_loss, reduce_mean
from detcore.ops.matching import object_chunks, pad_targets
from detcore.ops.nms import PostProcess
from detcore.structures import Images, Target

# Anchors in a bag, IoU below which a box is on no object, and the focal loss of the negatives (section 4).
BAG, THRESHOLD = 50, 0.6
ALPHA, GAMMA = 0.5, 2.0
BOX_BETA, BOX_WEIGHT = 0.11, 0.75
STDS = (0.1, 0.1, 0.2, 0.2)  # scale of the offsets


class FreeAnchorHead(RetinaHead):
    """RetinaNet's head, which learns which anchors to match; arguments as there."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4,
                 postprocess: PostProcess | None = None):
        super().__init__(width, num_classes, depth=depth, anchor_scale=anchor_scale, box_loss=SmoothL1(BOX_BETA),
                         stds=STDS, postprocess=postprocess)

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """`positive_bag_loss` over the objects and `negative_bag_loss` over the bags' anchors (section 3.3)."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1).float()
                          for maps, c in zip(output, (self.num_classes, 4)))
        anchors = torch.cat(self.anchors(output[0]))
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        objects = reduce_mean(gt_valid.sum().float())
        scores = logits.sigmoid()
        joint = self.bags(scores, deltas, anchors, gt_boxes, gt_labels, gt_valid)
        positive = log_loss(mean_max(joint)) * gt_valid
        boxes = box.decode(anchors, deltas.detach(), self.stds)
        wrong = scores * (1 - on_an_object(boxes, gt_boxes, gt_labels, gt_valid, self.num_classes))
        negative = wrong**GAMMA * log_loss(1 - wrong)
        return {"positive_bag_loss": ALPHA * positive.sum() / objects.clamp(min=1),
                "negative_bag_loss": (1 - ALPHA) * negative.sum() / (objects * BAG).clamp(min=1)}

    def bags(self, scores: Tensor, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor,
             gt_valid: Tensor) -> Tensor:
        """[N, G, K] how likely each anchor of each object's bag classifies and locates it (section 3.2), from scores
        [N, A, C], offsets [N, A, 4], anchors [A, 4] and objects `gt_...` [N, G, ...]."""
        size = min(BAG, len(anchors))
        bag = gt_labels.new_zeros(*gt_labels.shape, size)
        for images, objects in object_chunks(gt_valid, len(anchors)):
            overlap = box.pairwise_iou(gt_boxes[images][:, objects], anchors)
            bag[images, objects] = overlap.topk(size, 2).indices
        image = torch.arange(len(gt_boxes), device=gt_boxes.device)[:, None, None]
        predicted = deltas[image, bag]
        target = box.encode(anchors[bag], gt_boxes[:, :, None], self.stds)
        # Padding has no size to encode.
        error = self.box_loss(predicted, torch.where(gt_valid[:, :, None, None], target, predicted.detach())).sum(-1)
        return scores[image, bag, gt_labels[:, :, None]] * torch.exp(-BOX_WEIGHT * error)


def mean_max(values: Tensor) -> Tensor:
    """[...] between mean and maximum of values [..., K] in 0..1: the mean of small ones, the maximum if it is near 1
    (section 3.3)."""
    weight = 1 / (1 - values).clamp(min=1e-12)
    return (weight / weight.sum(-1, keepdim=True) * values).sum(-1)


@torch.no_grad()
def on_an_object(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_valid: Tensor, num_classes: int) -> Tensor:
    """[N, A, C] how likely predicted boxes [N, A, 4] lie on an object of each class: 0 up to the IoU threshold, 1 for
    the object's best box, linear in between (section 3.2); objects are `gt_...` [N, G, ...]."""
    classes = boxes.new_zeros(len(boxes), num_classes, boxes.shape[1])
    for images, objects in object_chunks(gt_valid, boxes.shape[1]):
        overlap = box.pairwise_iou(gt_boxes[images][:, objects], boxes[images])
        above = (overlap.amax(2, keepdim=True) - THRESHOLD).clamp(min=1e-12)
        likely = ((overlap - THRESHOLD) / above).clamp(0, 1) * gt_valid[images][:, objects, None]
        label = gt_labels[images][:, objects, None].expand_as(likely)
        classes[images] = classes[images].scatter_reduce_(1, label, likely, "amax")
    return classes.transpose(1, 2)


def free_anchor(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4, anchor_scale: float = 4,
                score_threshold: float = 0.05, nms_threshold: float = 0.5, max_detections: int = 100,
                pre_nms_top_n: int = 1000) -> OneStageDetector:
    """RetinaNet that learns to match; options as in `retinanet`."""
    neck = FPN(backbone.channels, width, start=1, extra="input")
    head = FreeAnchorHead(width, num_classes, depth=depth, anchor_scale=anchor_scale,
                          postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
