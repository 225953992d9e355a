"""SSD: Liu et al., "SSD: single shot multibox detector", 2016. SSDLite: Sandler et al., "MobileNetV2", 2018, section 6.

Before SSD, a detector that did without proposals looked at one coarse map and missed small objects. SSD appends
convolutions that halve the map again and again, and predicts from every map: fine ones see small objects, coarse ones
large objects. At each cell lie default boxes of fixed size and shape; small convolutions of the map give each of them
a score for every class and for background, and offsets. Nearly all boxes are background, so only the three worst
negatives for each positive train the scores. Strong augmentation (`detcore.data.augment`) makes up for what the
missing second stage would forgive. SSDLite splits every convolution of SSD into a depthwise and a pointwise one.
"""
from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.mobilenet import MobileNetV2
from detcore.backbones.vgg import SSDVGG
from detcore.detectors import OneStageDetector
from detcore.errors import UsageError
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_weights, set_batch_norm
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, per_anchor
from detcore.ops.losses import SmoothL1, reduce_mean
from detcore.ops.matching import IoUMatcher, highest, pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.structures import Detections, Images, Target

L2_SCALE, L2_CHANNELS = 20.0, 512  # the length that a cell's features are scaled to at first (section 3.1)
OVERLAP = 0.5  # IoU from which a default box takes an object (section 2.2)
NEGATIVES = 3  # for each positive, at most
STDS = (0.1, 0.1, 0.2, 0.2)  # scale of the offsets
SCORE_THRESHOLD, NMS_THRESHOLD, MAX_DETECTIONS = 0.02, 0.45, 200
LARGEST = 90  # percent of the image's side: the smaller box of the last map (section 2.2)
# SSDLite's batch norm, and how wide its weights are spread at first.
LITE_EPS, LITE_MOMENTUM, LITE_STD = 1e-3, 0.03, 0.03


# The maps and their default boxes (section 2.2).

@dataclass(frozen=True)
class Extra:
    """A map appended to the backbone's: a 1x1 convolution to half its channels, then one that makes it."""

    channels: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1


@dataclass(frozen=True)
class SSDLayout:
    """The maps beyond the backbone's two, and the default boxes on all of them.

    Attributes:
        extras: the maps appended.
        strides: pixels between the cells of each map.
        sizes: side in pixels of each map's smaller square box; the larger one's is the geometric mean with the next
            map's, so that there is one number more than maps.
        ratios: aspect ratios of each map's other boxes; each stands for its inverse too.

    Raises:
        UsageError: the numbers do not fit each other.
    """

    extras: tuple[Extra, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        maps = len(self.extras) + 2
        if not len(self.strides) == len(self.ratios) == len(self.sizes) - 1 == maps:
            raise UsageError(f"SSD of {maps} maps needs as many strides and tuples of ratios and one size more, not "
                             f"{len(self.strides)}, {len(self.ratios)} and {len(self.sizes)}.")

    def anchors(self) -> AnchorGenerator:
        """The default boxes, centred in their cells: the smaller square, the larger one, then the other shapes."""
        levels = []
        for size, following, ratios in zip(self.sizes, self.sizes[1:], self.ratios):
            # Width over height, as equation 4's a_r.
            shapes = np.array([1, 1] + [shape for r in ratios for shape in (r, 1 / r)], np.float32)
            side = np.full(len(shapes), size, np.float32)
            side[1] *= np.sqrt(following / size)
            levels.append(np.stack([side * np.sqrt(shapes), side / np.sqrt(shapes)], 1))
        return AnchorGenerator(self.strides, levels, center=0.5)


def equal_steps(image: int, smallest: int, second: int, maps: int) -> tuple[int, ...]:
    """The sizes of a layout for an image of so many pixels a side, in pixels: the first two in percent of that, then
    equal steps up to 90 percent and one beyond (equation 4)."""
    step = (LARGEST - second) // (maps - 2)
    return tuple(image * percent // 100 for percent in (smallest, *(second + step * k for k in range(maps))))


FOUR, SIX = (2,), (2, 3)  # boxes of a cell: two squares and two for each ratio
SSD300 = SSDLayout((Extra(512), Extra(256), Extra(256, stride=1, padding=0), Extra(256, stride=1, padding=0)),
                (8, 16, 32, 64, 100, 300), equal_steps(300, 7, 15, 6), (FOUR, SIX, SIX, SIX, FOUR, FOUR))
SSD512 = SSDLayout((Extra(512), Extra(256), Extra(256), Extra(256), Extra(256, kernel=4, stride=1)),
                (8, 16, 32, 64, 128, 256, 512), equal_steps(512, 4, 10, 7), (FOUR, SIX, SIX, SIX, SIX, FOUR, FOUR))
# The objects of Pascal VOC are larger.
SSD300_VOC = replace(SSD300, sizes=equal_steps(300, 10, 20, 6))
SSD512_VOC = replace(SSD512, sizes=equal_steps(512, 7, 15, 7))
SSDLITE = SSDLayout((Extra(512), Extra(256), Extra(256), Extra(128)), (16, 32, 64, 107, 160, 320),
                 (48, 100, 150, 202, 253, 304, 320), (SIX,) * 6)


# The network (figure 2).

class L2Norm(nn.Module):
    """Every cell's features scaled to one length, then by a learned factor for each channel.

    The finest map's features are much larger than the others' (section 3.1). The first factor is the published one for
    as many channels; it keeps a channel's size where there are fewer.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), L2_SCALE * math.sqrt(channels / L2_CHANNELS)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same."""
        return (F.normalize(x.float(), dim=1, eps=1e-10) * self.weight[:, None, None]).to(x.dtype)


lite_block = partial(ConvBlock, norm="bn", act=F.relu6)


def separable(in_channels: int, out_channels: int, kernel: int, *, stride: int, padding: int) -> nn.Sequential:
    """A depthwise convolution, then a pointwise one; arguments as `ConvBlock`'s."""
    return nn.Sequential(OrderedDict(
        depthwise_conv=lite_block(in_channels, in_channels, kernel, stride=stride, padding=padding, groups=in_channels),
        pointwise_conv=lite_block(in_channels, out_channels, 1)))


class SSDNeck(nn.Module):
    """The backbone's two maps, of so many `channels`, and coarser ones made of the last; `lite`: by depthwise
    convolutions with batch norm, and without normalisation of the first map."""

    def __init__(self, channels: Sequence[int], extras: Sequence[Extra], *, lite: bool = False):
        super().__init__()
        self.extras = tuple(extras)
        self.channels = (*channels, *(e.channels for e in extras))
        self.l2_norm = None if lite else L2Norm(channels[0])
        narrow: Callable[..., nn.Module] = lite_block if lite else ConvBlock
        wide: Callable[..., nn.Module] = separable if lite else ConvBlock
        self.extra_layers = nn.ModuleList([
            nn.Sequential(narrow(before, e.channels // 2, 1),
                          wide(e.channels // 2, e.channels, e.kernel, stride=e.stride, padding=e.padding))
            for before, e in zip(self.channels[1:], extras)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All maps, finest first.

        Raises:
            UsageError: the image is so small that nothing is left for the coarsest map.
        """
        out = [self.l2_norm(maps[0]) if self.l2_norm else maps[0], *maps[1:]]
        for extra, layer in zip(self.extras, self.extra_layers):
            if min(out[-1].shape[2:]) + 2 * extra.padding < extra.kernel:
                raise UsageError("The image is too small for this SSD: nothing is left for its coarsest map.")
            out.append(layer(out[-1]))
        return tuple(out)


class SSDHead(nn.Module):
    """On each map, of so many `channels`, a convolution for the classes and background, and one for the offsets;
    `lite`: they are split into depthwise and pointwise."""

    def __init__(self, channels: Sequence[int], num_classes: int, layout: SSDLayout, *, lite: bool = False,
                 postprocess: PostProcess | None = None):
        super().__init__()
        self.num_classes, self.anchors = num_classes, layout.anchors()
        self.postprocess = postprocess or PostProcess(SCORE_THRESHOLD, NMS_THRESHOLD, MAX_DETECTIONS)
        # Every object has its best box, however little they overlap; of equally good ones the first (section 2.2).
        self.matcher = IoUMatcher(OVERLAP, OVERLAP, low_quality=0.0, ties=False)
        self.box_loss = SmoothL1()

        def predictor(in_channels: int, out_channels: int) -> nn.Sequential:
            if not lite:
                return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))
            return nn.Sequential(lite_block(in_channels, in_channels, 3, groups=in_channels),
                                 nn.Conv2d(in_channels, out_channels, 1))

        per_cell = list(zip(channels, self.anchors.counts))
        self.cls_convs = nn.ModuleList([predictor(c, n * (num_classes + 1)) for c, n in per_cell])
        self.reg_convs = nn.ModuleList([predictor(c, n * 4) for c, n in per_cell])

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map logits [N, A * (C + 1), h, w], background last, and box offsets [N, A * 4, h, w]."""
        return ([conv(x) for conv, x in zip(self.cls_convs, features)],
                [conv(x) for conv, x in zip(self.reg_convs, features)])

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Cross-entropy of positives and hardest negatives, and smooth L1 of the positives' offsets (section 2.2)."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1)
                          for maps, c in zip(output, (self.num_classes + 1, 4)))
        anchors = torch.cat(self.anchors(output[0]))
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        matched = self.matcher(anchors, gt_boxes, gt_valid)
        positive, index = matched >= 0, matched.clamp(min=0)
        # An image without positives still counts one.
        count = reduce_mean(positive.sum(1).clamp(min=1).sum())
        label = torch.where(positive, gt_labels.gather(1, index), self.num_classes)
        class_loss = F.cross_entropy(logits.float().flatten(0, 1), label.flatten(), reduction="none").view_as(label)
        trained = positive | hardest(class_loss, positive)
        target = box.encode(anchors, box.gather(gt_boxes, index), STDS)
        error = self.box_loss(deltas, torch.where(positive[..., None], target, deltas.detach().float()))
        return {"loss_cls": (class_loss * trained).sum() / count,
                "loss_bbox": (error * positive[..., None]).sum() / count}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best scores of each map, decoded, thinned by NMS within their class, in the network's input."""
        output, settings = self(features), self.postprocess
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for cls, deltas, anchors in zip(*output, self.anchors(output[0])):
            probability = per_anchor(cls, self.num_classes + 1).float().softmax(-1)[..., :-1]
            score, index, label = top_scores(probability, settings.score_threshold, settings.pre_nms_top_n)
            boxes.append(box.clip(box.decode(anchors[index], box.gather(per_anchor(deltas, 4), index), STDS), sizes))
            scores.append(score)
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1), settings)


def hardest(class_loss: Tensor, positive: Tensor) -> Tensor:
    """The negatives of largest `class_loss`, three for each positive of their image, all [N, A] (section 2.2)."""
    return highest(~positive, class_loss.detach(), NEGATIVES * positive.sum(1), positive.shape[1])


def ssd(backbone: SSDVGG, num_classes: int = 80, *, layout: SSDLayout = SSD300,
        score_threshold: float = SCORE_THRESHOLD, nms_threshold: float = NMS_THRESHOLD,
        max_detections: int = MAX_DETECTIONS, pre_nms_top_n: int = 1000) -> OneStageDetector:
    """SSD on a VGG-16, with the maps and default boxes of a `layout`; other options: which detections are kept (see
    `PostProcess`)."""
    neck = SSDNeck(backbone.channels, layout.extras)
    head = SSDHead(neck.channels, num_classes, layout,
                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    for part in (neck, head):
        init_weights(part, nn.init.xavier_uniform_)
    return OneStageDetector(backbone, neck, head)


def ssdlite(backbone: MobileNetV2, num_classes: int = 80, *, layout: SSDLayout = SSDLITE,
            score_threshold: float = SCORE_THRESHOLD, nms_threshold: float = NMS_THRESHOLD,
            max_detections: int = MAX_DETECTIONS, pre_nms_top_n: int = 1000) -> OneStageDetector:
    """SSDLite on a MobileNetV2; options as in `ssd`."""
    neck = SSDNeck(backbone.channels, layout.extras, lite=True)
    head = SSDHead(neck.channels, num_classes, layout, lite=True,
                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    model = OneStageDetector(backbone, neck, head)
    init_weights(model, partial(nn.init.trunc_normal_, std=LITE_STD))
    set_batch_norm(model, LITE_EPS, LITE_MOMENTUM)
    return model
