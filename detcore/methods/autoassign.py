"""AutoAssign: Zhu et al., "AutoAssign: Differentiable label assignment for dense object detection", 2020.

Where an object's positives lie, in space and among the levels, was set by rules of thumb: boxes' IoU, centres, sizes.
AutoAssign takes every cell inside an object, on all levels, as positive and as negative at once and weighs both. A
centre prior, a Gaussian whose place and width each class learns, says where objects of the class tend to be. Among
these cells, those that already classify and locate the object well count more as positives; those whose box is good
count less as negatives. An implicit objectness, trained by nothing else, tells the object's cells from the background
inside its box.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.layers.heads import Scale, conv_tower, flatten
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import level_values, point_grid
from detcore.ops.losses import giou_loss, log_loss, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.structures import Detections, Images, Target

STRIDES = (8, 16, 32, 64, 128)
TEMPERATURE = 3.0  # how much more the confident cells count as positives
POSITIVE_WEIGHT, NEGATIVE_WEIGHT, CENTRE_WEIGHT = 0.25, 0.75, 0.75
BOX_WEIGHT = 5.0
# At the start each cell says "object" with this probability, and has its sides four strides away.
PRIOR = 0.02
FIRST_DISTANCE = 4.0
EPS = 1e-12
NMS_THRESHOLD = 0.6


class CenterPrior(nn.Module):
    """How likely a cell belongs to an object of its class, by its offset from the object's centre (center weighting):
    a Gaussian for each class, of mean and sigma [C, 2] (x, y) in strides of the cell's level."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))

    def forward(self, points: Tensor, strides: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
        """[N, G, P] weights in 0..1 of points [P, 2] in pixels, whose levels have strides [P, 1], for objects with
        `gt_boxes` [N, G, 4] and `gt_labels` [N, G]."""
        offset = (points - box.centers(gt_boxes)[:, :, None]) / strides - self.mean[gt_labels][:, :, None]
        return torch.exp(-(offset**2) / (2 * self.sigma[gt_labels][:, :, None] ** 2)).prod(-1)


def positive_weights(confidence: Tensor, prior: Tensor) -> Tensor:
    """[N, G, P] shares of an object's cells in its positive loss, 1 in all (confidence weighting), from how well each
    classifies and locates the object and from its prior, zero outside the object, both [N, G, P]."""
    weight = torch.exp(confidence * TEMPERATURE) * prior
    return weight / weight.sum(2, keepdim=True).clamp(min=EPS)


@torch.no_grad()
def negative_weights(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, inside: Tensor, num_classes: int) -> Tensor:
    """[N, P, C] how much each cell counts as a negative of each class: 1 but for the classes of objects that it lies
    in, of whose cells the one with the best box counts nothing, and the one with the worst fully.

    Args:
        boxes: [N, P, 4] as predicted, in pixels; gt_boxes: [N, G, 4]; gt_labels: [N, G].
        inside: [N, G, P] bool, which cells lie in which objects.
    """
    # As published, a box may be good for any of the objects, not only for the one at hand.
    overlap = box.pairwise_iou(gt_boxes, boxes).amax(1, keepdim=True)
    good = (1 / (1 - overlap).clamp(min=EPS)).expand(inside.shape)
    low = good.masked_fill(~inside, torch.inf).amin(2, keepdim=True)
    high = good.masked_fill(~inside, -torch.inf).amax(2, keepdim=True)
    weight = 1 - (good - low + EPS) / (high - low + EPS)
    # Where objects of one class overlap, the last one has the cell.
    order = inside * torch.arange(1, inside.shape[1] + 1, device=inside.device)[:, None]
    shape = (len(gt_boxes), num_classes, inside.shape[2])
    last = order.new_zeros(shape).scatter_reduce(1, gt_labels[:, :, None].expand_as(order), order, "amax")
    return torch.where(last > 0, weight.gather(1, (last - 1).clamp(min=0)), 1.0).transpose(1, 2)


class AutoAssignHead(nn.Module):
    """Two towers shared by all levels; classes from one, distances to the sides and objectness from the other; options
    as in `autoassign`."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, postprocess: PostProcess | None = None):
        super().__init__()
        self.num_classes = num_classes
        self.postprocess = postprocess or PostProcess(nms_threshold=NMS_THRESHOLD)
        self.cls_convs, self.reg_convs = conv_tower(width, depth, bias=True), conv_tower(width, depth, bias=True)
        self.conv_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(width, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(width, 1, 3, padding=1)  # the objectness, under its published name
        self.scales = nn.ModuleList([Scale() for _ in STRIDES])
        self.center_prior = CenterPrior(num_classes)
        init_weights(self, normal)
        init_normal(self.conv_cls, bias=prior_bias(PRIOR))
        init_normal(self.conv_reg, bias=FIRST_DISTANCE)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level class logits [N, C, h, w], distances (left, top, right, bottom) in pixels [N, 4, h, w] and
        objectness logits [N, 1, h, w]."""
        classes = [self.conv_cls(self.cls_convs(x)) for x in features]
        towers = [self.reg_convs(x) for x in features]
        distances = [scale(self.conv_reg(r)).float().relu() * stride
                     for r, scale, stride in zip(towers, self.scales, STRIDES)]
        return classes, distances, [self.conv_centerness(r) for r in towers]

    def points(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The points that stand for the cells of each level, [h * w, 2] in pixels: their top-left corners."""
        return point_grid(maps, STRIDES, offset=0.0)

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the cells as positives and as negatives, and one that keeps the priors wide.

        Objects learn by all cells of the image at once, so memory grows with the objects of the fullest image: tables
        [N, G, P] that a gradient flows through cannot be looked at in parts.
        """
        output = self(features)
        classes, distances, objectness = (torch.cat([flatten(m) for m in maps], 1).float() for maps in output)
        levels = self.points(output[0])
        points, strides = torch.cat(levels), level_values(levels, STRIDES)
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        inside = (box.to_distances(points, gt_boxes[:, :, None]).amin(-1) > 0) & gt_valid[:, :, None]
        prior = self.center_prior(points, strides, gt_boxes, gt_labels) * inside
        mass = prior.sum((1, 2))
        boxes = box.from_distances(points, distances)
        scores = classes.sigmoid() * objectness.sigmoid()

        # Positives: how likely each object is detected is the weighted mean over its cells.
        located = torch.exp(-BOX_WEIGHT * giou_loss(boxes[:, None], gt_boxes[:, :, None]))
        of_class = scores.transpose(1, 2).gather(1, gt_labels[:, :, None].expand_as(inside))
        confidence = of_class * located
        positive = (confidence * positive_weights(confidence, prior)).sum(2)
        objects = reduce_mean(gt_valid.sum().float()).clamp(min=1)
        negative = scores * negative_weights(boxes, gt_boxes, gt_labels, inside, self.num_classes)
        cells = reduce_mean(mass.detach().sum()).clamp(min=1)
        # An image whose objects all lie between the cells says nothing of the priors.
        spread = torch.where(inside.any(2).any(1), gt_valid.sum(1) / mass.clamp(min=EPS), 0.0)
        return {"loss_pos": POSITIVE_WEIGHT * (log_loss(positive) * gt_valid).sum() / objects,
                "loss_neg": NEGATIVE_WEIGHT * (negative**2 * log_loss(1 - negative)).sum() / cells,
                "loss_center": CENTRE_WEIGHT * spread.mean()}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best classes of each level, thinned by NMS within their class, in the network's input.

        As published, the score threshold is of the class alone; class times objectness ranks what is left.
        """
        output, settings = self(features), self.postprocess
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for cls, distances, objectness, points in zip(*output, self.points(output[0])):
            score, index, label = top_scores(flatten(cls), settings.score_threshold, settings.pre_nms_top_n,
                                             logits=True)
            boxes.append(box.clip(box.from_distances(points[index], box.gather(flatten(distances), index)), sizes))
            scores.append(score * box.gather(flatten(objectness)[..., 0], index).float().sigmoid())
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1),
                                replace(settings, score_threshold=0.0))


def autoassign(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
               score_threshold: float = 0.05, nms_threshold: float = NMS_THRESHOLD, max_detections: int = 100,
               pre_nms_top_n: int = 1000) -> OneStageDetector:
    """A dense detector that learns its assignment, on levels 3 to 7 of a feature pyramid.

    Args:
        width: channels of the pyramid and the towers; depth: convolutions in each tower.
        score_threshold: of the class alone, before the objectness.
        nms_threshold, max_detections, pre_nms_top_n: which detections are kept (see `PostProcess`).
    """
    neck = FPN(backbone.channels, width, start=1, extra="input", relu_extra=True)
    head = AutoAssignHead(width, num_classes, depth=depth,
                          postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
