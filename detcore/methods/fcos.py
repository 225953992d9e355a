"""FCOS: Tian et al., "FCOS: Fully convolutional one-stage object detection", 2019; here as a proposal network.

FCOS needs no anchors. Every cell whose centre lies in an object predicts the distances to the object's four sides;
which pyramid level does so depends on how far the sides are. A third branch, centre-ness, learns how central the cell
is, and multiplies the score, so that poor boxes from the object's rim rank low.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import point_grid
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.ops.losses import binary_cross_entropy, focal, iou_loss, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.methods.rpn import FPN_TEST, FPN_TRAIN, Limits, Proposals
from detcore.structures import Images, Target

# The farthest side, in pixels, that each level is responsible for (section 3.2).
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
PRIOR = 0.01
FCOS_STRIDES = (8, 16, 32, 64, 128)


class Scale(nn.Module):
    """A learned factor, one for each level: sizes differ between levels, the head does not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def tower(channels: int, depth: int, *, bias: bool = False) -> nn.Sequential:
    """`depth` convolutions with group norm (see `ConvBlock`), shared by all levels."""
    return nn.Sequential(*[ConvBlock(channels, channels, 3, norm="gn", bias=bias) for _ in range(depth)])


class FCOSHead(nn.Module):
    """Two towers of four convolutions, shared by all levels, and the three predictions (section 3).

    Args:
        in_channels: channels of the maps; num_classes: 1 for proposals.
        strides: stride of each level.
        train_limits, test_limits: proposals kept.
    """

    def __init__(self, in_channels: int, num_classes: int, strides: Sequence[int], *, depth: int = 4,
                 train_limits: Limits = FPN_TRAIN, test_limits: Limits = FPN_TEST):
        super().__init__()
        self.num_classes, self.strides = num_classes, tuple(strides)
        self.train_limits, self.test_limits = replace(train_limits), replace(test_limits)
        self.cls_convs, self.reg_convs = tower(in_channels, depth), tower(in_channels, depth)
        self.conv_cls = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in self.strides])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_normal(module)
        init_normal(self.conv_cls, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level class logits [N, C, h, w], distances (left, top, right, bottom) in pixels [N, 4, h, w] and
        centre-ness logits [N, 1, h, w]."""
        classes, distances, centerness = [], [], []
        for x, scale in zip(features, self.scales):
            c, r = self.cls_convs(x), self.reg_convs(x)
            classes.append(self.conv_cls(c))
            centerness.append(self.conv_centerness(c))
            distances.append(scale(self.conv_reg(r)).float().exp())
        return classes, distances, centerness

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses of the cells (any object is class 0), and the proposals that train the second stage."""
        output = self(features)
        losses = self.loss_of(output, [replace(t, labels=torch.zeros_like(t.labels)) for t in targets])
        return ({f"rpn_{name}": value for name, value in losses.items()},
                self.select(output, images, self.train_limits))

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_limits)

    def points(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Cell centres of each level, [h * w, 2]."""
        return point_grid([(m.shape[2], m.shape[3]) for m in maps], self.strides, maps[0].device)

    def assign(self, points: list[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor]:
        """Labels [N, P] (C for background) and distances to the sides of the object [N, P, 4] (section 3.1).

        Of several objects that hold a cell, the smallest has it.
        """
        truth, labels, valid = pad_targets(targets)
        xy = torch.cat(points)
        reach = torch.cat([xy.new_tensor(r).expand(len(p), 2) for r, p in zip(RANGES, points)])
        distances = box.to_distances(xy[:, None], truth[:, None])
        farthest = distances.amax(-1)
        inside = (distances.amin(-1) > 0) & (farthest >= reach[:, None, 0]) & (farthest <= reach[:, None, 1])
        area = box.area(truth)[:, None].masked_fill(~(inside & valid[:, None]), torch.inf)
        smallest, index = area.min(2)
        label = labels.gather(1, index).masked_fill(smallest.isinf(), self.num_classes)
        return label, distances.gather(2, index[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]

    def loss_of(self, output: tuple[list[Tensor], list[Tensor], list[Tensor]],
                targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes, IoU loss of the boxes weighted by centre-ness, and centre-ness (equation 2)."""
        classes, distances, centerness = (torch.cat([flatten(m) for m in maps], 1) for maps in output)
        points = self.points(output[0])
        labels, wanted = self.assign(points, targets)
        positive = labels < self.num_classes
        count = reduce_mean(positive.sum().float()).clamp(min=1)
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        # Cells outside every object have meaningless distances; ones keep the arithmetic finite.
        wanted = torch.where(positive[..., None], wanted, 1.0)
        central = centrality(wanted) * positive
        weight = reduce_mean(central.sum()).clamp(min=1e-6)
        xy = torch.cat(points)
        error = iou_loss(box.from_distances(xy, distances), box.from_distances(xy, wanted)) * central
        return {
            "loss_cls": focal(classes, one_hot).sum() / count,
            "loss_bbox": error.sum() / weight,
            "loss_centerness": (binary_cross_entropy(centerness[..., 0], central) * positive).sum() / count,
        }

    @torch.no_grad()
    def select(self, output: tuple[list[Tensor], list[Tensor], list[Tensor]], images: Images,
               limits: Limits) -> Proposals:
        """The cells of highest class score in each level, thinned by NMS over all levels together."""
        sizes = box.size_tensor(images.sizes, output[1][0])
        found, scores = [], []
        for cls, dist, centre, xy in zip(*output, self.points(output[0])):
            best = flatten(cls)[..., 0].float().sigmoid().sort(dim=1, descending=True, stable=True)
            score, index = (x[:, :limits.before_nms] for x in best)
            boxes = box.from_distances(xy[index], flatten(dist).gather(1, index[..., None].expand(-1, -1, 4)))
            found.append(box.clip(boxes, sizes))
            scores.append(score * flatten(centre)[..., 0].float().sigmoid().gather(1, index))
        boxes, score = torch.cat(found, 1), torch.cat(scores, 1)
        solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        index, filled = box.nms_per_image(boxes, score, torch.zeros_like(score, dtype=torch.long), solid, limits.iou,
                                          limits.after_nms)
        return Proposals(boxes.gather(1, index[..., None].expand(-1, -1, 4)), score.gather(1, index), filled)


def flatten(maps: Tensor) -> Tensor:
    """[N, c, h, w] as [N, h * w, c]."""
    return maps.flatten(2).transpose(1, 2)


def centrality(distances: Tensor) -> Tensor:
    """How central a point is, 1 in the middle, 0 on the rim (equation 3); distances [..., 4]."""
    near = torch.minimum(distances[..., :2], distances[..., 2:])
    far = torch.maximum(distances[..., :2], distances[..., 2:])
    return (near / far).prod(-1).sqrt()
