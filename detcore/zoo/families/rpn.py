"""RPN: region proposal networks, whose proposals Fast R-CNN can train on."""
from typing import Any

from detcore.backbones.resnet import ResNet
from detcore.detectors import OneStageDetector
from detcore.methods.rpn import rpn
from detcore.options import forwards
from detcore.pocket import profile as pocket
from detcore.recipe import Recipe
from detcore.zoo.backbones.resnet import R50, R50_C4, R50_CAFFE, R101, R101_CAFFE, X101
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import SCHEDULE_2X


@forwards(rpn)
def any_class_rpn(backbone: ResNet, num_classes: int, **options: Any) -> OneStageDetector:
    """The proposal network, which tells objects from background however many classes the data has."""
    return rpn(backbone, **options)


MODELS = family(
    "rpn", any_class_rpn, Recipe(metric=("proposal",)), pocket.RPN,
    row("rpn_{}_fpn_1x_coco", (R50, R50_CAFFE, R101, R101_CAFFE, *X101)),
    row("rpn_{}_fpn_2x_coco", (R50, R101, *X101), SCHEDULE_2X),
    row("rpn_r50-caffe-c4_1x_coco", R50_C4, neck=None, pre_nms_top_n=12000, max_detections=2000),
    num_classes=1)
