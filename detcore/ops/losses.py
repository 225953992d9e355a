"""Losses that several methods share. All of them weigh each element and divide the sum by a count.

The count is averaged over the processes of a distributed run, so that its gradient equals that of one process with
the whole batch.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from detcore.ops import boxes as box

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]  # of predictions and targets


def reduce_mean(count: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the tensor itself in a run of one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count
    count = count.detach().float() / dist.get_world_size()
    dist.all_reduce(count)
    return count


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Elementwise cross-entropy of sigmoid(logits), in float32."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")


def focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Elementwise focal loss: cross-entropy weighted by how wrong the prediction is (Lin et al. 2017, equation 5).

    Args:
        targets: 0 or 1. alpha: weight of positives, 1 - alpha of negatives. gamma: how strongly easy ones are muted.
    """
    p, targets = logits.float().sigmoid(), targets.float()
    miss = p * (1 - targets) + (1 - p) * targets
    weight = (alpha * targets + (1 - alpha) * (1 - targets)) * miss**gamma
    return weight * binary_cross_entropy(logits, targets)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """[...] the dice loss of masks, logits and targets [..., P] of P pixels (Milletari et al., "V-Net", 2016).

    One minus twice the overlap over the sum of both areas, with one pixel added above and below.
    """
    p, targets = logits.float().sigmoid(), targets.float()
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def log_loss(probability: Tensor) -> Tensor:
    """Elementwise -log p; what is impossible costs 100, as PyTorch's cross-entropy of probabilities has it."""
    return -probability.float().clamp(min=1e-12).log().masked_fill(probability <= 0, -100.0)


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Elementwise |pred - target|."""
    return (pred.float() - target).abs()


@dataclass(frozen=True)
class SmoothL1:
    """Elementwise: quadratic below beta, linear above (Fast R-CNN, equation 3)."""

    beta: float = 1.0

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(pred.float(), target, beta=self.beta, reduction="none")


# Losses on decoded boxes: pred, target [n, 4] in pixels -> [n].

def iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """-log IoU (UnitBox, Yu et al. 2016)."""
    return -box.iou(pred, target).clamp(min=1e-6).log()


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - generalised IoU."""
    return 1 - box.giou(pred, target)


def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - complete IoU."""
    return 1 - box.ciou(pred, target)


def bounded_iou_loss(pred: Tensor, target: Tensor, beta: float = 0.2, eps: float = 1e-3) -> Tensor:
    """Smooth L1 of the largest IoU still possible given the error of one coordinate, summed over the four
    (Tychsen-Smith & Petersson 2018)."""
    size, true_size = box.sizes(pred), box.sizes(target)
    shift = 2 * (box.centers(target) - box.centers(pred)).abs()
    bound_centre = 1 - ((true_size - shift) / (true_size + shift + eps)).clamp(min=0)
    bound_size = 1 - torch.minimum(true_size / (size + eps), size / (true_size + eps))
    bound = torch.cat([bound_centre, bound_size], -1)
    return torch.where(bound < beta, 0.5 * bound**2 / beta, bound - 0.5 * beta).sum(-1)
