"""Dynamic R-CNN: Zhang et al., "Dynamic R-CNN: Towards high quality object detection via dynamic training", 2020.

Proposals get better while a detector trains, but its settings stay as they were at the start. Here two of them follow
the training. The IoU that makes a region positive rises with the overlap that the better proposals reach (dynamic
label assignment), and the point where the smooth L1 loss bends falls with the size of the errors that are left
(dynamic SmoothL1 loss). At first there are enough positives, and later high quality is asked for. Nothing changes at
test time.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.ops import boxes as box
from detcore.ops.losses import reduce_mean
from detcore.ops.matching import IoUMatcher, pad_targets
from detcore.ops.regions import Samples, assign_regions, sample_regions
from detcore.options import forwards
from detcore.structures import Images, Proposals, Target

# Section 4: K_I and K_beta, how often the settings follow, and where they start.
IOU_TOP, BETA_TOP = 75, 10
INTERVAL = 100
FIRST_IOU, LEAST_IOU = 0.5, 0.4
MOST_BETA = 1.0


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
    """An RoI head that sets its IoU threshold and its box loss by what it sees (algorithm 1).

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

    def __init__(self, roi_align: MultiScaleRoIAlign, bbox_head: BoxHead, **options: Any):
        super().__init__(roi_align, bbox_head, **options)
        self.register_buffer("threshold", torch.tensor(FIRST_IOU), persistent=False)
        self.register_buffer("seen", torch.tensor(0), persistent=False)
        self.register_buffer("overlaps", torch.full((INTERVAL,), torch.nan), persistent=False)
        self.register_buffer("errors", torch.full((INTERVAL,), torch.nan), persistent=False)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals; then the settings follow."""
        assigned = assign_regions(proposals, targets, IoUMatcher(self.threshold, self.threshold), self.num_classes)
        samples = sample_regions(assigned, self.sampler)
        losses, _ = self.box_loss(features, samples.regions())
        self.observe(best_overlap(assigned, targets), best_error(samples, self.bbox_head.stds))
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
def best_overlap(assigned: Samples, targets: list[Target]) -> Tensor:
    """Mean over the images of the `IOU_TOP`-th largest IoU that a region has with an object (section 3.2)."""
    gt_boxes, _, gt_valid = pad_targets(targets)
    overlap = box.pairwise_iou(assigned.boxes, gt_boxes).masked_fill(~gt_valid[:, None], 0).amax(2)
    # The objects' own boxes are regions too, and overlap themselves wholly.
    overlap = overlap.masked_fill(assigned.is_gt, 1.0).masked_fill(~assigned.valid, -1.0)
    rank = assigned.valid.sum(1).clamp(min=1, max=IOU_TOP) - 1
    best = overlap.topk(min(IOU_TOP, overlap.shape[1]), 1).values
    return best.gather(1, rank[:, None]).clamp(min=0).mean()


@torch.no_grad()
def best_error(samples: Samples, stds: Sequence[float]) -> Tensor:
    """The `BETA_TOP`-th smallest error of the positives' centres an image, in units of the offsets (section 3.3)."""
    error = box.encode(samples.boxes, samples.gt_boxes, stds)[..., :2].abs().mean(-1)
    ordered = error.masked_fill(~samples.positive, torch.inf).flatten().sort().values
    rank = samples.positive.sum().clamp(min=1, max=BETA_TOP * len(samples.boxes)) - 1
    smallest = ordered[rank[None]][0]
    return torch.where(smallest.isfinite(), smallest, torch.nan)


@forwards(faster_rcnn, without=["box_loss", "decoded", "hard_examples", "roi_head"])
def dynamic_rcnn(backbone: ResNet, num_classes: int = 80, *, rpn_nms_threshold: float = 0.85,
                 **options: Any) -> TwoStageDetector:
    """Dynamic R-CNN, whose RPN leaves more and better proposals than usual; options as in `faster_rcnn`."""
    return faster_rcnn(backbone, num_classes, roi_head=DynamicRoIHead, box_loss=DynamicSmoothL1(),
                       rpn_nms_threshold=rpn_nms_threshold, **options)
