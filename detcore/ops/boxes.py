"""Boxes: coding against anchors, the IoU family, clipping.

Boxes are [..., 4] (x1, y1, x2, y2) in absolute pixels. Everything is batched and keeps gradients where it can.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A predicted size may differ from its anchor's by this factor at most, so that exp() cannot overflow.
MAX_LOG_RATIO = abs(math.log(16 / 1000))


def encode(anchors: Tensor, boxes: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Offsets (dx, dy, dw, dh) [..., 4] that turn anchors into boxes [..., 4], broadcastable, in units of `stds`
    (R-CNN, appendix C)."""
    size = sizes(anchors)
    deltas = torch.cat([(centers(boxes) - centers(anchors)) / size, torch.log(sizes(boxes) / size)], -1)
    return _scale(deltas, [1 / std for std in stds])


def decode(anchors: Tensor, deltas: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes [..., 4] that offsets [..., 4] make of anchors [..., 4]; the inverse of `encode`, in float32."""
    deltas, size = _scale(deltas.float(), stds), sizes(anchors)
    center = centers(anchors) + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat([center - half, center + half], -1)


def _scale(deltas: Tensor, factors: Sequence[float]) -> Tensor:
    # The factors go into the kernels as numbers: a tensor of them would be a copy that waits for the device.
    if all(factor == 1 for factor in factors):
        return deltas
    return torch.stack([d * factor for d, factor in zip(deltas.unbind(-1), factors)], -1)


def centers(boxes: Tensor) -> Tensor:
    """Centres [..., 2] (x, y) of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5


def sizes(boxes: Tensor) -> Tensor:
    """Widths and heights [..., 2] of boxes [..., 4]."""
    return boxes[..., 2:] - boxes[..., :2]


def gather(values: Tensor, index: Tensor) -> Tensor:
    """[N, K, ...] rows of values [N, A, ...] at index [N, K], for each image its own."""
    return values.gather(1, index.view(*index.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:]))


def rescale(boxes: Tensor, size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of an image of `size` (h, w), in the same image at `output_size` (h, w)."""
    if size == output_size:
        return boxes
    y, x = output_size[0] / size[0], output_size[1] / size[1]
    return _scale(boxes, (x, y, x, y))


def from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """The boxes [..., 4] whose sides have distances (left, top, right, bottom) [..., 4] from points (x, y) [..., 2]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `from_distances`, for points and boxes that can be broadcast; negative outside the box."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [N, ..., 4] moved inside their images; sizes [N, 2] holds each image's (h, w)."""
    limit = sizes.flip(-1).repeat(1, 2).to(boxes).reshape(boxes.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def area(boxes: Tensor) -> Tensor:
    """[...] areas of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """[..., n, m] intersection over union of every box in a [..., n, 4] with every box in b [..., m, 4]."""
    # One side after the other: a tensor of both would take twice the memory.
    inter = _overlap(a[..., 0], a[..., 2], b[..., 0], b[..., 2]) * _overlap(a[..., 1], a[..., 3], b[..., 1], b[..., 3])
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return inter / union.clamp(min=1e-6)


def _overlap(a_low: Tensor, a_high: Tensor, b_low: Tensor, b_high: Tensor) -> Tensor:
    high = torch.minimum(a_high[..., :, None], b_high[..., None, :])
    return (high - torch.maximum(a_low[..., :, None], b_low[..., None, :])).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] intersection over union of aligned boxes a, b [..., 4]."""
    return _union_iou(a, b)[1]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """[...] generalised IoU: IoU less the share of the enclosing box that neither covers (Rezatofighi et al. 2019)."""
    union, overlap = _union_iou(a, b)
    enclosing = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1).clamp(min=1e-6)
    return overlap - (enclosing - union) / enclosing


def ciou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """[...] complete IoU: IoU less centre distance and aspect-ratio terms (Zheng et al. 2021, equation 9).

    The trade-off weight of the aspect-ratio term is a constant for the gradient, and zero while IoU <= 0.5.
    """
    overlap = _union_iou(a, b, eps)[1]
    a_size, b_size = sizes(a), sizes(b)
    diagonal = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    distance = ((centers(a) - centers(b)) ** 2).sum(-1) / ((diagonal**2).sum(-1) + eps)
    angle = torch.atan(b_size[..., 0] / (b_size[..., 1] + eps)) - torch.atan(a_size[..., 0] / (a_size[..., 1] + eps))
    aspect = (4 / math.pi**2) * angle**2
    with torch.no_grad():
        alpha = (overlap > 0.5).float() * aspect / (1 - overlap + aspect).clamp(min=eps)
    return (overlap - distance - alpha * aspect).clamp(-1, 1)


def _union_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (area(a) + area(b) - inter).clamp(min=eps)
    return union, inter / union


def size_tensor(sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """[N, 2] (h, w) on the device of `like`, without waiting for it."""
    return torch.tensor(sizes, dtype=torch.float32).to(like.device, non_blocking=True)
