"""FreeAnchor."""
from detcore.methods.free_anchor import free_anchor
from detcore.pocket.profile import Pocket, training
from detcore.recipe import SGD, Recipe
from detcore.zoo.backbones.resnet import R50, R101, X101_32X4D
from detcore.zoo.entries import family, row

MODELS = family("free_anchor", free_anchor, Recipe(optimizer=SGD(lr=0.01), clip_norm=35.0),
                Pocket(dict(width=48, depth=2, anchor_scale=2), training(250)),
                row("freeanchor_{}_fpn_1x_coco", (R50, R101, X101_32X4D)))
