"""Mask R-CNN."""
from detcore.methods.mask_rcnn import mask_rcnn, mask_rcnn_c4
from detcore.ops.losses import SmoothL1
from detcore.pocket import profile as pocket
from detcore.pocket.profile import FEWER, SINGLE_MAP, Pocket
from detcore.recipe import Schedule
from detcore.zoo.backbones.resnet import R18, R50, R50_C4, R50_CAFFE, R101, R101_CAFFE, X101, X101_32X8D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import LSJ_100E, MASKS, MULTI_SCALE, MULTI_SCALE_3X, POLYGONS, SCHEDULE_2X, change

X101_32X4D, X101_64X4D = X101

FPN_MODELS = family(
    "mask_rcnn", mask_rcnn, MASKS, pocket.MASK_RCNN,
    row("mask-rcnn_{}_fpn_8xb8-amp-lsj-200e_coco", (R18, R50, R101), LSJ_100E),
    row("mask-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101, X101_32X8D)),
    row("mask-rcnn_{}_fpn_2x_coco", (R50, R101, *X101), SCHEDULE_2X),
    row("mask-rcnn_{}_fpn_ms-poly-3x_coco", (R50, R101, R101_CAFFE, X101_32X4D, X101_32X8D), MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_x101-64x4d_fpn_ms-poly_3x_coco", X101_64X4D, MULTI_SCALE_3X, POLYGONS),
    row("mask-rcnn_r50_fpn_amp-1x_coco", R50, change(amp=True)),
    row("mask-rcnn_r50_fpn_poly-1x_coco", R50, POLYGONS),
    row("mask-rcnn_r50-caffe_fpn_poly-1x_coco_v1", R50_CAFFE, box_loss=SmoothL1(), rpn_box_loss=SmoothL1(1 / 9),
        sampling_ratio=2, aligned=False),
    row("mask-rcnn_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("mask-rcnn_{}_fpn_ms-poly-1x_coco", (R50_CAFFE, X101_32X8D), MULTI_SCALE, POLYGONS),
    row("mask-rcnn_r50-caffe_fpn_ms-poly-2x_coco", R50_CAFFE, MULTI_SCALE, POLYGONS, SCHEDULE_2X),
    # As published: the drops are beyond the end of their scheduler.
    row("mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco", R50_CAFFE, MULTI_SCALE, POLYGONS,
        change(epochs=36, schedule=Schedule((28, 34), 24))))

C4_OPTIONS = {name: value for name, value in (SINGLE_MAP | FEWER).items() if name != "hidden"}
C4_MODELS = family("mask_rcnn", mask_rcnn_c4, MASKS, Pocket(C4_OPTIONS, pocket.MASK_RCNN.recipe),
                   row("mask-rcnn_r50-caffe-c4_1x_coco", R50_C4))

MODELS = FPN_MODELS + C4_MODELS
