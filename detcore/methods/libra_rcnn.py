"""Libra R-CNN: Pang et al., "Libra R-CNN: Towards balanced learning for object detection", 2019.

Training a detector is out of balance in three places, and each gets its remedy. Samples: random negatives are nearly
all trivial, so negatives are drawn evenly from bins of IoU, and positives evenly from the objects. Features: fine
levels of a pyramid know little meaning and coarse ones little detail, so all levels are averaged at one size, refined
together and given back to each. Objective: outliers dominate the box loss, so the balanced L1 loss promotes the
gradients of accurate samples. Any detector can take the three parts that fit it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector, TwoStageDetector
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.retinanet import RetinaHead
from detcore.methods.rpn import RPNHead, fpn_rpn_head
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.matching import BACKGROUND, Sampler, pad_targets
from detcore.ops.nms import PostProcess
from detcore.ops.regions import Samples, assign_regions, sample_regions
from detcore.options import forwards
from detcore.structures import Proposals, Target

IOU_BINS = 3
ALPHA, GAMMA = 0.5, 1.5


# IoU-balanced sampling (section 3.1)

def rank_within(group: Tensor, groups: int) -> Tensor:
    """[N, A] a random place, from 0, of each entry among those of its row's same group [N, A] (0 to `groups` - 1)."""
    order = (group + torch.rand(group.shape, device=group.device)).argsort(1)
    ordered = group.gather(1, order)
    start = torch.searchsorted(ordered, torch.arange(groups, device=group.device).expand(len(group), -1).contiguous())
    place = torch.arange(group.shape[1], device=group.device) - start.gather(1, ordered)
    return torch.empty_like(place).scatter(1, order, place)


def balanced_priority(matched: Tensor, overlap: Tensor, sampler: Sampler) -> Tensor:
    """What is to be sampled first: [N, R] at random, with one more for those within their bin's or object's share.

    Args:
        matched: [N, R] as from a matcher; overlap: [N, R, G] IoU of every region with every object.
    """
    assert sampler.number is not None and sampler.max_positives is not None
    positive, negative = matched >= 0, matched == BACKGROUND
    # Negatives: bins of equal width, up to the largest IoU of the image.
    best, objects = overlap.amax(2), overlap.shape[2]
    width = best.amax(1, keepdim=True) / IOU_BINS
    bins = (best / width.clamp(min=1e-6)).long().clamp(max=IOU_BINS - 1).masked_fill(~negative, IOU_BINS)
    room = sampler.number - positive.sum(1, keepdim=True).clamp(max=sampler.max_positives)
    first = negative & (rank_within(bins, IOU_BINS + 1) < room // IOU_BINS)
    # Positives: as many of each object that has any.
    owner = matched.masked_fill(~positive, objects)
    owns = torch.zeros(len(matched), objects + 1, device=matched.device).scatter(1, owner, 1.0)[:, :objects]
    share = (sampler.max_positives / owns.sum(1, keepdim=True).clamp(min=1)).round() + 1
    first |= positive & (rank_within(owner, objects + 1) < share)
    return torch.rand(matched.shape, device=matched.device) + first


class LibraRoIHead(RoIHead):
    """An RoI head whose samples are balanced."""

    def sample(self, features: Sequence[Tensor], proposals: Proposals, targets: list[Target]) -> Samples:
        """The regions that train."""
        assigned = assign_regions(proposals, targets, self.matcher, self.num_classes)
        if self.sampler.number is None:
            return sample_regions(assigned, self.sampler)
        gt_boxes, _, gt_valid = pad_targets(targets)
        overlap = box.pairwise_iou(assigned.boxes, gt_boxes) * (gt_valid[:, None, :] & assigned.valid[:, :, None])
        return sample_regions(assigned, self.sampler, balanced_priority(assigned.matched, overlap, self.sampler))


# Balanced feature pyramid (section 3.2)

class NonLocal(nn.Module):
    """Every cell becomes itself plus a mean of all cells, weighted by likeness (Wang et al., "Non-local neural
    networks", 2018, embedded Gaussian)."""

    not_exportable = "ONNX's exporter has no translation of its attention with one head and no scaling"

    def __init__(self, channels: int):
        super().__init__()
        self.g, self.conv_out, self.theta, self.phi = (ConvBlock(channels, channels, 1, act=None) for _ in range(4))
        for block in (self.g, self.theta, self.phi):
            init_normal(block.conv)
        init_normal(self.conv_out.conv, 0.0)  # the refinement starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same."""
        query, key, value = (f(x).flatten(2).transpose(1, 2) for f in (self.theta, self.phi, self.g))
        mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.conv_out(mean.transpose(1, 2).reshape(x.shape))


class BalancedPyramid(nn.Module):
    """All levels averaged at the size of one `level`, refined, and added to each (figure 4)."""

    def __init__(self, channels: int, level: int):
        super().__init__()
        self.level, self.refine = level, NonLocal(channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The levels [N, C, h, w], finest first, with what the others know."""
        size = maps[self.level].shape[2:]
        balanced = self.refine(torch.stack([resize(x, size) for x in maps]).mean(0))
        return tuple(x + resize(balanced, x.shape[2:]) for x in maps)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map at another size: by nearest neighbours where it grows, by maxima where it shrinks."""
    if x.shape[2] < size[0]:
        return F.interpolate(x, size=tuple(size), mode="nearest")
    return F.adaptive_max_pool2d(x, tuple(size))


# Balanced L1 loss (section 3.3)

class BalancedL1:
    """Elementwise L1 whose gradient grows slower than the error below `beta`, where accurate samples end, and is
    constant above (equations 9, 10)."""

    def __init__(self, beta: float = 1.0):
        self.beta, self.b = beta, math.exp(GAMMA / ALPHA) - 1

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        error = (pred.float() - target).abs()
        inlier = ALPHA / self.b * (self.b * error + 1) * torch.log(self.b * error / self.beta + 1) - ALPHA * error
        outlier = GAMMA * error + GAMMA / self.b - ALPHA * self.beta
        return torch.where(error < self.beta, inlier, outlier)


def libra_fast_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                    samples: int = 512, sampling_ratio: int = 0, score_threshold: float = 0.05,
                    nms_threshold: float = 0.5, max_detections: int = 100,
                    rpn_head: RPNHead | None = None) -> TwoStageDetector:
    """Fast R-CNN in balance; options as in `fast_rcnn`, and a head that proposes regions, if they are not given."""
    neck = nn.Sequential(FPN(backbone.channels, width), BalancedPyramid(width, level=2))
    head = LibraRoIHead(MultiScaleRoIAlign(sampling_ratio=sampling_ratio),
                        BoxHead(width, num_classes, hidden=hidden, box_loss=BalancedL1()), samples=samples,
                        postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, neck, rpn_head, head)


@forwards(fpn_rpn_head)
def libra_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                      samples: int = 512, sampling_ratio: int = 0, score_threshold: float = 0.05,
                      nms_threshold: float = 0.5, max_detections: int = 100, rpn_negatives_per_positive: int = 5,
                      **rpn_options: Any) -> TwoStageDetector:
    """Faster R-CNN in balance, whose RPN samples are too; options as in `faster_rcnn`."""
    rpn_head = fpn_rpn_head(width, rpn_negatives_per_positive=rpn_negatives_per_positive, **rpn_options)
    return libra_fast_rcnn(backbone, num_classes, width=width, hidden=hidden, samples=samples,
                           sampling_ratio=sampling_ratio, score_threshold=score_threshold,
                           nms_threshold=nms_threshold, max_detections=max_detections, rpn_head=rpn_head)


def libra_retinanet(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
                    anchor_scale: float = 4, score_threshold: float = 0.05, nms_threshold: float = 0.5,
                    max_detections: int = 100, pre_nms_top_n: int = 1000) -> OneStageDetector:
    """RetinaNet in balance (it samples nothing); options as in `retinanet`."""
    neck = nn.Sequential(FPN(backbone.channels, width, start=1, extra="input"), BalancedPyramid(width, level=1))
    head = RetinaHead(width, num_classes, depth=depth, anchor_scale=anchor_scale, box_loss=BalancedL1(0.11),
                      postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
