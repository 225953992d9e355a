"""Mask R-CNN: He et al., "Mask R-CNN", 2017.

A third branch beside class and box: a small fully convolutional network draws a mask for each region, one for every
class, each pixel an independent yes or no, so that classes do not compete. Masks need pixel-exact features, so
quantised RoI pooling gives way to RoIAlign, which samples the map where the region really lies.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.init import init_weights, kaiming_normal
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import binary_cross_entropy, l1, reduce_mean
from detcore.ops.masks import crop_masks
from detcore.ops.matching import used
from detcore.methods.fast_rcnn import BoxHead, ResStage, RoIHead, Samples, to_output
from detcore.methods.faster_rcnn import FasterRCNN
from detcore.methods.rpn import (
    FPN_TEST,
    FPN_TRAIN,
    SINGLE_MAP_TEST,
    SINGLE_MAP_TRAIN,
    Limits,
    Proposals,
    RPNHead,
    fpn_anchors,
    single_map_anchors,
)
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

THRESHOLD = 0.5


class MaskHead(nn.Module):
    """Convolutions, one 2x upsampling, and a mask logit for every class (figure 4).

    Args:
        in_channels: channels of the region's map.
        width: channels of the convolutions and the upsampling.
        depth: number of 3x3 convolutions. block: their kind.
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 256, depth: int = 4,
                 block: Block = ConvBlock):
        super().__init__()
        self.convs = nn.ModuleList([block(width if i else in_channels, width, 3) for i in range(depth)])
        self.upsample = nn.ConvTranspose2d(width if depth else in_channels, width, 2, 2)
        self.conv_logits = nn.Conv2d(width, num_classes, 1)
        init_weights(self, kaiming_normal)

    def forward(self, x: Tensor) -> Tensor:
        """[r, C, 2 s, 2 s] logits of region maps [r, c, s, s]."""
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(self.upsample(x).relu())

    def loss(self, logits: Tensor, labels: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
        """Mean over regions and pixels of the cross-entropy of the true class's mask (section 3).

        Args:
            logits: [r, C, s, s]; labels: [r]; wanted: [r, s, s]; valid: [r] bool.
        """
        mine = of_class(logits, labels)
        count = reduce_mean(valid.sum().float()).clamp(min=1)
        return (binary_cross_entropy(mine, wanted).mean((1, 2)) * valid).sum() / count


def positive_slots(samples: Samples, limit: int | None) -> Tensor:
    """Flat indices of the slots that hold positives; they come first, so `limit` slots an image are looked at."""
    slots = samples.positive.shape[1] if limit is None else min(limit, samples.positive.shape[1])
    index = used(samples.positive[:, :slots])
    return index // slots * samples.positive.shape[1] + index % slots


def of_class(values: Tensor, labels: Tensor) -> Tensor:
    """[r, ...] each region's own class of values [r, C, ...]; labels [r], background takes the last class."""
    return values[torch.arange(values.shape[0], device=values.device), labels.clamp(max=values.shape[1] - 1)]


def mask_targets(targets: list[Target], samples: Samples, index: Tensor, size: int) -> Tensor:
    """What each positive region's mask should be, float [r, size, size]; index [r] as `positive_slots` gives it."""
    boxes = samples.boxes.flatten(0, 1)[index]
    match, image = samples.match.flatten()[index].clamp(min=0), index // samples.match.shape[1]
    return crop_masks([t.masks for t in targets], boxes, image, match, size)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = THRESHOLD,
          chunk: int = 32) -> Tensor:
    """Masks drawn in their boxes on an empty image (section 3.2).

    Bilinear resampling is separable: two small matrices a box, one for rows and one for columns, say how much each
    mask row (column) counts in each image row (column), and their product with the mask is the pasted mask.

    Args:
        masks: [n, s, s] probabilities; boxes: [n, 4] in pixels; size: (h, w) of the image.

    Returns:
        bool [n, h, w].
    """
    if torch.compiler.is_compiling():  # how many masks there will be is not known
        return _drawn(masks, boxes, size) >= threshold
    out = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for i in range(0, len(masks), chunk):
        out[i:i + chunk] = _drawn(masks[i:i + chunk], boxes[i:i + chunk], size) >= threshold
    return out


def _drawn(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w] probabilities of masks [n, s, s] in their boxes [n, 4] on an image of `size` (h, w)."""
    masks, boxes = masks.float(), boxes.float()
    rows = _weights(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
    columns = _weights(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _weights(start: Tensor, end: Tensor, pixels: int, cells: int) -> Tensor:
    """[n, pixels, cells] bilinear weight of each of `cells` between start and end [n] in each pixel."""
    pixel, start, end = torch.arange(pixels, device=start.device), start[:, None], end[:, None]
    at = (pixel + 0.5 - start) / (end - start) * cells - 0.5
    # A box without extent, cut off by the image's border, shows the mask's middle where it touches.
    touched = (pixel >= start.floor() - 1) & (pixel < end.ceil() + 1)
    at = torch.where(end > start, at, torch.where(touched, (cells - 1) / 2, torch.inf))
    return (1 - (at[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)


class MaskRoIHead(RoIHead):
    """The region head with a mask branch.

    Args:
        mask_pool: region features for masks; None: the box branch's own (C4).
        mask_size: side of the mask targets.
    """

    def __init__(self, pool: MultiScaleRoIAlign, bbox_head: BoxHead, mask_head: MaskHead, mask_pool: MultiScaleRoIAlign | None, *,
                 mask_size: int = 28, **options):
        super().__init__(pool, bbox_head, **options)
        self.mask_head, self.mask_pool, self.mask_size = mask_head, mask_pool, mask_size

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals, masks included."""
        samples = self.sample(features, proposals, targets)
        rois, boxes, image = samples.rois()
        x = self.region_features(features, boxes, image)
        logits, deltas = self.bbox_head(x)
        losses = self.bbox_head.loss(logits, deltas, samples)
        index = positive_slots(samples, self.sampler.max_positives)
        if self.mask_pool is None:
            maps = x[torch.searchsorted(rois, index)]
        else:
            maps = self.mask_features(features, samples.boxes.flatten(0, 1)[index], index // samples.valid.shape[1])
        return losses | self.mask_loss(maps, samples, index, targets)

    def mask_loss(self, maps: Tensor, samples: Samples, index: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Loss of the masks drawn from maps [r, c, s, s] of the positive regions in slots `index` [r]."""
        wanted = mask_targets(targets, samples, index, self.mask_size)
        return {"loss_mask": self.mask_head.loss(self.mask_head(maps), samples.labels.flatten()[index], wanted,
                                                 samples.positive.flatten()[index])}

    def mask_features(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Maps [r, c, s, s] that masks are drawn from, of boxes [r, 4] on images [r]."""
        if self.mask_pool is None:
            return self.region_features(features, boxes, image)
        return self.mask_pool(features, boxes, image)

    def masks(self, features: Sequence[Tensor], found: list[Detections]) -> list[Tensor]:
        """For each image, mask probabilities [n, s, s] of its detections."""
        boxes, labels, image = concatenate(found)
        logits = self.mask_head(self.mask_features(features, boxes, image))
        mine = of_class(logits, labels).float().sigmoid()
        return list(mine.split([d.boxes.shape[0] for d in found]))


def concatenate(found: list[Detections]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [r, 4], labels [r] and image [r] of all detections of a batch."""
    image = torch.cat([torch.full_like(d.labels, i) for i, d in enumerate(found)])
    return torch.cat([d.boxes for d in found]), torch.cat([d.labels for d in found]), image


class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose region head also draws masks."""

    def predict_from(self, features: Sequence[Tensor], images: Images,
                     output_sizes: list[tuple[int, int]] | None) -> list[Detections]:
        """Detections with masks over each whole image, in its `output_sizes` (h, w) or in the network's input."""
        found = self.roi_head.predict(features, self.rpn_head.proposals(features, images), images)
        masks = self.roi_head.masks(features, found)
        found = to_output(found, images, output_sizes)
        for d, m, size in zip(found, masks, output_sizes or images.sizes):
            d.masks = paste(m, d.boxes, size)
        return found


def mask_rcnn(backbone: ResNet, num_classes: int = 80, *, neck: str = "fpn", width: int = 256, hidden: int = 1024,
              anchor_scale: float = 8, box_loss: Callable[[Tensor, Tensor], Tensor] = l1,
              rpn_box_loss: Callable[[Tensor, Tensor], Tensor] = l1, sampling: int = 0, aligned: bool = True,
              block: Block = ConvBlock, box_convs: int = 0, samples: int = 512, rpn_samples: int = 256,
              train_limits: Limits | None = None, test_limits: Limits | None = None) -> MaskRCNN:
    """Mask R-CNN.

    Args:
        neck: "fpn", or "c4": one map, region head is the backbone's last stage.
        width, hidden: channels of pyramid and mask head, and of the box head's layers.
        box_loss, rpn_box_loss: losses of the box offsets.
        sampling, aligned: how RoIAlign samples (see `MultiScaleRoIAlign`).
        block: the convolutions of pyramid and heads; box_convs: how many the box head has before its layer.
        train_limits, test_limits: proposals kept; by default what the neck needs.
    """
    if neck == "c4":
        channels, tail = backbone.channels[-1], ResStage(backbone.depth, base_channels=backbone.base_channels)
        rpn_head = RPNHead(channels, single_map_anchors(), border=0, samples=rpn_samples,
                           train_limits=train_limits or SINGLE_MAP_TRAIN, test_limits=test_limits or SINGLE_MAP_TEST)
        head = MaskRoIHead(MultiScaleRoIAlign([16], 14, sampling=sampling), BoxHead(tail.channels, num_classes, hidden=0),
                           MaskHead(tail.channels, num_classes, depth=0), None, mask_size=14, shared_head=tail,
                           samples=samples)
        return MaskRCNN(backbone, None, rpn_head, head, num_classes)
    align: dict[str, Any] = dict(sampling=sampling, aligned=aligned)
    rpn_head = RPNHead(width, fpn_anchors(anchor_scale), box_loss=rpn_box_loss, samples=rpn_samples,
                       train_limits=train_limits or FPN_TRAIN, test_limits=test_limits or FPN_TEST)
    bbox_head = BoxHead(width, num_classes, hidden=hidden, box_loss=box_loss, convs=box_convs, block=block)
    head = MaskRoIHead(MultiScaleRoIAlign(**align), bbox_head, MaskHead(width, num_classes, width=width, block=block),
                       MultiScaleRoIAlign(size=14, **align), samples=samples, low_quality=True)
    return MaskRCNN(backbone, FPN(backbone.channels, width, block=block), rpn_head, head, num_classes)
