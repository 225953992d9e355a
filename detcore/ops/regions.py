"""Regions of a two-stage detector: assigning and sampling proposals, and what belongs to each of the samples."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from detcore.ops import boxes as box
from detcore.ops.masks import crop_masks
from detcore.ops.matching import IGNORE, IoUMatcher, Sampler, nonempty, pad_targets
from detcore.structures import Detections, Images, Proposals, Target


@dataclass
class Samples:
    """Regions chosen for training, positives first, in S slots an image (some may be empty).

    Attributes:
        boxes: [N, S, 4] in pixels.
        matched: [N, S] index of the matched object; meaningless unless positive.
        gt_boxes: [N, S, 4] box of the matched object; labels: [N, S], the number of classes for background.
        positive, valid, is_gt: [N, S] bool; is_gt marks the objects' own boxes, added as proposals.
    """

    boxes: Tensor
    matched: Tensor
    gt_boxes: Tensor
    labels: Tensor
    positive: Tensor
    valid: Tensor
    is_gt: Tensor

    def regions(self) -> Regions:
        """The slots to compute: all that are not empty."""
        return self.at(nonempty(self.valid))

    def positives(self, most: int | None) -> Regions:
        """The slots that hold positives; they come first, so `most` slots an image are looked at, None for all."""
        slots = self.positive.shape[1] if most is None else min(most, self.positive.shape[1])
        index = nonempty(self.positive[:, :slots])
        return self.at(index // slots * self.positive.shape[1] + index % slots)

    def at(self, index: Tensor) -> Regions:
        """The regions in the slots that `index` [r] counts over the whole batch."""
        return Regions(index, index // self.boxes.shape[1], self.boxes.flatten(0, 1)[index],
                       self.matched.flatten()[index].clamp(min=0), self.gt_boxes.flatten(0, 1)[index],
                       self.labels.flatten()[index], self.positive.flatten()[index], self.valid.flatten()[index])


@dataclass
class Regions:
    """Regions of a batch in a row, r in all.

    Attributes:
        index: [r] slot of each, counted over the whole batch; image: [r] index of its image.
        boxes: [r, 4]; matched, gt_boxes, labels, positive, valid: [r, ...] as in `Samples`.
    """

    index: Tensor
    image: Tensor
    boxes: Tensor
    matched: Tensor
    gt_boxes: Tensor
    labels: Tensor
    positive: Tensor
    valid: Tensor

    def at(self, index: Tensor) -> Regions:
        """Those that `index` [k] chooses."""
        return Regions(*(getattr(self, f.name)[index] for f in fields(self)))

    def mask_targets(self, targets: list[Target], size: int) -> Tensor:
        """What each region's mask should be, float [r, size, size]: its object's mask, cropped to the region.

        Raises:
            UsageError: an image comes without masks.
        """
        return crop_masks([t.masks for t in targets], self.boxes, self.image, self.matched, size)


def assign_regions(proposals: Proposals, targets: list[Target], matcher: IoUMatcher, num_classes: int) -> Samples:
    """Every proposal and every object's own box, each with the object that it matches (Fast R-CNN, section 2.3)."""
    gt_boxes, gt_labels, gt_valid = pad_targets(targets)
    matched = matcher(proposals.boxes, gt_boxes, gt_valid, proposals.valid)
    own = torch.arange(gt_boxes.shape[1], device=gt_boxes.device).expand(len(targets), -1)
    boxes = torch.cat([gt_boxes, proposals.boxes], 1)
    matched = torch.cat([own.masked_fill(~gt_valid, IGNORE), matched], 1)
    positive, index = matched >= 0, matched.clamp(min=0)
    labels = gt_labels.gather(1, index).masked_fill(~positive, num_classes)
    return Samples(boxes, matched, box.gather(gt_boxes, index), labels, positive,
                   valid=torch.cat([gt_valid, proposals.valid], 1),
                   is_gt=torch.cat([gt_valid, torch.zeros_like(proposals.valid)], 1))


def sample_regions(regions: Samples, sampler: Sampler, priority: Tensor | None = None) -> Samples:
    """The regions that a sampler keeps, in as many slots as it keeps at most, positives first."""
    positive, negative = sampler(regions.matched, priority)
    slots = min(sampler.number or positive.shape[1], positive.shape[1])
    rank, index = (positive * 2 + negative.int()).sort(dim=1, descending=True, stable=True)  # in the proposals' order
    index = index[:, :slots]
    kept = Samples(*(box.gather(getattr(regions, f.name), index) for f in fields(regions)))
    return replace(kept, positive=box.gather(positive, index), valid=rank[:, :slots] > 0)


def flat_proposals(proposals: Proposals, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """The proposals of a batch in a row: boxes [r, 4], index of the image [r] and its size (h, w) [r, 2] of each."""
    index = proposals.valid.flatten().nonzero()[:, 0]
    boxes, image = proposals.boxes.flatten(0, 1)[index], index // proposals.valid.shape[1]
    return boxes, image, box.size_tensor(images.sizes, boxes)[image]


def flat_detections(detections: list[Detections]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [r, 4], labels [r] and index of the image [r] of all detections of a batch."""
    image = torch.cat([torch.full_like(d.labels, i) for i, d in enumerate(detections)])
    return torch.cat([d.boxes for d in detections]), torch.cat([d.labels for d in detections]), image


def of_class(values: Tensor, labels: Tensor) -> Tensor:
    """[r, ...] each region's own class of values [r, C, ...]; labels [r], background takes the last class."""
    return values[torch.arange(values.shape[0], device=values.device), labels.clamp(max=values.shape[1] - 1)]


