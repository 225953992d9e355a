"""Mask Scoring R-CNN."""
from detcore.methods.ms_rcnn import ms_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.zoo.backbones.resnet import R50, R50_CAFFE, R101_CAFFE, X101_32X4D, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, SCHEDULE_2X

POCKET = Pocket(TWO_STAGE, training(100, **pocket.MASKS))

MODELS = family(
    "ms_rcnn", ms_rcnn, MASKS, POCKET,
    row("ms-rcnn_r50_fpn_1x_coco", R50),
    row("ms-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE),
    row("ms-rcnn_r50-caffe_fpn_2x_coco", R50_CAFFE, SCHEDULE_2X),
    row("ms-rcnn_r101-caffe_fpn_1x_coco", R101_CAFFE),
    row("ms-rcnn_r101-caffe_fpn_2x_coco", R101_CAFFE, SCHEDULE_2X),
    row("ms-rcnn_x101-32x4d_fpn_1x_coco", X101_32X4D),
    row("ms-rcnn_x101-64x4d_fpn_1x_coco", X101_64X4D),
    row("ms-rcnn_x101-64x4d_fpn_2x_coco", X101_64X4D, SCHEDULE_2X),
)
