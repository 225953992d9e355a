"""The table of models, and finding one in it.

A row is a name, a backbone, what the model changes in its family's recipe, and the builder's options. Everything that
a row does not say is the family's.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from detcore.data import voc
from detcore.data.augment import CornerCrop, Expand, MinIoUCrop, PhotometricDistortion
from detcore.data.instaboost import InstaBoost
from detcore.data.sampling import ClassAware, ClassBalanced
from detcore.data.transforms import (
    AsFloat,
    Choice,
    FilterBoxes,
    Flip,
    RandomCrop,
    Resize,
    ResizeChoice,
    ResizeRange,
    ScaleJitter,
    Transform,
)
from detcore.errors import UsageError
from detcore.ops.losses import SmoothL1, bounded_iou_loss, ciou_loss, giou_loss, iou_loss
from detcore.methods.autoassign import autoassign
from detcore.methods.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from detcore.methods.centripetalnet import centripetalnet
from detcore.methods.dcn import faster_rcnn_dpool
from detcore.methods.deformable_detr import deformable_detr
from detcore.methods.dynamic_rcnn import dynamic_rcnn
from detcore.methods.efficientnet import efficientnet_retinanet
from detcore.methods.fast_rcnn import Keep, fast_rcnn
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.free_anchor import free_anchor
from detcore.methods.gfl import gfl
from detcore.methods.grid_rcnn import grid_rcnn
from detcore.methods.group_norm import gn_faster_rcnn, gn_mask_rcnn
from detcore.methods.guided_anchoring import ga_fast_rcnn, ga_faster_rcnn, ga_retinanet, ga_rpn
from detcore.methods.libra_rcnn import libra_fast_rcnn, libra_faster_rcnn, libra_retinanet
from detcore.methods.mask2former import mask2former
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.methods.maskformer import maskformer
from detcore.methods.ms_rcnn import ms_rcnn
from detcore.methods.panoptic_fpn import panoptic_fpn
from detcore.methods.retinanet import retinanet
from detcore.methods.rpn import Limits, rpn
from detcore.methods.seesaw_loss import seesaw_cascade_mask_rcnn, seesaw_mask_rcnn
from detcore.methods.ssd import SSD300_VOC, SSD512, SSD512_VOC, ssd, ssdlite
from detcore.methods.weight_standardization import ws_faster_rcnn, ws_mask_rcnn
from detcore.methods.yolov3 import COCO_ANCHORS_320, yolov3
from detcore.data.tta import TestTimeAugmentation
from detcore.pocket import profile as pocket
from detcore.zoo.backbones import (
    DARKNET53,
    EFFICIENTNET_B3,
    HOURGLASS104,
    MOBILENET_LEAKY,
    MOBILENET_SCRATCH,
    R18,
    R50,
    R50_C4,
    R50_CAFFE,
    R50_DC5,
    R50_DCN,
    R50_DCN2,
    R50_DCN2_4,
    R50_GN,
    R50_GN_CONTRIB,
    R50_SCRATCH,
    R50_STILL,
    R50_TNR,
    R50_WHOLE,
    R50_WS,
    R101,
    R101_CAFFE,
    R101_DCN,
    R101_GN,
    R101_WHOLE,
    R101_WS,
    SWIN_B_384,
    SWIN_B_384_22K,
    SWIN_L_384_22K,
    SWIN_S_224,
    SWIN_T_224,
    VGG16,
    X1_6G,
    X3_2G,
    X4G,
    X6_4G,
    X8G,
    X12G,
    X50_WS,
    X101_32X4D,
    X101_32X8D,
    X101_64X4D,
    X101_DCN,
    X101_DCN_C4,
    X101_WS,
    X400M,
    X800M,
    deformed,
)
from detcore.zoo.entries import Backbone, ModelEntry
from detcore.zoo.recipes import (
    DETECTRON,
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
    Adam,
    AdamW,
    Change,
    Part,
    Recipe,
    Schedule,
    change,
    large_scale_jitter,
)


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


def classless(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The builder of a proposal network, which tells objects from background however many classes the data has."""
    return lambda backbone, num_classes, **options: builder(backbone, **options)


def classes(*names: str) -> Change:
    """Train on a few of the data set's classes."""
    return change(classes=names)


LSJ_200E = large_scale_jitter(repeat=8, warmup_iters=1000)
LSJ_100E = large_scale_jitter(repeat=4, warmup_iters=500)  # what Mask R-CNN's "200e" files contain
BOXES = Recipe()
MASKS = Recipe(masks="bitmap", metric=("bbox", "segm"))

RPN = family(
    "rpn", classless(rpn), replace(BOXES, metric=("proposal",)), pocket.RPN,
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

GROUP_NORM = family(
    "gn", gn_mask_rcnn, MASKS, pocket.GN_MASK_RCNN,
    row("mask-rcnn_r50_fpn_gn-all_2x_coco", R50_GN, SCHEDULE_2X),
    row("mask-rcnn_r50_fpn_gn-all_3x_coco", R50_GN, SCHEDULE_3X),
    row("mask-rcnn_r50-contrib_fpn_gn-all_2x_coco", R50_GN_CONTRIB, SCHEDULE_2X),
    row("mask-rcnn_r50-contrib_fpn_gn-all_3x_coco", R50_GN_CONTRIB, SCHEDULE_3X),
    row("mask-rcnn_r101_fpn_gn-all_2x_coco", R101_GN, SCHEDULE_2X),
    row("mask-rcnn_r101_fpn_gn-all_3x_coco", R101_GN, SCHEDULE_3X),
)

FROM_SCRATCH = change(epochs=73, schedule=Schedule((65, 71), 73), optimizer=SGD(norm_decay_mult=0))

SCRATCH_FASTER = family(
    "scratch", gn_faster_rcnn, BOXES, pocket.SCRATCH_FASTER_RCNN,
    row("faster-rcnn_r50-scratch_fpn_gn-all_6x_coco", R50_SCRATCH, FROM_SCRATCH),
)

SCRATCH_MASK = family(
    "scratch", gn_mask_rcnn, MASKS, pocket.SCRATCH_MASK_RCNN,
    row("mask-rcnn_r50-scratch_fpn_gn-all_6x_coco", R50_SCRATCH, FROM_SCRATCH),
)

WS_FASTER = family(
    "gn+ws", ws_faster_rcnn, BOXES, pocket.WS_FASTER_RCNN,
    row("faster-rcnn_r50_fpn_gn-ws-all_1x_coco", R50_WS),
    row("faster-rcnn_r101_fpn_gn-ws-all_1x_coco", R101_WS),
    row("faster-rcnn_x50-32x4d_fpn_gn-ws-all_1x_coco", X50_WS),
    row("faster-rcnn_x101-32x4d_fpn_gn-ws-all_1x_coco", X101_WS),
)

SCHEDULE_20_23_24E = change(epochs=24, schedule=Schedule((20, 23), 24))

WS_MASK = family(
    "gn+ws", ws_mask_rcnn, MASKS, pocket.WS_MASK_RCNN,
    row("mask-rcnn_r50_fpn_gn-ws-all_2x_coco", R50_WS, SCHEDULE_2X),
    row("mask-rcnn_r50_fpn_gn-ws-all_20-23-24e_coco", R50_WS, SCHEDULE_20_23_24E),
    row("mask-rcnn_r101_fpn_gn-ws-all_2x_coco", R101_WS, SCHEDULE_2X),
    row("mask-rcnn_r101_fpn_gn-ws-all_20-23-24e_coco", R101_WS, SCHEDULE_20_23_24E),
    row("mask-rcnn_x50-32x4d_fpn_gn-ws-all_2x_coco", X50_WS, SCHEDULE_2X),
    row("mask-rcnn_x50-32x4d_fpn_gn-ws-all_20-23-24e_coco", X50_WS, SCHEDULE_20_23_24E),
    row("mask-rcnn_x101-32x4d_fpn_gn-ws-all_2x_coco", X101_WS, SCHEDULE_2X),
    row("mask-rcnn_x101-32x4d_fpn_gn-ws-all_20-23-24e_coco", X101_WS, SCHEDULE_20_23_24E),
)

DCN = [
    *family(
        "dcn", faster_rcnn, BOXES, pocket.FASTER_RCNN,
        row("faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", R50_DCN),
        row("faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco", R101_DCN),
        row("faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco", X101_DCN),
    ),
    *family("dcn", faster_rcnn_dpool, BOXES, pocket.FASTER_RCNN_DPOOL,
            row("faster-rcnn_r50_fpn_dpool_1x_coco", R50)),
    *family(
        "dcn", mask_rcnn, MASKS, pocket.MASK_RCNN,
        row("mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco", R50_DCN),
        row("mask-rcnn_r50-dconv-c3-c5_fpn_amp-1x_coco", R50_DCN, MIXED_PRECISION),
        row("mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco", R101_DCN),
    ),
    *family(
        "dcn", cascade_rcnn, BOXES, pocket.CASCADE_RCNN,
        row("cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco", R50_DCN),
        row("cascade-rcnn_r101-dconv-c3-c5_fpn_1x_coco", R101_DCN),
    ),
    *family(
        "dcn", cascade_mask_rcnn, MASKS, pocket.CASCADE_MASK_RCNN,
        row("cascade-mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco", R50_DCN),
        row("cascade-mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco", R101_DCN),
        row("cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco", X101_DCN),
    ),
]

DCN2 = [
    *family(
        "dcnv2", faster_rcnn, BOXES, pocket.FASTER_RCNN,
        row("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", R50_DCN2),
        row("faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco", R50_DCN2_4),
    ),
    *family("dcnv2", faster_rcnn_dpool, BOXES, pocket.FASTER_RCNN_DPOOL,
            row("faster-rcnn_r50_fpn_mdpool_1x_coco", R50, modulated=True)),
    *family(
        "dcnv2", mask_rcnn, MASKS, pocket.MASK_RCNN,
        row("mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", R50_DCN2),
        row("mask-rcnn_r50-mdconv-c3-c5_fpn_amp-1x_coco", R50_DCN2, MIXED_PRECISION),
    ),
]

INSTABOOST_4X = change(train_transforms=(InstaBoost(), Resize(), Flip()), epochs=48,
                       schedule=Schedule((32, 44), 48))

INSTABOOST = [
    *family(
        "instaboost", mask_rcnn, MASKS, pocket.INSTABOOST_MASK_RCNN,
        row("mask-rcnn_r50_fpn_instaboost-4x_coco", R50, INSTABOOST_4X),
        row("mask-rcnn_r101_fpn_instaboost-4x_coco", R101, INSTABOOST_4X),
        row("mask-rcnn_x101-64x4d_fpn_instaboost-4x_coco", X101_64X4D, INSTABOOST_4X),
    ),
    *family(
        "instaboost", cascade_mask_rcnn, MASKS, pocket.INSTABOOST_CASCADE_MASK_RCNN,
        row("cascade-mask-rcnn_r50_fpn_instaboost-4x_coco", R50, INSTABOOST_4X),
        row("cascade-mask-rcnn_r101_fpn_instaboost-4x_coco", R101, INSTABOOST_4X),
        row("cascade-mask-rcnn_x101-64x4d_fpn_instaboost-4x_coco", X101_64X4D, INSTABOOST_4X),
    ),
]

LIBRA_RCNN = [
    *family("libra_rcnn", libra_fast_rcnn, replace(BOXES, max_proposals=2000), pocket.FAST_RCNN,
            row("libra-fast-rcnn_r50_fpn_1x_coco", R50)),
    *family(
        "libra_rcnn", libra_faster_rcnn, BOXES, pocket.FASTER_RCNN,
        row("libra-faster-rcnn_r50_fpn_1x_coco", R50),
        row("libra-faster-rcnn_r101_fpn_1x_coco", R101),
        row("libra-faster-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    ),
    *family("libra_rcnn", libra_retinanet, replace(BOXES, optimizer=SGD(lr=0.01)), pocket.RETINANET,
            row("libra-retinanet_r50_fpn_1x_coco", R50)),
]

DYNAMIC_RCNN = family("dynamic_rcnn", dynamic_rcnn, BOXES, pocket.FASTER_RCNN,
                      row("dynamic-rcnn_r50_fpn_1x_coco", R50))

REGNET_SGD, CLIPPED = SGD(weight_decay=5e-5), change(clip_norm=35.0)
# As published: trained with torchvision's normalisation, unlike the backbone.
MULTI_SCALE_POLY_3X = (MULTI_SCALE_3X, POLYGONS, CLIPPED, change(preprocess=TORCHVISION))

REGNET = [
    *family(
        "regnet", faster_rcnn, replace(BOXES, optimizer=REGNET_SGD), pocket.FASTER_RCNN,
        row("faster-rcnn_regnetx-400MF_fpn_ms-3x_coco", X400M, MULTI_SCALE_3X),
        row("faster-rcnn_regnetx-800MF_fpn_ms-3x_coco", X800M, MULTI_SCALE_3X),
        row("faster-rcnn_regnetx-1.6GF_fpn_ms-3x_coco", X1_6G, MULTI_SCALE_3X),
        row("faster-rcnn_regnetx-3.2GF_fpn_1x_coco", X3_2G),
        row("faster-rcnn_regnetx-3.2GF_fpn_2x_coco", X3_2G, SCHEDULE_2X),
        row("faster-rcnn_regnetx-3.2GF_fpn_ms-3x_coco", X3_2G, MULTI_SCALE_3X),
        row("faster-rcnn_regnetx-4GF_fpn_ms-3x_coco", X4G, MULTI_SCALE_3X),
    ),
    *family(
        "regnet", mask_rcnn, replace(MASKS, optimizer=REGNET_SGD), pocket.MASK_RCNN,
        row("mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco", X400M, *MULTI_SCALE_POLY_3X),
        row("mask-rcnn_regnetx-800MF_fpn_ms-poly-3x_coco", X800M, *MULTI_SCALE_POLY_3X),
        row("mask-rcnn_regnetx-1.6GF_fpn_ms-poly-3x_coco", X1_6G, *MULTI_SCALE_POLY_3X),
        row("mask-rcnn_regnetx-3.2GF_fpn_1x_coco", X3_2G),
        row("mask-rcnn_regnetx-3.2GF_fpn_ms-3x_coco", X3_2G, MULTI_SCALE, SCHEDULE_3X, CLIPPED),
        row("mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x_coco", deformed(X3_2G, modulated=True)),
        row("mask-rcnn_regnetx-4GF_fpn_1x_coco", X4G),
        row("mask-rcnn_regnetx-4GF_fpn_ms-poly-3x_coco", X4G, *MULTI_SCALE_POLY_3X),
        row("mask-rcnn_regnetx-6.4GF_fpn_1x_coco", X6_4G),
        row("mask-rcnn_regnetx-8GF_fpn_1x_coco", X8G),
        row("mask-rcnn_regnetx-12GF_fpn_1x_coco", X12G),
    ),
    *family(
        "regnet", cascade_mask_rcnn, replace(MASKS, optimizer=REGNET_SGD), pocket.CASCADE_MASK_RCNN,
        row("cascade-mask-rcnn_regnetx-400MF_fpn_ms-3x_coco", X400M, MULTI_SCALE_3X),
        row("cascade-mask-rcnn_regnetx-800MF_fpn_ms-3x_coco", X800M, MULTI_SCALE_3X),
        row("cascade-mask-rcnn_regnetx-1.6GF_fpn_ms-3x_coco", X1_6G, MULTI_SCALE_3X),
        row("cascade-mask-rcnn_regnetx-3.2GF_fpn_ms-3x_coco", X3_2G, MULTI_SCALE_3X),
        row("cascade-mask-rcnn_regnetx-4GF_fpn_ms-3x_coco", X4G, MULTI_SCALE_3X),
    ),
    *family(
        "regnet", retinanet, replace(BOXES, optimizer=REGNET_SGD), pocket.RETINANET,
        row("retinanet_regnetx-800MF_fpn_1x_coco", X800M, CLIPPED),
        row("retinanet_regnetx-1.6GF_fpn_1x_coco", X1_6G, CLIPPED),
        row("retinanet_regnetx-3.2GF_fpn_1x_coco", X3_2G, CLIPPED),
    ),
]

CITYSCAPES_8E = change(train_transforms=(ResizeRange((2048, 800), (2048, 1024)), Flip()),
                       test_transforms=(Resize((2048, 1024)),), optimizer=SGD(lr=0.01), epochs=8, repeat=8,
                       schedule=Schedule((7,), 8), batch_per_gpu=1, layout="cityscapes")

CITYSCAPES = [
    *family("cityscapes", faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("faster-rcnn_r50_fpn_1x_cityscapes", R50, CITYSCAPES_8E, num_classes=8, box_loss=SmoothL1())),
    *family("cityscapes", mask_rcnn, MASKS, pocket.MASK_RCNN,
            row("mask-rcnn_r50_fpn_1x_cityscapes", R50, CITYSCAPES_8E, num_classes=8, box_loss=SmoothL1())),
]

VOC_4E = change(train_transforms=(Resize((1000, 600)), Flip()), test_transforms=(Resize((1000, 600)),),
                optimizer=SGD(lr=0.01), epochs=4, repeat=3, schedule=Schedule((3,), 4, warmup_iters=0), min_box=32)
IN_COCO_FORMAT = change(layout="voc-coco", min_box=0)
VOC_18K = change(train_transforms=(ResizeChoice(tuple((1333, s) for s in range(480, 801, 32))), Flip()), epochs=None,
                 iterations=18_000, val_interval=3000,
                 schedule=Schedule((12_000, 16_000), 18_000, by_epoch=False, warmup_iters=100))

SSD_CROP = (Expand(), MinIoUCrop())


def ssd_recipe(size: int, *, colours_first: bool = False, **fields: Any) -> Recipe:
    """SSD's augmentation, for images stretched to `size` squared, and what else differs from the common recipe."""
    to_size = Resize((size, size), keep_ratio=False)
    colours = PhotometricDistortion()
    train = (colours, *SSD_CROP, to_size, Flip()) if colours_first else (*SSD_CROP, to_size, Flip(), colours)
    return replace(BOXES, train_transforms=train, test_transforms=(to_size,), **fields)


def ssd_voc(size: int) -> Recipe:
    return ssd_recipe(size, optimizer=SGD(lr=1e-3, weight_decay=5e-4), schedule=Schedule((16, 20), 24), epochs=24,
                      repeat=10, batch_size=64, batch_per_gpu=8, layout="voc")


PASCAL_VOC = [
    *family(
        "pascal_voc", faster_rcnn, replace(BOXES, layout="voc"), pocket.FASTER_RCNN,
        row("faster-rcnn_r50_fpn_1x_voc0712", R50, VOC_4E),
        row("faster-rcnn_r50_fpn_1x_voc0712-cocofmt", R50, VOC_4E, IN_COCO_FORMAT, classes(*voc.CLASSES)),
        row("faster-rcnn_r50-caffe-c4_ms-18k_voc0712", R50_C4, VOC_18K, neck="c4"),
        num_classes=20,
    ),
    *family("pascal_voc", retinanet, replace(BOXES, layout="voc"), pocket.RETINANET,
            row("retinanet_r50_fpn_1x_voc0712", R50, VOC_4E), num_classes=20),
    *family("pascal_voc", ssd, ssd_voc(300), pocket.SSD, row("ssd300_voc0712", VGG16, layout=SSD300_VOC),
            num_classes=20),
    *family("pascal_voc", ssd, ssd_voc(512), pocket.SSD, row("ssd512_voc0712", VGG16, layout=SSD512_VOC),
            num_classes=20),
]

OPEN_IMAGES_1X = change(
    train_transforms=(Resize((1024, 800)), Flip()), test_transforms=(Resize((1024, 800)),), optimizer=SGD(lr=0.08),
    schedule=Schedule(warmup_iters=26_000, warmup_factor=1 / 64), batch_size=64, clip_norm=35.0,
    layout="openimages", filter_empty=False, min_size=0)
OPEN_IMAGES_CHALLENGE, CLASS_AWARE = change(layout="openimages-challenge"), change(sampling=ClassAware())

OPEN_IMAGES = [
    *family(
        "openimages", faster_rcnn, BOXES, pocket.FASTER_RCNN,
        row("faster-rcnn_r50_fpn_32xb2-1x_openimages", R50, OPEN_IMAGES_1X),
        row("faster-rcnn_r50_fpn_32xb2-cas-1x_openimages", R50, OPEN_IMAGES_1X, CLASS_AWARE),
        row("faster-rcnn_r50_fpn_32xb2-1x_openimages-challenge", R50, OPEN_IMAGES_1X, OPEN_IMAGES_CHALLENGE,
            num_classes=500),
        row("faster-rcnn_r50_fpn_32xb2-cas-1x_openimages-challenge", R50, OPEN_IMAGES_1X, OPEN_IMAGES_CHALLENGE,
            CLASS_AWARE, num_classes=500),
        num_classes=601,
    ),
    *family("openimages", retinanet, BOXES, pocket.RETINANET,
            row("retinanet_r50_fpn_32xb2-1x_openimages", R50, OPEN_IMAGES_1X), num_classes=601),
    *family(
        "openimages", ssd,
        ssd_recipe(300, colours_first=True, optimizer=SGD(lr=0.04, weight_decay=5e-4),
                   schedule=Schedule(warmup_iters=20_000), repeat=3, batch_size=256, batch_per_gpu=8,
                   layout="openimages", filter_empty=False, min_size=0),
        pocket.SSD,
        row("ssd300_32xb8-36e_openimages", VGG16, layout=SSD300_VOC),
        num_classes=601,
    ),
]

WIDER_FACE = [
    *family(
        "wider_face", retinanet, replace(BOXES, optimizer=SGD(lr=0.01), layout="wider_face", min_box=17),
        pocket.RETINANET,
        row("retinanet_r50_fpn_1x_widerface", R50,
            change(train_transforms=(Resize((640, 640)), Flip()), test_transforms=(Resize((640, 640)),))),
        num_classes=1,
    ),
    *family(
        "wider_face", ssd,
        ssd_recipe(300, colours_first=True, optimizer=SGD(lr=0.012, weight_decay=5e-4), clip_norm=35.0,
                   schedule=Schedule((16, 20), 24, warmup_iters=1000), epochs=24, batch_size=256, batch_per_gpu=32,
                   layout="wider_face", min_box=17),
        pocket.SSD,
        row("ssd300_8xb32-24e_widerface", VGG16),
        num_classes=1,
    ),
]

GRID_25E = change(epochs=25, schedule=Schedule((17, 23), 25, warmup_iters=3665, warmup_factor=1 / 80))

GRID_RCNN = family(
    "grid_rcnn", grid_rcnn, BOXES, pocket.GRID_RCNN,
    row("grid-rcnn_r50_fpn_gn-head_1x_coco", R50, change(schedule=Schedule(warmup_factor=1e-4))),
    row("grid-rcnn_r50_fpn_gn-head_2x_coco", R50, GRID_25E),
    row("grid-rcnn_r101_fpn_gn-head_2x_coco", R101, GRID_25E),
    row("grid-rcnn_x101-32x4d_fpn_gn-head_2x_coco", X101_32X4D, GRID_25E),
    row("grid-rcnn_x101-64x4d_fpn_gn-head_2x_coco", X101_64X4D, GRID_25E),
)

MS_RCNN = family(
    "ms_rcnn", ms_rcnn, MASKS, pocket.MS_RCNN,
    row("ms-rcnn_r50_fpn_1x_coco", R50),
    row("ms-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("ms-rcnn_r50-caffe_fpn_2x_coco", R50_CAFFE, SCHEDULE_2X),
    row("ms-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("ms-rcnn_r101-caffe_fpn_2x_coco", R101_CAFFE, SCHEDULE_2X),
    row("ms-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("ms-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("ms-rcnn_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
)

LVIS_2X = (MULTI_SCALE, SCHEDULE_2X, change(val_interval=24, layout="lvis"))
BALANCED = change(sampling=ClassBalanced(1e-3))

SEESAW_LOSS = [
    *family(
        "seesaw_loss", seesaw_mask_rcnn, MASKS, pocket.SEESAW_MASK_RCNN,
        row("mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1", R50, *LVIS_2X),
        row("mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1", R50, *LVIS_2X, BALANCED),
        row("mask-rcnn_r50_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", R50, *LVIS_2X, normed_masks=True),
        row("mask-rcnn_r50_fpn_seesaw-loss-normed-mask_sample1e-3-ms-2x_lvis-v1", R50, *LVIS_2X, BALANCED,
            normed_masks=True),
        row("mask-rcnn_r101_fpn_seesaw-loss_random-ms-2x_lvis-v1", R101, *LVIS_2X),
        row("mask-rcnn_r101_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X, BALANCED),
        row("mask-rcnn_r101_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", R101, *LVIS_2X, normed_masks=True),
        row("mask-rcnn_r101_fpn_seesaw-loss-normed-mask_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X, BALANCED,
            normed_masks=True),
        num_classes=1203,
    ),
    *family(
        "seesaw_loss", seesaw_cascade_mask_rcnn, MASKS, pocket.SEESAW_CASCADE_MASK_RCNN,
        row("cascade-mask-rcnn_r101_fpn_seesaw-loss_random-ms-2x_lvis-v1", R101, *LVIS_2X),
        row("cascade-mask-rcnn_r101_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X, BALANCED),
        row("cascade-mask-rcnn_r101_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", R101, *LVIS_2X,
            normed_masks=True),
        row("cascade-mask-rcnn_r101_fpn_seesaw-loss-normed-mask_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X, BALANCED,
            normed_masks=True),
        num_classes=1203,
    ),
]

CLIPPED_BOXES = replace(BOXES, clip_norm=35.0)

GUIDED_ANCHORING = [
    *family(
        "guided_anchoring", classless(ga_rpn), replace(CLIPPED_BOXES, metric=("proposal",)), pocket.RPN,
        row("ga-rpn_r50_fpn_1x_coco", R50),
        row("ga-rpn_r50-caffe_fpn_1x_coco", R50_CAFFE),
        row("ga-rpn_r101-caffe_fpn_1x_coco", R101_CAFFE),
        row("ga-rpn_x101-32x4d_fpn_1x_coco", X101_32X4D),
        row("ga-rpn_x101-64x4d_fpn_1x_coco", X101_64X4D),
        num_classes=1,
    ),
    # As published: caffe-style weights, yet torchvision's normalisation.
    *family("guided_anchoring", ga_fast_rcnn, replace(BOXES, max_proposals=2000), pocket.FAST_RCNN,
            row("ga-fast-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE, change(preprocess=TORCHVISION))),
    *family(
        "guided_anchoring", ga_faster_rcnn, CLIPPED_BOXES, pocket.GA_FASTER_RCNN,
        row("ga-faster-rcnn_r50_fpn_1x_coco", R50),
        row("ga-faster-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
        row("ga-faster-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
        row("ga-faster-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
        row("ga-faster-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    ),
    *family(
        "guided_anchoring", ga_retinanet, replace(CLIPPED_BOXES, optimizer=SGD(lr=0.01)), pocket.GA_RETINANET,
        row("ga-retinanet_r50_fpn_1x_coco", R50),
        row("ga-retinanet_r50-caffe_fpn_1x_coco", R50_CAFFE),
        row("ga-retinanet_r101-caffe_fpn_1x_coco", R101_CAFFE),
        row("ga-retinanet_r101-caffe_fpn_ms-2x", R101_CAFFE,
            change(train_transforms=(ResizeRange((1333, 480), (1333, 960)), Flip()), epochs=24,
                   schedule=Schedule((16, 22), 24, warmup_factor=1 / 3))),
        row("ga-retinanet_x101-32x4d_fpn_1x_coco", X101_32X4D),
        row("ga-retinanet_x101-64x4d_fpn_1x_coco", X101_64X4D),
    ),
]

PANOPTIC_FPN_3X = change(train_transforms=(ResizeRange((1333, 640), (1333, 800)), Flip()), epochs=36,
                         schedule=Schedule((24, 33), 36), val_interval=3)

PANOPTIC_FPN = family(
    "panoptic_fpn", panoptic_fpn, replace(MASKS, metric=("bbox", "segm", "panoptic")), pocket.PANOPTIC_FPN,
    row("panoptic-fpn_r50_fpn_1x_coco", R50),
    row("panoptic-fpn_r50_fpn_ms-3x_coco", R50, PANOPTIC_FPN_3X),
    row("panoptic-fpn_r101_fpn_1x_coco", R101),
    row("panoptic-fpn_r101_fpn_ms-3x_coco", R101, PANOPTIC_FPN_3X),
)

FREE_ANCHOR = family(
    "free_anchor", free_anchor, replace(BOXES, optimizer=SGD(lr=0.01), clip_norm=35.0), pocket.FREE_ANCHOR,
    row("freeanchor_r50_fpn_1x_coco", R50),
    row("freeanchor_r101_fpn_1x_coco", R101),
    row("freeanchor_x101-32x4d_fpn_1x_coco", X101_32X4D),
)

GFL_MULTI_SCALE = change(train_transforms=(ResizeRange((1333, 480), (1333, 800)), Flip()))

GFL = family(
    "gfl", gfl, replace(BOXES, optimizer=SGD(lr=0.01)), pocket.GFL,
    row("gfl_r50_fpn_1x_coco", R50),
    row("gfl_r50_fpn_ms-2x_coco", R50, SCHEDULE_2X, GFL_MULTI_SCALE),
    row("gfl_r101_fpn_ms-2x_coco", R101, SCHEDULE_2X, GFL_MULTI_SCALE),
    row("gfl_r101-dconv-c3-c5_fpn_ms-2x_coco", R101_DCN, SCHEDULE_2X, GFL_MULTI_SCALE),
    row("gfl_x101-32x4d_fpn_ms-2x_coco", X101_32X4D, SCHEDULE_2X, GFL_MULTI_SCALE),
    row("gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco", X101_DCN_C4, SCHEDULE_2X, GFL_MULTI_SCALE),
)

AUTO_ASSIGN = family(
    "autoassign", autoassign,
    replace(BOXES, optimizer=SGD(lr=0.01, norm_decay_mult=0.0), schedule=Schedule(warmup_iters=1000)),
    pocket.AUTO_ASSIGN,
    row("autoassign_r50-caffe_fpn_1x_coco", R50_CAFFE, change(preprocess=DETECTRON)),
)

def ssd_coco(size: int) -> Recipe:
    return ssd_recipe(size, optimizer=SGD(lr=2e-3, weight_decay=5e-4), schedule=Schedule((16, 22), 24), epochs=24,
                      repeat=5, batch_size=64, batch_per_gpu=8)


SSD = [
    *family("ssd", ssd, ssd_coco(300), pocket.SSD, row("ssd300_coco", VGG16)),
    *family("ssd", ssd, ssd_coco(512), pocket.SSD, row("ssd512_coco", VGG16, layout=SSD512)),
    *family(
        "ssd", ssdlite,
        ssd_recipe(320, optimizer=SGD(lr=0.015, weight_decay=4e-5), schedule=Schedule((), 120, cosine=True), epochs=120,
                   repeat=5, batch_size=192, batch_per_gpu=24, val_interval=5),
        pocket.SSDLITE,
        row("ssdlite_mobilenetv2-scratch_8xb24-600e_coco", MOBILENET_SCRATCH),
    ),
]

def yolo_train(size: int, largest: int | None = None, *, fill: tuple[float, float, float] = (0, 0, 0)) -> Change:
    """YOLO's augmentation, for images of `size` or up to `largest`, the size they are tested at."""
    scale, top = (size, size), (largest or size, largest or size)
    resize = ResizeRange(scale, top) if largest else Resize(scale)
    return change(train_transforms=(Expand(fill, (1, 2)), MinIoUCrop((0.4, 0.5, 0.6, 0.7, 0.8, 0.9)), resize, Flip(),
                                    PhotometricDistortion()), test_transforms=(Resize(top),))


YOLO_SLIM: dict[str, Any] = dict(widths=(96, 96, 96), bridges=(96, 96, 96))

YOLO = [
    *family(
        "yolo", yolov3,
        replace(BOXES, optimizer=SGD(lr=1e-3, weight_decay=5e-4), clip_norm=35.0, epochs=273,
                schedule=Schedule((218, 246), 273, warmup_iters=2000, warmup_factor=0.1), batch_size=64,
                batch_per_gpu=8, val_interval=7),
        pocket.YOLO,
        row("yolov3_d53_8xb8-320-273e_coco", DARKNET53, yolo_train(320)),
        row("yolov3_d53_8xb8-ms-416-273e_coco", DARKNET53, yolo_train(320, 416)),
        row("yolov3_d53_8xb8-ms-608-273e_coco", DARKNET53, yolo_train(320, 608)),
        row("yolov3_d53_8xb8-amp-ms-608-273e_coco", DARKNET53, yolo_train(320, 608), MIXED_PRECISION),
    ),
    *family(
        "yolo", yolov3,
        replace(BOXES, optimizer=SGD(lr=3e-3, weight_decay=5e-4), clip_norm=35.0, epochs=30, repeat=10,
                schedule=Schedule((24, 28), 30, warmup_iters=4000, warmup_factor=1e-4), batch_size=192,
                batch_per_gpu=24),
        pocket.YOLO,
        row("yolov3_mobilenetv2_8xb24-320-300e_coco", MOBILENET_LEAKY, yolo_train(320, fill=TORCHVISION.mean),
            anchors=COCO_ANCHORS_320, **YOLO_SLIM),
        row("yolov3_mobilenetv2_8xb24-ms-416-300e_coco", MOBILENET_LEAKY, yolo_train(320, 416, fill=TORCHVISION.mean),
            **YOLO_SLIM),
    ),
]

EFFICIENTNET = family(
    "efficientnet", efficientnet_retinanet,
    replace(BOXES, optimizer=SGD(lr=0.04, norm_decay_mult=0.0), batch_size=32, batch_per_gpu=4,
            schedule=Schedule(warmup_iters=1000, warmup_factor=0.1),
            train_transforms=(ScaleJitter((896, 896), (0.8, 1.2)), RandomCrop((896, 896)), Flip()),
            test_transforms=(Resize((896, 896)),)),
    pocket.EFFICIENTNET,
    row("retinanet_effb3_fpn_8xb4-crop896-1x_coco", EFFICIENTNET_B3,
        change(preprocess=replace(TORCHVISION, fixed_size=(896, 896)))),
)

CENTRIPETALNET = family(
    "centripetalnet", centripetalnet,
    replace(BOXES, optimizer=Adam(lr=5e-4), clip_norm=35.0, epochs=210, batch_size=96, batch_per_gpu=6,
            schedule=Schedule((190,), 210, warmup_factor=1 / 3),
            train_transforms=(PhotometricDistortion(), CornerCrop(), Resize((511, 511), keep_ratio=False), Flip()),
            test_transforms=(AsFloat(),), tta=TestTimeAugmentation(sigma=0.5)),
    pocket.CENTRIPETALNET,
    row("centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco", HOURGLASS104),
)

DETR_SCALES = ResizeChoice(tuple((s, 1333) for s in range(480, 801, 32)))


def detr_transforms(longest: int) -> tuple[Transform, ...]:
    """Many scales; half of the images are cropped in between, from a size of at most `longest` (DETR)."""
    larger = ResizeChoice(tuple((s, longest) for s in (400, 500, 600)))
    cropped = (larger, RandomCrop((384, 600), True, drawn=True), DETR_SCALES)
    return Flip(), Choice(((DETR_SCALES,), cropped))


UNPADDED = change(preprocess=replace(TORCHVISION, pad_to=1))
SLOW_BACKBONE = Part("^backbone", lr_mult=0.1)
DEFORMABLE_DETR = family(
    "deformable_detr", deformable_detr,
    Recipe(train_transforms=detr_transforms(4200), filter_empty=False, epochs=50, batch_size=32, clip_norm=0.1,
           schedule=Schedule((40,), 50, warmup_iters=0),
           optimizer=AdamW(2e-4, 1e-4, parts=(
               SLOW_BACKBONE, Part("sampling_offsets|reference_points", lr_mult=0.1)))),
    pocket.DEFORMABLE_DETR,
    row("deformable-detr_r50_16xb2-50e_coco", R50_STILL, UNPADDED),
    row("deformable-detr-refine_r50_16xb2-50e_coco", R50_STILL, UNPADDED, refine=True),
    row("deformable-detr-refine-twostage_r50_16xb2-50e_coco", R50_STILL, UNPADDED, refine=True, two_stage=True),
)

MASKFORMER_RECIPE = replace(MASKS, metric=("bbox", "segm", "panoptic"), clip_norm=0.01, batch_per_gpu=1,
                            train_transforms=detr_transforms(1333))
MASKFORMER = family(
    "maskformer", maskformer, MASKFORMER_RECIPE, pocket.MASKFORMER,
    row("maskformer_r50_ms-16xb1-75e_coco", R50_WHOLE, UNPADDED,
        change(epochs=75, schedule=Schedule((50,), 75, warmup_iters=0),
               optimizer=AdamW(1e-4, 1e-4, norm_decay_mult=0, parts=(
                   SLOW_BACKBONE, Part("query_embed", decay_mult=0))))),
    row("maskformer_swin-l-p4-w12_64xb1-ms-300e_coco", SWIN_L_384_22K, UNPADDED,
        change(epochs=300, batch_size=64,
               schedule=Schedule((250,), 300, warmup_iters=1500, warmup_factor=1e-6),
               optimizer=AdamW(6e-5, 0.01, norm_decay_mult=0, parts=(
                   Part("relative_position_bias_table|query_embed", decay_mult=0), SLOW_BACKBONE))),
        encoder_layers=0),
)

MASK2FORMER_PARTS = (Part("query_embed|query_feat|level_embed", decay_mult=0), SLOW_BACKBONE)
MASK2FORMER_RECIPE = replace(
    MASKS, clip_norm=0.01, epochs=None, iterations=368_750, val_interval=5000,
    schedule=Schedule((327_778, 355_092), 368_750, by_epoch=False, warmup_iters=0),
    train_transforms=(AsFloat(), Flip(), ScaleJitter(), RandomCrop(allow_negative=True), FilterBoxes(1e-5)),
    test_transforms=(AsFloat(), Resize()),
    optimizer=AdamW(1e-4, 0.05, norm_decay_mult=0, parts=MASK2FORMER_PARTS))
LSJ_SIZE = change(preprocess=replace(TORCHVISION, fixed_size=(1024, 1024)))
# Norms and position biases of Swin do not decay either.
SWIN_PARTS = change(optimizer=replace(MASK2FORMER_RECIPE.optimizer, parts=(
    Part("^backbone.*(norm|bias_table)", lr_mult=0.1, decay_mult=0), *MASK2FORMER_PARTS)))

MASK2FORMER = [
    *family(
        "mask2former", mask2former, MASK2FORMER_RECIPE, pocket.MASK2FORMER,
        row("mask2former_r50_8xb2-lsj-50e_coco", R50_WHOLE, LSJ_SIZE, stuff=0),
        row("mask2former_r101_8xb2-lsj-50e_coco", R101_WHOLE, LSJ_SIZE, stuff=0),
        row("mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco", SWIN_T_224, LSJ_SIZE, SWIN_PARTS, stuff=0),
        row("mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco", SWIN_S_224, LSJ_SIZE, SWIN_PARTS, stuff=0),
    ),
    *family(
        "mask2former", mask2former,
        replace(MASK2FORMER_RECIPE, metric=("bbox", "segm", "panoptic"),
                train_transforms=MASK2FORMER_RECIPE.train_transforms[:-1], test_transforms=BOXES.test_transforms),
        pocket.MASK2FORMER_PANOPTIC,
        row("mask2former_r50_8xb2-lsj-50e_coco-panoptic", R50_WHOLE, LSJ_SIZE),
        row("mask2former_r101_8xb2-lsj-50e_coco-panoptic", R101_WHOLE, LSJ_SIZE),
        row("mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic", SWIN_T_224, LSJ_SIZE, SWIN_PARTS),
        row("mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic", SWIN_S_224, LSJ_SIZE, SWIN_PARTS),
        row("mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic", SWIN_B_384, LSJ_SIZE, SWIN_PARTS),
        row("mask2former_swin-b-p4-w12-384-in21k_8xb2-lsj-50e_coco-panoptic", SWIN_B_384_22K, LSJ_SIZE, SWIN_PARTS),
        row("mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic", SWIN_L_384_22K, LSJ_SIZE, SWIN_PARTS,
            change(iterations=737_500, batch_per_gpu=1,
                   schedule=Schedule((655_556, 710_184), 737_500, by_epoch=False, warmup_iters=0)),
            queries=200),
    ),
]

FAMILIES = (RPN, FAST_RCNN, FASTER_RCNN, MASK_RCNN, CASCADE_RCNN, CASCADE_MASK_RCNN, RETINANET, GROUP_NORM,
            SCRATCH_FASTER, SCRATCH_MASK, WS_FASTER, WS_MASK, DCN, DCN2, INSTABOOST, LIBRA_RCNN, DYNAMIC_RCNN, REGNET,
            CITYSCAPES, PASCAL_VOC, OPEN_IMAGES, WIDER_FACE, GRID_RCNN, MS_RCNN, SEESAW_LOSS, GUIDED_ANCHORING,
            PANOPTIC_FPN, FREE_ANCHOR, GFL, AUTO_ASSIGN, SSD, YOLO, EFFICIENTNET,
            CENTRIPETALNET, DEFORMABLE_DETR, MASKFORMER, MASK2FORMER)
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


BACKBONES = tuple({(e.backbone.name, e.backbone.weights): e.backbone for e in MODELS.values()}.values())


def models_with(backbone: Backbone) -> list[str]:
    """The names of the models that start from a backbone and its weights."""
    return [name for name, e in MODELS.items()
            if (e.backbone.name, e.backbone.weights) == (backbone.name, backbone.weights)]


def find_backbones(words: str) -> set[str]:
    """The names of the backbones that a text is in, whatever its case, or that it matches with wildcards.

    Raises:
        UsageError: there is none; the message tells the names.
    """
    pattern = words.lower() if any(c in words for c in "*?[") else f"*{words.lower()}*"
    found = {b.name for b in BACKBONES if fnmatchcase(b.name.lower(), pattern)}
    if not found:
        names = ", ".join(sorted({b.name for b in BACKBONES}))
        raise UsageError(f"There is no backbone {words!r} in the zoo: it has {names}.")
    return found


def _offer(names: Iterable[str]) -> str:
    near = ", ".join(names)
    return f"The nearest names are: {near}." if near else "`detcore list` shows all names."
