"""Panoptic FPN."""
from dataclasses import replace

from detcore.data.transforms import Flip, ResizeRange
from detcore.methods.panoptic_fpn import panoptic_fpn
from detcore.pocket.names import STUFF
from detcore.pocket.profile import PANOPTIC, TWO_STAGE, Pocket, training
from detcore.recipe import Schedule
from detcore.zoo.backbones.resnet import R50, R101
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, change

PANOPTIC_FPN_3X = change(train_transforms=(ResizeRange((1333, 640), (1333, 800)), Flip()), epochs=36,
                         schedule=Schedule((24, 33), 36), val_interval=3)

# After so short a training right answers often score less than the published 0.6.
POCKET = Pocket(TWO_STAGE | dict(stuff=len(STUFF), stuff_area=64, semantic_channels=32, score_threshold=0.3),
                training(100, **PANOPTIC))

MODELS = family("panoptic_fpn", panoptic_fpn, replace(MASKS, metric=("bbox", "segm", "panoptic")), POCKET,
                row("panoptic-fpn_{}_fpn_1x_coco", (R50, R101)),
                row("panoptic-fpn_{}_fpn_ms-3x_coco", (R50, R101), PANOPTIC_FPN_3X))
