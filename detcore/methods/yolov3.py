"""YOLOv3: Redmon & Farhadi, "YOLOv3: an incremental improvement", 2018.

YOLO divides the image into cells, and the cell in which an object's centre lies predicts the object. Every cell has
three anchors on each of three scales, whose shapes come from clustering the training boxes. An anchor predicts where in
its cell the centre is, how much larger than itself the box is, whether there is an object at all (objectness), and
the classes, each by itself: a box may be a woman and a person. The score is class times objectness. Finer scales are
made of coarser ones, enlarged and joined to the backbone's finer map.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.darknet import Darknet, leaky_block
from detcore.backbones.mobilenet import MobileNetV2
from detcore.detectors import OneStageDetector
from detcore.errors import UsageError
from detcore.layers.init import init_weights, kaiming_normal, normal, prior_bias
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, level_values, per_anchor
from detcore.ops.losses import binary_cross_entropy
from detcore.ops.matching import BACKGROUND, IGNORE, IoUMatcher, object_chunks, pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.structures import Detections, Images, Target

STRIDES = (32, 16, 8)
OVERLAP = 0.5  # IoU above which an anchor that is not an object's best is positive or ignored, but not background
ANY_OVERLAP = 1e-9  # an object's best anchor is positive if they overlap at all
CENTRE_WEIGHT = SIZE_WEIGHT = 2.0
EPS = 1e-6
# At the start: eight objects in an image of 608 x 608, and every class has this probability.
OBJECTS, SIDE, PRIOR = 8, 608, 0.01
OBJECTNESS = 0.005  # anchors below it have no detections
NMS_THRESHOLD = 0.45

# (w, h) in pixels of the anchors of each scale, coarsest first (section 2.3).
Anchors = Sequence[Sequence[tuple[int, int]]]
COCO_ANCHORS: Anchors = (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)),
                         ((10, 13), (16, 30), (33, 23)))
# Of objects in images of 320 x 320.
COCO_ANCHORS_320: Anchors = (((220, 125), (128, 222), (264, 266)), ((35, 87), (102, 96), (60, 170)),
                             ((10, 15), (24, 36), (72, 42)))


# Boxes (section 2.1): the centre within its cell, the logarithm of the size over the anchor's.

def encode(anchors: Tensor, boxes: Tensor, strides: Tensor) -> Tensor:
    """Targets [..., 4] of boxes [..., 4] in pixels: the centre's place in its cell (x, y in 0..1), then the logarithms
    of the sizes. Anchors [..., 4] are centred in their cells, of which `strides` [..., 1] are the sides."""
    place = (box.centers(boxes) - box.centers(anchors)) / strides + 0.5
    size = box.sizes(boxes) / box.sizes(anchors)
    return torch.cat([place.clamp(EPS, 1 - EPS), size.clamp(min=EPS).log()], -1)


def decode(anchors: Tensor, output: Tensor, strides: Tensor) -> Tensor:
    """The boxes of an output [..., 4], whose centre is given by logits; the inverse of `encode`."""
    center = box.centers(anchors) + (output[..., :2].sigmoid() - 0.5) * strides
    half = box.sizes(anchors) * output[..., 2:].clamp(max=box.MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], -1)


class GridMatcher:
    """Only anchors of cells that hold an object's centre take objects: each object's best one, and all that overlap an
    object by more than half. Of the others those that do so are ignored, the rest is background."""

    def __call__(self, anchors: Tensor, strides: Tensor, gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
        """Index of the matched object, or BACKGROUND, or IGNORE, [N, A] int64, of anchors [A, 4] in cells with sides
        `strides` [A, 1]; gt_boxes: [N, G, 4]; gt_valid: [N, G] bool, each image's objects first."""
        responsible = gt_valid.new_zeros(len(gt_boxes), len(anchors))
        near = torch.zeros_like(responsible)
        cell = (box.centers(anchors) / strides).floor()
        for images, objects in object_chunks(gt_valid, len(anchors)):
            boxes, valid = gt_boxes[images][:, objects], gt_valid[images][:, objects, None]
            same_cell = ((box.centers(boxes)[:, :, None] / strides).floor() == cell).all(-1)
            responsible[images] |= (same_cell & valid).any(1)
            near[images] |= (box.pairwise_iou(boxes, anchors) > OVERLAP).any(1)
        matched = IoUMatcher(OVERLAP, 0.0, low_quality=ANY_OVERLAP)(anchors, gt_boxes, gt_valid, responsible)
        return torch.where(matched >= 0, matched, torch.where(near, IGNORE, BACKGROUND))


# Predictions across scales (section 2.3).

def detection_block(in_channels: int, width: int) -> nn.Sequential:
    """Five convolutions to `width` channels, 1x1 and 3x3 by turns, the latter twice as wide."""
    plan = ((in_channels, width, 1), (width, 2 * width, 3), (2 * width, width, 1), (width, 2 * width, 3),
            (2 * width, width, 1))
    return nn.Sequential(OrderedDict((f"conv{i}", leaky_block(*sizes)) for i, sizes in enumerate(plan, 1)))


class YOLONeck(nn.Module):
    """From the coarsest scale to the finest: five convolutions, then narrowed, enlarged and joined to a finer map;
    `channels` are of the backbone's maps, finest first, `widths` of each scale, coarsest first."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int]):
        super().__init__()
        self.add_module("detect1", detection_block(channels[-1], widths[0]))
        finer = zip(reversed(channels[:-1]), widths, widths[1:])
        for i, (in_channels, before, width) in enumerate(finer, 1):
            self.add_module(f"conv{i}", leaky_block(before, width, 1))
            self.add_module(f"detect{i + 1}", detection_block(in_channels + width, width))
        init_weights(self, kaiming_normal)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [N, widths[i], h, w], coarsest first."""
        out = [self.get_submodule("detect1")(maps[-1])]
        for i, x in enumerate(reversed(maps[:-1]), 1):
            coarse = self.get_submodule(f"conv{i}")(out[-1])
            joined = torch.cat([F.interpolate(coarse, size=x.shape[2:], mode="nearest"), x], 1)
            out.append(self.get_submodule(f"detect{i + 1}")(joined))
        return tuple(out)


class YOLOHead(nn.Module):
    """On each scale a 3x3 convolution, then for each anchor centre, size, objectness and classes (section 2.3);
    arguments as in `yolov3`."""

    def __init__(self, channels: Sequence[int], bridges: Sequence[int], anchors: Anchors, num_classes: int, *,
                 postprocess: PostProcess | None = None):
        super().__init__()
        self.num_classes, self.values = num_classes, 5 + num_classes
        self.postprocess = postprocess or PostProcess(nms_threshold=NMS_THRESHOLD)
        self.anchors = AnchorGenerator(STRIDES, [np.array(sizes, np.float32) for sizes in anchors], center=0.5)
        self.matcher = GridMatcher()
        self.convs_bridge = nn.ModuleList([leaky_block(c, b, 3) for c, b in zip(channels, bridges)])
        self.convs_pred = nn.ModuleList([nn.Conv2d(b, len(a) * self.values, 1) for b, a in zip(bridges, anchors)])
        init_weights(self, normal)
        for conv, stride in zip(self.convs_pred, STRIDES):
            bias = conv.get_parameter("bias").detach().view(-1, self.values)
            bias[:, 4] = prior_bias(OBJECTS / (SIDE / stride) ** 2)
            bias[:, 5:] = prior_bias(PRIOR)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor]]:
        """The one output, for each scale [N, A * (5 + C), h, w]: an anchor's x, y, w, h, objectness, then classes."""
        return ([pred(bridge(x)) for pred, bridge, x in zip(self.convs_pred, self.convs_bridge, features)],)

    def of_anchors(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Output of all scales [N, A, 5 + C] in float32, the anchors [A, 4] and the sides of their cells [A, 1]."""
        (maps,) = self(features)
        levels = self.anchors(maps)
        output = torch.cat([per_anchor(m, self.values) for m in maps], 1).float()
        return output, torch.cat(levels), level_values(levels, STRIDES)

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Cross-entropy of classes, objectness and centre, squared error of the size (sections 2.1 and 2.2).

        As published, all are sums over the batch of a process, not means.
        """
        output, anchors, strides = self.of_anchors(features)
        center, size, objectness, classes = output.split((2, 2, 1, self.num_classes), -1)
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        matched = self.matcher(anchors, strides, gt_boxes, gt_valid)
        positive, index = (matched >= 0)[..., None], matched.clamp(min=0)
        target = encode(anchors, box.gather(gt_boxes, index), strides)
        one_hot = gt_labels.gather(1, index)[..., None] == torch.arange(self.num_classes, device=index.device)
        return {"loss_cls": (binary_cross_entropy(classes, one_hot) * positive).sum(),
                "loss_conf": (binary_cross_entropy(objectness, positive) * (matched != IGNORE)[..., None]).sum(),
                "loss_xy": CENTRE_WEIGHT * (binary_cross_entropy(center, target[..., :2]) * positive).sum(),
                "loss_wh": SIZE_WEIGHT * ((size - target[..., 2:]).square() * positive).sum()}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best classes of all scales, decoded, thinned by NMS within their class, in the network's input.

        As published, the score threshold is of the class alone; class times objectness ranks what is left.
        """
        output, anchors, strides = self.of_anchors(features)
        settings, objectness = self.postprocess, output[..., 4].sigmoid()
        logits = output[..., 5:].masked_fill((objectness < OBJECTNESS)[..., None], -torch.inf)
        score, index, label = top_scores(logits, settings.score_threshold, settings.pre_nms_top_n, logits=True)
        boxes = decode(anchors[index], box.gather(output[..., :4], index), strides[index])
        return dense_detections(boxes, score * objectness.gather(1, index), label,
                                replace(settings, score_threshold=0.0))


def yolov3(backbone: Darknet | MobileNetV2, num_classes: int = 80, *, widths: Sequence[int] = (512, 256, 128),
           bridges: Sequence[int] = (1024, 512, 256), anchors: Anchors = COCO_ANCHORS, score_threshold: float = 0.05,
           nms_threshold: float = NMS_THRESHOLD, max_detections: int = 100,
           pre_nms_top_n: int = 1000) -> OneStageDetector:
    """YOLOv3 on a backbone's maps of stride 8, 16 and 32; lists are coarsest first.

    Args:
        widths, bridges: channels of each scale's map, and of the 3x3 convolution that the head begins with.
        anchors: (w, h) in pixels of each scale's anchors.
        score_threshold: of the class alone, before the objectness.
        nms_threshold, max_detections: which detections are kept (see `PostProcess`).
        pre_nms_top_n: best classes of all scales together that go on to NMS.

    Raises:
        UsageError: the lists do not have one entry for each of three scales.
    """
    if not len(widths) == len(bridges) == len(anchors) == len(backbone.channels) == len(STRIDES):
        raise UsageError(f"YOLOv3 has {len(STRIDES)} scales: it needs as many maps, widths, bridges and lists of "
                         f"anchors, not {len(backbone.channels)}, {len(widths)}, {len(bridges)} and {len(anchors)}.")
    neck = YOLONeck(backbone.channels, widths)
    head = YOLOHead(widths, bridges, anchors, num_classes,
                    postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
