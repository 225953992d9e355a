"""GFL: Li et al., "Generalized focal loss: Learning qualified and distributed bounding boxes for dense object
detection", 2020.

Dense detectors learn a class score and, beside it, how good the box is, yet rank by the product of the two, which no
loss has seen. GFL makes them one: the score of an object's class shall be the IoU of its box, a target between 0 and 1
for which the quality focal loss extends the focal loss. And borders are often vague, so a side is not one number but a
distribution over distances, whose mean is the box. The distribution focal loss sharpens it around the truth. Anchors
are squares, one for each cell, matched by ATSS; distances are from their centres.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGrid
from detcore.backbones.resnet import ResNet
from detcore.layers.init import init_normal
from detcore.ops.losses import binary_cross_entropy, giou_loss, reduce_mean
from detcore.ops.matching import ATSSMatcher, pad_targets
from detcore.methods.fast_rcnn import Keep
from detcore.methods.fcos import Scale, tower
from detcore.methods.retinanet import PRIOR, STRIDES, RetinaNet, best_scores, dense_detections
from detcore.methods.rpn import per_anchor
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

BETA = 2.0  # how strongly scores that are nearly right are muted
FARTHEST = 16  # strides from a centre to a side; distances of 0 to so many have a probability each
BOX_WEIGHT, DISTRIBUTION_WEIGHT = 2.0, 0.25
KEEP = Keep(iou=0.6)


def quality_focal(logits: Tensor, quality: Tensor) -> Tensor:
    """Elementwise cross-entropy towards a quality in 0..1, weighted by how far off the score is (equation 2)."""
    return (quality - logits.float().sigmoid()).abs() ** BETA * binary_cross_entropy(logits, quality)


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """[...] cross-entropy of a distribution over 0, 1, ... towards the two numbers about the target (equation 6).

    Args:
        logits: [..., n + 1].
        target: [...], at least 0 and less than n.
    """
    log, left = logits.float().log_softmax(-1), target.long()
    right_share = target - left
    left_log, right_log = (log.gather(-1, i[..., None])[..., 0] for i in (left, left + 1))
    return -(left_log * (1 - right_share) + right_log * right_share)


class Integral(nn.Module):
    """The mean of a distribution over 0, 1, ..., `farthest` (equation 5)."""

    project: Tensor

    def __init__(self, farthest: int):
        super().__init__()
        self.register_buffer("project", torch.linspace(0, farthest, farthest + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """[..., farthest + 1] to [...]."""
        return (logits.float().softmax(-1) * self.project).sum(-1)


class GFLHead(nn.Module):
    """Two towers shared by all levels, one for the classes' scores, one for the distributions of the four sides.

    Args:
        width: channels of the pyramid and the towers.
        depth: convolutions in each tower.
        anchor_scale: side of the anchors in strides.
    """

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 8):
        super().__init__()
        self.num_classes = num_classes
        self.anchors, self.matcher = AnchorGrid(STRIDES, [anchor_scale], [1.0]), ATSSMatcher()
        self.cls_convs, self.reg_convs = tower(width, depth), tower(width, depth)
        self.gfl_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(width, 4 * (FARTHEST + 1), 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in STRIDES])
        self.integral = Integral(FARTHEST)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_normal(module)
        init_normal(self.gfl_cls, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level class logits [N, C, h, w], and logits of the sides' distributions [N, 4 * (n + 1), h, w]."""
        return ([self.gfl_cls(self.cls_convs(x)) for x in features],
                [scale(self.gfl_reg(self.reg_convs(x))).float() for x, scale in zip(features, self.scales)])

    def grids(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors [h * w, 4] of each level's map."""
        return self.anchors([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)

    def distributions(self, maps: Tensor) -> Tensor:
        """A level's [N, 4 * (n + 1), h, w] as [N, h * w, 4, n + 1]."""
        return per_anchor(maps, 4 * (FARTHEST + 1)).unflatten(-1, (4, FARTHEST + 1))

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Quality focal loss of the scores, GIoU and distribution focal loss of the boxes (equation 8).

        A box counts as much as its best class's score.
        """
        classes, sides = self(features)
        logits = torch.cat([per_anchor(m, self.num_classes) for m in classes], 1)
        spread = torch.cat([self.distributions(m) for m in sides], 1)
        grids = self.grids(classes)
        truth, labels, valid = pad_targets(targets)
        match = self.matcher(grids, truth, valid)
        positive, at = match >= 0, match.clamp(min=0)
        # An image without positives still counts one.
        count = reduce_mean(positive.sum(1).clamp(min=1).sum())

        centres = middle(torch.cat(grids))
        stride = torch.cat([g.new_full((len(g), 1), s) for g, s in zip(grids, STRIDES)])
        wanted = truth.gather(1, at[..., None].expand(-1, -1, 4))
        boxes = box.from_distances(centres, self.integral(spread) * stride)
        quality = box.iou(boxes.detach(), wanted) * positive
        one_hot = labels.gather(1, at)[..., None] == torch.arange(self.num_classes, device=labels.device)
        weight = logits.detach().float().sigmoid().amax(-1) * positive
        total = reduce_mean(weight.sum()).clamp(min=1)
        # A side beyond the last distance is taken for one just before it.
        distances = (box.to_distances(centres, wanted) / stride).clamp(0, FARTHEST - 0.1)
        return {
            "loss_cls": quality_focal(logits, one_hot * quality[..., None]).sum() / count,
            "loss_bbox": BOX_WEIGHT * (giou_loss(boxes, wanted) * weight).sum() / total,
            "loss_dfl": DISTRIBUTION_WEIGHT * (distribution_focal(spread, distances).mean(-1) * weight).sum() / total,
        }

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best scores of each level with their boxes, thinned by NMS within their class, in the network's input."""
        output = self(features)
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for cls, side, anchors, stride in zip(*output, self.grids(output[0]), STRIDES):
            score, at, label = best_scores(per_anchor(cls, self.num_classes).float().sigmoid())
            distances = self.integral(self.distributions(side)) * stride
            distances = distances.gather(1, at[..., None].expand(-1, -1, 4))
            boxes.append(box.clip(box.from_distances(middle(anchors)[at], distances), sizes))
            scores.append(score)
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1), KEEP)


def middle(boxes: Tensor) -> Tensor:
    """Centres [..., 2] of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def gfl(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
        anchor_scale: float = 8) -> RetinaNet:
    """A dense detector with generalised focal loss on levels 3 to 7 of a feature pyramid."""
    neck = FPN(backbone.channels, width, start=1, extra="output")
    return RetinaNet(backbone, neck, GFLHead(width, num_classes, depth=depth, anchor_scale=anchor_scale))
