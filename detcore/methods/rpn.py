"""Region proposal network: Ren et al., "Faster R-CNN", 2015, section 3.1; on a pyramid as in FPN (Lin et al. 2017).

Before RPN, candidate regions came from a separate, slow algorithm on pixels. RPN is a small network that slides over
the detector's own feature map. At every cell it looks at a few reference boxes (anchors) of fixed shapes, says for
each whether it holds any object, and how to move it onto that object. The best boxes, thinned by non-maximum
suppression, are the proposals.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.layers.init import init_normal
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, inside, per_anchor
from detcore.ops.losses import ElementwiseLoss, binary_cross_entropy, l1, reduce_mean
from detcore.ops.matching import IoUMatcher, Sampler, pad_targets
from detcore.ops.nms import ProposalSettings, top_proposals
from detcore.structures import Detections, Images, Proposals, Target

FPN_STRIDES = (4, 8, 16, 32, 64)


def fpn_anchors(scale: float = 8) -> AnchorGenerator:
    """One size and three shapes a level (FPN, section 4.1)."""
    return AnchorGenerator.from_scales(FPN_STRIDES, [scale])


def single_map_anchors() -> AnchorGenerator:
    """Five sizes and three shapes on one map of stride 16."""
    return AnchorGenerator.from_scales([16], [2, 4, 8, 16, 32])


class RPNHead(nn.Module):
    """A shared 3x3 convolution, then for each anchor an objectness logit and four box offsets (section 3.1).

    Args:
        anchors: the same number of anchors on every level.
        train_proposals, test_proposals: which proposals are kept.
        border: anchors that cross the image border by more than this many pixels do not train; -1: all train.
        box_loss: elementwise loss of the offsets.
        samples: anchors that train, an image; half of them positive at most. negatives_per_positive: see `Sampler`.
    """

    num_classes = 1

    def __init__(self, in_channels: int, anchors: AnchorGenerator, train_proposals: ProposalSettings,
                 test_proposals: ProposalSettings, *, border: int = -1, box_loss: ElementwiseLoss = l1,
                 samples: int = 256, negatives_per_positive: int | None = None):
        super().__init__()
        self.anchors, self.border, self.box_loss = anchors, border, box_loss
        self.train_proposals, self.test_proposals = train_proposals, test_proposals
        self.matcher = IoUMatcher(0.7, 0.3, low_quality=0.3)
        self.sampler = Sampler(samples, 0.5, negatives_per_positive)
        per_cell = anchors.counts[0]
        self.rpn_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(in_channels, per_cell, 1)
        self.rpn_reg = nn.Conv2d(in_channels, per_cell * 4, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            init_normal(layer)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level objectness logits [N, A, h, w] and box offsets [N, A * 4, h, w]."""
        hidden = [self.rpn_conv(x).relu() for x in features]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox` (equation 1)."""
        return self.output_loss(self(features), images, targets)

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """The losses, and the proposals that train the second stage; no gradient flows through them."""
        output = self(features)
        return self.output_loss(output, images, targets), self.select(output, images, self.train_proposals)

    def output_loss(self, output: tuple[list[Tensor], list[Tensor]], images: Images,
                    targets: list[Target]) -> dict[str, Tensor]:
        """The losses of an output of `forward`."""
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1) for maps, c in zip(output, (1, 4)))
        anchors, matched, gt_boxes = self.assign(output[0], images, targets)
        return anchor_losses(logits[..., 0], deltas, anchors, matched, gt_boxes, self.sampler, self.box_loss)

    def assign(self, maps: Sequence[Tensor], images: Images, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [A, 4], the object each one is matched to [N, A] (see `IoUMatcher`), objects' boxes [N, G, 4]."""
        anchors = torch.cat(self.anchors(maps))
        gt_boxes, _, gt_valid = pad_targets(targets)
        candidates = None
        if self.border >= 0:
            candidates = inside(anchors, box.size_tensor(images.sizes, anchors), self.border)
        return anchors, self.matcher(anchors, gt_boxes, gt_valid, candidates), gt_boxes

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_proposals)

    @torch.no_grad()
    def select(self, output: tuple[list[Tensor], list[Tensor]], images: Images,
               settings: ProposalSettings) -> Proposals:
        """The best anchors of each level, moved by their offsets, clipped, thinned by NMS within their level."""
        scores = [per_anchor(m, 1)[..., 0].float().sigmoid() for m in output[0]]
        deltas = [per_anchor(m, 4) for m in output[1]]
        return best_anchors(scores, deltas, self.anchors(output[0]), images, settings)

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The proposals as class-agnostic detections (label 0), in pixels of the network's input."""
        return proposal_detections(self.proposals(features, images))


def anchor_losses(logits: Tensor, deltas: Tensor, anchors: Tensor, matched: Tensor, gt_boxes: Tensor, sampler: Sampler,
                  box_loss: ElementwiseLoss, stds: Sequence[float] = (1, 1, 1, 1)) -> dict[str, Tensor]:
    """`loss_rpn_cls` and `loss_rpn_bbox` (equation 1), over the anchors that are sampled.

    Args:
        logits: [N, A]; deltas: [N, A, 4]; anchors: [A, 4] or [N, A, 4].
        matched: [N, A] index of each anchor's object in gt_boxes [N, G, 4] (see `IoUMatcher`).
        box_loss: elementwise loss of the offsets; stds: their scale.
    """
    positive, negative = sampler(matched)
    # An image without positives (or negatives) still counts one.
    count = reduce_mean((positive.sum(1).clamp(min=1) + negative.sum(1).clamp(min=1)).sum())
    target = box.encode(anchors, box.gather(gt_boxes, matched.clamp(min=0)), stds)
    # Where an anchor is not positive its target is meaningless, and may be infinite.
    error = box_loss(deltas, torch.where(positive[..., None], target, deltas.detach().float()))
    return {"loss_rpn_cls": (binary_cross_entropy(logits, positive) * (positive | negative)).sum() / count,
            "loss_rpn_bbox": (error * positive[..., None]).sum() / count}


def best_anchors(scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], images: Images,
                 settings: ProposalSettings, stds: Sequence[float] = (1, 1, 1, 1)) -> Proposals:
    """The best anchors of each level, moved by their offsets, clipped, thinned by NMS within their level.

    Args:
        scores: [N, A] of each level, negative where an anchor is no candidate.
        deltas: [N, A, 4]; stds: their scale; anchors: [A, 4] or [N, A, 4].
    """
    sizes = box.size_tensor(images.sizes, scores[0])
    boxes, best, levels = [], [], []
    for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors)):
        score, index = score.topk(min(settings.pre_nms_top_n, score.shape[1]), 1)
        chosen = box.gather(anchor.expand(len(index), -1, -1), index)
        boxes.append(box.clip(box.decode(chosen, box.gather(delta, index), stds), sizes))
        best.append(score)
        levels.append(torch.full_like(index, level))
    return top_proposals(torch.cat(boxes, 1), torch.cat(best, 1), torch.cat(levels, 1), settings)


def proposal_detections(proposals: Proposals) -> list[Detections]:
    """Proposals of a batch as detections of one class."""
    return [Detections(b[v], s[v], torch.zeros_like(s[v], dtype=torch.long))
            for b, s, v in zip(proposals.boxes, proposals.scores, proposals.valid)]


def fpn_rpn_head(width: int, *, anchor_scale: float = 8, border: int = -1, rpn_samples: int = 256,
                 rpn_box_loss: ElementwiseLoss = l1, rpn_negatives_per_positive: int | None = None,
                 rpn_pre_nms_top_n_train: int = 2000, rpn_pre_nms_top_n_test: int = 1000,
                 rpn_post_nms_top_n_train: int = 1000, rpn_post_nms_top_n_test: int = 1000,
                 rpn_nms_threshold: float = 0.7) -> RPNHead:
    """RPN on a feature pyramid, as the first stage of a two-stage detector.

    Args:
        width: channels of the pyramid. anchor_scale: side of an anchor in strides.
        border, rpn_box_loss, rpn_samples, rpn_negatives_per_positive: as `RPNHead` has them, without "rpn_".
        rpn_pre_nms_top_n_*, rpn_post_nms_top_n_*, rpn_nms_threshold: which proposals are kept (see `ProposalSettings`).
    """
    return RPNHead(width, fpn_anchors(anchor_scale),
                   ProposalSettings(rpn_pre_nms_top_n_train, rpn_post_nms_top_n_train, rpn_nms_threshold),
                   ProposalSettings(rpn_pre_nms_top_n_test, rpn_post_nms_top_n_test, rpn_nms_threshold), border=border,
                   box_loss=rpn_box_loss, samples=rpn_samples, negatives_per_positive=rpn_negatives_per_positive)


def single_map_rpn_head(channels: int, *, border: int, rpn_samples: int = 256, rpn_pre_nms_top_n_train: int = 12000,
                        rpn_pre_nms_top_n_test: int = 6000, rpn_post_nms_top_n_train: int = 2000,
                        rpn_post_nms_top_n_test: int = 1000, rpn_nms_threshold: float = 0.7) -> RPNHead:
    """The same on one map of stride 16; all anchors are on one level, so more of them enter and leave NMS."""
    return RPNHead(channels, single_map_anchors(),
                   ProposalSettings(rpn_pre_nms_top_n_train, rpn_post_nms_top_n_train, rpn_nms_threshold),
                   ProposalSettings(rpn_pre_nms_top_n_test, rpn_post_nms_top_n_test, rpn_nms_threshold),
                   border=border, samples=rpn_samples)


def rpn(backbone: ResNet, *, neck: str | None = "fpn", width: int = 256, anchor_scale: float = 8, samples: int = 256,
        score_threshold: float = 0.0, nms_threshold: float = 0.7, pre_nms_top_n: int = 2000,
        max_detections: int = 1000) -> OneStageDetector:
    """RPN: a detector of anything, whose detections are class-agnostic proposals (label 0).

    Args:
        neck: "fpn": a pyramid; None: the backbone's single map of stride 16.
        width: channels of the pyramid. anchor_scale: side of an anchor in strides. samples: anchors that train.
        score_threshold, nms_threshold, pre_nms_top_n, max_detections: which proposals are given at test time.
    """
    settings = ProposalSettings(pre_nms_top_n, max_detections, nms_threshold, score_threshold)
    if neck is None:
        head = RPNHead(backbone.channels[-1], single_map_anchors(), settings, settings, samples=samples)
        return OneStageDetector(backbone, None, head)
    head = RPNHead(width, fpn_anchors(anchor_scale), settings, settings, samples=samples)
    return OneStageDetector(backbone, FPN(backbone.channels, width), head)
