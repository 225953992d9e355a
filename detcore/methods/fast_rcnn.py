"""Fast R-CNN: Girshick, "Fast R-CNN", 2015; with RoIAlign and FPN features.

R-CNN ran a network once for each proposal. Fast R-CNN runs the backbone once for the image, cuts every proposal's
features out of the shared map at a fixed size (RoI pooling), and lets a small head classify the region and refine its
box, in one training with one multi-task loss. Proposals come from elsewhere.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.backbones.resnet import ResNet, init_backbone, stage
from detcore.layers.init import freeze_norm_statistics, init_normal, init_weights, kaiming_normal
from detcore.errors import UsageError
from detcore.layers.conv import Block, ConvBlock
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.ops.losses import l1, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler, pad_targets, used
from detcore.methods.rpn import Proposals, rescale
from detcore.necks.fpn import FPN
from detcore.structures import Detections, Images, Target

BOX_STDS = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class Keep:
    """Which detections are kept at test time.

    Attributes:
        score: lowest score.
        iou: overlap above which the lesser box of a class is dropped (or loses score).
        number: detections an image.
        soft: soft-NMS instead of NMS.
        across_classes: boxes of different classes suppress each other too.
    """

    score: float = 0.05
    iou: float = 0.5
    number: int = 100
    soft: bool = False
    across_classes: bool = False


KEEP = Keep()


@dataclass
class Samples:
    """Regions chosen for training, positives first, in S slots an image (some may be empty).

    Attributes:
        boxes: [N, S, 4].
        match: [N, S] index of the matched object; meaningless unless positive.
        truth: [N, S, 4] box of the matched object; labels: [N, S], the number of classes for background.
        positive, valid, is_truth: [N, S] bool; is_truth marks the objects' own boxes, added as proposals.
    """

    boxes: Tensor
    match: Tensor
    truth: Tensor
    labels: Tensor
    positive: Tensor
    valid: Tensor
    is_truth: Tensor

    def rois(self) -> tuple[Tensor, Tensor, Tensor]:
        """The slots to compute: flat index [r], boxes [r, 4] and image [r]."""
        index = used(self.valid)
        return index, self.boxes.flatten(0, 1)[index], index // self.boxes.shape[1]


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits and box offsets (section 2; two layers as in FPN, section 4.2).

    Args:
        in_channels: channels of the region's map.
        num_classes: classes, background not counted.
        size: side of the region's map.
        hidden: width of the two layers; 0: average-pool the map instead (the head of C4 detectors).
        convs: 3x3 convolutions that take the place of the first layer. block: their kind.
        agnostic: one box for all classes instead of one for each.
        stds: scale of the box offsets.
        box_loss: loss of the offsets, elementwise; or of decoded boxes, if `decoded`.
        box_weight: weight of that loss.
    """

    def __init__(self, in_channels: int, num_classes: int, *, size: int = 7, hidden: int = 1024, agnostic: bool = False,
                 stds: tuple[float, float, float, float] = BOX_STDS,
                 box_loss: Callable[[Tensor, Tensor], Tensor] = l1, decoded: bool = False, box_weight: float = 1.0,
                 convs: int = 0, block: Block = ConvBlock):
        super().__init__()
        self.num_classes, self.hidden, self.agnostic, self.stds = num_classes, hidden, agnostic, stds
        self.box_loss, self.decoded, self.box_weight = box_loss, decoded, box_weight
        last = hidden or in_channels
        self.fc_cls = nn.Linear(last, num_classes + 1)
        self.fc_reg = nn.Linear(last, 4 if agnostic else 4 * num_classes)
        if convs:
            self.shared_convs = nn.ModuleList([block(in_channels, in_channels, 3) for _ in range(convs)])
            init_weights(self.shared_convs, kaiming_normal)
        if hidden:
            widths = [in_channels * size**2, *[hidden] * (1 if convs else 2)]
            self.shared_fcs = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths, widths[1:])])
            for fc in self.shared_fcs:
                nn.init.xavier_uniform_(cast(nn.Linear, fc).weight)
                nn.init.zeros_(cast(nn.Linear, fc).bias)
        init_normal(self.fc_cls, 0.01)
        init_normal(self.fc_reg, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [r, C + 1] (background last) and offsets [r, 4 C] or [r, 4] of region maps [r, c, s, s]."""
        x = self.vector(x)
        return self.fc_cls(x), self.fc_reg(x)

    def vector(self, x: Tensor) -> Tensor:
        """What the head knows of each region, [r, hidden]."""
        for conv in getattr(self, "shared_convs", ()):
            x = conv(x)
        if self.hidden:
            x = x.flatten(1)
            for fc in self.shared_fcs:
                x = fc(x).relu()
        else:
            x = x.mean((2, 3))
        return x

    def scores(self, logits: Tensor) -> Tensor:
        """Scores [r, C] of class logits [r, C + 1]."""
        return logits.float().softmax(1)[:, :-1]

    def pick(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """The offsets [r, 4] of each region's class; labels [r] below the number of classes."""
        if self.agnostic:
            return deltas
        return deltas.view(len(deltas), -1, 4).gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Boxes [..., 4] moved by offsets [..., 4]."""
        return box.decode(boxes, deltas, self.stds)

    def loss(self, logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Tensor]:
        """The multi-task loss of section 2.3, and the accuracy in percent.

        Args:
            logits, deltas: outputs for the slots that `samples.rois()` gives.
        """
        index, boxes, _ = samples.rois()
        labels, truth = samples.labels.flatten()[index], samples.truth.flatten(0, 1)[index]
        positive = samples.positive.flatten()[index]
        count = reduce_mean(samples.valid.sum().clamp(min=1))
        deltas = self.pick(deltas, labels.clamp(max=self.num_classes - 1))
        # Regions that hold nothing get their own box as target, so that every value stays finite.
        truth = torch.where(positive[:, None], truth, boxes)
        if self.decoded:
            # Aligned boxes give one value each, offsets four.
            off = self.box_loss(self.decode(boxes, deltas), truth) * positive
        else:
            wanted = torch.where(positive[:, None], box.encode(boxes, truth, self.stds), 0.0)
            off = self.box_loss(deltas, wanted).sum(-1) * positive
        return self.class_loss(logits, samples) | {"loss_bbox": self.box_weight * off.sum() / count}

    def class_loss(self, logits: Tensor, samples: Samples) -> dict[str, Tensor]:
        """Cross-entropy of the classes, background among them, and the accuracy in percent."""
        index, _, _ = samples.rois()
        labels, valid = samples.labels.flatten()[index], samples.valid.flatten()[index]
        count = reduce_mean(valid.sum().clamp(min=1))
        error = F.cross_entropy(logits.float(), labels, reduction="none") * valid
        hit = ((logits.argmax(1) == labels) & valid).sum() / valid.sum().clamp(min=1)
        return {"loss_cls": error.sum() / count, "acc": 100 * hit.detach()}


class ResStage(nn.Module):
    """The last stage of a ResNet, run on every region: the head of C4 detectors (He et al. 2016, appendix A)."""

    def __init__(self, depth: int = 50, *, base_channels: int = 64, caffe: bool = True):
        super().__init__()
        self.layer4, self.channels = stage(depth, 3, base_channels=base_channels, caffe=caffe)
        init_backbone(self, norm_fixed=caffe)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x)

    def train(self, mode: bool = True) -> ResStage:
        super().train(mode)
        if mode:
            freeze_norm_statistics(self)
        return self


def assign_regions(proposals: Proposals, targets: list[Target], matcher: IoUMatcher, num_classes: int) -> Samples:
    """Every proposal and every object's own box, each with the object that it matches (section 2.3)."""
    truth, truth_labels, truth_valid = pad_targets(targets)
    match = matcher(proposals.boxes, truth, truth_valid, proposals.valid)
    own = torch.arange(truth.shape[1], device=truth.device).expand(len(targets), -1)
    boxes = torch.cat([truth, proposals.boxes], 1)
    match = torch.cat([own.masked_fill(~truth_valid, -2), match], 1)
    positive, at = match >= 0, match.clamp(min=0)
    return Samples(
        boxes=boxes, match=match, truth=truth.gather(1, at[..., None].expand(-1, -1, 4)),
        labels=truth_labels.gather(1, at).masked_fill(~positive, num_classes), positive=positive,
        valid=torch.cat([truth_valid, proposals.valid], 1),
        is_truth=torch.cat([truth_valid, torch.zeros_like(proposals.valid)], 1),
    )


def sample_regions(regions: Samples, sampler: Sampler, priority: Tensor | None = None) -> Samples:
    """The regions that a sampler keeps, in as many slots as it keeps at most, positives first."""
    positive, negative = sampler(regions.match, priority)
    slots = min(sampler.number or positive.shape[1], positive.shape[1])
    rank, index = (positive * 2 + negative.int()).sort(dim=1, descending=True, stable=True)
    index = index[:, :slots]

    def take(x: Tensor) -> Tensor:
        return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))

    return Samples(boxes=take(regions.boxes), match=take(regions.match), truth=take(regions.truth),
                   labels=take(regions.labels), positive=take(positive), valid=rank[:, :slots] > 0,
                   is_truth=take(regions.is_truth))


class RoIHead(nn.Module):
    """What happens to each region: pooled features, box head; subclasses add masks.

    Args:
        pool: region features from the pyramid.
        bbox_head: the box head.
        shared_head: a network between pooling and heads (C4).
        samples: regions that train, an image; a quarter positive at most.
        hard_examples: choose the regions with the largest loss (OHEM, Shrivastava et al. 2016) instead of random ones.
        positive_iou: overlap with an object from which a region is positive.
        low_quality: objects that no region overlaps that much keep their best region.
        keep: which detections are kept at test time.
    """

    def __init__(self, pool: MultiScaleRoIAlign, bbox_head: BoxHead, *, shared_head: ResStage | None = None, samples: int = 512,
                 hard_examples: bool = False, positive_iou: float = 0.5, low_quality: bool = False,
                 keep: Keep = KEEP):
        super().__init__()
        if shared_head is not None:
            self.shared_head = shared_head
        self.bbox_roi_extractor, self.bbox_head = pool, bbox_head
        self.matcher = IoUMatcher(positive_iou, positive_iou, low_quality=positive_iou if low_quality else None)
        self.sampler = Sampler(samples, 0.25)
        self.hard_examples, self.keep = hard_examples, keep

    def region_features(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Maps [r, c, s, s] of boxes [r, 4] on images [r]."""
        x = self.bbox_roi_extractor(features, boxes, image)
        return self.shared_head(x) if hasattr(self, "shared_head") else x

    def sample(self, features: Sequence[Tensor], proposals: Proposals, targets: list[Target]) -> Samples:
        """The regions that train."""
        regions = assign_regions(proposals, targets, self.matcher, self.bbox_head.num_classes)
        return sample_regions(regions, self.sampler, self.difficulty(features, regions) if self.hard_examples else None)

    @torch.no_grad()
    def difficulty(self, features: Sequence[Tensor], regions: Samples) -> Tensor:
        """[N, S] the classification loss of every region: how hard it is (OHEM, section 4)."""
        index, boxes, image = regions.rois()
        logits, _ = self.bbox_head(self.region_features(features, boxes, image))
        error = F.cross_entropy(logits.float(), regions.labels.flatten()[index], reduction="none")
        return error.new_zeros(regions.labels.numel()).index_copy(0, index, error).view_as(regions.labels)

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the regions sampled from the proposals."""
        samples = self.sample(features, proposals, targets)
        _, boxes, image = samples.rois()
        logits, deltas = self.bbox_head(self.region_features(features, boxes, image))
        return self.bbox_head.loss(logits, deltas, samples)

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images) -> list[Detections]:
        """Detections in the network's input."""
        index = proposals.valid.flatten().nonzero()[:, 0]
        boxes, image = proposals.boxes.flatten(0, 1)[index], index // proposals.valid.shape[1]
        logits, deltas = self.bbox_head(self.region_features(features, boxes, image))
        return self.finish(self.bbox_head, boxes, image, logits, deltas, images)

    def finish(self, head: BoxHead, boxes: Tensor, image: Tensor, logits: Tensor, deltas: Tensor,
               images: Images) -> list[Detections]:
        """Class scores and refined boxes of regions [r], as detections."""
        refined = head.decode(boxes[:, None], deltas.unflatten(1, (-1, 4)))
        sizes = box.size_tensor(images.sizes, boxes)[image]
        return pick_detections(box.clip(refined, sizes), head.scores(logits), image, len(images), self.keep)


def pick_detections(boxes: Tensor, scores: Tensor, image: Tensor, num_images: int,
                    keep: Keep = KEEP) -> list[Detections]:
    """Every class of every region whose score is high enough, thinned by NMS within its class, best first.

    Args:
        boxes: [r, C, 4] or [r, 1, 4]; scores: [r, C]; image: [r].
    """
    classes = scores.shape[1]
    row, label = (scores > keep.score).nonzero(as_tuple=True)
    score, owner = scores[row, label], image[row]
    found = boxes.expand(-1, classes, -1)[row, label]
    group = owner if keep.across_classes else owner * classes + label
    if keep.soft:
        order, score_kept = box.soft_nms(found, score, group, keep.iou)
    else:
        order = box.grouped_nms(found, score, group, keep.iou)
        score_kept = score[order]
    result = []
    for i in range(num_images):
        mine = (owner[order] == i).nonzero()[:keep.number, 0]
        kept = order[mine]
        result.append(Detections(found[kept], score_kept[mine], label[kept]))
    return result


class FastRCNN(nn.Module):
    """Backbone, pyramid and region head on proposals that are given."""

    takes_proposals = True

    def __init__(self, backbone: ResNet, neck: nn.Module | None, roi_head: RoIHead):
        super().__init__()
        self.backbone, self.neck, self.roi_head = backbone, neck, roi_head
        self.num_classes = roi_head.bbox_head.num_classes

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name. Each target carries its `proposals` [p, 4]."""
        given = batch_proposals([t.proposals for t in targets])
        return self.roi_head.loss(self.features(images.tensor), given, images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections of each image from its proposals [p, 4] (in the network's input).

        Raises:
            UsageError: no proposals are given.
        """
        given = batch_proposals(proposals or [None] * len(images))
        found = self.roi_head.predict(self.features(images.tensor), given, images)
        return to_output(found, images, output_sizes)


def batch_proposals(proposals: Sequence[Tensor | None]) -> Proposals:
    """Given proposals, [p, 4] for each image, as a padded batch."""
    given = [p for p in proposals if p is not None]
    if len(given) < len(proposals):
        raise UsageError("Fast R-CNN needs precomputed proposals for every image: make them with `detcore proposals`.")
    padded = nn.utils.rnn.pad_sequence(given, batch_first=True)
    counts = torch.tensor([len(p) for p in given]).to(padded.device, non_blocking=True)
    valid = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    return Proposals(padded, padded.new_ones(padded.shape[:2]), valid)


def to_output(found: list[Detections], images: Images, output_sizes: list[tuple[int, int]] | None) -> list[Detections]:
    """Detections moved from the network's input to the images' own sizes."""
    if output_sizes is None:
        return found
    return [replace(d, boxes=rescale(d.boxes, size, out)) for d, size, out in zip(found, images.sizes, output_sizes)]


def fast_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
              samples: int = 512, sampling: int = 0) -> FastRCNN:
    """Fast R-CNN on a feature pyramid; `sampling` is RoIAlign's (see `MultiScaleRoIAlign`)."""
    head = RoIHead(MultiScaleRoIAlign(sampling=sampling), BoxHead(width, num_classes, hidden=hidden), samples=samples)
    return FastRCNN(backbone, FPN(backbone.channels, width), head)
