"""Seesaw loss: Wang et al., "Seesaw loss for long-tailed instance segmentation", 2021.

Where a few classes have most of the objects, every one of those objects tells all rare classes "not you", and these
are never predicted. Seesaw loss scales how strongly a sample pushes another class down. The mitigation factor makes
the push of a frequent class on a rarer one weaker, by the ratio of the samples counted so far in training. The
compensation factor makes it stronger again where the rarer class scores higher than the true one, which is a mistake.
Because background would outnumber every class, the head first tells objects from background with two logits of its
own, and the classes compete among objects alone. Classifier and, for some models, mask predictor are normalised, so
that the length of a class's weights, which grows with its frequency, does not count.
"""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.methods.cascade_rcnn import cascade_heads, cascade_mask_rcnn
from detcore.methods.fast_rcnn import BoxHead, accuracy
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.ops.losses import reduce_mean
from detcore.ops.regions import Regions
from detcore.options import forwards

MITIGATION, COMPENSATION = 0.8, 2.0  # the exponents p and q of the two factors
LEAST_SCORE = 0.01  # of the true class, where another is compared with it
TEMPERATURE = 20.0  # of normalised predictors


class SeesawLoss(nn.Module):
    """Cross-entropy among classes, each pair of them weighed by how often both were seen."""

    cum_samples: Tensor  # [C + 1] of each class so far, background last

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    @torch.no_grad()
    def count(self, labels: Tensor, valid: Tensor) -> None:
        """Take the valid ones among labels [r] into account, averaged over the processes, so that all count alike."""
        seen = torch.zeros_like(self.cum_samples).index_add_(0, labels, valid.to(self.cum_samples.dtype))
        self.cum_samples += reduce_mean(seen)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss [r] of class logits [r, C]; labels [r], no background."""
        # A factor of a class's share in the softmax is a term of its logit; the true class's terms are zero.
        seen = self.cum_samples[:-1].clamp(min=1).log()
        score = logits.detach().log_softmax(1)
        own = score.gather(1, labels[:, None]).clamp(min=math.log(LEAST_SCORE))
        mitigation = MITIGATION * (seen - seen[labels][:, None]).clamp(max=0)
        compensation = COMPENSATION * (score - own).clamp(min=0)
        return F.cross_entropy(logits + mitigation + compensation, labels, reduction="none")


def unit(x: Tensor) -> Tensor:
    """Vectors along dimension 1, scaled to length 1."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-6)


class NormedLinear(nn.Linear):
    """A linear layer that sees only directions: cosines, times the temperature."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(TEMPERATURE * unit(x), unit(self.weight), self.bias)


class NormedConv2d(nn.Conv2d):
    """The same for every pixel: a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(TEMPERATURE * unit(x), unit(self.weight), self.bias)


class SeesawHead(BoxHead):
    """`BoxHead` with the normalised classifier: C class logits and two of objectness, object first."""

    loss_cls: SeesawLoss

    def __init__(self, in_channels: int, num_classes: int, **options: Any):
        super().__init__(in_channels, num_classes, cls_layer=NormedLinear, cls_outputs=num_classes + 2,
                         cls_loss=SeesawLoss(num_classes), **options)

    def scores(self, logits: Tensor) -> Tensor:
        """Scores [r, C] of logits [r, C + 2]: the class's share, times how surely it is an object."""
        logits = logits.float()
        return logits[:, :-2].softmax(1) * logits[:, -2:].softmax(1)[:, :1]

    def class_loss(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """Losses of objectness and, for objects, of the classes."""
        self.loss_cls.count(regions.labels, regions.valid)
        classes, objectness = logits.float().split([self.num_classes, 2], 1)
        labels, background = regions.labels.clamp(max=self.num_classes - 1), (~regions.positive).long()
        count = reduce_mean(regions.valid.sum().clamp(min=1))
        error = F.cross_entropy(objectness, background, reduction="none") * regions.valid
        return {"loss_cls_objectness": error.sum() / count,
                "loss_cls_classes": (self.loss_cls(classes, labels) * regions.positive).sum() / count}

    def accuracy(self, logits: Tensor, regions: Regions) -> dict[str, Tensor]:
        """`acc_objectness` of all regions, and `acc_classes` of objects, in percent, 0-dim each."""
        classes, objectness = logits.split([self.num_classes, 2], 1)
        return {"acc_objectness": accuracy(objectness, (~regions.positive).long(), regions.valid),
                "acc_classes": accuracy(classes, regions.labels, regions.positive)}


@forwards(mask_rcnn, without=["bbox_head", "box_loss", "box_convs", "mask_predictor"])
def seesaw_mask_rcnn(backbone: ResNet, num_classes: int = 1203, *, normed_masks: bool = False, width: int = 256,
                     hidden: int = 1024, score_threshold: float = 1e-4, max_detections: int = 300,
                     **options: Any) -> TwoStageDetector:
    """Mask R-CNN with seesaw loss, which keeps detections as LVIS evaluates; options as in `mask_rcnn`.

    Args:
        normed_masks: normalise the mask predictor too.
    """
    return mask_rcnn(backbone, num_classes, width=width, score_threshold=score_threshold,
                     max_detections=max_detections, bbox_head=SeesawHead(width, num_classes, hidden=hidden),
                     mask_predictor=NormedConv2d if normed_masks else nn.Conv2d, **options)


@forwards(cascade_mask_rcnn, without=["bbox_heads", "mask_predictor"])
def seesaw_cascade_mask_rcnn(backbone: ResNet, num_classes: int = 1203, *, normed_masks: bool = False,
                             width: int = 256, hidden: int = 1024, score_threshold: float = 1e-4,
                             max_detections: int = 300, **options: Any) -> TwoStageDetector:
    """Cascade Mask R-CNN with seesaw loss, each stage with counts of its own; options as in `seesaw_mask_rcnn`."""
    return cascade_mask_rcnn(backbone, num_classes, width=width, score_threshold=score_threshold,
                             max_detections=max_detections,
                             bbox_heads=cascade_heads(width, num_classes, hidden, SeesawHead),
                             mask_predictor=NormedConv2d if normed_masks else nn.Conv2d, **options)
