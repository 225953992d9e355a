"""The table of models, and finding one in it.

A row is a name, a backbone, what the model changes in its family's recipe, and the builder's options. Everything that
a row does not say is the family's.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from detcore.backbones.resnet import ResNet, resnet_c4, resnet_dc5, resnext
from detcore.errors import UsageError
from detcore.losses import SmoothL1, bounded_iou_loss, ciou_loss, giou_loss, iou_loss
from detcore.methods.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from detcore.methods.fast_rcnn import Keep, fast_rcnn
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.methods.retinanet import retinanet
from detcore.methods.rpn import Limits, rpn
from detcore.zoo import pocket
from detcore.zoo.entries import Backbone, ModelEntry
from detcore.zoo.recipes import (
    CAFFE,
    CAFFE2,
    MIXED_PRECISION,
    MULTI_SCALE,
    MULTI_SCALE_3X,
    POLYGONS,
    SCHEDULE_2X,
    SCHEDULE_3X,
    SCHEDULE_20E,
    SCHEDULE_90K,
    SGD,
    TORCHVISION,
    AdamW,
    Change,
    Recipe,
    Schedule,
    change,
    large_scale_jitter,
)

# Backbones. Converted files (MSRA's ResNets, Caffe2's and others' ResNeXts) are named by address.
FILES = "https://download.openmmlab.com/pretrain/third_party/"
MSRA_50, MSRA_101 = FILES + "resnet50_msra-5891d200.pth", FILES + "resnet101_msra-6cc46731.pth"

R18 = Backbone(partial(ResNet, 18), "ResNet18_Weights.IMAGENET1K_V1")
R50 = Backbone(partial(ResNet, 50), "ResNet50_Weights.IMAGENET1K_V1")
R50_TNR = Backbone(partial(ResNet, 50), "ResNet50_Weights.IMAGENET1K_V2")
R101 = Backbone(partial(ResNet, 101), "ResNet101_Weights.IMAGENET1K_V1")
R50_CAFFE = Backbone(partial(ResNet, 50, style="caffe"), MSRA_50, CAFFE)
R101_CAFFE = Backbone(partial(ResNet, 101, style="caffe"), MSRA_101, CAFFE)
R50_C4 = Backbone(partial(resnet_c4, 50), MSRA_50, CAFFE, partial(pocket.slim_resnet, resnet_c4))
R50_DC5 = Backbone(partial(resnet_dc5, 50), MSRA_50, CAFFE, partial(pocket.slim_resnet, resnet_dc5))
X101_32X4D = Backbone(partial(resnext, 101, 32, 4), FILES + "resnext101_32x4d-a5af3160.pth")
X101_64X4D = Backbone(partial(resnext, 101, 64, 4), FILES + "resnext101_64x4d-ee2c6f71.pth")
X101_32X8D = Backbone(partial(resnext, 101, 32, 8, norm_fixed=True), FILES + "resnext101_32x8d-1516f1aa.pth", CAFFE2)


@dataclass(frozen=True)
class Row:
    """A model as its family's table states it."""

    name: str
    backbone: Backbone
    changes: tuple[Change, ...]
    num_classes: int | None
    options: dict[str, Any]


def row(name: str, backbone: Backbone, *changes: Change, num_classes: int | None = None, **options: Any) -> Row:
    """A model: its backbone, its changes of the family's recipe, and options for the family's builder."""
    return Row(name, backbone, changes, num_classes, options)


def family(name: str, builder: Callable[..., nn.Module], recipe: Recipe, small: pocket.Pocket, *rows: Row,
           num_classes: int = 80) -> list[ModelEntry]:
    """The models of a family (or of one builder in it)."""
    entries = []
    for r in rows:
        trained = replace(recipe, preprocess=r.backbone.preprocess)
        for changed in r.changes:
            trained = changed(trained)
        entries.append(ModelEntry(r.name, name, builder, r.backbone, trained, small, r.num_classes or num_classes,
                                  r.options))
    return entries


def classless_rpn(backbone: ResNet, num_classes: int, **options: Any) -> nn.Module:
    """RPN tells objects from background, however many classes the data set has."""
    return rpn(backbone, **options)


def classes(*names: str) -> Change:
    """Train on a few of the data set's classes."""
    return change(classes=names)


LSJ_200E = large_scale_jitter(repeat=8, warmup_iters=1000)
LSJ_100E = large_scale_jitter(repeat=4, warmup_iters=500)  # what Mask R-CNN's "200e" files contain
BOXES = Recipe()
MASKS = Recipe(masks="bitmap", metric=("bbox", "segm"))

RPN = family(
    "rpn", classless_rpn, replace(BOXES, metric=("proposal",)), pocket.RPN,
    row("rpn_r50_fpn_1x_coco", R50),
    row("rpn_r50_fpn_2x_coco", R50, SCHEDULE_2X),
    row("rpn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("rpn_r50-caffe-c4_1x_coco", R50_C4, neck=None, test_limits=Limits(12000, 2000)),
    row("rpn_r101_fpn_1x_coco", R101),
    row("rpn_r101_fpn_2x_coco", R101, SCHEDULE_2X),
    row("rpn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("rpn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("rpn_x101-32x4d_fpn_2x_coco", X101_32X4D, SCHEDULE_2X),
    row("rpn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("rpn_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
    num_classes=1,
)

FAST_RCNN = family(
    "fast_rcnn", fast_rcnn, replace(BOXES, max_proposals=2000), pocket.FAST_RCNN,
    row("fast-rcnn_r50_fpn_1x_coco", R50),
    row("fast-rcnn_r50_fpn_2x_coco", R50, SCHEDULE_2X),
    row("fast-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("fast-rcnn_r101_fpn_1x_coco", R101),
    row("fast-rcnn_r101_fpn_2x_coco", R101, SCHEDULE_2X),
    row("fast-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
)

FASTER_RCNN = family(
    "faster_rcnn", faster_rcnn, BOXES, pocket.FASTER_RCNN,
    row("faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", R18, LSJ_200E),
    row("faster-rcnn_r50_fpn_1x_coco", R50),
    row("faster-rcnn_r50_fpn_2x_coco", R50, SCHEDULE_2X),
    row("faster-rcnn_r50_fpn_ms-3x_coco", R50, MULTI_SCALE_3X),
    row("faster-rcnn_r50_fpn_amp-1x_coco", R50, MIXED_PRECISION),
    row("faster-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco", R50, LSJ_200E),
    row("faster-rcnn_r50-tnr-pre_fpn_1x_coco", R50_TNR, change(optimizer=AdamW(1e-4, 0.1, norm_decay_mult=0))),
    row("faster-rcnn_r50_fpn_iou_1x_coco", R50, box_loss=iou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_giou_1x_coco", R50, box_loss=giou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_ciou_1x_coco", R50, box_loss=ciou_loss, decoded=True, box_weight=12.0),
    row("faster-rcnn_r50_fpn_bounded-iou_1x_coco", R50, box_loss=bounded_iou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_ohem_1x_coco", R50, hard_examples=True),
    row("faster-rcnn_r50_fpn_soft-nms_1x_coco", R50, keep=Keep(soft=True)),
    row("faster-rcnn_r50_fpn_fcos-rpn_1x_coco", R50, change(schedule=Schedule(warmup_iters=1000)),
        fcos_proposals=True),
    row("faster-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("faster-rcnn_r50-caffe_fpn_90k_coco", R50_CAFFE, SCHEDULE_90K),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person", R50_CAFFE, MULTI_SCALE, classes("person"), num_classes=1),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person-bicycle-car", R50_CAFFE, MULTI_SCALE,
        classes("person", "bicycle", "car"), num_classes=3),
    # As published: the drops are beyond the end of their scheduler and never happen.
    row("faster-rcnn_r50-caffe_fpn_ms-2x_coco", R50_CAFFE, MULTI_SCALE,
        change(epochs=24, schedule=Schedule((16, 23), 12))),
    row("faster-rcnn_r50-caffe_fpn_ms-3x_coco", R50_CAFFE, MULTI_SCALE_3X),
    row("faster-rcnn_r50-caffe_fpn_ms-90k_coco", R50_CAFFE, MULTI_SCALE, SCHEDULE_90K),
    row("faster-rcnn_r50-caffe_c4-1x_coco", R50_C4, neck="c4"),
    row("faster-rcnn_r50-caffe-c4_ms-1x_coco", R50_C4, MULTI_SCALE, neck="c4"),
    row("faster-rcnn_r50-caffe-dc5_1x_coco", R50_DC5, neck="dc5"),
    row("faster-rcnn_r50-caffe-dc5_ms-1x_coco", R50_DC5, MULTI_SCALE, neck="dc5"),
    row("faster-rcnn_r50-caffe-dc5_ms-3x_coco", R50_DC5, MULTI_SCALE,
        change(epochs=36, schedule=Schedule((28, 34), 12)), neck="dc5"),
    row("faster-rcnn_r101_fpn_1x_coco", R101),
    row("faster-rcnn_r101_fpn_2x_coco", R101, SCHEDULE_2X),
    row("faster-rcnn_r101_fpn_ms-3x_coco", R101, MULTI_SCALE_3X),
    row("faster-rcnn_r101_fpn_8xb8-amp-lsj-200e_coco", R101, LSJ_200E),
    row("faster-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    # As published: caffe-style weights, yet torchvision's normalisation.
    row("faster-rcnn_r101-caffe_fpn_ms-3x_coco", R101_CAFFE, MULTI_SCALE_3X, change(preprocess=TORCHVISION)),
    row("faster-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("faster-rcnn_x101-32x4d_fpn_2x_coco", X101_32X4D, SCHEDULE_2X),
    row("faster-rcnn_x101-32x4d_fpn_ms-3x_coco", X101_32X4D, MULTI_SCALE_3X),
    row("faster-rcnn_x101-32x8d_fpn_ms-3x_coco", X101_32X8D, MULTI_SCALE_3X),
    row("faster-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("faster-rcnn_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
    row("faster-rcnn_x101-64x4d_fpn_ms-3x_coco", X101_64X4D, MULTI_SCALE_3X),
)

MASK_RCNN = family(
    "mask_rcnn", mask_rcnn, MASKS, pocket.MASK_RCNN,
    row("mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", R18, LSJ_100E),
    row("mask-rcnn_r50_fpn_1x_coco", R50),
    row("mask-rcnn_r50_fpn_2x_coco", R50, SCHEDULE_2X),
    row("mask-rcnn_r50_fpn_amp-1x_coco", R50, MIXED_PRECISION),
    row("mask-rcnn_r50_fpn_poly-1x_coco", R50, POLYGONS),
    row("mask-rcnn_r50_fpn_ms-poly-3x_coco", R50, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco", R50, LSJ_100E),
    row("mask-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("mask-rcnn_r50-caffe_fpn_poly-1x_coco_v1", R50_CAFFE, box_loss=SmoothL1(), rpn_box_loss=SmoothL1(1 / 9),
        sampling=2, aligned=False),
    row("mask-rcnn_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("mask-rcnn_r50-caffe_fpn_ms-poly-1x_coco", R50_CAFFE, MULTI_SCALE, POLYGONS),
    row("mask-rcnn_r50-caffe_fpn_ms-poly-2x_coco", R50_CAFFE, MULTI_SCALE, POLYGONS, SCHEDULE_2X),
    # As published: the drops are beyond the end of their scheduler.
    row("mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco", R50_CAFFE, MULTI_SCALE, POLYGONS,
        change(epochs=36, schedule=Schedule((28, 34), 24))),
    row("mask-rcnn_r50-caffe-c4_1x_coco", R50_C4, neck="c4"),
    row("mask-rcnn_r101_fpn_1x_coco", R101),
    row("mask-rcnn_r101_fpn_2x_coco", R101, SCHEDULE_2X),
    row("mask-rcnn_r101_fpn_ms-poly-3x_coco", R101, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_r101_fpn_8xb8-amp-lsj-200e_coco", R101, LSJ_100E),
    row("mask-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("mask-rcnn_r101-caffe_fpn_ms-poly-3x_coco", R101_CAFFE, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("mask-rcnn_x101-32x4d_fpn_2x_coco", X101_32X4D, SCHEDULE_2X),
    row("mask-rcnn_x101-32x4d_fpn_ms-poly-3x_coco", X101_32X4D, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_x101-32x8d_fpn_1x_coco", X101_32X8D),
    row("mask-rcnn_x101-32x8d_fpn_ms-poly-1x_coco", X101_32X8D, MULTI_SCALE, POLYGONS),
    row("mask-rcnn_x101-32x8d_fpn_ms-poly-3x_coco", X101_32X8D, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("mask-rcnn_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
    row("mask-rcnn_x101-64x4d_fpn_ms-poly_3x_coco", X101_64X4D, MULTI_SCALE_3X, POLYGONS),
)

CASCADE_RCNN = family(
    "cascade_rcnn", cascade_rcnn, BOXES, pocket.CASCADE_RCNN,
    row("cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", R18, LSJ_200E, border=-1),
    row("cascade-rcnn_r50_fpn_1x_coco", R50),
    row("cascade-rcnn_r50_fpn_20e_coco", R50, SCHEDULE_20E),
    row("cascade-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco", R50, LSJ_200E, border=-1),
    row("cascade-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("cascade-rcnn_r101_fpn_1x_coco", R101),
    row("cascade-rcnn_r101_fpn_20e_coco", R101, SCHEDULE_20E),
    row("cascade-rcnn_r101_fpn_8xb8-amp-lsj-200e_coco", R101, LSJ_200E, border=-1),
    row("cascade-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("cascade-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("cascade-rcnn_x101-32x4d_fpn_20e_coco", X101_32X4D, SCHEDULE_20E),
    row("cascade-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("cascade-rcnn_x101_64x4d_fpn_20e_coco", X101_64X4D, SCHEDULE_20E),
)

CASCADE_MASK_RCNN = family(
    "cascade_rcnn", cascade_mask_rcnn, MASKS, pocket.CASCADE_MASK_RCNN,
    row("cascade-mask-rcnn_r50_fpn_1x_coco", R50),
    row("cascade-mask-rcnn_r50_fpn_20e_coco", R50, SCHEDULE_20E),
    row("cascade-mask-rcnn_r50_fpn_ms-3x_coco", R50, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("cascade-mask-rcnn_r50-caffe_fpn_ms-3x_coco", R50_CAFFE, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_r101_fpn_1x_coco", R101),
    row("cascade-mask-rcnn_r101_fpn_20e_coco", R101, SCHEDULE_20E),
    row("cascade-mask-rcnn_r101_fpn_ms-3x_coco", R101, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("cascade-mask-rcnn_r101-caffe_fpn_ms-3x_coco", R101_CAFFE, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("cascade-mask-rcnn_x101-32x4d_fpn_20e_coco", X101_32X4D, SCHEDULE_20E),
    row("cascade-mask-rcnn_x101-32x4d_fpn_ms-3x_coco", X101_32X4D, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_x101-32x8d_fpn_ms-3x_coco", X101_32X8D, MULTI_SCALE_3X),
    row("cascade-mask-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("cascade-mask-rcnn_x101-64x4d_fpn_20e_coco", X101_64X4D, SCHEDULE_20E),
    row("cascade-mask-rcnn_x101-64x4d_fpn_ms-3x_coco", X101_64X4D, MULTI_SCALE_3X),
)

RETINANET = family(
    "retinanet", retinanet, replace(BOXES, optimizer=SGD(lr=0.01)), pocket.RETINANET,
    row("retinanet_r18_fpn_1x_coco", R18),
    row("retinanet_r18_fpn_1xb8-1x_coco", R18, change(optimizer=SGD(lr=0.005), batch_per_gpu=8)),
    row("retinanet_r18_fpn_8xb8-amp-lsj-200e_coco", R18, LSJ_200E),
    row("retinanet_r50_fpn_1x_coco", R50),
    row("retinanet_r50_fpn_2x_coco", R50, SCHEDULE_2X),
    row("retinanet_r50_fpn_90k_coco", R50, SCHEDULE_90K),
    row("retinanet_r50_fpn_amp-1x_coco", R50, MIXED_PRECISION),
    row("retinanet_r50_fpn_ms-640-800-3x_coco", R50, MULTI_SCALE_3X),
    row("retinanet_r50_fpn_8xb8-amp-lsj-200e_coco", R50, LSJ_200E),
    row("retinanet_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("retinanet_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("retinanet_r50-caffe_fpn_ms-2x_coco", R50_CAFFE, MULTI_SCALE, SCHEDULE_2X),
    row("retinanet_r50-caffe_fpn_ms-3x_coco", R50_CAFFE, MULTI_SCALE, SCHEDULE_3X),
    row("retinanet_r101_fpn_1x_coco", R101),
    row("retinanet_r101_fpn_2x_coco", R101, SCHEDULE_2X),
    row("retinanet_r101_fpn_ms-640-800-3x_coco", R101, MULTI_SCALE_3X),
    row("retinanet_r101_fpn_8xb8-amp-lsj-200e_coco", R101, LSJ_200E),
    row("retinanet_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("retinanet_r101-caffe_fpn_ms-3x_coco", R101_CAFFE, MULTI_SCALE, SCHEDULE_3X),
    row("retinanet_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("retinanet_x101-32x4d_fpn_2x_coco", X101_32X4D, SCHEDULE_2X),
    row("retinanet_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("retinanet_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
    row("retinanet_x101-64x4d_fpn_ms-640-800-3x_coco", X101_64X4D, MULTI_SCALE_3X),
)

FAMILIES = (RPN, FAST_RCNN, FASTER_RCNN, MASK_RCNN, CASCADE_RCNN, CASCADE_MASK_RCNN, RETINANET)
MODELS = {entry.name: entry for entries in FAMILIES for entry in entries}


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a pattern with wildcards, such as "*r50*", sorted."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def get_model_entry(name: str) -> ModelEntry:
    """What the zoo knows of a model.

    Raises:
        UsageError: there is no such name; the message offers the nearest ones.
    """
    if name not in MODELS:
        raise UsageError(f"There is no model {name!r}. {_offer(get_close_matches(name, MODELS, 3, 0.5))}")
    return MODELS[name]


def _offer(names: Iterable[str]) -> str:
    near = ", ".join(names)
    return f"The nearest names are: {near}." if near else "`detcore list` shows all names."
