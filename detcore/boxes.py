"""Boxes: coding against anchors, the IoU family, clipping, non-maximum suppression.

Boxes are [..., 4] (x1, y1, x2, y2) in absolute pixels. Everything is batched and keeps gradients where it can.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

# A predicted size may differ from its anchor's by this factor at most, so that exp() cannot overflow.
MAX_LOG_RATIO = abs(math.log(16 / 1000))


def encode(anchors: Tensor, boxes: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Offsets (dx, dy, dw, dh) that turn anchors into boxes (R-CNN, appendix C).

    Args:
        anchors, boxes: [..., 4], broadcastable.
        stds: the scale of each offset; offsets are divided by it.
    """
    a_centre, a_size = _centre_size(anchors)
    centre, size = _centre_size(boxes)
    deltas = torch.cat([(centre - a_centre) / a_size, torch.log(size / a_size)], -1)
    return deltas / deltas.new_tensor(stds)


def decode(anchors: Tensor, deltas: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes that offsets [..., 4] make of anchors [..., 4]; the inverse of `encode`."""
    deltas = deltas.float() * deltas.new_tensor(stds, dtype=torch.float32)
    a_centre, a_size = _centre_size(anchors)
    centre = a_centre + a_size * deltas[..., :2]
    half = a_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat([centre - half, centre + half], -1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return (top_left + bottom_right) * 0.5, bottom_right - top_left


def from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """The boxes [..., 4] whose sides have distances (left, top, right, bottom) [..., 4] from points (x, y) [..., 2]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances [..., 4] of points [..., 2] from the sides of boxes [..., 4], broadcastable; negative outside.

    The inverse of `from_distances`.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [N, ..., 4] moved inside their images; sizes [N, 2] holds each image's (h, w)."""
    limit = sizes.flip(-1).repeat(1, 2).to(boxes).reshape(boxes.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def area(boxes: Tensor) -> Tensor:
    """[...] areas of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """[..., n, m] intersection over union of every box in a [..., n, 4] with every box in b [..., m, 4]."""
    top_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    bottom_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return inter / union.clamp(min=1e-6)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[...] intersection over union of aligned boxes a, b [..., 4]."""
    return _inter_union(a, b)[2]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """[...] generalised IoU: IoU less the share of the enclosing box that neither covers (Rezatofighi et al. 2019)."""
    _, union, overlap = _inter_union(a, b)
    enclosing = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1).clamp(min=1e-6)
    return overlap - (enclosing - union) / enclosing


def ciou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """[...] complete IoU: IoU less centre distance and aspect-ratio terms (Zheng et al. 2021, equation 9).

    The trade-off weight of the aspect-ratio term is a constant for the gradient, and zero while IoU <= 0.5.
    """
    overlap = _inter_union(a, b, eps)[2]
    (a_centre, a_size), (b_centre, b_size) = _centre_size(a), _centre_size(b)
    diagonal = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    distance = ((a_centre - b_centre) ** 2).sum(-1) / ((diagonal**2).sum(-1) + eps)
    angle = torch.atan(b_size[..., 0] / (b_size[..., 1] + eps)) - torch.atan(a_size[..., 0] / (a_size[..., 1] + eps))
    aspect = (4 / math.pi**2) * angle**2
    with torch.no_grad():
        alpha = (overlap > 0.5).float() * aspect / (1 - overlap + aspect).clamp(min=eps)
    return (overlap - distance - alpha * aspect).clamp(-1, 1)


def _inter_union(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (area(a) + area(b) - inter).clamp(min=eps)
    return inter, union, inter / union


def size_tensor(sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """[N, 2] (h, w) on the device of `like`, without waiting for it."""
    sizes_cpu = torch.tensor(sizes, dtype=torch.float32)
    return sizes_cpu.to(like.device, non_blocking=True)


@torch.library.custom_op("detcore::grouped_nms", mutates_args=())
def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within groups: indices of the boxes [P, 4] that stay, best first.

    Groups are kept apart by moving each to a place of its own. With many images and classes such places lie far out,
    where float32 no longer resolves a pixel, so boxes are compared in float64.

    An operator of its own, so that an exported graph can hold it as one node.
    """
    return batched_nms(boxes.double(), scores.double(), groups, iou_threshold)


@grouped_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return groups.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


def nms_per_image(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float,
                  limit: int) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression of a whole batch, within each image and group.

    Args:
        boxes: [N, P, 4]; scores: [N, P]; valid: [N, P] bool.
        groups: [N, P] int64, boxes of different groups (levels, classes) never suppress each other.
        limit: boxes kept per image at most.

    Returns:
        index [N, limit] into P, best first, and filled [N, limit] bool.
    """
    n, p = scores.shape
    image = torch.arange(n, device=boxes.device)[:, None].expand(n, p)
    where = valid.flatten().nonzero()[:, 0]
    flat_group = (image * (groups.max() + 1 if p else 1) + groups).flatten()[where]
    kept = where[grouped_nms(boxes.reshape(-1, 4)[where], scores.flatten()[where], flat_group, iou_threshold)]
    # `kept` is sorted by score over the whole batch, so a box's place is the number of its image's boxes before it.
    owner = kept // max(p, 1)
    rank = (owner == torch.arange(n, device=owner.device)[:, None]).cumsum(1) - 1
    # What finds no place lands in a slot of its own, which is cut off.
    place = rank.gather(0, owner[None])[0].clamp(max=limit)
    index = kept.new_zeros(n, limit + 1)
    filled = torch.zeros(n, limit + 1, dtype=torch.bool, device=boxes.device)
    index[owner, place] = kept % max(p, 1)
    filled[owner, place] = True
    return index[:, :limit], filled[:, :limit]


def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float = 0.5, sigma: float | None = None,
             min_score: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017): overlapping boxes lose score instead of their place.

    The decay is linear from the threshold on (equation 2), or with `sigma` Gaussian from zero on (equation 3).

    All groups advance together: step k fixes the k-th best box of every group.

    Args:
        boxes: [P, 4]; scores: [P]; groups: [P] int64.

    Returns:
        index [K] into P, by falling new score, and the new scores [K].
    """
    if len(boxes) == 0:
        return groups.new_zeros(0), scores.new_zeros(0)
    group = groups.unique(return_inverse=True)[1]
    order = group.sort(stable=True).indices
    count = torch.bincount(group)
    start = count.cumsum(0) - count
    slot = torch.arange(len(order), device=boxes.device) - start[group[order]]
    table = torch.full((len(count), int(count.max())), -1, device=boxes.device)
    table[group[order], slot] = order
    row = torch.arange(len(count), device=boxes.device)
    current = torch.where(table >= 0, scores[table.clamp(min=0)], scores.new_tensor(-1.0))
    done = torch.zeros_like(current, dtype=torch.bool)
    padded = boxes[table.clamp(min=0)]
    for _ in range(table.shape[1]):
        best = current.masked_fill(done, -1.0).argmax(1)
        done[row, best] = True
        overlap = iou_matrix(padded[row, best][:, None], padded)[:, 0]
        if sigma is None:
            decay = torch.where(overlap >= iou_threshold, 1 - overlap, 1.0)
        else:
            decay = torch.exp(-(overlap**2) / sigma)
        current = torch.where(done, current, current * decay)
    keep = (table >= 0) & (current > min_score)
    kept_scores, order = current[keep].sort(descending=True)
    return table[keep][order], kept_scores
