"""Assignment of predictions to ground truth, and sampling of what is assigned.

Ground truth of a batch is padded to one length, so that matching is a few tensor operations whatever the batch holds,
and nothing waits for the device.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detcore.ops import boxes as box
from detcore.structures import Target

BACKGROUND, IGNORE = -1, -2
INSIDE = 0.01  # pixels between a box's sides and a centre that counts as inside
# Entries of a table of objects and anchors that are looked at together: 64 MB a tensor. The CPU takes fewer, so that
# tables are made in memory that it has already, which is four times as fast.
CHUNK, CPU_CHUNK = 2**24, 2**21


def pad_targets(targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, G, 4], labels [N, G] and which entries are real [N, G]; G is the largest count, at least 1."""
    counts = [len(t.boxes) for t in targets]
    boxes = pad_sequence([t.boxes for t in targets], batch_first=True)
    labels = pad_sequence([t.labels for t in targets], batch_first=True)
    if max(counts) == 0:
        boxes, labels = boxes.new_zeros(len(targets), 1, 4), labels.new_zeros(len(targets), 1)
    lengths = torch.tensor(counts).to(boxes.device, non_blocking=True)
    return boxes, labels, torch.arange(boxes.shape[1], device=boxes.device) < lengths[:, None]


def object_chunks(gt_valid: Tensor, columns: int) -> Iterator[tuple[Tensor | slice, slice]]:
    """Images and objects to look at together, so that a table of them by `columns` anchors stays below `CHUNK` entries.

    On the CPU images whose objects are all done are left out; elsewhere asking for that would wait for the device.
    gt_valid [N, G] is true for each image's objects, which come first.
    """
    on_cpu, (n, objects) = gt_valid.device.type == "cpu", gt_valid.shape
    chunk = CPU_CHUNK if on_cpu else CHUNK
    images: Tensor | slice = slice(None)
    if n * objects * columns <= chunk or torch.compiler.is_compiling():
        yield images, slice(None)
        return
    counts, start = gt_valid.sum(1), 0
    while start < objects:
        if on_cpu:
            images = (counts > start).nonzero()[:, 0]
            n = len(images)
            if n == 0:
                return
        step = max(chunk // (n * columns), 1)
        yield images, slice(start, start + step)
        start += step


@dataclass
class IoUMatcher:
    """Each box takes the object that it overlaps most, if it overlaps enough (Faster R-CNN, section 3.1.2).

    Attributes:
        positive: IoU from which a box is positive; negative: below which it is background; in between it is ignored.
        low_quality: objects that no box overlaps enough keep their best boxes, if IoU >= this; None: they don't.
        ties: of equally good best boxes the object keeps all; otherwise the first.
    """

    positive: float | Tensor
    negative: float | Tensor
    low_quality: float | None = None
    ties: bool = True

    def __call__(self, boxes: Tensor, gt_boxes: Tensor, gt_valid: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Index of the matched object, or BACKGROUND, or IGNORE, [N, A] int64.

        Args:
            boxes: [A, 4] or [N, A, 4].
            gt_boxes: [N, G, 4]; gt_valid: [N, G] bool, each image's objects first.
            candidates: [N, A] bool, boxes that may take part; None: all.
        """
        return self.by_overlap(
            lambda images, objects: box.pairwise_iou(
                gt_boxes[images][:, objects], boxes if boxes.dim() == 2 else boxes[images]),
            boxes.shape[-2], gt_valid, candidates)

    def by_overlap(self, overlaps: Callable[[Tensor | slice, slice], Tensor], number: int, gt_valid: Tensor,
                   candidates: Tensor | None = None) -> Tensor:
        """The same for a `number` of boxes A from how much objects overlap them, which `overlaps` gives [n, g, A] for
        images and objects of `object_chunks`."""
        best = torch.full((len(gt_valid), number), -1.0, device=gt_valid.device)
        index, claimed = torch.zeros_like(best, dtype=torch.long), torch.zeros_like(best, dtype=torch.long)
        for images, objects in object_chunks(gt_valid, number):
            overlap = overlaps(images, objects).masked_fill(~gt_valid[images][:, objects, None], -1.0)
            if candidates is not None:
                overlap = overlap.masked_fill(~candidates[images][:, None, :], -1.0)
            first = objects.start or 0
            top, place = overlap.max(1)
            better = top > best[images]
            index[images] = torch.where(better, place + first, index[images])
            best[images] = torch.where(better, top, best[images])
            if self.low_quality is not None:
                # Where several objects claim a box, the last one has it.
                claimed[images] = torch.maximum(claimed[images], self._claims(overlap, first, self.low_quality))
        match = torch.where(best >= self.positive, index, torch.where(best < self.negative, BACKGROUND, IGNORE))
        match = torch.where(claimed > 0, claimed - 1, match)
        return match if candidates is None else match.masked_fill(~candidates, IGNORE)

    def _claims(self, overlap: Tensor, first: int, least: float) -> Tensor:
        """[n, A] 1 + the last object, counted from `first`, whose best box this is, if IoU >= `least`; 0 for none."""
        top, at = overlap.max(2, keepdim=True)
        is_top = overlap == top if self.ties else torch.arange(overlap.shape[2], device=top.device) == at
        number = torch.arange(first + 1, first + 1 + overlap.shape[1], device=overlap.device)[:, None]
        return (is_top * (top >= least) * number).amax(1)


@dataclass
class ATSSMatcher:
    """Each object takes those of its nearest boxes that stand out (Zhang et al., "Bridging the gap between anchor-based
    and anchor-free detection via adaptive training sample selection", 2020, algorithm 1).

    The boxes nearest to the object's centre, `nearest` of every level, are its candidates. Their IoUs' mean plus
    standard deviation is its own threshold. A box that several objects take belongs to the one that it overlaps most.
    """

    nearest: int = 9

    def __call__(self, levels: Sequence[Tensor], gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
        """Index of the matched object, or BACKGROUND, [N, A] int64.

        Args:
            levels: [a, 4] boxes of each level, A in all. gt_boxes, gt_valid: as in `IoUMatcher`.
        """
        boxes = torch.cat(list(levels))
        candidates = self.candidates(levels, gt_boxes, gt_valid)
        chosen, overlap = self.choose(boxes, candidates, gt_boxes)
        overlap = overlap.masked_fill(~(chosen & gt_valid[:, :, None]), -1.0)
        # Each box's best overlap, then the first object that has it.
        flat, where = overlap.flatten(1), candidates.flatten(1)
        best = flat.new_full((len(gt_boxes), len(boxes)), -1.0).scatter_reduce(1, where, flat, "amax")
        objects = torch.arange(gt_valid.shape[1], device=flat.device)[:, None].expand(candidates.shape[1:]).flatten()
        last = gt_valid.shape[1]
        owner = objects.masked_fill((flat < 0) | (flat < best.gather(1, where)), last)
        match = where.new_full(best.shape, last).scatter_reduce(1, where, owner, "amin")
        return match.masked_fill(match == last, BACKGROUND)

    def candidates(self, levels: Sequence[Tensor], gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
        """[N, G, K] indices of each object's nearest boxes, `nearest` of every level."""
        counts = [min(self.nearest, len(level)) for level in levels]
        found = gt_valid.new_zeros(*gt_valid.shape, sum(counts), dtype=torch.long)
        for images, objects in object_chunks(gt_valid, sum(map(len, levels))):
            nearest, start = [], 0
            centers = box.centers(gt_boxes[images][:, objects])
            for level, count in zip(levels, counts):
                distance = (box.centers(level) - centers[:, :, None]).square().sum(-1).sqrt()
                nearest.append(start + distance.topk(count, 2, largest=False).indices)
                start += len(level)
            found[images, objects] = torch.cat(nearest, 2)
        return found

    def choose(self, boxes: Tensor, candidates: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Which candidates [N, G, K] stand out and lie inside their object, and their IoU with it, [N, G, K] each."""
        near = boxes[candidates]
        overlap = box.iou(near, gt_boxes[:, :, None])
        chosen = overlap >= overlap.mean(2, keepdim=True) + overlap.std(2, keepdim=True)
        return chosen & (box.to_distances(box.centers(near), gt_boxes[:, :, None]).amin(-1) > INSIDE), overlap


@dataclass
class Sampler:
    """Keeps a fixed number of boxes an image, positives up to a share (Fast R-CNN, section 2.3).

    Attributes:
        number: boxes kept an image; None keeps all. positive_share: of them at most; negatives fill the rest.
        negatives_per_positive: so many negatives at most for each positive (or for one, if there is none).
    """

    number: int | None
    positive_share: float = 0.5
    negatives_per_positive: int | None = None

    @property
    def max_positives(self) -> int | None:
        return None if self.number is None else int(self.number * self.positive_share)

    def __call__(self, match: Tensor, priority: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Which boxes are kept as positives and as negatives, two [N, A] bool, of those that a matcher gave [N, A].

        Those of higher `priority` [N, A] are kept first; None: at random.
        """
        positive, negative = match >= 0, match == BACKGROUND
        if self.number is None or self.max_positives is None:
            return positive, negative
        if priority is None:
            priority = torch.rand(match.shape, device=match.device)
        most = match.new_full((len(match),), self.max_positives)
        positive = highest(positive, priority, most, self.max_positives)
        room = self.number - positive.sum(1)
        if self.negatives_per_positive is not None:
            room = room.minimum(self.negatives_per_positive * positive.sum(1).clamp(min=1))
        return positive, highest(negative, priority, room, self.number)


def highest(mask: Tensor, priority: Tensor, count: Tensor, most: int) -> Tensor:
    """`mask` [N, A] with only the `count` [N] entries of highest priority [N, A] left; `most` bounds the counts."""
    most = min(most, mask.shape[1])
    value, index = priority.float().masked_fill(~mask, -torch.inf).topk(most, 1)
    keep = (torch.arange(most, device=mask.device) < count[:, None]) & (value > -torch.inf)
    return torch.zeros_like(mask).scatter(1, index, keep)


def nonempty(filled: Tensor) -> Tensor:
    """Flat indices of the slots to compute, of the fixed number that a batch's samples lie in, some of them empty.

    On the CPU the empty ones are dropped, which costs nothing; elsewhere all are computed, with weight zero, because
    asking which are filled would wait for the device.
    """
    if filled.device.type == "cpu":
        return filled.flatten().nonzero()[:, 0]
    return torch.arange(filled.numel(), device=filled.device)
