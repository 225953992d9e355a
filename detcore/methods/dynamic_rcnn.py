"""Dynamic R-CNN: Zhang et al., "Dynamic R-CNN: Towards high quality object detection via dynamic training", 2020.

Proposals get better while a detector trains, but its settings stay as they were at the start. Here two of them follow
the training. The IoU that makes a region positive rises with the overlap that the better proposals reach (dynamic
label assignment), and the point where the smooth L1 loss bends falls with the size of the errors that are left
(dynamic SmoothL1 loss). At first there are enough positives, and later high quality is asked for. Nothing changes at
test time.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.backbones.resnet import ResNet
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import reduce_mean
from detcore.ops.matching import IoUMatcher, pad_targets
from detcore.methods.fast_rcnn import BoxHead, RoIHead, Samples, assign_regions, sample_regions
from detcore.methods.faster_rcnn import FasterRCNN
from detcore.methods.rpn import FPN_TEST, FPN_TRAIN, Limits, Proposals, RPNHead, fpn_anchors
from detcore.necks.fpn import FPN
from detcore.structures import Images, Target

# Section 4: K_I and K_beta, how often the settings follow, and where they start.
IOU_TOP, BETA_TOP = 75, 10
INTERVAL = 100
FIRST_IOU, LEAST_IOU = 0.5, 0.4
MOST_BETA = 1.0
RPN_NMS = 0.85  # leaves more and better proposals than the usual 0.7


class DynamicSmoothL1(nn.Module):
    """Elementwise: quadratic below `beta`, which is a tensor, and linear above (equation 5)."""

    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(MOST_BETA), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        beta = self.beta.clone()  # the buffer may change before the backward pass
        error = (pred.float() - target).abs()
        return torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


class DynamicRoIHead(RoIHead):
    """A region head that sets its IoU threshold and its box loss by what it sees (algorithm 1).

    What it has seen is no part of the published state dict. It is held in buffers that checkpoints save aside.

    Attributes:
        threshold: IoU from which a region is positive.
        seen: steps so far.
        overlaps, errors: of the last steps, the IoU that the best regions of an image reach, and the error that the
            best boxes have; NaN where there was nothing to see.
    """

    threshold: Tensor
    seen: Tensor
    overlaps: Tensor
    errors: Tensor

    def __init__(self, pool: MultiScaleRoIAlign, bbox_head: BoxHead, *, samples: int = 512):
        super().__init__(pool, bbox_head, samples=samples)
        self.register_buffer("threshold", torch.tensor(FIRST_IOU), persistent=False)
        self.register_buffer("seen", torch.tensor(0), persistent=False)
        self.register_buffer("overlaps", torch.full((INTERVAL,), torch.nan), persistent=False)
        self.register_buffer("errors", torch.full((INTERVAL,), torch.nan), persistent=False)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals; then the settings follow."""
        regions = assign_regions(proposals, targets, IoUMatcher(self.threshold, self.threshold),
                                 self.bbox_head.num_classes)
        samples = sample_regions(regions, self.sampler)
        _, boxes, image = samples.rois()
        logits, deltas = self.bbox_head(self.region_features(features, boxes, image))
        losses = self.bbox_head.loss(logits, deltas, samples)
        self.observe(best_overlap(regions, targets), best_error(samples, self.bbox_head.stds))
        return losses

    @torch.no_grad()
    def observe(self, overlap: Tensor, error: Tensor) -> None:
        """Remember a step's statistics, 0-dim; every `INTERVAL` steps, set by them."""
        place = (self.seen % INTERVAL)[None]
        self.overlaps.index_copy_(0, place, reduce_mean(overlap)[None])
        self.errors.index_copy_(0, place, reduce_mean(error)[None])
        self.seen += 1
        due = self.seen % INTERVAL == 0
        loss = self.bbox_head.box_loss
        assert isinstance(loss, DynamicSmoothL1)
        threshold = self.overlaps.nanmean().clamp(min=LEAST_IOU)
        beta = self.errors.nanquantile(0.5).clamp(max=MOST_BETA)
        self.threshold.copy_(torch.where(due & threshold.isfinite(), threshold, self.threshold))
        usable = due & (beta > torch.finfo(torch.float32).eps)  # there were errors to see
        loss.beta.copy_(torch.where(usable, beta, loss.beta))


@torch.no_grad()
def best_overlap(regions: Samples, targets: list[Target]) -> Tensor:
    """Mean over the images of the `IOU_TOP`-th largest IoU that a region has with an object (section 3.2)."""
    truth, _, truth_valid = pad_targets(targets)
    overlap = box.pairwise_iou(regions.boxes, truth).masked_fill(~truth_valid[:, None], 0).amax(2)
    # The objects' own boxes are regions too, and overlap themselves wholly.
    overlap = overlap.masked_fill(regions.is_truth, 1.0).masked_fill(~regions.valid, -1.0)
    place = regions.valid.sum(1).clamp(min=1, max=IOU_TOP) - 1
    return overlap.sort(1, descending=True).values.gather(1, place[:, None]).clamp(min=0).mean()


@torch.no_grad()
def best_error(samples: Samples, stds: Sequence[float]) -> Tensor:
    """The `BETA_TOP`-th smallest error of the positives' centres an image, in units of the offsets (section 3.3)."""
    error = box.encode(samples.boxes, samples.truth, stds)[..., :2].abs().mean(-1)
    ordered = error.masked_fill(~samples.positive, torch.inf).flatten().sort().values
    place = samples.positive.sum().clamp(min=1, max=BETA_TOP * len(samples.boxes)) - 1
    found = ordered[place[None]][0]
    return torch.where(found.isfinite(), found, torch.nan)


def dynamic_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                 anchor_scale: float = 8, samples: int = 512, rpn_samples: int = 256, sampling: int = 0,
                 train_limits: Limits = FPN_TRAIN, test_limits: Limits = FPN_TEST) -> FasterRCNN:
    """Dynamic R-CNN; options as in `faster_rcnn`."""
    train_limits, test_limits = (replace(limits, iou=RPN_NMS) for limits in (train_limits, test_limits))
    rpn_head = RPNHead(width, fpn_anchors(anchor_scale), samples=rpn_samples, train_limits=train_limits,
                       test_limits=test_limits)
    bbox_head = BoxHead(width, num_classes, hidden=hidden, box_loss=DynamicSmoothL1())
    head = DynamicRoIHead(MultiScaleRoIAlign(sampling=sampling), bbox_head, samples=samples)
    return FasterRCNN(backbone, FPN(backbone.channels, width), rpn_head, head, num_classes)
