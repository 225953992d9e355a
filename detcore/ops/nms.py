"""From scores to detections: thresholds, the best scores, non-maximum suppression.

Scores are thresholded before anything is sorted: nearly all of a dense head's scores are below any threshold.
"""
from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detcore.errors import UsageError
from detcore.ops import boxes as box
from detcore.structures import Detections, Proposals


@dataclass
class Settings:
    """Settings that are checked: a threshold outside 0..1 or a number below 1 raises a UsageError."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("threshold") and not 0 <= value <= 1:
                raise UsageError(f"{f.name} is a number from 0 to 1, not {value}.")
            if f.name.endswith(("_n", "detections")) and (value != int(value) or value < 1):
                raise UsageError(f"{f.name} is a whole number of at least 1, not {value}.")


@dataclass
class PostProcess(Settings):
    """Which detections are kept at test time.

    Attributes:
        score_threshold: detections must score higher. max_detections: of an image.
        nms_threshold: IoU above which the lower-scored box of a class is dropped.
        pre_nms_top_n: best scores of each level of a dense head that go on to NMS.
        soft_nms: overlapping boxes lose score instead (Bodla et al. 2017); `nms_threshold` is where that begins.
        class_agnostic_nms: boxes of different classes suppress each other too.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    pre_nms_top_n: int = 1000
    soft_nms: bool = False
    class_agnostic_nms: bool = False


@dataclass
class ProposalSettings(Settings):
    """Which proposals are kept.

    Attributes:
        pre_nms_top_n: best anchors of each level that go on to NMS; post_nms_top_n: proposals kept an image.
        nms_threshold: IoU above which the lower-scored box of a level is dropped.
        score_threshold: least score of a proposal.
    """

    pre_nms_top_n: int
    post_nms_top_n: int
    nms_threshold: float = 0.7
    score_threshold: float = 0.0


# Choosing the best scores

def top_scores(scores: Tensor, score_threshold: float, top_n: int, *,
               logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The best class scores of each image, of those above a threshold.

    Args:
        scores: [N, A, C], one for each anchor and class; top_n: kept an image at most.
        logits: `scores` are logits of them; the sigmoid is then taken of the chosen ones alone.

    Returns:
        Scores [N, K], falling, -1 where an image has fewer than K; index [N, K] into A; label [N, K].
    """
    flat, classes = scores.flatten(1), scores.shape[2]
    if torch.compiler.is_compiling() or not flat.numel():  # a number of candidates that depends on data ends a graph
        flat = flat.float().sigmoid() if logits else flat.float()
        best, index = flat.topk(min(top_n, flat.shape[1]), 1)
        return torch.where(best > score_threshold, best, -1.0), index // classes, index % classes
    limit = torch.tensor(score_threshold, dtype=torch.float64).logit().item() if logits else score_threshold
    image, index = (flat > limit).nonzero(as_tuple=True)
    values = flat[image, index].float()
    values = values.sigmoid() if logits else values
    # One row an image again, as long as the most candidates of any.
    counts = torch.bincount(image, minlength=len(flat))
    slot = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    most = max(int(counts.max()), 1)
    rows = values.new_full((len(flat), most), -1.0).index_put((image, slot), values)
    where = index.new_zeros(len(flat), most).index_put((image, slot), index)
    best, place = rows.topk(min(top_n, most), 1)
    index = where.gather(1, place)
    return best, index // classes, index % classes


# Non-maximum suppression

@torch.library.custom_op("detcore::grouped_nms", mutates_args=())
def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within groups: indices of the boxes [P, 4] that stay, best first.

    torchvision keeps the groups of up to some thousand boxes apart by moving each group to a place of its own, and
    takes more boxes group by group. With many images and classes such places lie far out, where float32 no longer
    resolves a pixel, so boxes are compared in float64.

    An operator of its own, so that an exported graph can hold it as one node.
    """
    return batched_nms(boxes.double(), scores.double(), groups, iou_threshold)


@grouped_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return groups.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


def nms_per_image(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float,
                  max_kept: int) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression of a whole batch, within each image and group.

    Args:
        boxes: [N, P, 4]; scores: [N, P]; valid: [N, P] bool.
        groups: [N, P] int64, boxes of different groups (levels, classes) never suppress each other.

    Returns:
        index [N, max_kept] into P, best first, and filled [N, max_kept] bool.
    """
    n, p = scores.shape
    image = torch.arange(n, device=boxes.device)[:, None].expand(n, p)
    chosen = valid.flatten().nonzero()[:, 0]
    flat_group = (image * (groups.max() + 1 if p else 1) + groups).flatten()[chosen]
    kept = chosen[grouped_nms(boxes.reshape(-1, 4)[chosen], scores.flatten()[chosen], flat_group, iou_threshold)]
    # `kept` is sorted by score over the whole batch, so a box's place is the number of its image's boxes before it.
    owner = kept // max(p, 1)
    rank = (owner == torch.arange(n, device=owner.device)[:, None]).cumsum(1) - 1
    # What finds no place lands in a slot of its own, which is cut off.
    place = rank.gather(0, owner[None])[0].clamp(max=max_kept)
    index = kept.new_full((n, max_kept + 1), -1)
    index[owner, place] = kept % max(p, 1)
    index = index[:, :max_kept]
    return index.clamp(min=0), index >= 0


def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float = 0.5, sigma: float | None = None,
             min_score: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017): overlapping boxes lose score instead of being dropped.

    The decay is linear from the threshold on (equation 2), or with `sigma` Gaussian from zero on (equation 3). The
    groups lie in the rows of one table and advance together: step k fixes the k-th best box of every group.

    Args:
        boxes: [P, 4]; scores: [P]; groups: [P] int64; min_score: boxes that fall to it or below are dropped.

    Returns:
        index [K] into P, by falling new score, and the new scores [K].
    """
    if len(boxes) == 0:
        return groups.new_zeros(0), scores.new_zeros(0)
    # The table: a row for each group, with the indices of its boxes, then -1.
    row = groups.unique(return_inverse=True)[1]
    by_row = row.sort(stable=True).indices
    counts = torch.bincount(row)
    column = torch.arange(len(by_row), device=boxes.device) - (counts.cumsum(0) - counts)[row[by_row]]
    table = torch.full((len(counts), int(counts.max())), -1, device=boxes.device)
    table[row[by_row], column] = by_row

    rows = torch.arange(len(counts), device=boxes.device)
    score = torch.where(table >= 0, scores[table.clamp(min=0)], scores.new_tensor(-1.0))
    fixed = torch.zeros_like(score, dtype=torch.bool)
    table_boxes = boxes[table.clamp(min=0)]
    for _ in range(table.shape[1]):
        best = score.masked_fill(fixed, -1.0).argmax(1)
        fixed[rows, best] = True
        overlap = box.pairwise_iou(table_boxes[rows, best][:, None], table_boxes)[:, 0]
        if sigma is None:
            decay = torch.where(overlap >= iou_threshold, 1 - overlap, 1.0)
        else:
            decay = torch.exp(-(overlap**2) / sigma)
        score = torch.where(fixed, score, score * decay)
    keep = (table >= 0) & (score > min_score)
    kept_scores, order = score[keep].sort(descending=True)
    return table[keep][order], kept_scores


# Detections

def dense_detections(boxes: Tensor, scores: Tensor, labels: Tensor, settings: PostProcess) -> list[Detections]:
    """Detections of a batch from the candidates of a dense head: NMS within each class, best first.

    Of the boxes [N, P, 4] (in pixels), scores and labels [N, P] those at or below the score threshold are left out.
    """
    valid = (scores > settings.score_threshold) & (box.sizes(boxes) > 0).all(-1)
    groups = torch.zeros_like(labels) if settings.class_agnostic_nms else labels
    index, filled = nms_per_image(boxes, scores, groups, valid, settings.nms_threshold, settings.max_detections)
    return [Detections(b[i[f]], s[i[f]], c[i[f]]) for b, s, c, i, f in zip(boxes, scores, labels, index, filled)]


def region_detections(boxes: Tensor, scores: Tensor, image: Tensor, num_images: int,
                      settings: PostProcess) -> list[Detections]:
    """Detections of a batch from scored regions: every class above the score threshold, NMS within each class.

    Args:
        boxes: [r, C, 4] or [r, 1, 4] in pixels; scores: [r, C]; image: [r], index of each region's image.
    """
    classes = scores.shape[1]
    row, label = (scores > settings.score_threshold).nonzero(as_tuple=True)
    score, owner = scores[row, label], image[row]
    candidates = boxes.expand(-1, classes, -1)[row, label]
    group = owner if settings.class_agnostic_nms else owner * classes + label
    if settings.soft_nms:
        order, kept_scores = soft_nms(candidates, score, group, settings.nms_threshold)
    else:
        order = grouped_nms(candidates, score, group, settings.nms_threshold)
        kept_scores = score[order]
    mine = [(owner[order] == i).nonzero()[:settings.max_detections, 0] for i in range(num_images)]
    return [Detections(candidates[order[m]], kept_scores[m], label[order[m]]) for m in mine]


def top_proposals(boxes: Tensor, scores: Tensor, levels: Tensor, settings: ProposalSettings) -> Proposals:
    """Proposals of a batch: NMS of boxes [N, P, 4] (in pixels) within each of their levels [N, P], best first; scores
    [N, P] are negative for what is no candidate."""
    valid = (box.sizes(boxes) > 0).all(-1) & (scores >= settings.score_threshold)
    index, filled = nms_per_image(boxes, scores, levels, valid, settings.nms_threshold, settings.post_nms_top_n)
    return Proposals(box.gather(boxes, index), scores.gather(1, index), filled)
