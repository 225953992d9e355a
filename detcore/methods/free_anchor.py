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

from detcore.ops import boxes as box
from detcore.backbones.resnet import ResNet
from detcore.ops.losses import SmoothL1, log_loss, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.methods.fast_rcnn import BOX_STDS
from detcore.methods.retinanet import RetinaHead, RetinaNet
from detcore.methods.rpn import per_anchor
from detcore.necks.fpn import FPN
from detcore.structures import Target

# Anchors in a bag, IoU below which a box is on no object, and the focal loss of the negatives (section 4).
BAG = 50
THRESHOLD = 0.6
ALPHA, GAMMA = 0.5, 2.0
BOX_BETA, BOX_WEIGHT = 0.11, 0.75


class FreeAnchorHead(RetinaHead):
    """RetinaNet's head, which learns which anchors to match; arguments as there."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4):
        super().__init__(width, num_classes, depth=depth, anchor_scale=anchor_scale, box_loss=SmoothL1(BOX_BETA),
                         stds=BOX_STDS)

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """`positive_bag_loss` over the objects and `negative_bag_loss` over the bags' anchors (section 3.3)."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1).float()
                          for maps, c in zip(output, (self.num_classes, 4)))
        anchors = torch.cat(self.anchors([(m.shape[2], m.shape[3]) for m in output[0]], logits.device))
        truth, labels, valid = pad_targets(targets)
        objects = reduce_mean(valid.sum().float())
        scores = logits.sigmoid()
        joint = self.bags(scores, deltas, anchors, truth, labels, valid)
        positive = log_loss(mean_max(joint)) * valid
        boxes = box.decode(anchors, deltas.detach(), self.stds)
        background = 1 - on_an_object(boxes, truth, labels, valid, self.num_classes)
        wrong = scores * background
        negative = wrong**GAMMA * log_loss(1 - wrong)
        return {
            "positive_bag_loss": ALPHA * positive.sum() / objects.clamp(min=1),
            "negative_bag_loss": (1 - ALPHA) * negative.sum() / (objects * BAG).clamp(min=1),
        }

    def bags(self, scores: Tensor, deltas: Tensor, anchors: Tensor, truth: Tensor, labels: Tensor,
             valid: Tensor) -> Tensor:
        """[N, G, K] how likely each anchor of each object's bag classifies and locates it (section 3.2).

        Args:
            scores: [N, A, C]; deltas: [N, A, 4]; anchors: [A, 4].
            truth: [N, G, 4]; labels, valid: [N, G].
        """
        bag = box.pairwise_iou(truth, anchors).topk(min(BAG, len(anchors)), 2).indices
        image = torch.arange(len(truth), device=truth.device)[:, None, None]
        found = deltas[image, bag]
        wanted = box.encode(anchors[bag], truth[:, :, None], self.stds)
        # Padding has no size to encode.
        error = self.box_loss(found, torch.where(valid[:, :, None, None], wanted, found.detach())).sum(-1)
        return scores[image, bag, labels[:, :, None]] * torch.exp(-BOX_WEIGHT * error)


def mean_max(values: Tensor) -> Tensor:
    """[...] between mean and maximum of values [..., K] in 0..1: the mean of small ones, the maximum if it is near 1
    (section 3.3)."""
    weight = 1 / (1 - values).clamp(min=1e-12)
    return (weight / weight.sum(-1, keepdim=True) * values).sum(-1)


@torch.no_grad()
def on_an_object(boxes: Tensor, truth: Tensor, labels: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """[N, A, C] how likely a box lies on an object of each class: 0 up to the threshold of IoU, 1 for the object's best
    box, linear in between (section 3.2).

    Args:
        boxes: [N, A, 4] as predicted.
        truth: [N, G, 4]; labels, valid: [N, G].
    """
    overlap = box.pairwise_iou(truth, boxes)
    above = (overlap.amax(2, keepdim=True) - THRESHOLD).clamp(min=1e-12)
    likely = ((overlap - THRESHOLD) / above).clamp(0, 1) * valid[:, :, None]
    classes = likely.new_zeros(len(boxes), num_classes, boxes.shape[1])
    return classes.scatter_reduce(1, labels[:, :, None].expand_as(likely), likely, "amax").transpose(1, 2)


def free_anchor(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
                anchor_scale: float = 4) -> RetinaNet:
    """RetinaNet that learns to match; options as in `retinanet`."""
    neck = FPN(backbone.channels, width, start=1, extra="input")
    return RetinaNet(backbone, neck, FreeAnchorHead(width, num_classes, depth=depth, anchor_scale=anchor_scale))
