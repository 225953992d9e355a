"""Weight standardisation: Faster and Mask R-CNN with it and group normalisation."""
from collections.abc import Callable
from functools import partial

from detcore.backbones.resnet import ResNet, resnext
from detcore.methods.weight_standardization import WSConv2d, ws_faster_rcnn, ws_mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import CONVS, Pocket, training
from detcore.pocket.slim import SLIM_WS
from detcore.recipe import Schedule
from detcore.zoo.entries import CONVERTED, Backbone, family, row
from detcore.zoo.recipes import BOXES, MASKS, SCHEDULE_2X, change


def standardized(name: str, label: str, build: Callable[..., ResNet], file: str) -> Backbone:
    """A ResNet or ResNeXt with group normalisation and standardised weights."""
    return Backbone(f"{name} + GN + WS", "PyTorch", partial(build, norm="gn", conv=WSConv2d),
                    f"{CONVERTED}{file}.pth", slim=SLIM_WS, label=label)


BACKBONES = (
    standardized("ResNet-50", "r50", partial(ResNet, 50), "resnet50_gn_ws-15beedd8"),
    standardized("ResNet-101", "r101", partial(ResNet, 101), "resnet101_gn_ws-3e3c308c"),
    standardized("ResNeXt-50-32x4d", "x50-32x4d", partial(resnext, 50, 32, 4), "resnext50_32x4d_gn_ws-0d87ac85"),
    standardized("ResNeXt-101-32x4d", "x101-32x4d", partial(resnext, 101, 32, 4), "resnext101_32x4d_gn_ws-34ac1a9e"))

SCHEDULE_20_23_24E = change(epochs=24, schedule=Schedule((20, 23), 24))

MODELS = [
    *family("gn+ws", ws_faster_rcnn, BOXES, Pocket(CONVS, training(120, rate=1.5e-3)),
            row("faster-rcnn_{}_fpn_gn-ws-all_1x_coco", BACKBONES)),
    *family("gn+ws", ws_mask_rcnn, MASKS, Pocket(CONVS, training(100, rate=1.5e-3, **pocket.MASKS)),
            row("mask-rcnn_{}_fpn_gn-ws-all_2x_coco", BACKBONES, SCHEDULE_2X),
            row("mask-rcnn_{}_fpn_gn-ws-all_20-23-24e_coco", BACKBONES, SCHEDULE_20_23_24E)),
]
