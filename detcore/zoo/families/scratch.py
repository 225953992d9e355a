"""Training from scratch: Faster and Mask R-CNN from random weights, with group normalisation."""
from functools import partial

from detcore.backbones.resnet import ResNet
from detcore.methods.group_norm import gn_faster_rcnn, gn_mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import CONVS, Pocket, training
from detcore.pocket.slim import SLIM_GN
from detcore.recipe import SGD, Schedule
from detcore.zoo.entries import Backbone, family, row
from detcore.zoo.recipes import BOXES, MASKS, change

R50_SCRATCH = Backbone("ResNet-50 + GN (from scratch)", "none",
                       partial(ResNet, 50, frozen_stages=-1, norm="gn"), slim=SLIM_GN, pocket_weights=False)

FROM_SCRATCH = change(epochs=73, schedule=Schedule((65, 71), 73), optimizer=SGD(norm_decay_mult=0))

# From random weights everything learns more slowly.
POCKET = Pocket(CONVS | dict(samples=48), training(220))
MASK_POCKET = Pocket(CONVS, training(120, **pocket.MASKS))

MODELS = [
    *family("scratch", gn_faster_rcnn, BOXES, POCKET,
            row("faster-rcnn_r50-scratch_fpn_gn-all_6x_coco", R50_SCRATCH, FROM_SCRATCH)),
    *family("scratch", gn_mask_rcnn, MASKS, MASK_POCKET,
            row("mask-rcnn_r50-scratch_fpn_gn-all_6x_coco", R50_SCRATCH, FROM_SCRATCH)),
]
