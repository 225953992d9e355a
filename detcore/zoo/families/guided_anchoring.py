"""Guided anchoring: in RPN, Fast and Faster R-CNN and RetinaNet."""
from dataclasses import replace
from typing import Any

from detcore.backbones.resnet import ResNet
from detcore.data.transforms import Flip, ResizeRange
from detcore.detectors import OneStageDetector
from detcore.methods.guided_anchoring import ga_fast_rcnn, ga_faster_rcnn, ga_retinanet, ga_rpn
from detcore.options import forwards
from detcore.pocket import profile as pocket
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.recipe import SGD, TORCHVISION, Recipe, Schedule
from detcore.zoo.backbones.resnet import R50, R50_CAFFE, R101_CAFFE, X101
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import change

CLIPPED_BOXES = Recipe(clip_norm=35.0)
BACKBONES = (R50, R50_CAFFE, R101_CAFFE, *X101)

# Feature adaption is one layer more; with two before it, learning starts late.
RETINA_POCKET = Pocket(dict(width=48, depth=1, anchor_scale=4), training(350))


@forwards(ga_rpn)
def any_class_ga_rpn(backbone: ResNet, num_classes: int, **options: Any) -> OneStageDetector:
    """The proposal network, which tells objects from background however many classes the data has."""
    return ga_rpn(backbone, **options)


MODELS = [
    *family("guided_anchoring", any_class_ga_rpn, replace(CLIPPED_BOXES, metric=("proposal",)), pocket.RPN,
            row("ga-rpn_{}_fpn_1x_coco", BACKBONES), num_classes=1),
    # As published: caffe-style weights, yet torchvision's normalisation.
    *family("guided_anchoring", ga_fast_rcnn, Recipe(max_proposals=2000), pocket.FAST_RCNN,
            row("ga-fast-rcnn_r50-caffe_fpn_1x_coco", R50_CAFFE, change(preprocess=TORCHVISION))),
    *family("guided_anchoring", ga_faster_rcnn, CLIPPED_BOXES, Pocket(TWO_STAGE, training(140)),
            row("ga-faster-rcnn_{}_fpn_1x_coco", BACKBONES)),
    *family("guided_anchoring", ga_retinanet, replace(CLIPPED_BOXES, optimizer=SGD(lr=0.01)), RETINA_POCKET,
            row("ga-retinanet_{}_fpn_1x_coco", BACKBONES),
            row("ga-retinanet_r101-caffe_fpn_ms-2x", R101_CAFFE,
                change(train_transforms=(ResizeRange((1333, 480), (1333, 960)), Flip()), epochs=24,
                       schedule=Schedule((16, 22), 24, warmup_factor=1 / 3)))),
]
