"""Grid R-CNN: Lu et al., "Grid R-CNN", 2019, with the faster form of "Grid R-CNN Plus", 2019.

A box head usually regresses a box: four numbers from one vector, in which where things are has been lost. Grid
R-CNN finds the box by points instead. A fully convolutional head draws a heat map for each point of a 3 x 3 grid on
the object, and the best place of each is read off. Points that share a border of the box vote on where it is. Each
point's features also take up those of its neighbours (first order) and of theirs (second order), so that a point on
plain background can be inferred from the others. The box head only classifies.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal, kaiming_normal, prior_bias
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.rpn import fpn_rpn_head
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.losses import SmoothL1, binary_cross_entropy, reduce_mean
from detcore.ops.nms import PostProcess, region_detections
from detcore.ops.regions import Regions, flat_detections, flat_proposals
from detcore.options import forwards
from detcore.structures import Detections, Images, Proposals, Target

SIDE = 3  # points in each direction of the grid
POINTS = SIDE**2
CONVS = 8
CHANNELS = 64  # of each point
NORM_GROUPS = 36
POOLED = 14  # side of the region's map
WHOLE = 4 * POOLED  # side of the heat map that covers a region twice as large as the box (section 3.4)
# A point is looked for in a part of that, half as wide and high (Plus, section 2.1).
PART = WHOLE // 2
RADIUS = 1  # a true point is a cross of this arm
LOSS_WEIGHT = 15.0
JITTER = 0.15  # training regions are moved and resized at random by this share
MOST_REGIONS = 192  # that train the grid, in a batch
RPN_BOX_LOSS = SmoothL1(1 / 9)

# Points are numbered by column, then row; neighbours are left, above, below, right.
NEIGHBOURS = tuple(tuple((i + di) * SIDE + j + dj for di, dj in ((-1, 0), (0, -1), (0, 1), (1, 0))
                         if 0 <= i + di < SIDE and 0 <= j + dj < SIDE) for i in range(SIDE) for j in range(SIDE))


class GridHead(nn.Module):
    """Heat maps of the grid's points (section 3.1), with feature fusion (section 3.3).

    Args:
        in_channels: channels of the region's map; convs: number of 3x3 convolutions; channels: those of each point.
    """

    def __init__(self, in_channels: int, *, convs: int = CONVS, channels: int = CHANNELS):
        super().__init__()
        self.channels, width = channels, channels * POINTS
        self.convs = nn.Sequential(*(_Block(width if i else in_channels, width, 1 if i else 2) for i in range(convs)))
        self.deconv1 = nn.ConvTranspose2d(width, width, 4, 2, 1, groups=POINTS)
        self.norm1 = nn.GroupNorm(POINTS, width)
        self.deconv2 = nn.ConvTranspose2d(width, POINTS, 4, 2, 1, groups=POINTS)
        self.forder_trans, self.sorder_trans = (
            nn.ModuleList([nn.ModuleList([_transition(channels) for _ in near]) for near in NEIGHBOURS])
            for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_normal(module.weight)
        init_normal(self.deconv1, 0.001)
        init_normal(self.deconv2, 0.001, prior_bias(0.01))  # nearly no place is a point

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heat maps [r, points, PART, PART] of region maps [r, c, POOLED, POOLED]: with fusion and without."""
        x = self.convs(x)
        own = x.split(self.channels, 1)
        first = [self.fuse(i, own, own, self.forder_trans) for i in range(POINTS)]
        second = [self.fuse(i, own, first, self.sorder_trans) for i in range(POINTS)]
        return self.draw(torch.cat(second, 1)), self.draw(x)

    def fuse(self, point: int, own: Sequence[Tensor], given: Sequence[Tensor], transitions: nn.ModuleList) -> Tensor:
        """A point's own features and what its neighbours give (equation 3)."""
        out = own[point]
        for near, transition in zip(NEIGHBOURS[point], cast(nn.ModuleList, transitions[point])):
            out = out + transition(given[near])
        return out

    def draw(self, x: Tensor) -> Tensor:
        """Four times the resolution, one map a point."""
        return self.deconv2(self.norm1(self.deconv1(x)).relu())


class _Block(ConvBlock):
    """A 3x3 convolution with bias, as published, a group norm of its own number of groups, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 3, stride=stride)
        self.norm_name, self.gn = "gn", nn.GroupNorm(math.gcd(NORM_GROUPS, out_channels), out_channels)


def _transition(channels: int) -> nn.Sequential:
    """A depthwise 5x5 and a pointwise convolution, which carry features from one point to the next."""
    return nn.Sequential(nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.Conv2d(channels, channels, 1))


# Between heat maps and boxes

def part_origins(device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y [points] where each point's part begins in the whole heat map."""
    start = torch.arange(SIDE, device=device) * (WHOLE - PART) // (SIDE - 1)
    return start.repeat_interleave(SIDE), start.repeat(SIDE)


def grid_targets(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Heat maps [r, points, PART, PART] of objects [r, 4] seen from regions [r, 4]: a small cross at each point, none
    in regions of hardly any size."""
    # A region that is an object itself has its points where cells meet: which cell that is hangs on the last bit, so
    # the steps are those of the published code, in its precision.
    boxes, gt_boxes = boxes.float(), gt_boxes.float()
    half = box.sizes(boxes) / 2  # the map covers the region and as much around it
    start, end = boxes[:, :2] - half, boxes[:, 2:] + half
    size = end - start
    ratio = torch.arange(SIDE, device=boxes.device) / (SIDE - 1)
    grid = gt_boxes[:, None, :2] * (1 - ratio[:, None]) + gt_boxes[:, None, 2:] * ratio[:, None]
    cell = ((grid - start[:, None]) / size[:, None].clamp(min=1e-6) * WHOLE).trunc()  # [r, side, 2]
    x0, y0 = part_origins(boxes.device)
    place = torch.arange(PART, device=boxes.device)
    across = (place + x0[:, None] - cell[..., 0].repeat_interleave(SIDE, 1)[..., None]).square()
    down = (place + y0[:, None] - cell[..., 1].repeat(1, SIDE)[..., None]).square()
    near = across[..., None, :] + down[..., :, None] <= RADIUS**2
    return (near & (size > SIDE).all(1)[:, None, None, None]).float()


def grid_boxes(heat: Tensor, boxes: Tensor) -> Tensor:
    """The boxes [r, 4] that heat maps [r, points, PART, PART] draw, seen from regions [r, 4] (section 3.2).

    Each border is the mean of its three points, weighted by their scores.
    """
    score, place = heat.float().sigmoid().flatten(2).max(2)
    x0, y0 = part_origins(boxes.device)
    cell = torch.stack([place % PART + x0, place // PART + y0], -1) + 0.5
    size = box.sizes(boxes)
    point = (cell / PART * size[:, None] + (boxes[:, :2] - size / 2)[:, None]).view(-1, SIDE, SIDE, 2)
    score = score.view(-1, SIDE, SIDE)

    def vote(x: Tensor, weight: Tensor) -> Tensor:
        return (x * weight).sum(1) / weight.sum(1)

    return torch.stack([vote(point[:, 0, :, 0], score[:, 0]), vote(point[:, :, 0, 1], score[:, :, 0]),
                        vote(point[:, -1, :, 0], score[:, -1]), vote(point[:, :, -1, 1], score[:, :, -1])], 1)


def jitter(boxes: Tensor, amount: float, sizes: Tensor) -> Tensor:
    """Boxes [r, 4] moved and resized at random by a share of their size, inside images of sizes (h, w) [r, 2]."""
    shift, stretch = torch.empty_like(boxes).uniform_(-amount, amount).split(2, 1)
    size = box.sizes(boxes)
    center, half = box.centers(boxes) + size * shift, size * (1 + stretch) / 2
    return box.clip(torch.cat([center - half, center + half], 1), sizes - 1)


class GridRoIHead(RoIHead):
    """An RoI head that classifies, and finds boxes by grid points; options as in `RoIHead`.

    Args:
        bbox_head: a box head without boxes. grid_roi_align: region features for the grid.
        most_regions: that train the grid in a batch; None for all.

    Attributes:
        jitter: share by which training regions are moved.
    """

    not_exportable = "its grid points are read in a second round whose size depends on the picture"

    def __init__(self, roi_align: MultiScaleRoIAlign, bbox_head: BoxHead, grid_head: GridHead,
                 grid_roi_align: MultiScaleRoIAlign, *, most_regions: int | None = MOST_REGIONS, **options: Any):
        super().__init__(roi_align, bbox_head, **options)
        self.grid_head, self.grid_roi_align = grid_head, grid_roi_align
        self.jitter, self.most_regions = JITTER, most_regions

    def classify(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Class logits [r, C + 1] of boxes [r, 4] on images [r]."""
        return self.bbox_head.fc_cls(self.bbox_head.embed(self.region_features(features, boxes, image)))

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the classes and of the grid."""
        samples = self.sample(features, proposals, targets)
        regions, positives = samples.regions(), samples.positives(self.sampler.max_positives)
        logits = self.classify(features, regions.boxes, regions.image)
        self.diagnostics = self.bbox_head.accuracy(logits, regions)
        return self.bbox_head.class_loss(logits, regions) | {"loss_grid": self.grid_loss(features, positives, images)}

    def grid_loss(self, features: Sequence[Tensor], positives: Regions, images: Images) -> Tensor:
        """Cross-entropy of the heat maps of positive regions, with fusion and without."""
        if self.most_regions is not None and len(positives.index) > self.most_regions:
            priority = torch.rand(len(positives.index), device=positives.index.device) + positives.positive
            positives = positives.at(priority.topk(self.most_regions).indices)
        boxes = positives.boxes
        if self.jitter:
            boxes = jitter(boxes, self.jitter, box.size_tensor(images.sizes, boxes)[positives.image])
        target = grid_targets(boxes, positives.gt_boxes)
        maps = self.grid_head(self.grid_roi_align(features, boxes, positives.image))
        error = sum(binary_cross_entropy(heat, target).mean((1, 2, 3)) for heat in maps)
        count = reduce_mean(positives.positive.sum().float()).clamp(min=1)
        return LOSS_WEIGHT * (error * positives.positive).sum() / count

    def detect(self, features: Sequence[Tensor], proposals: Proposals, images: Images) -> list[Detections]:
        """Detections in the network's input: proposals that have a class, their boxes found by the grid."""
        boxes, image, sizes = flat_proposals(proposals, images)
        scores = self.bbox_head.scores(self.classify(features, boxes, image))
        boxes = box.clip(boxes, sizes)
        detections = region_detections(boxes[:, None], scores, image, len(images), self.postprocess)
        boxes, _, image = flat_detections(detections)
        if len(boxes):
            heat, _ = self.grid_head(self.grid_roi_align(features, boxes, image))
            boxes = grid_boxes(heat, boxes)
        for one, better in zip(detections, boxes.split([len(d) for d in detections])):
            one.boxes = better
        return detections


@forwards(fpn_rpn_head)
def grid_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024, grid_convs: int = CONVS,
              grid_channels: int = CHANNELS, samples: int = 512, most_regions: int = MOST_REGIONS,
              sampling_ratio: int = 0, score_threshold: float = 0.03, nms_threshold: float = 0.3,
              max_detections: int = 100, border: int = 0, rpn_box_loss: SmoothL1 = RPN_BOX_LOSS,
              rpn_post_nms_top_n_train: int = 2000, **rpn_options: Any) -> TwoStageDetector:
    """Grid R-CNN; options as in `faster_rcnn`, `GridHead` and `GridRoIHead`."""
    rpn_head = fpn_rpn_head(width, border=border, rpn_box_loss=rpn_box_loss,
                            rpn_post_nms_top_n_train=rpn_post_nms_top_n_train, **rpn_options)
    head = GridRoIHead(
        MultiScaleRoIAlign(sampling_ratio=sampling_ratio), BoxHead(width, num_classes, hidden=hidden, boxes=False),
        GridHead(width, convs=grid_convs, channels=grid_channels),
        MultiScaleRoIAlign(output_size=POOLED, sampling_ratio=sampling_ratio), samples=samples,
        most_regions=most_regions, low_quality=True,
        postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, FPN(backbone.channels, width), rpn_head, head)
