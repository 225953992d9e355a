"""GFL: Li et al., "Generalized focal loss: Learning qualified and distributed bounding boxes for dense object
detection", 2020.

Dense detectors learn a class score and, beside it, how good the box is, yet rank by the product of the two, which no
loss has seen. GFL makes them one: the score of an object's class shall be the IoU of its box, a target between 0 and 1
for which the quality focal loss extends the focal loss. And borders are often vague, so a side is not one number but a
distribution over distances, whose mean is the box. The distribution focal loss sharpens it around the object's side.
Anchors are squares, one for each cell, matched by ATSS; distances are from their centres.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.layers.heads import Scale, conv_tower
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, level_values, per_anchor
from detcore.ops.losses import binary_cross_entropy, giou_loss, reduce_mean
from detcore.ops.matching import ATSSMatcher, pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.structures import Detections, Images, Target

STRIDES = (8, 16, 32, 64, 128)
BETA = 2.0  # how strongly scores that are nearly right are muted
MAX_DISTANCE = 16  # strides from a centre to a side; each whole distance from 0 to this one has a probability
BOX_WEIGHT, DISTRIBUTION_WEIGHT = 2.0, 0.25
PRIOR = 0.01  # the score of every class at the start
NMS_THRESHOLD = 0.6


def quality_focal(logits: Tensor, quality: Tensor) -> Tensor:
    """Elementwise cross-entropy towards a quality in 0..1, weighted by how far off the score is (equation 2)."""
    return (quality - logits.float().sigmoid()).abs() ** BETA * binary_cross_entropy(logits, quality)


class Integral(nn.Module):
    """The mean of a distribution over 0, 1, ..., `max_distance` (equation 5)."""

    project: Tensor

    def __init__(self, max_distance: int):
        super().__init__()
        self.register_buffer("project", torch.linspace(0, max_distance, max_distance + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """[..., max_distance + 1] to [...]."""
        return (logits.float().softmax(-1) * self.project).sum(-1)


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """[...] cross-entropy of a distribution over 0, 1, ..., n, logits [..., n + 1], towards the two numbers about the
    target [...], which is at least 0 and less than n (equation 6)."""
    log, left = logits.float().log_softmax(-1), target.long()
    right_share = target - left
    left_log, right_log = (log.gather(-1, i[..., None])[..., 0] for i in (left, left + 1))
    return -(left_log * (1 - right_share) + right_log * right_share)


class GFLHead(nn.Module):
    """Two towers shared by all levels, one for the classes' scores, one for the distributions of the four sides;
    options as in `gfl`."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 8,
                 postprocess: PostProcess | None = None):
        super().__init__()
        self.num_classes = num_classes
        self.postprocess = postprocess or PostProcess(nms_threshold=NMS_THRESHOLD)
        self.anchors = AnchorGenerator.from_scales(STRIDES, [anchor_scale], [1.0])
        self.matcher = ATSSMatcher()
        self.cls_convs, self.reg_convs = conv_tower(width, depth), conv_tower(width, depth)
        self.gfl_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(width, 4 * (MAX_DISTANCE + 1), 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in STRIDES])
        self.integral = Integral(MAX_DISTANCE)
        init_weights(self, normal)
        init_normal(self.gfl_cls, bias=prior_bias(PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level class logits [N, C, h, w], and logits of the sides' distributions [N, 4 * (n + 1), h, w]."""
        return ([self.gfl_cls(self.cls_convs(x)) for x in features],
                [scale(self.gfl_reg(self.reg_convs(x))).float() for x, scale in zip(features, self.scales)])

    def distributions(self, maps: Tensor) -> Tensor:
        """A level's [N, 4 * (n + 1), h, w] as [N, h * w, 4, n + 1]."""
        return per_anchor(maps, 4 * (MAX_DISTANCE + 1)).unflatten(-1, (4, MAX_DISTANCE + 1))

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Quality focal loss of the scores, GIoU and distribution focal loss of the boxes (equation 8).

        A box counts as much as its best class's score.
        """
        classes, sides = self(features)
        logits = torch.cat([per_anchor(m, self.num_classes) for m in classes], 1)
        distributions = torch.cat([self.distributions(m) for m in sides], 1)
        levels = self.anchors(classes)
        centers, strides = box.centers(torch.cat(levels)), level_values(levels, STRIDES)
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        matched = self.matcher(levels, gt_boxes, gt_valid)
        positive, index = matched >= 0, matched.clamp(min=0)
        # An image without positives still counts one.
        count = reduce_mean(positive.sum(1).clamp(min=1).sum())
        target_boxes = box.gather(gt_boxes, index)
        boxes = box.from_distances(centers, self.integral(distributions) * strides)
        quality = box.iou(boxes.detach(), target_boxes) * positive
        one_hot = gt_labels.gather(1, index)[..., None] == torch.arange(self.num_classes, device=index.device)
        weight = logits.detach().float().sigmoid().amax(-1) * positive
        total = reduce_mean(weight.sum()).clamp(min=1)
        # A side beyond the last distance counts as just before it.
        distances = (box.to_distances(centers, target_boxes) / strides).clamp(0, MAX_DISTANCE - 0.1)
        distribution_error = distribution_focal(distributions, distances).mean(-1)
        return {"loss_cls": quality_focal(logits, one_hot * quality[..., None]).sum() / count,
                "loss_bbox": BOX_WEIGHT * (giou_loss(boxes, target_boxes) * weight).sum() / total,
                "loss_dfl": DISTRIBUTION_WEIGHT * (distribution_error * weight).sum() / total}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best scores of each level with their boxes, thinned by NMS within their class, in the network's input."""
        output, settings = self(features), self.postprocess
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for cls, side, anchors, stride in zip(*output, self.anchors(output[0]), STRIDES):
            score, index, label = top_scores(per_anchor(cls, self.num_classes), settings.score_threshold,
                                             settings.pre_nms_top_n, logits=True)
            distances = self.integral(box.gather(self.distributions(side), index)) * stride
            boxes.append(box.clip(box.from_distances(box.centers(anchors)[index], distances), sizes))
            scores.append(score)
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1), settings)


def gfl(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4, anchor_scale: float = 8,
        score_threshold: float = 0.05, nms_threshold: float = NMS_THRESHOLD, max_detections: int = 100,
        pre_nms_top_n: int = 1000) -> OneStageDetector:
    """A dense detector with generalised focal loss on levels 3 to 7 of a feature pyramid.

    Args:
        width: channels of the pyramid and the towers; depth: convolutions in each tower.
        anchor_scale: side of the anchors in strides.
        score_threshold, nms_threshold, max_detections, pre_nms_top_n: which detections are kept (see `PostProcess`).
    """
    neck = FPN(backbone.channels, width, start=1, extra="output")
    head = GFLHead(width, num_classes, depth=depth, anchor_scale=anchor_scale,
                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
