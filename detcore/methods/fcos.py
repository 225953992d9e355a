"""FCOS: Tian et al., "FCOS: Fully convolutional one-stage object detection", 2019; here as a proposal network.

FCOS needs no anchors. Every cell whose centre lies in an object predicts the distances to the object's four sides;
which pyramid level does so depends on how far the sides are. A third branch, centre-ness, learns how central the cell
is, and multiplies the score, so that poor boxes from the object's rim rank low.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.heads import Scale, conv_tower, flatten
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.fast_rcnn import BoxHead, RoIHead
from detcore.necks.fpn import FPN
from detcore.ops import boxes as box
from detcore.ops.anchors import point_grid
from detcore.ops.losses import binary_cross_entropy, focal, iou_loss, reduce_mean
from detcore.ops.matching import object_chunks, pad_targets
from detcore.ops.nms import PostProcess, ProposalSettings, top_proposals
from detcore.structures import Images, Proposals, Target

STRIDES = (8, 16, 32, 64, 128)
# The farthest side, in pixels, that each level is responsible for (section 3.2).
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
PRIOR = 0.01
Output = tuple[list[Tensor], list[Tensor], list[Tensor]]


class FCOSHead(nn.Module):
    """Two towers of four convolutions, shared by all levels, and the three predictions (section 3).

    Args:
        in_channels: channels of the maps; num_classes: 1 for proposals; depth: convolutions in each tower.
        train_proposals, test_proposals: which proposals are kept.
    """

    def __init__(self, in_channels: int, num_classes: int, train_proposals: ProposalSettings,
                 test_proposals: ProposalSettings, *, depth: int = 4):
        super().__init__()
        self.num_classes = num_classes
        self.train_proposals, self.test_proposals = train_proposals, test_proposals
        self.cls_convs, self.reg_convs = conv_tower(in_channels, depth), conv_tower(in_channels, depth)
        self.conv_cls = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in STRIDES])
        init_weights(self, normal)
        init_normal(self.conv_cls, bias=prior_bias(PRIOR))

    def forward(self, features: Sequence[Tensor]) -> Output:
        """For each level class logits [N, C, h, w], distances (left, top, right, bottom) in pixels [N, 4, h, w] and
        centre-ness logits [N, 1, h, w]."""
        towers = [self.cls_convs(x) for x in features]
        distances = [scale(self.conv_reg(self.reg_convs(x))).float().exp() for x, scale in zip(features, self.scales)]
        return [self.conv_cls(c) for c in towers], distances, [self.conv_centerness(c) for c in towers]

    def loss_and_proposals(self, features: Sequence[Tensor], images: Images,
                           targets: list[Target]) -> tuple[dict[str, Tensor], Proposals]:
        """Losses of the cells (any object is class 0), and the proposals that train the second stage."""
        output = self(features)
        losses = self.output_loss(output, [replace(t, labels=torch.zeros_like(t.labels)) for t in targets])
        return ({f"rpn_{name}": value for name, value in losses.items()},
                self.select(output, images, self.train_proposals))

    def proposals(self, features: Sequence[Tensor], images: Images) -> Proposals:
        """The proposals at test time."""
        return self.select(self(features), images, self.test_proposals)

    def assign(self, points: list[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor]:
        """Labels [N, P] (C for background) and distances to the sides of the object [N, P, 4] (section 3.1).

        Of several objects that hold a cell, the smallest has it.
        """
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        xy = torch.cat(points)
        low, high = (torch.cat([p.new_full((len(p),), r[i]) for r, p in zip(RANGES, points)]) for i in (0, 1))
        smallest = gt_boxes.new_full((len(gt_boxes), len(xy)), torch.inf)
        index = torch.zeros_like(smallest, dtype=torch.long)
        for images, objects in object_chunks(gt_valid, 4 * len(xy)):
            boxes = gt_boxes[images][:, objects]
            distances = box.to_distances(xy, boxes[:, :, None])
            farthest = distances.amax(-1)
            held = (distances.amin(-1) > 0) & (farthest >= low) & (farthest <= high)
            held &= gt_valid[images][:, objects, None]
            area, nearest = box.area(boxes)[:, :, None].expand_as(held).masked_fill(~held, torch.inf).min(1)
            better = area < smallest[images]
            index[images] = torch.where(better, nearest + (objects.start or 0), index[images])
            smallest[images] = torch.where(better, area, smallest[images])
        labels = gt_labels.gather(1, index).masked_fill(smallest.isinf(), self.num_classes)
        return labels, box.to_distances(xy, box.gather(gt_boxes, index))

    def output_loss(self, output: Output, targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes, IoU loss of the boxes weighted by centre-ness, and centre-ness (equation 2)."""
        classes, distances, centerness = (torch.cat([flatten(m) for m in maps], 1) for maps in output)
        points = point_grid(output[0], STRIDES)
        labels, target = self.assign(points, targets)
        positive = labels < self.num_classes
        count = reduce_mean(positive.sum().float()).clamp(min=1)
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        # Cells outside every object have meaningless distances; ones keep the arithmetic finite.
        target = torch.where(positive[..., None], target, 1.0)
        central = centrality(target) * positive
        weight = reduce_mean(central.sum()).clamp(min=1e-6)
        xy = torch.cat(points)
        error = iou_loss(box.from_distances(xy, distances), box.from_distances(xy, target)) * central
        return {"loss_cls": focal(classes, one_hot).sum() / count, "loss_bbox": error.sum() / weight,
                "loss_centerness": (binary_cross_entropy(centerness[..., 0], central) * positive).sum() / count}

    @torch.no_grad()
    def select(self, output: Output, images: Images, settings: ProposalSettings) -> Proposals:
        """The cells of highest class score in each level, thinned by NMS over all levels together."""
        sizes = box.size_tensor(images.sizes, output[1][0])
        boxes, scores = [], []
        for cls, dist, centerness, xy in zip(*output, point_grid(output[0], STRIDES)):
            score, index = flatten(cls)[..., 0].float().sigmoid().topk(min(settings.pre_nms_top_n, len(xy)), 1)
            boxes.append(box.clip(box.from_distances(xy[index], box.gather(flatten(dist), index)), sizes))
            scores.append(score * flatten(centerness)[..., 0].float().sigmoid().gather(1, index))
        score = torch.cat(scores, 1)
        return top_proposals(torch.cat(boxes, 1), score, torch.zeros_like(score, dtype=torch.long), settings)


def centrality(distances: Tensor) -> Tensor:
    """How central a point is, 1 in the middle, 0 on the rim (equation 3), [...] from distances [..., 4]."""
    near = torch.minimum(distances[..., :2], distances[..., 2:])
    far = torch.maximum(distances[..., :2], distances[..., 2:])
    return (near / far).prod(-1).sqrt()


def fcos_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = 1024,
                     samples: int = 512, sampling_ratio: int = 0, score_threshold: float = 0.05,
                     nms_threshold: float = 0.5, max_detections: int = 100, rpn_pre_nms_top_n_train: int = 2000,
                     rpn_pre_nms_top_n_test: int = 1000, rpn_post_nms_top_n_train: int = 1000,
                     rpn_post_nms_top_n_test: int = 1000, rpn_nms_threshold: float = 0.7) -> TwoStageDetector:
    """Faster R-CNN whose proposals come from an FCOS head (section 5); arguments as in `faster_rcnn`."""
    rpn_head = FCOSHead(width, 1,
                        ProposalSettings(rpn_pre_nms_top_n_train, rpn_post_nms_top_n_train, rpn_nms_threshold),
                        ProposalSettings(rpn_pre_nms_top_n_test, rpn_post_nms_top_n_test, rpn_nms_threshold))
    head = RoIHead(MultiScaleRoIAlign(STRIDES, sampling_ratio=sampling_ratio),
                   BoxHead(width, num_classes, hidden=hidden), samples=samples,
                   postprocess=PostProcess(score_threshold, nms_threshold, max_detections))
    neck = FPN(backbone.channels, width, start=1, extra="output", relu_extra=True)
    return TwoStageDetector(backbone, neck, rpn_head, head)
