"""Center points: a small detector without anchors, written outside of the library.

Every cell of one feature map answers two questions: which class of object has its centre here, and how far away are the
four sides of that object. The cells near the centre of an object learn to answer for it, all other cells learn to say
that there is nothing. What the answers overlap is thinned by non-maximum suppression.

    python examples/center_points.py data/pocket
"""
from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import detcore
from detcore.data.transforms import Flip, Resize
from detcore.detectors import OneStageDetector
from detcore.layers.heads import conv_tower, flatten
from detcore.layers.init import init_normal, init_weights, normal, prior_bias
from detcore.ops import boxes as box
from detcore.ops.anchors import point_grid
from detcore.ops.losses import focal, giou_loss, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.pocket.slim import SLIM
from detcore.recipe import AdamW, Recipe, Schedule
from detcore.structures import Detections, Images, Target
from detcore.zoo.entries import Backbone

STRIDE = 4  # pixels between the cells of the map
CENTER = 0.25  # a cell is near the centre if it is at most this share of the object's width and height away
BOX_WEIGHT = 2.0


class SumNeck(nn.Module):
    """All maps of the backbone, enlarged to the size of the finest one and added."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor]:
        """One map [N, width, h, w] of maps [N, C, h, w], [N, C, h / 2, w / 2] and so on."""
        size = maps[0].shape[2:]
        enlarged = [nn.functional.interpolate(conv(x), size) for conv, x in zip(self.lateral, maps)]
        return torch.stack(enlarged).sum(0),


class CenterHead(nn.Module):
    """Two towers of convolutions, one for the classes and one for the boxes.

    Args:
        width: channels of the map and the towers; depth: convolutions of each.
        postprocess: which detections are kept at test time.
    """

    def __init__(self, width: int, num_classes: int, *, depth: int, postprocess: PostProcess):
        super().__init__()
        self.num_classes, self.postprocess = num_classes, postprocess
        self.cls_tower, self.box_tower = conv_tower(width, depth), conv_tower(width, depth)
        self.cls, self.box = nn.Conv2d(width, num_classes, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        init_weights(self, normal)
        init_normal(self.cls, bias=prior_bias(0.01))  # at first nearly every cell is background

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits [N, P, C] and distances (left, top, right, bottom) in pixels [N, P, 4] of the P cells."""
        x, = features
        return flatten(self.cls(self.cls_tower(x))), STRIDE * flatten(self.box(self.box_tower(x))).float().exp()

    def assign(self, points: Tensor, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Which cells learn an object [N, P] bool, its label [N, P] and its box [N, P, 4].

        Of several objects whose centres are near, a cell learns the smallest.
        """
        gt_boxes, gt_labels, gt_valid = pad_targets(targets)
        reach = (CENTER * box.sizes(gt_boxes)).clamp(min=STRIDE / 2)  # even the smallest object has a cell
        near = ((points - box.centers(gt_boxes)[:, :, None]).abs() <= reach[:, :, None]).all(-1) & gt_valid[..., None]
        area, index = box.area(gt_boxes)[..., None].expand(near.shape).masked_fill(~near, torch.inf).min(1)
        return area.isfinite(), gt_labels.gather(1, index), box.gather(gt_boxes, index)

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes and generalised IoU loss of the boxes, over the number of positive cells."""
        logits, distances = self(features)
        points, = point_grid(features, [STRIDE])
        positive, labels, boxes = self.assign(points, targets)
        count = reduce_mean(positive.sum().float()).clamp(min=1)
        one_hot = (labels[..., None] == torch.arange(self.num_classes, device=labels.device)) & positive[..., None]
        error = giou_loss(box.from_distances(points, distances), boxes)
        return {"loss_cls": focal(logits, one_hot).sum() / count,
                "loss_bbox": BOX_WEIGHT * (error * positive).sum() / count}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """The cells of highest score as boxes, thinned by NMS within each class, in pixels of the network's input."""
        (logits, distances), (points,) = self(features), point_grid(features, [STRIDE])
        settings = self.postprocess
        scores, index, labels = top_scores(logits, settings.score_threshold, settings.pre_nms_top_n, logits=True)
        boxes = box.from_distances(points[index], box.gather(distances, index))
        return dense_detections(box.clip(boxes, box.size_tensor(images.sizes, boxes)), scores, labels, settings)


def center_points(backbone: nn.Module, num_classes: int = 80, *, width: int = 64, depth: int = 2,
                  score_threshold: float = 0.05, nms_threshold: float = 0.5, max_detections: int = 100,
                  pre_nms_top_n: int = 1000) -> OneStageDetector:
    """The detector.

    Args:
        width: channels of neck and head; depth: convolutions of each tower.
        score_threshold, nms_threshold, max_detections, pre_nms_top_n: which detections are kept (see `PostProcess`).
    """
    head = CenterHead(width, num_classes, depth=depth, postprocess=PostProcess(
        score_threshold, nms_threshold, max_detections, pre_nms_top_n))
    return OneStageDetector(backbone, SumNeck(backbone.channels, width), head)


BACKBONE = Backbone("slim ResNet-18", "Pocket Zoo", SLIM.build, weights=str(SLIM.file))
RECIPE = Recipe(
    train_transforms=(Resize((128, 128)), Flip()), test_transforms=(Resize((128, 128)),), min_size=8,
    optimizer=AdamW(lr=2e-3, weight_decay=0.05), clip_norm=10.0, batch_size=16, batch_per_gpu=16, epochs=None,
    iterations=250, val_interval=250, schedule=Schedule((175, 225), 250, by_epoch=False, warmup_iters=30))
MY_MODEL = detcore.ModelEntry("center-points", center_points, RECIPE, BACKBONE)


if __name__ == "__main__":
    root = sys.argv[1]
    run = detcore.train(MY_MODEL, root, output="runs/center_points", resume=True)
    print(detcore.evaluate(MY_MODEL, root, weights=run.checkpoint)["bbox"].metrics)
    print(detcore.export(MY_MODEL, "runs/center_points/model.onnx", weights=run.checkpoint))
