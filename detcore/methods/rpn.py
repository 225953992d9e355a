"""Region proposal network: Ren et al., "Faster R-CNN", 2015, section 3.1; on a pyramid as in FPN (Lin et al. 2017).

Before RPN, candidate regions came from a separate, slow algorithm on pixels. RPN is a small network that slides over
the detector's own feature map. At every cell it looks at a few reference boxes (anchors) of fixed shapes, says for
each whether it holds any object, and how to move it onto that object. The best boxes, thinned by non-maximum
suppression, are the proposals.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGrid, inside
from detcore.backbones.resnet import ResNet
from detcore.layers.init import init_normal
from detcore.ops.losses import binary_cross_entropy, l1, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler, pad_targets
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

FPN_STRIDES = (4, 8, 16, 32, 64)


@dataclass
class Limits:
    """How many proposals are kept.

    Attributes:
        before_nms: best anchors taken of each level.
        after_nms: proposals kept an image.
        iou: overlap above which the lesser box of a level is dropped.
    """

    before_nms: int
    after_nms: int
    iou: float = 0.7


FPN_TRAIN, FPN_TEST, RPN_TEST = Limits(2000, 1000), Limits(1000, 1000), Limits(2000, 1000)
# A single map has all its anchors on one level, so more of them enter and leave NMS.
SINGLE_MAP_TRAIN, SINGLE_MAP_TEST = Limits(12000, 2000), Limits(6000, 1000)


@dataclass
class Proposals:
    """Proposals of a batch, best first, padded to one length.

    Attributes:
        boxes: [N, P, 4]; scores: [N, P]; valid: [N, P] bool.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


class RPNHead(nn.Module):
    """A shared 3x3 convolution, then for each anchor an objectness logit and four box offsets (section 3.1).

    Args:
        in_channels: channels of the maps.
        anchors: the anchor grid.
        border: anchors that cross the image border by more than this do not train; -1: all train.
        box_loss: elementwise loss of the offsets.
        samples: anchors that train, an image; half of them positive at most.
        negatives_per_positive: see `Sampler`.
        train_limits, test_limits: proposals kept.
    """

    def __init__(self, in_channels: int, anchors: AnchorGrid, *, border: int = -1,
                 box_loss: Callable[[Tensor, Tensor], Tensor] = l1, samples: int = 256,
                 negatives_per_positive: int | None = None,
                 train_limits: Limits = FPN_TRAIN, test_limits: Limits = FPN_TEST):
        super().__init__()
        self.anchors, self.border, self.box_loss = anchors, border, box_loss
        self.train_limits, self.test_limits = replace(train_limits), replace(test_limits)
        self.matcher = IoUMatcher(0.7, 0.3, low_quality=0.3)
        self.sampler = Sampler(samples, 0.5, negatives_per_positive)
        self.rpn_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(in_channels, anchors.per_cell, 1)
        self.rpn_reg = nn.Conv2d(in_channels, anchors.per_cell * 4, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            init_normal(layer)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level objectness logits [N, A, h, w] and box offsets [N, A * 4, h, w]."""
        hidden = [self.rpn_conv(x).relu() for x in features]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox` (equation 1)."""
        return self.loss_of(self(features), images, targets)

    def loss_of(self, output: tuple[list[Tensor], list[Tensor]], images: Images,
                targets: list[Target]) -> dict[str, Tensor]:
        """The losses of an output of `forward`."""
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1) for maps, c in zip(output, (1, 4)))
        anchors, match, truth = self.assign(output[0], images, targets)
        return anchor_losses(logits[..., 0], deltas, anchors, match, truth, self.sampler, self.box_loss)

    def grids(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors [h * w * A, 4] of each level's map."""
        return self.anchors([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)

    def assign(self, maps: Sequence[Tensor], images: Images, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [A, 4], the object each one is matched to [N, A] (see `IoUMatcher`), objects' boxes [N, G, 4]."""
        anchors = torch.cat(self.grids(maps))
        truth, _, truth_valid = pad_targets(targets)
        if self.border < 0:
            return anchors, self.matcher(anchors, truth, truth_valid), truth
        candidates = inside(anchors, box.size_tensor(images.sizes, anchors), self.border)
        return anchors, self.matcher(anchors, truth, truth_valid, candidates), truth

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses, and the proposals that train the second stage (no gradient flows through them)."""
        output = self(features)
        return self.loss_of(output, images, targets), self.select(output, images, self.train_limits)

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_limits)

    @torch.no_grad()
    def select(self, output: tuple[list[Tensor], list[Tensor]], images: Images, limits: Limits) -> Proposals:
        """The best anchors of each level, moved by their offsets, clipped, thinned by NMS within their level."""
        scores = [per_anchor(m, 1)[..., 0].float().sigmoid() for m in output[0]]
        deltas = [per_anchor(m, 4) for m in output[1]]
        return best_anchors(scores, deltas, self.grids(output[0]), images, limits)


def anchor_losses(logits: Tensor, deltas: Tensor, anchors: Tensor, match: Tensor, truth: Tensor, sampler: Sampler,
                  box_loss: Callable[[Tensor, Tensor], Tensor],
                  stds: Sequence[float] = (1, 1, 1, 1)) -> dict[str, Tensor]:
    """`loss_rpn_cls` and `loss_rpn_bbox` (equation 1), over the anchors that are sampled.

    Args:
        logits: [N, A]; deltas: [N, A, 4]; anchors: [A, 4] or [N, A, 4].
        match: [N, A] index of each anchor's object in truth [N, G, 4] (see `IoUMatcher`).
        box_loss: elementwise loss of the offsets; stds: their scale.
    """
    positive, negative = sampler(match)
    # An image without positives (or negatives) still counts one.
    count = reduce_mean((positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum())
    wanted = box.encode(anchors, truth.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4)), stds)
    # Where an anchor is not positive its target is meaningless, and may be infinite.
    error = box_loss(deltas, torch.where(positive[..., None], wanted, deltas.detach().float()))
    return {
        "loss_rpn_cls": (binary_cross_entropy(logits, positive) * (positive | negative)).sum() / count,
        "loss_rpn_bbox": (error * positive[..., None]).sum() / count,
    }


def best_anchors(scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], images: Images,
                 limits: Limits, stds: Sequence[float] = (1, 1, 1, 1)) -> Proposals:
    """The best anchors of each level, moved by their offsets, clipped, thinned by NMS within their level.

    Args:
        scores: [N, A] of each level, negative where an anchor is out of the question; deltas: [N, A, 4].
        anchors: [A, 4] or [N, A, 4].
        stds: scale of the offsets.
    """
    sizes = box.size_tensor(images.sizes, scores[0])
    found, kept, levels = [], [], []
    for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors)):
        score, index = (x[:, :limits.before_nms] for x in score.sort(dim=1, descending=True, stable=True))
        at = index[..., None].expand(-1, -1, 4)
        boxes = box.decode(anchor.expand(len(index), -1, -1).gather(1, at), delta.gather(1, at), stds)
        found.append(box.clip(boxes, sizes))
        kept.append(score)
        levels.append(torch.full_like(index, level))
    boxes, score = torch.cat(found, 1), torch.cat(kept, 1)
    valid = (boxes[..., 2:] > boxes[..., :2]).all(-1) & (score >= 0)
    index, filled = box.nms_per_image(boxes, score, torch.cat(levels, 1), valid, limits.iou, limits.after_nms)
    return Proposals(boxes.gather(1, index[..., None].expand(-1, -1, 4)), score.gather(1, index), filled)


def per_anchor(maps: Tensor, values: int) -> Tensor:
    """[N, A * values, h, w] as [N, h * w * A, values], the order of the anchor grid."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


class RPN(nn.Module):
    """A detector of anything: its detections are class-agnostic proposals (label 0)."""

    takes_proposals = False
    num_classes = 1

    def __init__(self, backbone: ResNet, neck: FPN | None, bbox_head: nn.Module):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.bbox_head: Any = bbox_head  # an `RPNHead`, or another method's with the same verbs

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name."""
        return self.bbox_head.loss(self.features(images.tensor), images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Proposals of each image, in its `output_sizes` (h, w) or in the network's input."""
        found = self.bbox_head.proposals(self.features(images.tensor), images)
        return [
            Detections(rescale(b[v], size, out), s[v], torch.zeros_like(s[v], dtype=torch.long))
            for b, s, v, size, out in zip(found.boxes, found.scores, found.valid, images.sizes,
                                          output_sizes or images.sizes)
        ]


def rescale(boxes: Tensor, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] of an image of `size` (h, w), in the same image at `output_size`."""
    if size == output_size:
        return boxes
    y, x = output_size[0] / size[0], output_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def fpn_anchors(scale: float = 8) -> AnchorGrid:
    """One size and three shapes a level (FPN, section 4.1)."""
    return AnchorGrid(FPN_STRIDES, [scale])


def single_map_anchors() -> AnchorGrid:
    """Five sizes and three shapes on one map of stride 16."""
    return AnchorGrid([16], [2, 4, 8, 16, 32])


def rpn(backbone: ResNet, *, neck: str | None = "fpn", width: int = 256, anchor_scale: float = 8,
        test_limits: Limits = RPN_TEST, samples: int = 256) -> RPN:
    """RPN on a backbone: with a pyramid (`neck="fpn"`) or on its single map of stride 16 (`neck=None`)."""
    if neck is None:
        return RPN(backbone, None, RPNHead(backbone.channels[-1], single_map_anchors(), test_limits=test_limits))
    head = RPNHead(width, fpn_anchors(anchor_scale), test_limits=test_limits, samples=samples)
    return RPN(backbone, FPN(backbone.channels, width), head)
