"""RetinaNet: Lin et al., "Focal loss for dense object detection", 2017.

One-stage detectors look at about 100,000 anchors an image, nearly all of them easy background. One by one these cost
little, together they drown the few objects. The focal loss mutes what is already right: the cross-entropy is
multiplied by (1 - p)^gamma, so that training listens to the hard examples, and neither sampling nor a proposal stage
is needed.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGrid
from detcore.backbones.resnet import ResNet
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.ops.losses import focal, l1, reduce_mean
from detcore.ops.matching import BACKGROUND, IoUMatcher, pad_targets
from detcore.methods.fast_rcnn import KEEP, Keep, to_output
from detcore.methods.rpn import per_anchor
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

STRIDES = (8, 16, 32, 64, 128)
SCALES_PER_OCTAVE = 3
ALPHA, GAMMA = 0.25, 2.0
# At the start every anchor says "object" with this probability, or background would swamp the start (section 3.3).
PRIOR = 0.01
BEFORE_NMS = 1000


class RetinaHead(nn.Module):
    """Two towers of convolutions shared by all levels, one for classes, one for boxes (section 4).

    Args:
        width: channels of the pyramid and the towers.
        depth: convolutions in each tower.
        anchor_scale: side of the smallest anchor in strides.
        box_loss: elementwise loss of the offsets; stds: their scale.
    """

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4,
                 box_loss: Callable[[Tensor, Tensor], Tensor] = l1, stds: Sequence[float] = (1, 1, 1, 1)):
        super().__init__()
        self.num_classes, self.box_loss, self.stds = num_classes, box_loss, tuple(stds)
        octave = [anchor_scale * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
        self.anchors = AnchorGrid(STRIDES, octave)
        self.matcher = IoUMatcher(0.5, 0.4, low_quality=0.0)
        self.cls_convs = nn.ModuleList([ConvBlock(width, width, 3) for _ in range(depth)])
        self.reg_convs = nn.ModuleList([ConvBlock(width, width, 3) for _ in range(depth)])
        self.retina_cls = nn.Conv2d(width, self.anchors.per_cell * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, self.anchors.per_cell * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_normal(module)
        init_normal(self.retina_cls, bias=-math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level class logits [N, A * C, h, w] and box offsets [N, A * 4, h, w]."""
        classes, deltas = [], []
        for x in features:
            c = r = x
            for conv_c, conv_r in zip(self.cls_convs, self.reg_convs):
                c, r = conv_c(c), conv_r(r)
            classes.append(self.retina_cls(c))
            deltas.append(self.retina_reg(r))
        return classes, deltas

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes and box loss (L1), both over the number of positive anchors (section 4.1)."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1)
                          for maps, c in zip(output, (self.num_classes, 4)))
        anchors, match, truth, labels = self.assign(output[0], targets)
        return anchor_losses(logits, deltas, anchors, match, truth, labels, self.box_loss)

    def assign(self, maps: Sequence[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors [A, 4], matched object [N, A] (see `IoUMatcher`), objects' boxes [N, G, 4] and labels [N, G]."""
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        anchors = torch.cat(self.anchors(sizes, maps[0].device))
        truth, labels, valid = pad_targets(targets)
        return anchors, self.matcher(anchors, truth, valid), truth, labels

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best scores of each level, decoded, thinned by NMS within their class, in the network's input."""
        classes, deltas = self(features)
        grids = self.anchors([(m.shape[2], m.shape[3]) for m in classes], classes[0].device)
        scores = [per_anchor(m, self.num_classes).float().sigmoid() for m in classes]
        return anchor_detections(scores, [per_anchor(m, 4) for m in deltas], grids, images, self.stds)


def anchor_losses(logits: Tensor, deltas: Tensor, anchors: Tensor, match: Tensor, truth: Tensor, labels: Tensor,
                  box_loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Focal loss of the classes and box loss, both over the number of positive anchors (section 4.1).

    Args:
        logits: [N, A, C]; deltas: [N, A, 4]; anchors: [A, 4] or [N, A, 4].
        match: [N, A] index of each anchor's object (see `IoUMatcher`) in truth [N, G, 4] and labels [N, G].
        box_loss: elementwise loss of the offsets.
    """
    positive, at = match >= 0, match.clamp(min=0)
    # An image without positives still counts one.
    count = reduce_mean(positive.sum(1).clamp(min=1).sum())
    one_hot = labels.gather(1, at)[..., None] == torch.arange(logits.shape[2], device=labels.device)
    trained = positive | (match == BACKGROUND)
    wanted = box.encode(anchors, truth.gather(1, at[..., None].expand(-1, -1, 4)))
    error = box_loss(deltas, torch.where(positive[..., None], wanted, deltas.detach().float()))
    return {
        "loss_cls": (focal(logits, one_hot & positive[..., None], ALPHA, GAMMA) * trained[..., None]).sum() / count,
        "loss_bbox": (error * positive[..., None]).sum() / count,
    }


def anchor_detections(scores: Sequence[Tensor], deltas: Sequence[Tensor], grids: Sequence[Tensor], images: Images,
                      stds: Sequence[float] = (1, 1, 1, 1), keep: Keep = KEEP) -> list[Detections]:
    """The best scores of each level, decoded, thinned by NMS within their class, in the network's input.

    Args:
        scores: [N, a, C] of each level; deltas: [N, a, 4]; grids: its anchors [a, 4].
        stds: scale of the offsets.
    """
    sizes = box.size_tensor(images.sizes, scores[0])
    found, best, labels = [], [], []
    for score, delta, anchors in zip(scores, deltas, grids):
        score, at, label = best_scores(score)
        delta = delta.gather(1, at[..., None].expand(-1, -1, 4))
        found.append(box.clip(box.decode(anchors[at], delta, stds), sizes))
        best.append(score)
        labels.append(label)
    return dense_detections(torch.cat(found, 1), torch.cat(best, 1), torch.cat(labels, 1), keep)


def best_scores(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best class scores of a level [N, K], falling; which anchor each belongs to [N, K]; its label [N, K].

    Args:
        scores: [N, A, C], one for each anchor and class.
    """
    best, index = (x[:, :BEFORE_NMS] for x in scores.flatten(1).sort(dim=1, descending=True, stable=True))
    return best, index // scores.shape[2], index % scores.shape[2]


def dense_detections(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Keep = KEEP) -> list[Detections]:
    """Detections of a batch from candidates [N, P, 4], [N, P], [N, P]: thresholded, thinned by NMS, best first."""
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    valid = (scores > keep.score) & solid
    index, filled = box.nms_per_image(boxes, scores, labels, valid, keep.iou, keep.number)
    return [Detections(b[i[f]], s[i[f]], c[i[f]]) for b, s, c, i, f in zip(boxes, scores, labels, index, filled)]


class RetinaNet(nn.Module):
    """Backbone, pyramid and one dense head: every one-stage detector has this form."""

    takes_proposals = False

    def __init__(self, backbone: nn.Module, neck: nn.Module, bbox_head: nn.Module):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.bbox_head: Any = bbox_head  # a `RetinaHead`, or another method's with the same verbs
        self.num_classes = self.bbox_head.num_classes

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        return self.neck(self.backbone(x))

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name."""
        return self.bbox_head.loss(self.features(images.tensor), targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections of each image, in its `output_sizes` (h, w) or in the network's input."""
        return to_output(self.bbox_head.predict(self.features(images.tensor), images), images, output_sizes)


def retinanet(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4,
              anchor_scale: float = 4) -> RetinaNet:
    """RetinaNet on levels 3 to 7 of a feature pyramid."""
    neck = FPN(backbone.channels, width, start=1, extra="input")
    return RetinaNet(backbone, neck, RetinaHead(width, num_classes, depth=depth, anchor_scale=anchor_scale))
