"""Faster R-CNN."""
from detcore.methods.faster_rcnn import faster_rcnn, faster_rcnn_single_map
from detcore.methods.fcos import fcos_faster_rcnn
from detcore.ops.losses import bounded_iou_loss, ciou_loss, giou_loss, iou_loss
from detcore.pocket import profile as pocket
from detcore.pocket.profile import PROPOSALS, ROIS, Pocket, training
from detcore.recipe import TORCHVISION, AdamW, Recipe, Schedule
from detcore.zoo.backbones.resnet import (
    R18,
    R50,
    R50_C4,
    R50_CAFFE,
    R50_DC5,
    R50_TNR,
    R101,
    R101_CAFFE,
    X101,
    X101_32X8D,
)
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, LSJ_200E, MULTI_SCALE, MULTI_SCALE_3X, SCHEDULE_2X, SCHEDULE_90K, change

FPN_MODELS = family(
    "faster_rcnn", faster_rcnn, BOXES, pocket.FASTER_RCNN,
    row("faster-rcnn_{}_fpn_8xb8-amp-lsj-200e_coco", (R18, R50, R101), LSJ_200E),
    row("faster-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101)),
    row("faster-rcnn_{}_fpn_2x_coco", (R50, R101, *X101), SCHEDULE_2X),
    row("faster-rcnn_{}_fpn_ms-3x_coco", (R50, R50_CAFFE, R101, *X101, X101_32X8D), MULTI_SCALE_3X),
    # As published: caffe-style weights, yet torchvision's normalisation.
    row("faster-rcnn_r101-caffe_fpn_ms-3x_coco", R101_CAFFE, MULTI_SCALE_3X, change(preprocess=TORCHVISION)),
    row("faster-rcnn_r50_fpn_amp-1x_coco", R50, change(amp=True)),
    row("faster-rcnn_r50-tnr-pre_fpn_1x_coco", R50_TNR, change(optimizer=AdamW(1e-4, 0.1, norm_decay_mult=0))),
    row("faster-rcnn_r50_fpn_iou_1x_coco", R50, box_loss=iou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_giou_1x_coco", R50, box_loss=giou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_ciou_1x_coco", R50, box_loss=ciou_loss, decoded=True, box_weight=12.0),
    row("faster-rcnn_r50_fpn_bounded-iou_1x_coco", R50, box_loss=bounded_iou_loss, decoded=True, box_weight=10.0),
    row("faster-rcnn_r50_fpn_ohem_1x_coco", R50, hard_examples=True),
    row("faster-rcnn_r50_fpn_soft-nms_1x_coco", R50, soft_nms=True),
    row("faster-rcnn_r50-caffe_fpn_90k_coco", R50_CAFFE, SCHEDULE_90K),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person", R50_CAFFE, MULTI_SCALE, change(classes=("person",)),
        num_classes=1),
    row("faster-rcnn_r50-caffe_fpn_ms-1x_coco-person-bicycle-car", R50_CAFFE, MULTI_SCALE,
        change(classes=("person", "bicycle", "car")), num_classes=3),
    # As published: the drops are beyond the end of their scheduler and never happen.
    row("faster-rcnn_r50-caffe_fpn_ms-2x_coco", R50_CAFFE, MULTI_SCALE,
        change(epochs=24, schedule=Schedule((16, 23), 12))),
    row("faster-rcnn_r50-caffe_fpn_ms-90k_coco", R50_CAFFE, MULTI_SCALE, SCHEDULE_90K))

SINGLE_MAP_MODELS = family(
    "faster_rcnn", faster_rcnn_single_map, BOXES, pocket.FASTER_RCNN_SINGLE_MAP,
    row("faster-rcnn_r50-caffe_c4-1x_coco", R50_C4),
    row("faster-rcnn_r50-caffe-c4_ms-1x_coco", R50_C4, MULTI_SCALE),
    row("faster-rcnn_r50-caffe-dc5_1x_coco", R50_DC5, tail="dc5"),
    row("faster-rcnn_r50-caffe-dc5_ms-1x_coco", R50_DC5, MULTI_SCALE, tail="dc5"),
    row("faster-rcnn_r50-caffe-dc5_ms-3x_coco", R50_DC5, MULTI_SCALE,
        change(epochs=36, schedule=Schedule((28, 34), 12)), tail="dc5"))

FCOS_MODELS = family(
    "faster_rcnn", fcos_faster_rcnn, Recipe(schedule=Schedule(warmup_iters=1000)),
    Pocket(dict(width=48) | PROPOSALS | ROIS, training(150)),
    row("faster-rcnn_r50_fpn_fcos-rpn_1x_coco", R50))

MODELS = FPN_MODELS + SINGLE_MAP_MODELS + FCOS_MODELS
