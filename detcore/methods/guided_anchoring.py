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
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGrid
from detcore.backbones.resnet import ResNet
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.ops.deform import deform_conv
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import SmoothL1, bounded_iou_loss, focal, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler, pad_targets
from detcore.methods import retinanet, rpn
from detcore.methods.fast_rcnn import BoxHead, FastRCNN, Keep, RoIHead, pick_detections
from detcore.methods.faster_rcnn import FasterRCNN
from detcore.methods.retinanet import BEFORE_NMS, PRIOR, SCALES_PER_OCTAVE, RetinaNet
from detcore.methods.rpn import FPN_STRIDES, RPN, RPN_TEST, Limits, Proposals, best_anchors, per_anchor
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

# Shares of an object's sides: its centre region trains as positive, what is around it up to the second not at all.
CENTRE, AROUND = 0.2, 0.5
NEGATIVE_WEIGHT = 0.1
POSITIVE_CELLS = 1 / 200  # about so many; the location loss is divided by this share of all cells
LOCATION_THRESHOLD = 0.01  # cells below it have no anchor at test time
# At the start hardly any cell is a centre, which the logit says by being high (see `location_loss`).
NO_CENTRE = math.log((1 - PRIOR) / PRIOR)
SHAPE_SAMPLES = 256
SHAPE_LIMIT = -math.log(1e-6)  # of the log of size / square, so that exp() cannot overflow
OFFSET_GROUPS = 4
RPN_SHAPE_STD, RPN_BOX_STDS = 0.14, (0.07, 0.07, 0.11, 0.11)
RETINA_SHAPE_STD, RETINA_BETA = 1.0, 0.04
# The second stage takes few proposals, all of them good (section 3.5).
TRAIN, TEST = Limits(2000, 300), Limits(1000, 300)
POSITIVE_IOU, SAMPLES, BOX_STDS, KEEP = 0.6, 256, (0.05, 0.05, 0.1, 0.1), Keep(score=0.001)


# Anchor location (section 3.1)

def centre_cells(boxes: Tensor, share: float, stride: int, size: tuple[int, int]) -> Tensor:
    """Which cells of a map (h, w) lie in the middle of boxes [N, G, 4], up to a share of their sides: [N, G, h, w]."""
    rim = (1 - share) / 2
    first, last = boxes[..., :2] / stride, boxes[..., 2:] / stride
    low, high = ((1 - rim) * first + rim * last).round(), (rim * first + (1 - rim) * last).round()
    (h, w), device = size, boxes.device
    x, y = torch.arange(w, device=device), torch.arange(h, device=device)
    column = (x >= low[..., :1]) & (x <= high[..., :1])
    row = (y >= low[..., 1:]) & (y <= high[..., 1:])
    return row[..., :, None] & column[..., None, :]


def location_targets(boxes: Tensor, valid: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[int],
                     scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """For each level which cells are centres [N, h, w] bool, and the weights that all cells train with [N, h, w].

    An object belongs to the level whose square is nearest to its size; the levels above and below do not train there.

    Args:
        boxes: [N, G, 4]; valid: [N, G] bool.
        sizes: (h, w) of each level; strides: theirs.
        scale: side of a square in strides.
    """
    home = (box.area(boxes).sqrt() / (scale * strides[0])).log2().add(0.5).floor().clamp(0, len(sizes) - 1)
    order = torch.arange(1, boxes.shape[1] + 1, dtype=torch.int16, device=boxes.device)[:, None, None]
    targets, weights = [], []
    for level, (size, stride) in enumerate(zip(sizes, strides)):
        away = ((home - level).abs() + ~valid * len(sizes))[..., None, None]
        around = centre_cells(boxes, AROUND, stride, size)
        centre = ((centre_cells(boxes, CENTRE, stride, size) & (away == 0)) * order).amax(1)
        # Where objects overlap, the last one decides whether the cell trains.
        owner = ((around & (away == 0)) * order).amax(1)
        beside = (around & (away == 1)).any(1)
        targets.append(centre > 0)
        weights.append(torch.where(owner > 0, (centre == owner).float(), ~beside * NEGATIVE_WEIGHT))
    return targets, weights


# Anchor shape (section 3.2)

def shape_anchors(squares: Tensor, shapes: Tensor, std: float) -> Tensor:
    """Squares [..., 4] with their width and height multiplied by exp(std * shape), shapes [..., 2] (equation 2)."""
    centre = (squares[..., :2] + squares[..., 2:]) * 0.5
    factor = (shapes.float() * std).clamp(-SHAPE_LIMIT, SHAPE_LIMIT).exp()
    half = (squares[..., 2:] - squares[..., :2]) * 0.5 * factor
    return torch.cat([centre - half, centre + half], -1)


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
    """What every head with guided anchors does: place and shape them, and learn to.

    Args:
        strides: of the levels.
        anchor_scale: side of the squares, in strides, from which the anchors' shapes are predicted.
        shape_std: scale of the predicted shapes.
        shape_matcher: finds the cells whose shape trains.
    """

    def __init__(self, strides: Sequence[int], anchor_scale: float, shape_std: float, shape_matcher: IoUMatcher):
        super().__init__()
        self.anchor_scale, self.shape_std, self.shape_matcher = anchor_scale, shape_std, shape_matcher
        self.shape_sampler = Sampler(SHAPE_SAMPLES)
        self.squares = AnchorGrid(strides, [anchor_scale], [1.0])
        octave = [anchor_scale * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
        self.usual = AnchorGrid(strides, octave)

    def squares_of(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The square [h * w, 4] at each cell of each level's map."""
        return self.squares([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)

    def anchors(self, shapes: Sequence[Tensor]) -> list[Tensor]:
        """The guided anchors [N, h * w, 4] of each level's shapes [N, 2, h, w]; no gradient flows through them."""
        return [shape_anchors(square, per_anchor(s.detach(), 2), self.shape_std)
                for square, s in zip(self.squares_of(shapes), shapes)]

    def is_kept(self, locations: Tensor) -> Tensor:
        """Which cells have an anchor, bool, from location logits of the same shape; in training all."""
        return locations.float().sigmoid() >= (0 if self.training else LOCATION_THRESHOLD)

    def guide_losses(self, shapes: Sequence[Tensor], locations: Sequence[Tensor],
                     targets: list[Target]) -> tuple[Tensor, Tensor]:
        """The losses of shape and location, 0-dim."""
        truth, _, valid = pad_targets(targets)
        return self.shape_loss(shapes, truth, valid), self.location_loss(locations, truth, valid)

    def location_loss(self, maps: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
        """Focal loss of the location logits [N, 1, h, w] of each level.

        As published: centres train as background, all else as foreground. So the logit falls where the paper's rises,
        and at test time those cells drop out that are most surely centres; the threshold is so low that few do.
        """
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        centres, weights = (torch.cat([m.flatten(1) for m in level], 1) for level in location_targets(
            truth, valid, sizes, self.squares.strides, self.anchor_scale))
        logits = torch.cat([m.flatten(1) for m in maps], 1)
        count = reduce_mean(weights.new_full((), POSITIVE_CELLS * weights.numel()))
        return (focal(logits, ~centres) * weights).sum() / count

    def shape_loss(self, maps: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
        """Bounded IoU loss between the anchors and the objects that their cells are matched to."""
        positive, negative, wanted = self.shape_targets(maps, truth, valid)
        count = reduce_mean((positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum())
        shapes = torch.cat([per_anchor(m, 2) for m in maps], 1)
        anchors = shape_anchors(torch.cat(self.squares_of(maps)), shapes, self.shape_std)
        wanted = torch.where(positive[..., None], wanted, anchors.detach())
        return (bounded_iou_loss(anchors, wanted) * positive).sum() / count

    def shape_targets(self, maps: Sequence[Tensor], truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive and negative cells that are sampled [N, A] bool, and each one's object [N, A, 4].

        The best shape that a cell could have is unknown. It is approximated by the best of nine usual anchors.
        """
        usual = torch.cat(self.usual([(m.shape[2], m.shape[3]) for m in maps], maps[0].device))
        # Shape by shape, or the overlaps would take nine times the memory.
        overlap = box.pairwise_iou(truth, usual[::self.usual.per_cell])
        for shape in range(1, self.usual.per_cell):
            overlap = torch.maximum(overlap, box.pairwise_iou(truth, usual[shape::self.usual.per_cell]))
        match = self.shape_matcher.by_overlap(overlap, valid)
        positive, negative = self.shape_sampler(match)
        return positive, negative, truth.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))


Output = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class GARPNHead(GuidedHead):
    """RPN with one guided anchor a cell.

    Args:
        channels: of the maps.
        anchor_scale: see `GuidedHead`.
        samples: anchors that train, an image; half of them positive at most.
        train_limits, test_limits: proposals kept.
    """

    def __init__(self, channels: int, *, anchor_scale: float = 8, samples: int = 256, train_limits: Limits = TRAIN,
                 test_limits: Limits = TEST):
        super().__init__(FPN_STRIDES, anchor_scale, RPN_SHAPE_STD, IoUMatcher(0.7, 0.3, low_quality=0.3))
        self.train_limits, self.test_limits = replace(train_limits), replace(test_limits)
        self.matcher, self.sampler = IoUMatcher(0.7, 0.3, low_quality=0.3), Sampler(samples)
        self.box_loss = SmoothL1()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_loc = nn.Conv2d(channels, 1, 1)
        self.conv_shape = nn.Conv2d(channels, 2, 1)
        self.feature_adaption = FeatureAdaption(channels)
        self.conv_cls = nn.Conv2d(channels, 1, 1)
        self.conv_reg = nn.Conv2d(channels, 4, 1)
        for layer in (self.rpn_conv, self.conv_shape, self.conv_cls, self.conv_reg):
            init_normal(layer)
        init_normal(self.conv_loc, bias=NO_CENTRE)

    def forward(self, features: Sequence[Tensor]) -> Output:
        """For each level objectness logits [N, 1, h, w], box offsets [N, 4, h, w], shapes [N, 2, h, w] and location
        logits [N, 1, h, w]."""
        hidden = [self.rpn_conv(x).relu() for x in features]
        locations, shapes = [self.conv_loc(x) for x in hidden], [self.conv_shape(x) for x in hidden]
        hidden = [self.feature_adaption(x, s) for x, s in zip(hidden, shapes)]
        return [self.conv_cls(x) for x in hidden], [self.conv_reg(x) for x in hidden], shapes, locations

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of RPN, and `loss_anchor_shape` and `loss_anchor_loc`."""
        return self.loss_of(self(features), targets)

    def loss_of(self, output: Output, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of an output of `forward`."""
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1) for maps, c in zip(output, (1, 4)))
        anchors = torch.cat(self.anchors(output[2]), 1)
        truth, _, valid = pad_targets(targets)
        match = self.matcher(anchors, truth, valid)
        shape, location = self.guide_losses(output[2], output[3], targets)
        return rpn.anchor_losses(logits[..., 0], deltas, anchors, match, truth, self.sampler, self.box_loss,
                                 RPN_BOX_STDS) | {"loss_anchor_shape": shape, "loss_anchor_loc": location}

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses, and the proposals that train the second stage (no gradient flows through them)."""
        output = self(features)
        losses = self.loss_of(output, targets)
        return ({name if "rpn" in name else f"rpn_{name}": value for name, value in losses.items()},
                self.select(output, images, self.train_limits))

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_limits)

    @torch.no_grad()
    def select(self, output: Output, images: Images, limits: Limits) -> Proposals:
        """The best anchors, as those of RPN, among the cells that are kept."""
        scores = [m.float().sigmoid().masked_fill(~self.is_kept(place), -1.0).flatten(1)
                  for m, place in zip(output[0], output[3])]
        deltas = [per_anchor(m, 4) for m in output[1]]
        return best_anchors(scores, deltas, self.anchors(output[2]), images, limits, RPN_BOX_STDS)


class GARetinaHead(GuidedHead):
    """RetinaNet's head with one guided anchor a cell; arguments as in `RetinaHead`."""

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4):
        super().__init__(retinanet.STRIDES, anchor_scale, RETINA_SHAPE_STD, IoUMatcher(0.5, 0.4, low_quality=0.4))
        self.num_classes, self.box_loss = num_classes, SmoothL1(RETINA_BETA)
        self.matcher = IoUMatcher(0.5, 0.5, low_quality=0.0)
        self.cls_convs = nn.ModuleList([ConvBlock(width, width, 3) for _ in range(depth)])
        self.reg_convs = nn.ModuleList([ConvBlock(width, width, 3) for _ in range(depth)])
        self.conv_loc = nn.Conv2d(width, 1, 1)
        self.conv_shape = nn.Conv2d(width, 2, 1)
        self.feature_adaption_cls = FeatureAdaption(width)
        self.feature_adaption_reg = FeatureAdaption(width)
        self.retina_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, 4, 3, padding=1)
        for module in (*self.cls_convs.modules(), *self.reg_convs.modules(), self.conv_shape, self.retina_reg):
            if isinstance(module, nn.Conv2d):
                init_normal(module)
        init_normal(self.conv_loc, bias=NO_CENTRE)
        init_normal(self.retina_cls, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> Output:
        """For each level class logits [N, C, h, w], box offsets [N, 4, h, w], shapes [N, 2, h, w] and location logits
        [N, 1, h, w]."""
        output: Output = ([], [], [], [])
        for x in features:
            c = r = x
            for conv_c, conv_r in zip(self.cls_convs, self.reg_convs):
                c, r = conv_c(c), conv_r(r)
            location, shape = self.conv_loc(c), self.conv_shape(r)
            classes = self.retina_cls(self.feature_adaption_cls(c, shape))
            deltas = self.retina_reg(self.feature_adaption_reg(r, shape))
            for maps, m in zip(output, (classes, deltas, shape, location)):
                maps.append(m)
        return output

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """The losses of RetinaNet, and `loss_shape` and `loss_loc`."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1)
                          for maps, c in zip(output, (self.num_classes, 4)))
        anchors = torch.cat(self.anchors(output[2]), 1)
        truth, labels, valid = pad_targets(targets)
        match = self.matcher(anchors, truth, valid)
        shape, location = self.guide_losses(output[2], output[3], targets)
        return retinanet.anchor_losses(logits, deltas, anchors, match, truth, labels, self.box_loss) | {
            "loss_shape": shape, "loss_loc": location}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The cells of highest score in each level, all classes of each, thinned by NMS, in the network's input."""
        classes, deltas, shapes, locations = self(features)
        found, scores, kept = [], [], []
        for cls, delta, anchors, place in zip(classes, deltas, self.anchors(shapes), locations):
            score = per_anchor(cls, self.num_classes).float().sigmoid()
            best = score.amax(2).masked_fill(~self.is_kept(place).flatten(1), -1.0)
            value, index = (x[:, :BEFORE_NMS, None] for x in best.sort(dim=1, descending=True, stable=True))
            at = index.expand(-1, -1, 4)
            found.append(box.decode(anchors.gather(1, at), per_anchor(delta, 4).gather(1, at)))
            scores.append(score.gather(1, index.expand(-1, -1, self.num_classes)))
            kept.append(value[..., 0] >= 0)
        boxes = box.clip(torch.cat(found, 1), box.size_tensor(images.sizes, classes[0]))
        image, place = torch.cat(kept, 1).nonzero(as_tuple=True)
        return pick_detections(boxes[image, place][:, None], torch.cat(scores, 1)[image, place], image, len(images))


# Detectors

def ga_rpn(backbone: ResNet, *, width: int = 256, anchor_scale: float = 8, test_limits: Limits = RPN_TEST,
           samples: int = 256) -> RPN:
    """RPN with guided anchors on a feature pyramid."""
    head = GARPNHead(width, anchor_scale=anchor_scale, test_limits=test_limits, samples=samples)
    return RPN(backbone, FPN(backbone.channels, width), head)


def ga_retinanet(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
                 anchor_scale: float = 4) -> RetinaNet:
    """RetinaNet with guided anchors; options as in `retinanet`."""
    neck = FPN(backbone.channels, width, start=1, extra="input")
    return RetinaNet(backbone, neck, GARetinaHead(width, num_classes, depth=depth, anchor_scale=anchor_scale))


def _region_head(width: int, num_classes: int, hidden: int, samples: int, sampling: int) -> RoIHead:
    """A region head that asks more of its proposals (section 3.5)."""
    bbox_head = BoxHead(width, num_classes, hidden=hidden, stds=BOX_STDS)
    return RoIHead(MultiScaleRoIAlign(sampling=sampling), bbox_head, samples=samples, positive_iou=POSITIVE_IOU, keep=KEEP)


def ga_fast_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                 samples: int = SAMPLES, sampling: int = 0) -> FastRCNN:
    """Fast R-CNN for the proposals of GA-RPN; options as in `fast_rcnn`."""
    head = _region_head(width, num_classes, hidden, samples, sampling)
    return FastRCNN(backbone, FPN(backbone.channels, width), head)


def ga_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                   anchor_scale: float = 8, samples: int = SAMPLES, rpn_samples: int = 256, sampling: int = 0,
                   train_limits: Limits = TRAIN, test_limits: Limits = TEST) -> FasterRCNN:
    """Faster R-CNN on the proposals of GA-RPN; options as in `faster_rcnn`."""
    rpn_head = GARPNHead(width, anchor_scale=anchor_scale, samples=rpn_samples, train_limits=train_limits,
                         test_limits=test_limits)
    head = _region_head(width, num_classes, hidden, samples, sampling)
    return FasterRCNN(backbone, FPN(backbone.channels, width), rpn_head, head, num_classes)
