"""RegNet: RegNetX as the backbone of two-stage models and RetinaNet."""
from dataclasses import replace
from functools import partial

from detcore.backbones.regnet import RegNet
from detcore.methods.cascade_rcnn import cascade_mask_rcnn
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.methods.retinanet import retinanet
from detcore.pocket import profile as pocket
from detcore.pocket.slim import SLIM_REGNET
from detcore.recipe import PYCLS, SGD, TORCHVISION, Recipe
from detcore.zoo.backbones.deformable import deformed
from detcore.zoo.entries import CONVERTED, Backbone, family, row
from detcore.zoo.recipes import (
    CLIPPED,
    MASKS,
    MULTI_SCALE,
    MULTI_SCALE_3X,
    POLYGONS,
    SCHEDULE_2X,
    SCHEDULE_3X,
    change,
)


def regnet(design: str, digest: str) -> Backbone:
    """A RegNetX, with the weights of its authors, converted."""
    file = "regnetx_" + {"4GF": "4.0gf", "8GF": "8.0gf"}.get(design, design.lower())
    return Backbone(f"RegNetX-{design}", "Pycls", partial(RegNet, design), f"{CONVERTED}{file}-{digest}.pth", PYCLS,
                    SLIM_REGNET, label=f"regnetx-{design}")


X400M, X800M = regnet("400MF", "a5b10d96"), regnet("800MF", "1f4be4c7")
X1_6G, X3_2G = regnet("1.6GF", "5791c176"), regnet("3.2GF", "c2599b0f")
X4G, X6_4G = regnet("4GF", "a88f671e"), regnet("6.4GF", "006af45d")
X8G, X12G = regnet("8GF", "3c68abe7"), regnet("12GF", "4c2a3350")

REGNET_SGD = SGD(weight_decay=5e-5)
REGNET_MASKS = replace(MASKS, optimizer=REGNET_SGD)
# As published: trained with torchvision's normalisation, unlike the backbone.
MULTI_SCALE_POLY_3X = (MULTI_SCALE_3X, POLYGONS, CLIPPED, change(preprocess=TORCHVISION))

MODELS = [
    *family("regnet", faster_rcnn, Recipe(optimizer=REGNET_SGD), pocket.FASTER_RCNN,
            row("faster-rcnn_{}_fpn_ms-3x_coco", (X400M, X800M, X1_6G, X3_2G, X4G), MULTI_SCALE_3X),
            row("faster-rcnn_{}_fpn_1x_coco", X3_2G),
            row("faster-rcnn_{}_fpn_2x_coco", X3_2G, SCHEDULE_2X)),
    *family("regnet", mask_rcnn, REGNET_MASKS, pocket.MASK_RCNN,
            row("mask-rcnn_{}_fpn_ms-poly-3x_coco", (X400M, X800M, X1_6G, X4G), *MULTI_SCALE_POLY_3X),
            row("mask-rcnn_{}_fpn_1x_coco", (X3_2G, X4G, X6_4G, X8G, X12G)),
            row("mask-rcnn_{}_fpn_ms-3x_coco", X3_2G, MULTI_SCALE, SCHEDULE_3X, CLIPPED),
            row("mask-rcnn_{}-mdconv-c3-c5_fpn_1x_coco", deformed(X3_2G, modulated=True))),
    *family("regnet", cascade_mask_rcnn, REGNET_MASKS, pocket.CASCADE_MASK_RCNN,
            row("cascade-mask-rcnn_{}_fpn_ms-3x_coco", (X400M, X800M, X1_6G, X3_2G, X4G), MULTI_SCALE_3X)),
    *family("regnet", retinanet, Recipe(optimizer=REGNET_SGD), pocket.RETINANET,
            row("retinanet_{}_fpn_1x_coco", (X800M, X1_6G, X3_2G), CLIPPED)),
]
