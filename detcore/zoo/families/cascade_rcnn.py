"""Cascade R-CNN and Cascade Mask R-CNN."""
from detcore.methods.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from detcore.pocket import profile as pocket
from detcore.zoo.backbones.resnet import R18, R50, R50_CAFFE, R101, R101_CAFFE, X101_32X4D, X101_32X8D, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, LSJ_200E, MASKS, MULTI_SCALE_3X, SCHEDULE_20E

BOX_MODELS = family(
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

MASK_MODELS = family(
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

MODELS = BOX_MODELS + MASK_MODELS
