"""Assignment of predictions to ground truth, and sampling of what is assigned.

Ground truth of a batch is padded to one length, so that matching is a few tensor operations whatever the batch holds,
and nothing waits for the device.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detcore.boxes import iou_matrix, to_distances
from detcore.structures import Target

BACKGROUND, NEITHER = -1, -2
DEAR = 1e6  # a cost that no real one reaches
INSIDE = 0.01  # pixels between a box's sides and a centre that counts as inside


def pad_targets(targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, G, 4], labels [N, G] and which entries are real [N, G]; G is the largest count, at least 1."""
    counts = [len(t.boxes) for t in targets]
    boxes = pad_sequence([t.boxes for t in targets], batch_first=True)
    labels = pad_sequence([t.labels for t in targets], batch_first=True)
    if max(counts) == 0:
        boxes, labels = boxes.new_zeros(len(targets), 1, 4), labels.new_zeros(len(targets), 1)
    lengths = torch.tensor(counts).to(boxes.device, non_blocking=True)
    return boxes, labels, torch.arange(boxes.shape[1], device=boxes.device) < lengths[:, None]


@dataclass
class IoUMatcher:
    """Each box takes the object that it overlaps most, if it overlaps enough (Faster R-CNN, section 3.1.2).

    Attributes:
        positive: IoU from which a box is positive.
        negative: IoU below which it is background; in between it is neither.
        low_quality: objects that no box overlaps enough keep their best boxes, if IoU >= this; None: they don't.
        ties: of equally good best boxes the object keeps all; otherwise the first.
    """

    positive: float | Tensor
    negative: float | Tensor
    low_quality: float | None = None
    ties: bool = True

    def __call__(self, boxes: Tensor, truth: Tensor, truth_valid: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Index of the matched object, or BACKGROUND, or NEITHER.

        Args:
            boxes: [A, 4] or [N, A, 4].
            truth: [N, G, 4]; truth_valid: [N, G] bool.
            candidates: [N, A] bool, boxes that may take part; None: all.

        Returns:
            [N, A] int64.
        """
        return self.by_overlap(iou_matrix(truth, boxes), truth_valid, candidates)

    def by_overlap(self, overlap: Tensor, truth_valid: Tensor, candidates: Tensor | None = None) -> Tensor:
        """The same from how much each object overlaps each box, [N, G, A]."""
        overlap = overlap.masked_fill(~truth_valid[:, :, None], -1.0)
        if candidates is not None:
            overlap = overlap.masked_fill(~candidates[:, None, :], -1.0)
        best, index = overlap.max(1)
        match = torch.where(best >= self.positive, index, torch.where(best < self.negative, BACKGROUND, NEITHER))
        if self.low_quality is not None:
            top, first = overlap.max(2, keepdim=True)
            is_top = (overlap == top if self.ties else torch.arange(overlap.shape[2], device=top.device) == first)
            is_top &= (top >= self.low_quality) & truth_valid[:, :, None]
            # Where several objects claim a box, the last one has it.
            order = torch.arange(1, overlap.shape[1] + 1, device=overlap.device)[:, None]
            claimed = (is_top * order).amax(1)
            match = torch.where(claimed > 0, claimed - 1, match)
        return match if candidates is None else match.masked_fill(~candidates, NEITHER)


@dataclass
class ATSSMatcher:
    """Each object takes those of its nearest boxes that stand out (Zhang et al., "Bridging the gap between anchor-based
    and anchor-free detection via adaptive training sample selection", 2020, algorithm 1).

    The boxes nearest to the object's centre, some of every level, are its candidates. Their IoUs' mean plus standard
    deviation is its own threshold. A box that several objects take belongs to the one that it overlaps most.

    Attributes:
        nearest: candidates of each level.
    """

    nearest: int = 9

    def __call__(self, levels: Sequence[Tensor], truth: Tensor, truth_valid: Tensor) -> Tensor:
        """Index of the matched object, or BACKGROUND, [N, A] int64.

        Args:
            levels: [a, 4] boxes of each level, A in all.
            truth: [N, G, 4]; truth_valid: [N, G] bool.
        """
        boxes = torch.cat(list(levels))
        overlap = iou_matrix(truth, boxes)
        centres, truth_centres = ((b[..., :2] + b[..., 2:]) / 2 for b in (boxes, truth))
        distance = (centres - truth_centres[:, :, None]).square().sum(-1).sqrt()
        nearest, start = [], 0
        for part in distance.split([len(level) for level in levels], 2):
            nearest.append(start + part.topk(min(self.nearest, part.shape[2]), 2, largest=False).indices)
            start += part.shape[2]
        candidates = torch.cat(nearest, 2)
        found = overlap.gather(2, candidates)
        chosen = found >= found.mean(2, keepdim=True) + found.std(2, keepdim=True)
        chosen &= to_distances(centres[candidates], truth[:, :, None]).amin(-1) > INSIDE
        chosen &= truth_valid[:, :, None]
        claim = torch.full_like(overlap, -1.0).scatter(2, candidates, found.masked_fill(~chosen, -1.0))
        best, index = claim.max(1)
        return index.masked_fill(best < 0, BACKGROUND)


def hungarian(costs: Sequence[Tensor], valid: Tensor) -> list[Tensor]:
    """One object for each query at most, and one query for each object, at the least cost in all (Carion et al. 2020).

    All costs are moved to the CPU at once, where SciPy solves one problem after the other.

    Args:
        costs: [..., N, Q, G] each, of giving an object to a query; what is not finite counts as very dear.
        valid: [N, G], which objects are real.

    Returns:
        For each of the costs [..., N, Q] int64, the index of each query's object, or BACKGROUND.
    """
    tables = [cost.detach().float().nan_to_num(DEAR, DEAR, -DEAR) for cost in costs]
    parts = [valid.float(), *tables]
    together = torch.cat([p.flatten() for p in parts]).cpu().split([p.numel() for p in parts])
    real = [row.nonzero()[0] for row in together[0].view(valid.shape).numpy()]
    found = []
    for table, flat in zip(tables, together[1:]):
        match = np.full((table.shape[:-1].numel() // table.shape[-2], table.shape[-2]), BACKGROUND)
        for i, one in enumerate(flat.view(-1, *table.shape[-2:]).numpy()):
            objects = real[i % len(real)]
            queries, chosen = linear_sum_assignment(one[:, objects])
            match[i, queries] = objects[chosen]
        found.append(torch.from_numpy(match).view(table.shape[:-1]).to(valid.device, non_blocking=True))
    return found


@dataclass
class Sampler:
    """Keeps a fixed number of boxes an image, positives up to a share (Fast R-CNN, section 2.3).

    Attributes:
        number: boxes kept an image; None keeps all.
        positive_share: share of positives at most; negatives fill the rest.
        negatives_per_positive: so many negatives at most for each positive (or for one, if there is none).
    """

    number: int | None
    positive_share: float = 0.5
    negatives_per_positive: int | None = None

    @property
    def max_positives(self) -> int | None:
        return None if self.number is None else int(self.number * self.positive_share)

    def __call__(self, match: Tensor, priority: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Which boxes are kept as positives and as negatives, two [N, A] bool.

        Args:
            match: [N, A] from a matcher.
            priority: [N, A], higher is kept first; None: at random.
        """
        positive, negative = match >= 0, match == BACKGROUND
        if self.number is None:
            return positive, negative
        if priority is None:
            priority = torch.rand(match.shape, device=match.device)
        assert self.max_positives is not None
        positive = highest(positive, priority, match.new_full((len(match),), self.max_positives), self.max_positives)
        room = self.number - positive.sum(1)
        if self.negatives_per_positive is not None:
            room = room.minimum(self.negatives_per_positive * positive.sum(1).clamp(min=1))
        negative = highest(negative, priority, room, self.number)
        return positive, negative


def highest(mask: Tensor, priority: Tensor, count: Tensor, most: int) -> Tensor:
    """`mask` [N, A] with only the `count` [N] entries of highest priority [N, A] left; `most` bounds the counts."""
    most = min(most, mask.shape[1])
    value, index = priority.float().masked_fill(~mask, -torch.inf).topk(most, 1)
    keep = (torch.arange(most, device=mask.device) < count[:, None]) & (value > -torch.inf)
    return torch.zeros_like(mask).scatter(1, index, keep)


def used(filled: Tensor) -> Tensor:
    """Flat indices of the slots to compute.

    A batch's samples lie in a fixed number of slots, some of them empty. On the CPU the empty ones are dropped, which
    costs nothing; elsewhere all are computed, with weight zero, because asking which are filled would wait for the
    device.
    """
    if filled.device.type == "cpu":
        return filled.flatten().nonzero()[:, 0]
    return torch.arange(filled.numel(), device=filled.device)
