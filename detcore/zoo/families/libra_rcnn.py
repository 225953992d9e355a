"""Libra R-CNN: balanced sampling, features and loss in Fast and Faster R-CNN and RetinaNet."""
from detcore.methods.libra_rcnn import libra_fast_rcnn, libra_faster_rcnn, libra_retinanet
from detcore.pocket import profile as pocket
from detcore.recipe import SGD, Recipe
from detcore.zoo.backbones.resnet import R50, R101, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES

MODELS = [
    *family("libra_rcnn", libra_fast_rcnn, Recipe(max_proposals=2000), pocket.FAST_RCNN,
            row("libra-fast-rcnn_r50_fpn_1x_coco", R50)),
    *family("libra_rcnn", libra_faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("libra-faster-rcnn_{}_fpn_1x_coco", (R50, R101, X101_64X4D))),
    *family("libra_rcnn", libra_retinanet, Recipe(optimizer=SGD(lr=0.01)), pocket.RETINANET,
            row("libra-retinanet_r50_fpn_1x_coco", R50)),
]
