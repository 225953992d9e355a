"""Weight standardisation: Faster and Mask R-CNN with it and group normalisation."""
from functools import partial
from typing import Any

from detcore.backbones.resnet import ResNet, resnext
from detcore.methods.weight_standardization import WSConv2d, ws_faster_rcnn, ws_mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import CONVS, Pocket, training
from detcore.pocket.slim import SLIM_WS
from detcore.recipe import Schedule
from detcore.zoo.entries import CONVERTED, Backbone, family, row
from detcore.zoo.recipes import BOXES, MASKS, SCHEDULE_2X, change

WS: dict[str, Any] = dict(norm="gn", conv=WSConv2d)
R50_WS = Backbone("ResNet-50 + GN + WS", "PyTorch",
                  partial(ResNet, 50, **WS), CONVERTED + "resnet50_gn_ws-15beedd8.pth", slim=SLIM_WS)
R101_WS = Backbone("ResNet-101 + GN + WS", "PyTorch",
                   partial(ResNet, 101, **WS), CONVERTED + "resnet101_gn_ws-3e3c308c.pth", slim=SLIM_WS)
X50_WS = Backbone("ResNeXt-50-32x4d + GN + WS", "PyTorch",
                  partial(resnext, 50, 32, 4, **WS), CONVERTED + "resnext50_32x4d_gn_ws-0d87ac85.pth", slim=SLIM_WS)
X101_WS = Backbone("ResNeXt-101-32x4d + GN + WS", "PyTorch",
                   partial(resnext, 101, 32, 4, **WS), CONVERTED + "resnext101_32x4d_gn_ws-34ac1a9e.pth", slim=SLIM_WS)

SCHEDULE_20_23_24E = change(epochs=24, schedule=Schedule((20, 23), 24))

POCKET = Pocket(CONVS, training(120, rate=1.5e-3))
MASK_POCKET = Pocket(CONVS, training(100, rate=1.5e-3, **pocket.MASKS))

MODELS = [
    *family(
        "gn+ws", ws_faster_rcnn, BOXES, POCKET,
        row("faster-rcnn_r50_fpn_gn-ws-all_1x_coco", R50_WS),
        row("faster-rcnn_r101_fpn_gn-ws-all_1x_coco", R101_WS),
        row("faster-rcnn_x50-32x4d_fpn_gn-ws-all_1x_coco", X50_WS),
        row("faster-rcnn_x101-32x4d_fpn_gn-ws-all_1x_coco", X101_WS),
    ),
    *family(
        "gn+ws", ws_mask_rcnn, MASKS, MASK_POCKET,
        row("mask-rcnn_r50_fpn_gn-ws-all_2x_coco", R50_WS, SCHEDULE_2X),
        row("mask-rcnn_r50_fpn_gn-ws-all_20-23-24e_coco", R50_WS, SCHEDULE_20_23_24E),
        row("mask-rcnn_r101_fpn_gn-ws-all_2x_coco", R101_WS, SCHEDULE_2X),
        row("mask-rcnn_r101_fpn_gn-ws-all_20-23-24e_coco", R101_WS, SCHEDULE_20_23_24E),
        row("mask-rcnn_x50-32x4d_fpn_gn-ws-all_2x_coco", X50_WS, SCHEDULE_2X),
        row("mask-rcnn_x50-32x4d_fpn_gn-ws-all_20-23-24e_coco", X50_WS, SCHEDULE_20_23_24E),
        row("mask-rcnn_x101-32x4d_fpn_gn-ws-all_2x_coco", X101_WS, SCHEDULE_2X),
        row("mask-rcnn_x101-32x4d_fpn_gn-ws-all_20-23-24e_coco", X101_WS, SCHEDULE_20_23_24E),
    ),
]
