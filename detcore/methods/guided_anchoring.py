"""Guided anchoring: Wang et al., "Region proposal by guided anchoring", 2019.

Anchors cover every cell of the image with the same few shapes, though most of it is background and some objects fit
none of them. Here the features guide the anchors. One small convolution says at each cell whether an object's centre is
near, another which width and height an anchor should have there; at test time cells without a centre drop out. Anchors
of different shapes need features of different extent, so a deformable convolution, whose offsets come from the
predicted shape, adapts them. The proposals are fewer and better, and the detector that takes them can ask for more: a
higher IoU, fewer samples, finer box offsets.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector, TwoStageDetector
from detcore.layers.heads import conv_tower
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods import retinanet, rpn
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.rpn import FPN_STRIDES, best_anchors, proposal_detections
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, per_anchor
from detcore.ops.deform import deform_conv
from detcore.ops.losses import SmoothL1, bounded_iou_loss, focal, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler, object_chunks, pad_targets
from detcore.ops.nms import PostProcess, ProposalSettings, region_detections, top_scores
from detcore.options import forwards
from detcore.structures import Detections, Images, Proposals, Target

# Sides of an object's centre region and of its ignore region around that, as shares of its own (section 3.4).
CENTER_SHARE, IGNORE_SHARE = 0.2, 0.5
NEGATIVE_WEIGHT = 0.1
POSITIVE_CELLS = 1 / 200  # about so many; the location loss is divided by this share of all cells
LOCATION_THRESHOLD = 0.01  # cells below it have no anchor at test time
# At the start hardly any cell is a centre; the logit is high there (see `location_loss`).
NO_CENTER = -prior_bias(retinanet.PRIOR)
SHAPE_SAMPLES = 256
SHAPE_LIMIT = -math.log(1e-6)  # of the log of size / square, so that exp() cannot overflow
OFFSET_GROUPS = 4
RPN_SHAPE_STD, RPN_BOX_STDS = 0.14, (0.07, 0.07, 0.11, 0.11)
RETINA_SHAPE_STD, RETINA_BETA = 1.0, 0.04
# The second stage takes few proposals, all of them good (section 3.5).
PROPOSALS, POSITIVE_IOU, SAMPLES, BOX_STDS, SCORE_THRESHOLD = 300, 0.6, 256, (0.05, 0.05, 0.1, 0.1), 0.001


# Anchor location (section 3.1), and its targets (section 3.4)

def region_cells(boxes: Tensor, share: float, stride: int, size: tuple[int, int]) -> Tensor:
    """Which cells of a map (h, w) lie in the middle of boxes [N, G, 4], up to a share of their sides: [N, G, h, w]."""
    rim = (1 - share) / 2
    first, last = boxes[..., :2] / stride, boxes[..., 2:] / stride
    low, high = ((1 - rim) * first + rim * last).round(), (rim * first + (1 - rim) * last).round()
    y, x = (torch.arange(cells, device=boxes.device) for cells in size)
    column = (x >= low[..., :1]) & (x <= high[..., :1])
    row = (y >= low[..., 1:]) & (y <= high[..., 1:])
    return row[..., :, None] & column[..., None, :]


def location_targets(gt_boxes: Tensor, gt_valid: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[int],
                     scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """For each level which cells are centres [N, h, w] bool, and the weights that all cells train with [N, h, w].

    An object's target level is the one whose square is nearest to its size. There its centre region is positive, and
    its ignore region does not train; neither does the latter on the adjacent levels, unless another object's own
    region is there. All else is negative.

    Args:
        gt_boxes: [N, G, 4] in pixels; gt_valid: [N, G] bool, each image's objects first.
        sizes: (h, w) of each level; strides: theirs; scale: side of a square in strides.
    """
    target_level = (box.area(gt_boxes).sqrt() / (scale * strides[0])).log2().add(0.5).floor().clamp(0, len(sizes) - 1)
    numbers = torch.arange(1, gt_valid.shape[1] + 1, dtype=torch.int16, device=gt_boxes.device)[:, None, None]
    targets, weights = [], []
    for level, (size, stride) in enumerate(zip(sizes, strides)):
        distance = (target_level - level).abs()
        on_level = (gt_valid & (distance == 0))[..., None, None]
        on_adjacent = (gt_valid & (distance == 1))[..., None, None]
        # The number of the last object whose region holds the cell, 0 for none.
        center = numbers.new_zeros(len(gt_boxes), *size)
        ignore = torch.zeros_like(center)
        adjacent_ignore = torch.zeros_like(center, dtype=torch.bool)
        for images, objects in object_chunks(gt_valid, size[0] * size[1]):
            boxes, number, here = gt_boxes[images][:, objects], numbers[objects], on_level[images][:, objects]
            center_cells = region_cells(boxes, CENTER_SHARE, stride, size) & here
            ignore_cells = region_cells(boxes, IGNORE_SHARE, stride, size)
            center[images] = torch.maximum(center[images], (center_cells * number).amax(1))
            ignore[images] = torch.maximum(ignore[images], ((ignore_cells & here) * number).amax(1))
            adjacent_ignore[images] |= (ignore_cells & on_adjacent[images][:, objects]).any(1)
        targets.append(center > 0)
        # As published: where regions of several objects overlap, the last object decides whether the cell trains.
        weights.append(torch.where(ignore > 0, (center == ignore).float(), ~adjacent_ignore * NEGATIVE_WEIGHT))
    return targets, weights


# Anchor shape (section 3.2)

def shape_anchors(squares: Tensor, shapes: Tensor, std: float) -> Tensor:
    """Squares [..., 4] with their width and height multiplied by exp(std * shape), shapes [..., 2] (equation 2)."""
    half = box.sizes(squares) * 0.5 * (shapes.float() * std).clamp(-SHAPE_LIMIT, SHAPE_LIMIT).exp()
    center = box.centers(squares)
    return torch.cat([center - half, center + half], -1)


# Feature adaption (section 3.3)

class FeatureAdaption(nn.Module):
    """A 3x3 deformable convolution whose offsets are a linear function of the predicted shape (equation 3)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_offset = nn.Conv2d(2, OFFSET_GROUPS * 9 * 2, 1, bias=False)
        self.conv_adaption = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        init_normal(self.conv_offset, 0.1)
        init_normal(self.conv_adaption)

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        """[N, C, h, w] of x [N, C, h, w] and shape [N, 2, h, w]; the shape does not learn from it."""
        return deform_conv(x, self.conv_offset(shape.detach()), self.conv_adaption.weight).relu()


# Heads, and how they train (section 3.4)

class GuidedHead(nn.Module):
    """What every head with guided anchors does: predict and learn their locations and shapes.

    Args:
        anchor_scale: side of the squares, in strides, from which the anchors' shapes are predicted.
        shape_std: scale of the predicted shapes; shape_matcher: finds the cells whose shape trains.
    """

    def __init__(self, strides: Sequence[int], anchor_scale: float, shape_std: float, shape_matcher: IoUMatcher):
        super().__init__()
        self.anchor_scale, self.shape_std, self.shape_matcher = anchor_scale, shape_std, shape_matcher
        self.shape_sampler = Sampler(SHAPE_SAMPLES)
        self.squares = AnchorGenerator.from_scales(strides, [anchor_scale], [1.0])
        octave = [anchor_scale * 2 ** (i / retinanet.SCALES_PER_OCTAVE) for i in range(retinanet.SCALES_PER_OCTAVE)]
        self.common_anchors = AnchorGenerator.from_scales(strides, octave)

    def guided_anchors(self, shapes: Sequence[Tensor]) -> list[Tensor]:
        """The anchors [N, h * w, 4] of each level's shapes [N, 2, h, w]; no gradient flows through them."""
        return [shape_anchors(square, per_anchor(s.detach(), 2), self.shape_std)
                for square, s in zip(self.squares(shapes), shapes)]

    def is_kept(self, locations: Tensor) -> Tensor:
        """Which cells have an anchor, bool, from location logits of the same shape; in training all."""
        return locations.float().sigmoid() >= (0 if self.training else LOCATION_THRESHOLD)

    def location_loss(self, maps: Sequence[Tensor], gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
        """Focal loss of the location logits [N, 1, h, w] of each level, 0-dim.

        As published: centres train as background, all else as foreground. So the logit falls where the paper's rises,
        and at test time those cells drop out that are most surely centres; the threshold is so low that few do.
        """
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        centers, weights = (torch.cat([m.flatten(1) for m in level], 1) for level in location_targets(
            gt_boxes, gt_valid, sizes, self.squares.strides, self.anchor_scale))
        logits = torch.cat([m.flatten(1) for m in maps], 1)
        count = reduce_mean(weights.new_full((), POSITIVE_CELLS * weights.numel()))
        return (focal(logits, ~centers) * weights).sum() / count

    def shape_loss(self, maps: Sequence[Tensor], gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
        """Bounded IoU loss between the anchors and the objects that their cells are matched to, 0-dim."""
        positive, negative, target = self.shape_targets(maps, gt_boxes, gt_valid)
        count = reduce_mean((positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum())
        shapes = torch.cat([per_anchor(m, 2) for m in maps], 1)
        anchors = shape_anchors(torch.cat(self.squares(maps)), shapes, self.shape_std)
        target = torch.where(positive[..., None], target, anchors.detach())
        return (bounded_iou_loss(anchors, target) * positive).sum() / count

    def shape_targets(self, maps: Sequence[Tensor], gt_boxes: Tensor,
                      gt_valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive and negative cells that are sampled [N, A] bool, and each one's object [N, A, 4].

        The best overlap that any shape could have at a cell is unknown. It is approximated by that of nine common ones.
        """
        shapes = torch.cat(self.common_anchors(maps)).unflatten(0, (-1, self.common_anchors.counts[0])).unbind(1)

        def best_overlap(images: Tensor | slice, objects: slice) -> Tensor:
            # Shape by shape, or the overlaps would take nine times the memory.
            boxes = gt_boxes[images][:, objects]
            overlap = box.pairwise_iou(boxes, shapes[0])
            for anchors in shapes[1:]:
                overlap = torch.maximum(overlap, box.pairwise_iou(boxes, anchors))
            return overlap

        matched = self.shape_matcher.by_overlap(best_overlap, len(shapes[0]), gt_valid)
        positive, negative = self.shape_sampler(matched)
        return positive, negative, box.gather(gt_boxes, matched.clamp(min=0))


Output = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class GARPNHead(GuidedHead):
    """RPN with one guided anchor a cell; arguments as in `RPNHead` and `GuidedHead`."""

    num_classes = 1

    def __init__(self, channels: int, train_proposals: ProposalSettings, test_proposals: ProposalSettings, *,
                 anchor_scale: float = 8, samples: int = 256):
        super().__init__(FPN_STRIDES, anchor_scale, RPN_SHAPE_STD, IoUMatcher(0.7, 0.3, low_quality=0.3))
        self.train_proposals, self.test_proposals = train_proposals, test_proposals
        self.matcher, self.sampler = IoUMatcher(0.7, 0.3, low_quality=0.3), Sampler(samples)
        self.box_loss = SmoothL1()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_loc, self.conv_shape = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 2, 1)
        self.feature_adaption = FeatureAdaption(channels)
        self.conv_cls, self.conv_reg = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 4, 1)
        for layer in (self.rpn_conv, self.conv_shape, self.conv_cls, self.conv_reg):
            init_normal(layer)
        init_normal(self.conv_loc, bias=NO_CENTER)

    def forward(self, features: Sequence[Tensor]) -> Output:
        """As `GARetinaHead`, with objectness as the one class."""
        hidden = [self.rpn_conv(x).relu() for x in features]
        locations, shapes = [self.conv_loc(x) for x in hidden], [self.conv_shape(x) for x in hidden]
        hidden = [self.feature_adaption(x, s) for x, s in zip(hidden, shapes)]
        return [self.conv_cls(x) for x in hidden], [self.conv_reg(x) for x in hidden], shapes, locations

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of RPN, and `loss_anchor_shape` and `loss_anchor_loc`."""
        return self.output_loss(self(features), targets)

    def output_loss(self, output: Output, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of an output of `forward`."""
        classes, offsets, shapes, locations = output
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1) for maps, c in ((classes, 1), (offsets, 4)))
        anchors = torch.cat(self.guided_anchors(shapes), 1)
        gt_boxes, _, gt_valid = pad_targets(targets)
        losses = rpn.anchor_losses(logits[..., 0], deltas, anchors, self.matcher(anchors, gt_boxes, gt_valid), gt_boxes,
                                   self.sampler, self.box_loss, RPN_BOX_STDS)
        return losses | {"loss_anchor_shape": self.shape_loss(shapes, gt_boxes, gt_valid),
                         "loss_anchor_loc": self.location_loss(locations, gt_boxes, gt_valid)}

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses, and the proposals that train the second stage; no gradient flows through them."""
        output = self(features)
        losses = self.output_loss(output, targets)
        return ({name if "rpn" in name else f"rpn_{name}": value for name, value in losses.items()},
                self.select(output, images, self.train_proposals))

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_proposals)

    @torch.no_grad()
    def select(self, output: Output, images: Images, settings: ProposalSettings) -> Proposals:
        """The best anchors, as those of RPN, among the cells that are kept."""
        classes, offsets, shapes, locations = output
        scores = [m.float().sigmoid().masked_fill(~self.is_kept(location), -1.0).flatten(1)
                  for m, location in zip(classes, locations)]
        return best_anchors(scores, [per_anchor(m, 4) for m in offsets], self.guided_anchors(shapes), images, settings,
                            RPN_BOX_STDS)

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The proposals as class-agnostic detections (label 0), in pixels of the network's input."""
        return proposal_detections(self.proposals(features, images))


class GARetinaHead(GuidedHead):
    """RetinaNet's head with one guided anchor a cell; arguments as in `RetinaHead`."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4,
                 postprocess: PostProcess | None = None):
        super().__init__(retinanet.STRIDES, anchor_scale, RETINA_SHAPE_STD, IoUMatcher(0.5, 0.4, low_quality=0.4))
        self.num_classes, self.box_loss = num_classes, SmoothL1(RETINA_BETA)
        self.postprocess = postprocess or PostProcess()
        # As in RetinaNet, an object's best anchors are positive however little they overlap it.
        self.matcher = IoUMatcher(0.5, 0.5, low_quality=0.0)
        self.cls_convs, self.reg_convs = (conv_tower(width, depth, norm=None) for _ in range(2))
        self.conv_loc, self.conv_shape = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 2, 1)
        self.feature_adaption_cls, self.feature_adaption_reg = FeatureAdaption(width), FeatureAdaption(width)
        self.retina_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, 4, 3, padding=1)
        for part in (self.cls_convs, self.reg_convs, self.conv_shape, self.retina_reg):
            init_weights(part, normal)
        init_normal(self.conv_loc, bias=NO_CENTER)
        init_normal(self.retina_cls, bias=prior_bias(retinanet.PRIOR))

    def forward(self, features: Sequence[Tensor]) -> Output:
        """For each level class logits [N, C, h, w], box offsets [N, 4, h, w], shapes [N, 2, h, w] and location logits
        [N, 1, h, w]."""
        c, r = [self.cls_convs(x) for x in features], [self.reg_convs(x) for x in features]
        shapes, locations = [self.conv_shape(x) for x in r], [self.conv_loc(x) for x in c]
        return ([self.retina_cls(self.feature_adaption_cls(x, s)) for x, s in zip(c, shapes)],
                [self.retina_reg(self.feature_adaption_reg(x, s)) for x, s in zip(r, shapes)], shapes, locations)

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of RetinaNet, and `loss_shape` and `loss_loc`."""
        classes, offsets, shapes, locations = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1)
                          for maps, c in ((classes, self.num_classes), (offsets, 4)))
        anchors = torch.cat(self.guided_anchors(shapes), 1)
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        matched = self.matcher(anchors, gt_boxes, gt_valid)
        return retinanet.anchor_losses(logits, deltas, anchors, matched, gt_boxes, gt_labels, self.box_loss) | {
            "loss_shape": self.shape_loss(shapes, gt_boxes, gt_valid),
            "loss_loc": self.location_loss(locations, gt_boxes, gt_valid)}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The cells of highest score in each level, all classes of each, thinned by NMS, in the network's input."""
        settings = self.postprocess
        classes, offsets, shapes, locations = self(features)
        boxes, scores, kept = [], [], []
        for cls, deltas, anchors, location in zip(classes, offsets, self.guided_anchors(shapes), locations):
            logits = per_anchor(cls, self.num_classes)
            best = logits.amax(2, keepdim=True).masked_fill(~per_anchor(self.is_kept(location), 1), -torch.inf)
            score, index, _ = top_scores(best, settings.score_threshold, settings.pre_nms_top_n, logits=True)
            boxes.append(box.decode(box.gather(anchors, index), box.gather(per_anchor(deltas, 4), index)))
            scores.append(box.gather(logits, index).float().sigmoid())
            kept.append(score >= 0)
        clipped = box.clip(torch.cat(boxes, 1), box.size_tensor(images.sizes, classes[0]))
        image, row = torch.cat(kept, 1).nonzero(as_tuple=True)
        return region_detections(clipped[image, row][:, None], torch.cat(scores, 1)[image, row], image, len(images),
                                 settings)


# Detectors

def ga_rpn(backbone: ResNet, *, width: int = 256, anchor_scale: float = 8, samples: int = 256,
           score_threshold: float = 0.0, nms_threshold: float = 0.7, pre_nms_top_n: int = 2000,
           max_detections: int = 1000) -> OneStageDetector:
    """RPN with guided anchors on a feature pyramid; options as in `rpn`."""
    proposals = ProposalSettings(pre_nms_top_n, max_detections, nms_threshold, score_threshold)
    head = GARPNHead(width, proposals, proposals, anchor_scale=anchor_scale, samples=samples)
    return OneStageDetector(backbone, FPN(backbone.channels, width), head)


def ga_retinanet(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4, anchor_scale: float = 4,
                 score_threshold: float = 0.05, nms_threshold: float = 0.5, max_detections: int = 100,
                 pre_nms_top_n: int = 1000) -> OneStageDetector:
    """RetinaNet with guided anchors; options as in `retinanet`."""
    neck = FPN(backbone.channels, width, start=1, extra="input")
    head = GARetinaHead(width, num_classes, depth=depth, anchor_scale=anchor_scale,
                        postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)


def ga_fast_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                 samples: int = SAMPLES, sampling_ratio: int = 0, score_threshold: float = SCORE_THRESHOLD,
                 nms_threshold: float = 0.5, max_detections: int = 100) -> TwoStageDetector:
    """Fast R-CNN for the proposals of GA-RPN, of which it asks more (section 3.5); options as in `fast_rcnn`."""
    bbox_head = BoxHead(width, num_classes, hidden=hidden, stds=BOX_STDS)
    head = RoIHead(MultiScaleRoIAlign(sampling_ratio=sampling_ratio), bbox_head, samples=samples,
                   positive_iou=POSITIVE_IOU, postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, FPN(backbone.channels, width), None, head)


@forwards(ga_fast_rcnn)
def ga_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, anchor_scale: float = 8,
                   rpn_samples: int = 256, rpn_pre_nms_top_n_train: int = 2000, rpn_pre_nms_top_n_test: int = 1000,
                   rpn_post_nms_top_n_train: int = PROPOSALS, rpn_post_nms_top_n_test: int = PROPOSALS,
                   rpn_nms_threshold: float = 0.7, **options: Any) -> TwoStageDetector:
    """Faster R-CNN on the proposals of GA-RPN; options as in `faster_rcnn`."""
    rpn_head = GARPNHead(width, ProposalSettings(rpn_pre_nms_top_n_train, rpn_post_nms_top_n_train, rpn_nms_threshold),
                         ProposalSettings(rpn_pre_nms_top_n_test, rpn_post_nms_top_n_test, rpn_nms_threshold),
                         anchor_scale=anchor_scale, samples=rpn_samples)
    second_stage = ga_fast_rcnn(backbone, num_classes, width=width, **options)
    return TwoStageDetector(backbone, second_stage.neck, rpn_head, second_stage.roi_head)
