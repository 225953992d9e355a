"""Fast R-CNN, on precomputed proposals."""
from detcore.methods.fast_rcnn import fast_rcnn
from detcore.pocket import profile as pocket
from detcore.recipe import Recipe
from detcore.zoo.backbones.resnet import R50, R50_CAFFE, R101, R101_CAFFE
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import SCHEDULE_2X

MODELS = family("fast_rcnn", fast_rcnn, Recipe(max_proposals=2000), pocket.FAST_RCNN,
                row("fast-rcnn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE)),
                row("fast-rcnn_{}_fpn_2x_coco", (R50, R101), SCHEDULE_2X))
