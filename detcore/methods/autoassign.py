"""AutoAssign: Zhu et al., "AutoAssign: Differentiable label assignment for dense object detection", 2020.

Where an object's positives lie, in space and among the levels, was set by rules of thumb: boxes' IoU, centres, sizes.
AutoAssign takes every cell inside an object, on all levels, as positive and as negative at once and weighs both. A
centre prior, a Gaussian whose place and width each class learns, says where objects of the class tend to be. Among
these cells, those that already classify and locate the object well count more as positives; those whose box is good
count less as negatives. An implicit objectness, trained by nothing else, tells the object's cells from the background
inside its box.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import point_grid
from detcore.backbones.resnet import ResNet
from detcore.layers.init import init_normal
from detcore.ops.losses import giou_loss, log_loss, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.methods.fast_rcnn import Keep
from detcore.methods.fcos import FCOS_STRIDES, Scale, flatten, tower
from detcore.methods.retinanet import RetinaNet, best_scores, dense_detections
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

TEMPERATURE = 3.0  # how much more the confident cells count as positives
POSITIVE_WEIGHT, NEGATIVE_WEIGHT, CENTRE_WEIGHT = 0.25, 0.75, 0.75
BOX_WEIGHT = 5.0
# At the start each cell says "object" with this probability, and has its sides four strides away.
PRIOR = 0.02
FIRST_DISTANCE = 4.0
EPS = 1e-12
MIN_SCORE = Keep.score  # of the class alone; the objectness ranks what is left
KEEP = Keep(score=0.0, iou=0.6)


class CenterPrior(nn.Module):
    """How likely a cell belongs to an object of its class, by its offset from the object's centre (center weighting).

    Attributes:
        mean, sigma: [C, 2] (x, y) in strides of the cell's level, of each class's Gaussian.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))

    def forward(self, points: Tensor, strides: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
        """[N, G, P] weights in 0..1.

        Args:
            points: [P, 2]; strides: [P, 1], of each point's level.
            truth: [N, G, 4]; labels: [N, G].
        """
        centres = ((truth[..., :2] + truth[..., 2:]) / 2)[:, :, None]
        offset = (points - centres) / strides - self.mean[labels][:, :, None]
        return torch.exp(-(offset**2) / (2 * self.sigma[labels][:, :, None] ** 2)).prod(-1)


def positive_weights(confidence: Tensor, prior: Tensor) -> Tensor:
    """[N, G, P] shares of an object's cells in its positive loss, 1 in all (confidence weighting).

    Args:
        confidence: [N, G, P] how well each cell classifies and locates the object.
        prior: [N, G, P], zero outside the object.
    """
    weight = torch.exp(confidence * TEMPERATURE) * prior
    return weight / weight.sum(2, keepdim=True).clamp(min=EPS)


@torch.no_grad()
def negative_weights(boxes: Tensor, truth: Tensor, labels: Tensor, inside: Tensor, num_classes: int) -> Tensor:
    """[N, P, C] how much each cell counts as a negative of each class: 1 but for the classes of objects that it lies
    in, of whose cells the one with the best box counts nothing, and the one with the worst fully.

    Args:
        boxes: [N, P, 4] as predicted.
        truth: [N, G, 4]; labels: [N, G]; inside: [N, G, P] bool, which cells lie in which objects.
    """
    # As published, a box may be good for any of the objects, not only for the one at hand.
    overlap = box.pairwise_iou(truth, boxes).amax(1, keepdim=True)
    good = (1 / (1 - overlap).clamp(min=EPS)).expand(inside.shape)
    low = good.masked_fill(~inside, torch.inf).amin(2, keepdim=True)
    high = good.masked_fill(~inside, -torch.inf).amax(2, keepdim=True)
    weight = 1 - (good - low + EPS) / (high - low + EPS)
    # Where objects of one class overlap, the last one has the cell.
    order = inside * torch.arange(1, inside.shape[1] + 1, device=inside.device)[:, None]
    shape = (len(truth), num_classes, inside.shape[2])
    last = order.new_zeros(shape).scatter_reduce(1, labels[:, :, None].expand_as(order), order, "amax")
    return torch.where(last > 0, weight.gather(1, (last - 1).clamp(min=0)), 1.0).transpose(1, 2)


class AutoAssignHead(nn.Module):
    """Two towers shared by all levels; classes from one, distances to the sides and objectness from the other.

    Args:
        width: channels of the pyramid and the towers.
        depth: convolutions in each tower.
    """

    def __init__(self, width: int, num_classes: int, *, depth: int = 4):
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs, self.reg_convs = tower(width, depth, bias=True), tower(width, depth, bias=True)
        self.conv_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(width, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(width, 1, 3, padding=1)  # the objectness, under its published name
        self.scales = nn.ModuleList([Scale() for _ in FCOS_STRIDES])
        self.center_prior = CenterPrior(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_normal(module)
        init_normal(self.conv_cls, bias=-math.log((1 - PRIOR) / PRIOR))
        init_normal(self.conv_reg, bias=FIRST_DISTANCE)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level class logits [N, C, h, w], distances (left, top, right, bottom) in pixels [N, 4, h, w] and
        objectness logits [N, 1, h, w]."""
        classes, distances, objectness = [], [], []
        for x, scale, stride in zip(features, self.scales, FCOS_STRIDES):
            classes.append(self.conv_cls(self.cls_convs(x)))
            r = self.reg_convs(x)
            distances.append(scale(self.conv_reg(r)).float().relu() * stride)
            objectness.append(self.conv_centerness(r))
        return classes, distances, objectness

    def points(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The points that stand for the cells of each level, [h * w, 2]: their top-left corners."""
        return point_grid([(m.shape[2], m.shape[3]) for m in maps], FCOS_STRIDES, maps[0].device, offset=0)

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the cells as positives and as negatives, and one that keeps the priors wide."""
        output = self(features)
        classes, distances, objectness = (torch.cat([flatten(m) for m in maps], 1).float() for maps in output)
        grids = self.points(output[0])
        points = torch.cat(grids)
        strides = torch.cat([p.new_full((len(p), 1), s) for p, s in zip(grids, FCOS_STRIDES)])
        truth, labels, valid = pad_targets(targets)
        inside = (box.to_distances(points, truth[:, :, None]).amin(-1) > 0) & valid[:, :, None]
        prior = self.center_prior(points, strides, truth, labels) * inside
        mass = prior.sum((1, 2))
        boxes = box.from_distances(points, distances)
        scores = classes.sigmoid() * objectness.sigmoid()

        # Positives: the chance that an object is found is the weighted mean over its cells.
        located = torch.exp(-BOX_WEIGHT * giou_loss(boxes[:, None], truth[:, :, None]))
        of_class = scores.transpose(1, 2).gather(1, labels[:, :, None].expand_as(inside))
        confidence = of_class * located
        found = (confidence * positive_weights(confidence, prior)).sum(2)
        objects = reduce_mean(valid.sum().float()).clamp(min=1)

        wrong = scores * negative_weights(boxes, truth, labels, inside, self.num_classes)
        cells = reduce_mean(mass.detach().sum()).clamp(min=1)

        # An image whose objects all lie between the cells says nothing of the priors.
        spread = torch.where(inside.any(2).any(1), valid.sum(1) / mass.clamp(min=EPS), 0.0)
        return {
            "loss_pos": POSITIVE_WEIGHT * (log_loss(found) * valid).sum() / objects,
            "loss_neg": NEGATIVE_WEIGHT * (wrong**2 * log_loss(1 - wrong)).sum() / cells,
            "loss_center": CENTRE_WEIGHT * spread.mean(),
        }

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best classes of each level, ranked with their objectness, thinned by NMS within their class, in the
        network's input."""
        output = self(features)
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for cls, dist, objectness, points in zip(*output, self.points(output[0])):
            score, at, label = best_scores(flatten(cls).float().sigmoid())
            distances = flatten(dist).gather(1, at[..., None].expand(-1, -1, 4))
            boxes.append(box.clip(box.from_distances(points[at], distances), sizes))
            ranked = score * flatten(objectness)[..., 0].float().sigmoid().gather(1, at)
            scores.append(ranked.masked_fill(score <= MIN_SCORE, 0.0))
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1), KEEP)


def autoassign(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4) -> RetinaNet:
    """A dense detector that learns its assignment, on levels 3 to 7 of a feature pyramid."""
    neck = FPN(backbone.channels, width, start=1, extra="input", relu_extra=True)
    return RetinaNet(backbone, neck, AutoAssignHead(width, num_classes, depth=depth))
