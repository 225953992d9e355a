"""The contract of all detectors, and their three forms: one-stage, two-stage, queries.

A detector is a `torch.nn.Module` made of parts: backbone, neck, heads. What the parts must do is said here as
protocols; any object with these methods will do.

    losses = model(images, targets)      # training: sum(losses.values()).backward()
    detections = model(images)           # inference
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detcore.errors import UsageError
from detcore.ops import boxes as box
from detcore.structures import Detections, Images, Proposals, Target

Sizes = list[tuple[int, int]]


class DenseHead(Protocol):
    """A head that predicts at every cell of every level."""

    num_classes: int

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses by name, 0-dim each, from maps [N, C, h, w], finest first."""

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """Detections of each image, best first, in pixels of the network's input."""


class ProposalHead(Protocol):
    """A head that proposes regions."""

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses by name, and the proposals that train the second stage; no gradient flows through them."""

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""


class RegionHead(Protocol):
    """The second stage: classifies regions, refines their boxes, draws their masks."""

    num_classes: int

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses by name, of the regions sampled from the proposals."""

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
                output_sizes: Sizes | None) -> list[Detections]:
        """Detections of each image, best first, in pixels of its `output_sizes` (h, w) or of the network's input."""


class Detector(nn.Module):
    """What every detector can do.

    A method of one's own has to define `loss` and `predict`, and `features` if it has no `backbone` and `neck`;
    `forward` then makes `model(images)`, hooks, `DistributedDataParallel` and `torch.compile(model)` work as everywhere
    in PyTorch.

    Attributes:
        backbone, neck: from images to maps, and on to those that heads or queries look at; no neck: the backbone's own.
        num_classes: classes that it tells apart; labels are 0 to num_classes - 1.
        needs_proposals: whether targets (and `predict`) must carry precomputed proposals.
    """

    backbone: nn.Module
    neck: nn.Module | None
    num_classes: int
    needs_proposals = False

    def forward(self, images: Images, targets: list[Target] | None = None, *, output_sizes: Sizes | None = None,
                proposals: list[Tensor] | None = None) -> dict[str, Tensor] | list[Detections]:
        """With targets the training losses (see `loss`), without them the detections (see `predict`)."""
        if targets is not None:
            return self.loss(images, targets)
        return self.predict(images, output_sizes=output_sizes, proposals=proposals)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps [N, C, h, w] of images [N, 3, H, W], finest first."""
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The training losses by name, 0-dim and float32 each; their sum is the loss of the batch.

        Args:
            images: a padded batch; targets: the objects of each image, boxes in pixels of the network's input.

        Raises:
            UsageError: targets lack what the method learns from (masks, class maps, proposals).
        """
        raise NotImplementedError

    def predict(self, images: Images, *, output_sizes: Sizes | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """The detections of each image, best first.

        Args:
            output_sizes: (h, w) of each image that boxes and masks shall be in; None: the network's input.
            proposals: [p, 4] of each image in pixels of the network's input, for detectors that need them.

        Raises:
            UsageError: proposals are needed, but not given.
        """
        raise NotImplementedError

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """What the heads measured beside the losses in the last call of `loss`, such as "acc" in percent; 0-dim each.

        These are no losses: they have no gradient, and nothing adds them up.
        """
        return {name: value for module in self.children() for name, value in getattr(module, "diagnostics", {}).items()}


class OneStageDetector(Detector):
    """Backbone, neck (or None) and one dense head."""

    bbox_head: DenseHead

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, bbox_head: DenseHead):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.bbox_head, self.num_classes = bbox_head, bbox_head.num_classes

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        return self.bbox_head.loss(self.features(images.tensor), images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: Sizes | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        return rescaled(self.bbox_head.predict(self.features(images.tensor), images), images, output_sizes)


class TwoStageDetector(Detector):
    """Backbone, neck (or None), a head that proposes regions (None: they are given), and one that looks at each."""

    rpn_head: ProposalHead | None
    roi_head: RegionHead

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, rpn_head: ProposalHead | None,
                 roi_head: RegionHead):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.rpn_head, self.roi_head = rpn_head, roi_head
        self.num_classes, self.needs_proposals = roi_head.num_classes, rpn_head is None

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        return self.loss_from(self.features(images.tensor), images, targets)

    def loss_from(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """The losses from feature maps: the proposal head's, then the region head's."""
        losses: dict[str, Tensor] = {}
        if self.rpn_head is None:
            proposals = batch_proposals([t.proposals for t in targets])
        else:
            losses, proposals = self.rpn_head.loss_and_proposals(features, images, targets)
        return losses | self.roi_head.loss(features, proposals, images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: Sizes | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        return self.predict_from(self.features(images.tensor), images, output_sizes, proposals)

    def predict_from(self, features: Sequence[Tensor], images: Images, output_sizes: Sizes | None = None,
                     proposals: list[Tensor] | None = None) -> list[Detections]:
        """The detections from feature maps."""
        if self.rpn_head is None:
            given = batch_proposals(proposals or [None] * len(images))
        else:
            given = self.rpn_head.proposals(features, images)
        return self.roi_head.predict(features, given, images, output_sizes)


class QueryDetector(Detector):
    """Backbone, neck (or None), and queries that each end as one object or as none, after every layer of a decoder.

    A method has to define `outputs`, `set_loss` and `detections`, which share one form of outputs.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None):
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def outputs(self, features: Sequence[Tensor], images: Images) -> Any:
        """What each query predicts after every decoder layer, the last one's at last."""
        raise NotImplementedError

    def set_loss(self, outputs: Any, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses by name, 0-dim each, after matching queries and objects one to one."""
        raise NotImplementedError

    def detections(self, outputs: Any, images: Images, output_sizes: Sizes) -> list[Detections]:
        """Detections of each image, best first, in pixels of its `output_sizes` (h, w)."""
        raise NotImplementedError

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        return self.set_loss(self.outputs(self.features(images.tensor), images), images, targets)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: Sizes | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        return self.detections(self.outputs(self.features(images.tensor), images), images,
                               output_sizes or images.sizes)


def batch_proposals(proposals: Sequence[Tensor | None]) -> Proposals:
    """Given proposals, [p, 4] for each image in pixels of the network's input, as a padded batch.

    Raises:
        UsageError: an image has none.
    """
    given = [p for p in proposals if p is not None]
    if len(given) < len(proposals):
        raise UsageError("This detector needs precomputed proposals for every image: make them with `detcore "
                         "proposals`.")
    padded = nn.utils.rnn.pad_sequence(given, batch_first=True)
    counts = torch.tensor([len(p) for p in given]).to(padded.device, non_blocking=True)
    valid = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    return Proposals(padded, padded.new_ones(padded.shape[:2]), valid)


def rescaled(detections: list[Detections], images: Images, output_sizes: Sizes | None) -> list[Detections]:
    """Detections moved, in place, from the network's input to images of `output_sizes` (h, w), None for no change."""
    for one, size, output_size in zip(detections, images.sizes, output_sizes or images.sizes):
        one.boxes = box.rescale(one.boxes, size, output_size)
    return detections
