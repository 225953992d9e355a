"""Mask Scoring R-CNN."""
from detcore.methods.ms_rcnn import ms_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.zoo.backbones.resnet import R50, R50_CAFFE, R101_CAFFE, X101, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, SCHEDULE_2X

MODELS = family("ms_rcnn", ms_rcnn, MASKS, Pocket(TWO_STAGE, training(100, **pocket.MASKS)),
                row("ms-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101_CAFFE, *X101)),
                row("ms-rcnn_{}_fpn_2x_coco", (R50_CAFFE, R101_CAFFE, X101_64X4D), SCHEDULE_2X))
