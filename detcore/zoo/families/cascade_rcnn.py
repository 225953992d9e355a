"""Cascade R-CNN and Cascade Mask R-CNN."""
from detcore.methods.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from detcore.pocket import profile as pocket
from detcore.zoo.backbones.resnet import R18, R50, R50_CAFFE, R101, R101_CAFFE, X101, X101_32X4D, X101_32X8D, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, LSJ_200E, MASKS, MULTI_SCALE_3X, SCHEDULE_20E

MODELS = [
    *family("cascade_rcnn", cascade_rcnn, BOXES, pocket.CASCADE_RCNN,
            row("cascade-rcnn_{}_fpn_8xb8-amp-lsj-200e_coco", (R18, R50, R101), LSJ_200E, border=-1),
            row("cascade-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101)),
            row("cascade-rcnn_{}_fpn_20e_coco", (R50, R101, X101_32X4D), SCHEDULE_20E),
            row("cascade-rcnn_x101_64x4d_fpn_20e_coco", X101_64X4D, SCHEDULE_20E)),
    *family("cascade_rcnn", cascade_mask_rcnn, MASKS, pocket.CASCADE_MASK_RCNN,
            row("cascade-mask-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101)),
            row("cascade-mask-rcnn_{}_fpn_20e_coco", (R50, R101, *X101), SCHEDULE_20E),
            row("cascade-mask-rcnn_{}_fpn_ms-3x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101, X101_32X8D),
                MULTI_SCALE_3X)),
]
