"""Fast R-CNN: Girshick, "Fast R-CNN", 2015; with RoIAlign and FPN features.

R-CNN ran a network once for each proposal. Fast R-CNN runs the backbone once for the image, cuts every proposal's
features out of the shared map at a fixed size (RoI pooling), and lets a small head classify the region and refine its
box, in one training with one multi-task loss. Proposals come from elsewhere.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import Sizes, TwoStageDetector, rescaled
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.init import init_normal, init_weights, kaiming_normal
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.losses import ElementwiseLoss, l1, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler
from detcore.ops.nms import PostProcess, region_detections
from detcore.ops.regions import Regions, Samples, assign_regions, flat_proposals, of_class, sample_regions
from detcore.structures import Detections, Images, Proposals, Target

BOX_STDS = (0.1, 0.1, 0.2, 0.2)


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits and box offsets (section 2; two layers as in FPN, section 4.2).

    Args:
        in_channels: channels of the region's map; size: its side.
        num_classes: classes, background not counted.
        hidden: width of the two layers; 0: average-pool the map instead (the head of C4 detectors).
        convs: 3x3 convolutions that take the place of the first layer. block: their kind.
        agnostic: one box for all classes instead of one for each; boxes: whether there are any.
        stds: scale of the box offsets.
        box_loss: loss of the offsets, elementwise; or of decoded boxes, if `decoded`. box_weight: its weight.
        cls_layer: kind of the classifier; cls_outputs: of it; None: one a class, and one for background.
        cls_loss: a loss of the classes that has a state of its own, kept as `loss_cls`.
    """

    def __init__(self, in_channels: int, num_classes: int, *, size: int = 7, hidden: int = 1024, agnostic: bool = False,
                 boxes: bool = True, stds: tuple[float, float, float, float] = BOX_STDS,
                 box_loss: ElementwiseLoss = l1, decoded: bool = False, box_weight: float = 1.0,
                 convs: int = 0, block: Block = ConvBlock, cls_layer: type[nn.Linear] = nn.Linear,
                 cls_outputs: int | None = None, cls_loss: nn.Module | None = None):
        super().__init__()
        self.loss_cls = cls_loss
        self.num_classes, self.hidden, self.agnostic, self.stds = num_classes, hidden, agnostic, stds
        self.box_loss, self.decoded, self.box_weight = box_loss, decoded, box_weight
        last = hidden or in_channels
        self.fc_cls = cls_layer(last, cls_outputs or num_classes + 1)
        if boxes:
            self.fc_reg = nn.Linear(last, 4 if agnostic else 4 * num_classes)
        self.shared_convs = nn.ModuleList([block(in_channels, in_channels, 3) for _ in range(convs)])
        init_weights(self.shared_convs, kaiming_normal)
        widths = [in_channels * size**2, *[hidden] * (1 if convs else 2)] if hidden else []
        self.shared_fcs = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths, widths[1:])])
        for fc in self.shared_fcs:
            nn.init.xavier_uniform_(cast(nn.Linear, fc).weight)
            nn.init.zeros_(cast(nn.Linear, fc).bias)
        init_normal(self.fc_cls, 0.01)
        if boxes:
            init_normal(self.fc_reg, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [r, C + 1] (background last) and offsets [r, 4 C] or [r, 4] of region maps [r, c, s, s]."""
        x = self.embed(x)
        return self.fc_cls(x), self.fc_reg(x)

    def embed(self, x: Tensor) -> Tensor:
        """The features of each region as a vector, [r, hidden]."""
        for conv in self.shared_convs:
            x = conv(x)
        if not self.hidden:
            return x.mean((2, 3))
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = fc(x).relu()
        return x

    def scores(self, logits: Tensor) -> Tensor:
        """Scores [r, C] of class logits [r, C + 1]."""
        return logits.float().softmax(1)[:, :-1]

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Boxes [..., 4] moved by offsets [..., 4]."""
        return box.decode(boxes, deltas, self.stds)

    def loss(self, logits: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Losses of classes and boxes, of the outputs [r, ...] for the regions, over their number."""
        count = reduce_mean(regions.valid.sum().clamp(min=1))
        if not self.agnostic:
            deltas = of_class(deltas.unflatten(1, (-1, 4)), regions.labels)
        positive = regions.positive[:, None]
        # Regions that hold nothing get their own box as target, so that every value stays finite.
        gt_boxes = torch.where(positive, regions.gt_boxes, regions.boxes)
        if self.decoded:  # aligned boxes give one value each, offsets four
            error = self.box_loss(self.decode(regions.boxes, deltas), gt_boxes)
        else:
            target = torch.where(positive, box.encode(regions.boxes, gt_boxes, self.stds), 0.0)
            error = self.box_loss(deltas, target).sum(-1)
        return self.class_loss(logits, regions) | {
            "loss_bbox": self.box_weight * (error * regions.positive).sum() / count}

    def class_loss(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Cross-entropy of the classes, background among them."""
        error = F.cross_entropy(logits.float(), regions.labels, reduction="none") * regions.valid
        return {"loss_cls": error.sum() / reduce_mean(regions.valid.sum().clamp(min=1))}

    def accuracy(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """`acc`: percent of the regions whose class is right, 0-dim."""
        return {"acc": accuracy(logits, regions.labels, regions.valid)}


def accuracy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Percent of the valid rows [r] whose largest logit [r, C] is that of their label [r], 0-dim."""
    return 100 * ((logits.detach().argmax(1) == labels) & valid).sum() / valid.sum().clamp(min=1)


class RoIHead(nn.Module):
    """What happens to each region: pooled features, box head; subclasses add masks.

    Args:
        roi_align: region features from the pyramid; shared_head: a network between it and the heads (C4).
        samples: regions that train, an image; a quarter positive at most.
        hard_examples: choose the regions with the largest loss (OHEM, Shrivastava et al. 2016) instead of random ones.
        positive_iou: overlap with an object from which a region is positive.
        low_quality: objects that no region overlaps that much keep their best region.
        postprocess: which detections are kept at test time.

    Attributes:
        diagnostics: accuracy of the last training step.
    """

    def __init__(self, roi_align: MultiScaleRoIAlign, bbox_head: BoxHead, *, shared_head: nn.Module | None = None,
                 samples: int = 512, hard_examples: bool = False, positive_iou: float = 0.5,
                 low_quality: bool = False, postprocess: PostProcess | None = None):
        super().__init__()
        self.shared_head, self.bbox_roi_extractor, self.bbox_head = shared_head, roi_align, bbox_head
        self.num_classes = bbox_head.num_classes
        self.matcher = IoUMatcher(positive_iou, positive_iou, low_quality=positive_iou if low_quality else None)
        self.sampler = Sampler(samples, 0.25)
        self.hard_examples, self.postprocess = hard_examples, postprocess or PostProcess()
        self.diagnostics: dict[str, Tensor] = {}

    def region_features(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Maps [r, c, s, s] of boxes [r, 4] on images [r]."""
        x = self.bbox_roi_extractor(features, boxes, image)
        return x if self.shared_head is None else self.shared_head(x)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals."""
        return self.box_loss(features, self.sample(features, proposals, targets).regions())[0]

    def box_loss(self, features: Sequence[Tensor], regions: Regions) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the box head, and the maps [r, c, s, s] that it saw."""
        x = self.region_features(features, regions.boxes, regions.image)
        logits, deltas = self.bbox_head(x)
        self.diagnostics = self.bbox_head.accuracy(logits, regions)
        return self.bbox_head.loss(logits, deltas, regions), x

    def sample(self, features: Sequence[Tensor], proposals: Proposals, targets: list[Target]) -> Samples:
        """The regions that train."""
        assigned = assign_regions(proposals, targets, self.matcher, self.num_classes)
        priority = self.difficulty(features, assigned) if self.hard_examples else None
        return sample_regions(assigned, self.sampler, priority)

    @torch.no_grad()
    def difficulty(self, features: Sequence[Tensor], samples: Samples) -> Tensor:
        """[N, S] the classification loss of every region: how hard it is (OHEM, section 4)."""
        regions, labels = samples.regions(), samples.labels
        logits, _ = self.bbox_head(self.region_features(features, regions.boxes, regions.image))
        error = F.cross_entropy(logits.float(), regions.labels, reduction="none")
        return error.new_zeros(labels.numel()).index_copy(0, regions.index, error).view_as(labels)

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
                output_sizes: Sizes | None = None) -> list[Detections]:
        """Detections of each image, in pixels of its `output_sizes` (h, w) or of the network's input."""
        return rescaled(self.detect(features, proposals, images), images, output_sizes)

    def detect(self, features: Sequence[Tensor], proposals: Proposals, images: Images) -> list[Detections]:
        """Class scores and refined boxes of the proposals, thinned by NMS, in pixels of the network's input."""
        boxes, image, sizes = flat_proposals(proposals, images)
        logits, deltas = self.bbox_head(self.region_features(features, boxes, image))
        refined = box.clip(self.bbox_head.decode(boxes[:, None], deltas.unflatten(1, (-1, 4))), sizes)
        return region_detections(refined, self.bbox_head.scores(logits), image, len(images), self.postprocess)


def fast_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
              box_loss: ElementwiseLoss = l1, box_weight: float = 1.0, samples: int = 512, sampling_ratio: int = 0,
              score_threshold: float = 0.05, nms_threshold: float = 0.5,
              max_detections: int = 100) -> TwoStageDetector:
    """Fast R-CNN on a feature pyramid; proposals are given.

    Args:
        width, hidden: channels of the pyramid and of the box head's layers.
        box_loss: elementwise loss of the box offsets; box_weight: its weight.
        samples: regions that train, an image. sampling_ratio: RoIAlign's (see `MultiScaleRoIAlign`).
        score_threshold, nms_threshold, max_detections: which detections are kept (see `PostProcess`).
    """
    bbox_head = BoxHead(width, num_classes, hidden=hidden, box_loss=box_loss, box_weight=box_weight)
    head = RoIHead(MultiScaleRoIAlign(sampling_ratio=sampling_ratio), bbox_head, samples=samples,
                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, FPN(backbone.channels, width), None, head)
