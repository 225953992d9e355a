"""Dynamic R-CNN."""
from detcore.methods.dynamic_rcnn import dynamic_rcnn
from detcore.pocket import profile as pocket
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES

MODELS = family("dynamic_rcnn", dynamic_rcnn, BOXES, pocket.FASTER_RCNN, row("dynamic-rcnn_r50_fpn_1x_coco", R50))
