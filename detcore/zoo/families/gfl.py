"""Generalized Focal Loss."""
from detcore.data.transforms import Flip, ResizeRange
from detcore.methods.gfl import gfl
from detcore.pocket.profile import Pocket, training
from detcore.recipe import SGD, Recipe
from detcore.zoo.backbones.deformable import deformed
from detcore.zoo.backbones.resnet import R50, R101, X101_32X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import SCHEDULE_2X, change

R101_DCN, X101_DCN_C4 = deformed(R101), deformed(X101_32X4D, stages=(2, 3))
MULTI_SCALE = change(train_transforms=(ResizeRange((1333, 480), (1333, 800)), Flip()))

MODELS = family("gfl", gfl, Recipe(optimizer=SGD(lr=0.01)),
                Pocket(dict(width=48, depth=2, anchor_scale=4), training(250)),
                row("gfl_r50_fpn_1x_coco", R50),
                row("gfl_{}_fpn_ms-2x_coco", (R50, R101, X101_32X4D), SCHEDULE_2X, MULTI_SCALE),
                row("gfl_r101-dconv-c3-c5_fpn_ms-2x_coco", R101_DCN, SCHEDULE_2X, MULTI_SCALE),
                row("gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco", X101_DCN_C4, SCHEDULE_2X, MULTI_SCALE))
