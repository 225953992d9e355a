"""Cityscapes: Faster and Mask R-CNN."""
from detcore.data.transforms import Flip, Resize, ResizeRange
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.ops.losses import SmoothL1
from detcore.pocket import profile as pocket
from detcore.recipe import SGD, Schedule
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, MASKS, change

CITYSCAPES_8E = change(train_transforms=(ResizeRange((2048, 800), (2048, 1024)), Flip()),
                       test_transforms=(Resize((2048, 1024)),), optimizer=SGD(lr=0.01), epochs=8, repeat=8,
                       schedule=Schedule((7,), 8), batch_per_gpu=1, layout="cityscapes")

MODELS = [
    *family("cityscapes", faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("faster-rcnn_r50_fpn_1x_cityscapes", R50, CITYSCAPES_8E, num_classes=8, box_loss=SmoothL1())),
    *family("cityscapes", mask_rcnn, MASKS, pocket.MASK_RCNN,
            row("mask-rcnn_r50_fpn_1x_cityscapes", R50, CITYSCAPES_8E, num_classes=8, box_loss=SmoothL1())),
]
