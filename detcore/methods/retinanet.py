"""RetinaNet: Lin et al., "Focal loss for dense object detection", 2017.

One-stage detectors look at about 100,000 anchors an image, nearly all of them easy background. One by one these cost
little, together they outweigh the few objects. The focal loss lowers the weight of what is already right: the
cross-entropy is multiplied by (1 - p)^gamma, so that training is driven by the hard examples, and neither sampling nor
a proposal stage is needed.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.layers.heads import conv_tower
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator, per_anchor
from detcore.ops.losses import focal, l1, reduce_mean
from detcore.ops.matching import BACKGROUND, IoUMatcher, pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.structures import Detections, Images, Target

STRIDES = (8, 16, 32, 64, 128)
SCALES_PER_OCTAVE = 3
ALPHA, GAMMA = 0.25, 2.0
# At the start every anchor says "object" with this probability, or background would dominate the loss (section 3.3).
PRIOR = 0.01


class RetinaHead(nn.Module):
    """Two towers of convolutions shared by all levels, one for classes, one for boxes (section 4).

    Args:
        width, depth, anchor_scale: see `retinanet`.
        box_loss: elementwise loss of the offsets; stds: their scale.
        alpha, gamma: of the focal loss (see `focal`).
    """

    def __init__(self, width: int, num_classes: int, *, depth: int = 4, anchor_scale: float = 4,
                 box_loss: Callable[[Tensor, Tensor], Tensor] = l1, stds: Sequence[float] = (1, 1, 1, 1),
                 postprocess: PostProcess | None = None, alpha: float = ALPHA, gamma: float = GAMMA):
        super().__init__()
        self.cls_convs: nn.Sequential | nn.ModuleList
        self.reg_convs: nn.Sequential | nn.ModuleList
        self.num_classes, self.box_loss, self.stds = num_classes, box_loss, tuple(stds)
        self.postprocess, self.alpha, self.gamma = postprocess or PostProcess(), alpha, gamma
        octave = [anchor_scale * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
        self.anchors = AnchorGenerator.from_scales(STRIDES, octave)
        # Every object trains its best anchors, however little they overlap: 0 is the least IoU that counts.
        self.matcher = IoUMatcher(0.5, 0.4, low_quality=0.0)
        self.cls_convs, self.reg_convs = (conv_tower(width, depth, norm=None) for _ in range(2))
        self.retina_cls = nn.Conv2d(width, self.anchors.counts[0] * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, self.anchors.counts[0] * 4, 3, padding=1)
        init_weights(self, normal)
        init_normal(self.retina_cls, bias=prior_bias(PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level class logits [N, A * C, h, w] and box offsets [N, A * 4, h, w]."""
        return ([self.retina_cls(self.cls_convs(x)) for x in features],
                [self.retina_reg(self.reg_convs(x)) for x in features])

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes and box loss (L1), both over the number of positive anchors (section 4.1)."""
        output = self(features)
        logits, deltas = (torch.cat([per_anchor(m, c) for m in maps], 1)
                          for maps, c in zip(output, (self.num_classes, 4)))
        anchors, matched, gt_boxes, gt_labels = self.assign(output[0], targets)
        return anchor_losses(logits, deltas, anchors, matched, gt_boxes, gt_labels, self.box_loss, self.alpha,
                             self.gamma)

    def assign(self, maps: Sequence[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors [A, 4], matched object [N, A] (see `IoUMatcher`), objects' boxes [N, G, 4] and labels [N, G]."""
        anchors = torch.cat(self.anchors(maps))
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        return anchors, self.matcher(anchors, gt_boxes, gt_valid), gt_boxes, gt_labels

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The best scores of each level, decoded, thinned by NMS within their class, in the network's input."""
        output, settings = self(features), self.postprocess
        sizes = box.size_tensor(images.sizes, output[0][0])
        boxes, scores, labels = [], [], []
        for classes, offsets, anchors in zip(*output, self.anchors(output[0])):
            score, index, label = top_scores(per_anchor(classes, self.num_classes), settings.score_threshold,
                                             settings.pre_nms_top_n, logits=True)
            deltas = box.gather(per_anchor(offsets, 4), index)
            boxes.append(box.clip(box.decode(anchors[index], deltas, self.stds), sizes))
            scores.append(score)
            labels.append(label)
        return dense_detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1), settings)


def anchor_losses(logits: Tensor, deltas: Tensor, anchors: Tensor, matched: Tensor, gt_boxes: Tensor, gt_labels: Tensor,
                  box_loss: Callable[[Tensor, Tensor], Tensor], alpha: float = ALPHA,
                  gamma: float = GAMMA) -> dict[str, Tensor]:
    """Focal loss of the classes and box loss, both over the number of positive anchors (section 4.1).

    Args:
        logits: [N, A, C]; deltas: [N, A, 4]; anchors: [A, 4] or [N, A, 4].
        matched: [N, A] index of each anchor's object (see `IoUMatcher`) in gt_boxes [N, G, 4] and gt_labels [N, G].
        box_loss: elementwise loss of the offsets. alpha, gamma: of the focal loss.
    """
    positive, index = matched >= 0, matched.clamp(min=0)
    # An image without positives still counts one.
    count = reduce_mean(positive.sum(1).clamp(min=1).sum())
    one_hot = gt_labels.gather(1, index)[..., None] == torch.arange(logits.shape[2], device=gt_labels.device)
    trained = positive | (matched == BACKGROUND)
    target = box.encode(anchors, box.gather(gt_boxes, index))
    error = box_loss(deltas, torch.where(positive[..., None], target, deltas.detach().float()))
    return {
        "loss_cls": (focal(logits, one_hot & positive[..., None], alpha, gamma) * trained[..., None]).sum() / count,
        "loss_bbox": (error * positive[..., None]).sum() / count}


def retinanet(backbone: ResNet, num_classes: int = 80, *, width: int = 256, depth: int = 4, anchor_scale: float = 4,
              alpha: float = ALPHA, gamma: float = GAMMA, score_threshold: float = 0.05, nms_threshold: float = 0.5,
              max_detections: int = 100, pre_nms_top_n: int = 1000) -> OneStageDetector:
    """RetinaNet on levels 3 to 7 of a feature pyramid.

    Args:
        width: channels of the pyramid and the towers; depth: convolutions in each tower.
        anchor_scale: side of the smallest anchor in strides.
        alpha, gamma: of the focal loss (see `focal`); gamma 0 is cross-entropy.
        score_threshold, nms_threshold, max_detections, pre_nms_top_n: which detections are kept (see `PostProcess`).
    """
    neck = FPN(backbone.channels, width, start=1, extra="input")
    head = RetinaHead(width, num_classes, depth=depth, anchor_scale=anchor_scale, alpha=alpha, gamma=gamma,
                      postprocess=PostProcess(score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, neck, head)
