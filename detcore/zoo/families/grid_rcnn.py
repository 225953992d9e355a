"""Grid R-CNN."""
from detcore.methods.grid_rcnn import grid_rcnn
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.recipe import Schedule
from detcore.zoo.backbones.resnet import R50, R101, X101
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, change

GRID_25E = change(epochs=25, schedule=Schedule((17, 23), 25, warmup_iters=3665, warmup_factor=1 / 80))

POCKET = Pocket(TWO_STAGE | dict(grid_convs=2, grid_channels=8, most_regions=128), training(150))

MODELS = family("grid_rcnn", grid_rcnn, BOXES, POCKET,
                row("grid-rcnn_r50_fpn_gn-head_1x_coco", R50, change(schedule=Schedule(warmup_factor=1e-4))),
                row("grid-rcnn_{}_fpn_gn-head_2x_coco", (R50, R101, *X101), GRID_25E))
