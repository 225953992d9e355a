"""Panoptic FPN: Kirillov et al., "Panoptic feature pyramid networks", 2019.

Panoptic segmentation gives every pixel a class, and every countable object ("thing") a number besides; what has no
number (sky, grass) is called stuff. One network can do both: Mask R-CNN finds the things, and a second, light head on
the same pyramid names the class of every pixel. It brings all levels to a quarter of the image's size, adds them up,
and classifies; all things together are one of its classes. A few rules then merge the two answers: objects are laid
down best first, stuff fills what is left.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import ProposalHead, RegionHead, Sizes, TwoStageDetector
from detcore.errors import UsageError
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.options import forwards
from detcore.structures import IGNORED, INSTANCE, Detections, Images, Target

LEVELS = 4  # of the pyramid, from stride 4 to 32
CHANNELS = 128
STRIDE = 4  # of the class map
LOSS_WEIGHT = 0.5
# Merging (section 4.3 of Kirillov et al., "Panoptic segmentation", 2019).
OVERLAP = 0.5  # an object of which more than this share is covered already is dropped
STUFF_AREA = 4096  # pixels; stuff that covers less is dropped


class Upsampling(nn.Module):
    """A level brought to stride 4: convolution and doubling, as often as needed (figure 3)."""

    def __init__(self, in_channels: int, channels: int, doublings: int):
        super().__init__()
        self.doublings = doublings
        self.conv = nn.ModuleList([ConvBlock(channels if i else in_channels, channels, 3, norm="gn")
                                   for i in range(max(doublings, 1))])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.conv:
            x = conv(x)
            if self.doublings:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


class SemanticHead(nn.Module):
    """The class of every pixel (section 3): `stuff` classes, and one for all `things` classes, which comes last."""

    def __init__(self, in_channels: int, things: int, stuff: int, *, channels: int = CHANNELS):
        super().__init__()
        self.things, self.stuff = things, stuff
        self.conv_upsample_layers = nn.ModuleList([Upsampling(in_channels, channels, i) for i in range(LEVELS)])
        self.conv_logits = nn.Conv2d(channels, stuff + 1, 1)
        init_normal(self.conv_logits)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [N, stuff + 1, H / 4, W / 4]."""
        maps = [layer(x) for layer, x in zip(self.conv_upsample_layers, features)]
        return self.conv_logits(torch.stack(maps).sum(0))

    def loss(self, features: Sequence[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Cross-entropy, averaged over all pixels; those without a class count as learned.

        Raises:
            UsageError: a target has no class map.
        """
        if any(t.semantic is None for t in targets):
            raise UsageError("This model learns the class of every pixel, but its targets have no class map: load the "
                             "data with its panoptic annotations.")
        classes = torch.stack([t.semantic for t in targets])[:, ::STRIDE, ::STRIDE]  # type: ignore[misc]
        target = torch.where(classes < self.things, self.stuff, classes - self.things)
        target = target.masked_fill(classes == IGNORED, IGNORED)
        logits = self(features).float()
        if logits.shape[2:] != target.shape[1:]:
            logits = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
        error = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
        return {"loss_seg": LOSS_WEIGHT * error.mean()}


def merge(detections: Detections, stuff: Tensor, things: int, stuff_area: int = STUFF_AREA) -> Tensor:
    """One answer for each pixel, int64 [h, w]: class + 1000 x instance number; things, then stuff, then void.

    Args:
        detections: objects with masks [n, h, w], best first.
        stuff: [c + 1, h, w] logits of the stuff classes, then of things.
    """
    assert detections.masks is not None
    owner = torch.zeros(stuff.shape[1:], dtype=torch.long, device=stuff.device)
    for number, mask in enumerate(detections.masks, 1):  # each depends on those before it
        area = mask.sum()
        covered = (mask & (owner > 0)).sum() / (area + 1e-5)
        owner = torch.where(mask & (owner == 0) & (covered <= OVERLAP) & (area > 0), number, owner)
    classes = stuff.argmax(0)
    void = stuff.shape[0] - 1  # stuff that looks like a thing, which no object claims, is void
    seen = torch.zeros(void + 1, dtype=torch.long, device=stuff.device)
    seen = seen.index_add(0, classes.flatten(), (owner == 0).flatten().long())
    classes = torch.where((seen < stuff_area)[classes], void, classes) + things
    labels = torch.cat([detections.labels.new_zeros(1), detections.labels])
    return torch.where(owner > 0, labels[owner] + INSTANCE * owner, classes)


class PanopticFPN(TwoStageDetector):
    """A detector with masks, and a semantic head; its detections carry the panoptic map, in which stuff covers
    `stuff_area` pixels at least."""

    not_exportable = "its panoptic map is put together segment by segment, and their number depends on the picture"

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, rpn_head: ProposalHead | None,
                 roi_head: RegionHead, semantic_head: SemanticHead, *, stuff_area: int = STUFF_AREA):
        super().__init__(backbone, neck, rpn_head, roi_head)
        self.semantic_head, self.stuff_area = semantic_head, stuff_area

    def loss_from(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses of Mask R-CNN, and `loss_seg`."""
        return super().loss_from(features, images, targets) | self.semantic_head.loss(features, targets)

    def predict_from(self, features: Sequence[Tensor], images: Images, output_sizes: Sizes | None = None,
                     proposals: list[Tensor] | None = None) -> list[Detections]:
        detections = super().predict_from(features, images, output_sizes, proposals)
        logits = F.interpolate(self.semantic_head(features).float(), size=images.tensor.shape[2:], mode="bilinear",
                               align_corners=False)
        for one, stuff, (h, w), size in zip(detections, logits, images.sizes, output_sizes or images.sizes):
            stuff = F.interpolate(stuff[None, :, :h, :w], size=size, mode="bilinear", align_corners=False)[0]
            one.panoptic = merge(one, stuff, self.num_classes, self.stuff_area)
        return detections


@forwards(mask_rcnn)
def panoptic_fpn(backbone: ResNet, num_classes: int = 80, *, stuff: int = 53, stuff_area: int = STUFF_AREA,
                 semantic_channels: int = CHANNELS, width: int = 256, score_threshold: float = 0.6,
                 class_agnostic_nms: bool = True, **options: Any) -> PanopticFPN:
    """Panoptic FPN.

    Args:
        num_classes, stuff: classes of things and of stuff; stuff_area: pixels that stuff must cover to be kept.
        semantic_channels: channels of the semantic head; width: those of the pyramid.
        score_threshold, class_agnostic_nms: which objects are kept at test time (see `PostProcess`).
        options: as in `mask_rcnn`.
    """
    things = mask_rcnn(backbone, num_classes, width=width, score_threshold=score_threshold,
                       class_agnostic_nms=class_agnostic_nms, **options)
    semantic_head = SemanticHead(width, num_classes, stuff, channels=semantic_channels)
    return PanopticFPN(backbone, things.neck, things.rpn_head, things.roi_head, semantic_head, stuff_area=stuff_area)
