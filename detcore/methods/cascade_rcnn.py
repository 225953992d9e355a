"""Cascade R-CNN: Cai & Vasconcelos, "Cascade R-CNN: Delving into high quality object detection", 2018.

A box head trained at IoU 0.5 accepts sloppy boxes; one trained at 0.7 would be precise, but sees too few positives.
Cascade R-CNN chains three heads. Each refines the boxes of the one before, so each can ask for more: 0.5, 0.6, 0.7.
Boxes get better from stage to stage, and with them the positives that the next stage learns from. Cascade Mask R-CNN
adds a mask head to every stage.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import Sizes, TwoStageDetector, rescaled
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead
from detcore.methods.mask_rcnn import MaskHead, with_masks
from detcore.methods.rpn import fpn_rpn_head
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.losses import SmoothL1
from detcore.ops.matching import IoUMatcher, Sampler
from detcore.ops.nms import PostProcess, region_detections
from detcore.ops.regions import Regions, Samples, assign_regions, flat_detections, flat_proposals, sample_regions
from detcore.options import forwards
from detcore.structures import Detections, Images, Proposals, Target

# Each stage asks for more overlap, corrects smaller errors, and weighs less (sections 4.1 and 4.3).
STAGE_IOU = (0.5, 0.6, 0.7)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
RPN_BOX_LOSS = SmoothL1(1 / 9)


class CascadeRoIHead(nn.Module):
    """Three box heads in a row; with `mask_heads`, a mask head beside each.

    Args:
        roi_align: region features from the pyramid; mask_roi_align: those for masks.
        bbox_heads: a head a stage, with class-agnostic boxes. mask_size: side of the mask targets.
        samples: regions that train, an image and stage.
        postprocess: which detections are kept at test time.

    Attributes:
        diagnostics: accuracies of the stages in the last training step.
    """

    def __init__(self, roi_align: MultiScaleRoIAlign, bbox_heads: Sequence[BoxHead], *,
                 mask_heads: Sequence[MaskHead] = (), mask_roi_align: MultiScaleRoIAlign | None = None,
                 mask_size: int = 28, samples: int = 512, postprocess: PostProcess | None = None):
        super().__init__()
        self.bbox_roi_extractor, self.mask_size = roi_align, mask_size
        self.mask_roi_align: Any = mask_roi_align
        self.bbox_head: Any = nn.ModuleList(bbox_heads)
        self.mask_head: Any = nn.ModuleList(mask_heads)
        self.num_classes = bbox_heads[0].num_classes
        self.matchers = [IoUMatcher(iou, iou) for iou in STAGE_IOU]
        self.sampler = Sampler(samples, 0.25)
        self.postprocess = postprocess or PostProcess()
        self.diagnostics: dict[str, Tensor] = {}

    def loss(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
             targets: list[Target]) -> dict[str, Tensor]:
        """Losses of every stage, named s0, s1, s2 (equation 8)."""
        losses: dict[str, Tensor] = {}
        self.diagnostics = {}
        for i, (head, matcher, weight) in enumerate(zip(self.bbox_head, self.matchers, STAGE_WEIGHTS)):
            samples = sample_regions(assign_regions(proposals, targets, matcher, self.num_classes), self.sampler)
            regions = samples.regions()
            logits, deltas = head(self.bbox_roi_extractor(features, regions.boxes, regions.image))
            stage = head.loss(logits, deltas, regions)
            if self.mask_head:
                positives = samples.positives(self.sampler.max_positives)
                drawn = self.mask_head[i](self.mask_roi_align(features, positives.boxes, positives.image))
                target = positives.mask_targets(targets, self.mask_size)
                stage["loss_mask"] = self.mask_head[i].loss(drawn, target, positives)
            losses |= {f"s{i}.{name}": value * weight for name, value in stage.items()}
            self.diagnostics |= {f"s{i}.{name}": value for name, value in head.accuracy(logits, regions).items()}
            if i + 1 < len(self.bbox_head):
                proposals = self.next_proposals(head, samples, regions, deltas, images)
        return losses

    @torch.no_grad()
    def next_proposals(self, head: BoxHead, samples: Samples, regions: Regions, deltas: Tensor,
                       images: Images) -> Proposals:
        """A stage's samples, refined; the objects' own boxes are left out, the next stage adds them anew."""
        refined = samples.boxes.flatten(0, 1).index_copy(0, regions.index, head.decode(regions.boxes, deltas))
        refined = box.clip(refined.view_as(samples.boxes), box.size_tensor(images.sizes, refined))
        return Proposals(refined, refined.new_ones(refined.shape[:2]), samples.valid & ~samples.is_gt)

    def predict(self, features: Sequence[Tensor], proposals: Proposals, images: Images,
                output_sizes: Sizes | None = None) -> list[Detections]:
        """Detections of each image, with masks if learned, in its `output_sizes` (h, w) or in the network's input."""
        detections = self.detect(features, proposals, images)
        if not self.mask_head:
            return rescaled(detections, images, output_sizes)
        return with_masks(detections, self.masks(features, detections), images, output_sizes)

    def detect(self, features: Sequence[Tensor], proposals: Proposals, images: Images) -> list[Detections]:
        """Boxes of the last stage, scored by the mean of all stages' logits (section 4.1), in the network's input."""
        boxes, image, sizes = flat_proposals(proposals, images)
        total = torch.zeros((), device=boxes.device)
        for head in self.bbox_head:
            logits, deltas = head(self.bbox_roi_extractor(features, boxes, image))
            total = total + logits.float()
            boxes = box.clip(head.decode(boxes, deltas), sizes)
        scores = self.bbox_head[-1].scores(total / len(self.bbox_head))
        return region_detections(boxes[:, None], scores, image, len(images), self.postprocess)

    def masks(self, features: Sequence[Tensor], detections: list[Detections]) -> list[Tensor]:
        """For each image, mask probabilities [n, s, s] of its detections: the mean of the stages'."""
        boxes, labels, image = flat_detections(detections)
        x = self.mask_roi_align(features, boxes, image)
        stages = torch.stack([head.masks(x, labels) for head in self.mask_head])
        return list(stages.mean(0).split([d.boxes.shape[0] for d in detections]))


@forwards(fpn_rpn_head)
def cascade_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024, samples: int = 512,
                 sampling_ratio: int = 0, masks: bool = False, mask_convs: int = 4,
                 mask_predictor: type[nn.Conv2d] = nn.Conv2d, bbox_heads: Sequence[BoxHead] | None = None,
                 score_threshold: float = 0.05, nms_threshold: float = 0.5, max_detections: int = 100, border: int = 0,
                 rpn_box_loss: SmoothL1 = RPN_BOX_LOSS, rpn_post_nms_top_n_train: int = 2000,
                 **rpn_options: Any) -> TwoStageDetector:
    """Cascade R-CNN on a feature pyramid.

    Args:
        width, hidden: channels of pyramid and mask heads, and of the box heads' layers.
        samples: regions that train, an image and stage. sampling_ratio: RoIAlign's (see `MultiScaleRoIAlign`).
        masks: draw masks too (Cascade Mask R-CNN); mask_convs: how many a mask head has before its upsampling.
        mask_predictor: kind of the mask heads' last convolution.
        bbox_heads: other box heads.
        score_threshold, nms_threshold, max_detections: which detections are kept (see `PostProcess`).
        border, rpn_box_loss, rpn_post_nms_top_n_train, rpn_options: as in `fpn_rpn_head`.
    """
    rpn_head = fpn_rpn_head(width, border=border, rpn_box_loss=rpn_box_loss,
                            rpn_post_nms_top_n_train=rpn_post_nms_top_n_train, **rpn_options)
    head = CascadeRoIHead(
        MultiScaleRoIAlign(sampling_ratio=sampling_ratio), bbox_heads or cascade_heads(width, num_classes, hidden),
        mask_heads=[MaskHead(width, num_classes, width=width, depth=mask_convs, predictor=mask_predictor)
                    for _ in STAGE_IOU if masks],
        mask_roi_align=MultiScaleRoIAlign(output_size=14, sampling_ratio=sampling_ratio) if masks else None,
        samples=samples, postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    return TwoStageDetector(backbone, FPN(backbone.channels, width), rpn_head, head)


@forwards(cascade_rcnn)
def cascade_mask_rcnn(backbone: ResNet, num_classes: int = 80, *, masks: bool = True,
                      **options: Any) -> TwoStageDetector:
    """Cascade Mask R-CNN; options as in `cascade_rcnn`."""
    return cascade_rcnn(backbone, num_classes, masks=masks, **options)


def cascade_heads(width: int, num_classes: int, hidden: int, kind: type[BoxHead] = BoxHead) -> list[BoxHead]:
    """A box head for each stage; arguments as in `BoxHead`."""
    return [kind(width, num_classes, hidden=hidden, agnostic=True, stds=stds, box_loss=SmoothL1())
            for stds in STAGE_STDS]
