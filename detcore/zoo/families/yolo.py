"""YOLOv3."""
from functools import partial
from typing import Any

from detcore.backbones.darknet import Darknet, leaky
from detcore.backbones.mobilenet import MobileNetV2
from detcore.data.augment import Expand, MinIoUCrop, PhotometricDistortion
from detcore.data.transforms import Flip, Resize, ResizeRange
from detcore.methods.yolov3 import COCO_ANCHORS_320, yolov3
from detcore.pocket.profile import Pocket, training
from detcore.pocket.slim import SLIM_DARKNET, SLIM_MOBILENET_LEAKY
from detcore.recipe import DARKNET, SGD, TORCHVISION, Recipe, Schedule
from detcore.zoo.entries import CONVERTED, Backbone, family, row
from detcore.zoo.recipes import Change, change

DARKNET53 = Backbone("Darknet-53", "Darknet", Darknet, CONVERTED + "darknet53-a628ea1b.pth", DARKNET, SLIM_DARKNET)
# YOLOv3's activation instead of the one that the weights were trained with.
MOBILENET_LEAKY = Backbone(
    "MobileNetV2", "PyTorch", partial(MobileNetV2, (2, 4, 6), act=leaky),
    "https://download.openmmlab.com/mmdetection/v2.0/third_party/mobilenet_v2_batch256_imagenet-ff34753d.pth",
    slim=SLIM_MOBILENET_LEAKY)

YOLO_SLIM: dict[str, Any] = dict(widths=(96, 96, 96), bridges=(96, 96, 96))
# Clusters of Pocket Zoo's boxes.
POCKET_ANCHORS = (((54, 35), (64, 55), (126, 117)), ((41, 24), (32, 44), (76, 19)), ((30, 15), (21, 29), (51, 13)))
POCKET = Pocket(dict(widths=(96, 64, 48), bridges=(128, 96, 64), anchors=POCKET_ANCHORS), training(230))


def yolo_train(size: int, largest: int | None = None, *, fill: tuple[float, float, float] = (0, 0, 0)) -> Change:
    """YOLO's augmentation, for images of `size` or up to `largest`, the size they are tested at."""
    scale, top = (size, size), (largest or size, largest or size)
    resize = ResizeRange(scale, top) if largest else Resize(scale)
    return change(train_transforms=(Expand(fill, (1, 2)), MinIoUCrop((0.4, 0.5, 0.6, 0.7, 0.8, 0.9)), resize, Flip(),
                                    PhotometricDistortion()), test_transforms=(Resize(top),))


MODELS = [
    *family("yolo", yolov3,
            Recipe(optimizer=SGD(lr=1e-3, weight_decay=5e-4), clip_norm=35.0, epochs=273, batch_size=64,
                   schedule=Schedule((218, 246), 273, warmup_iters=2000, warmup_factor=0.1), batch_per_gpu=8,
                   val_interval=7),
            POCKET,
            row("yolov3_d53_8xb8-320-273e_coco", DARKNET53, yolo_train(320)),
            row("yolov3_d53_8xb8-ms-416-273e_coco", DARKNET53, yolo_train(320, 416)),
            row("yolov3_d53_8xb8-ms-608-273e_coco", DARKNET53, yolo_train(320, 608)),
            row("yolov3_d53_8xb8-amp-ms-608-273e_coco", DARKNET53, yolo_train(320, 608), change(amp=True))),
    *family("yolo", yolov3,
            Recipe(optimizer=SGD(lr=3e-3, weight_decay=5e-4), clip_norm=35.0, epochs=30, repeat=10, batch_size=192,
                   schedule=Schedule((24, 28), 30, warmup_iters=4000, warmup_factor=1e-4), batch_per_gpu=24),
            POCKET,
            row("yolov3_mobilenetv2_8xb24-320-300e_coco", MOBILENET_LEAKY, yolo_train(320, fill=TORCHVISION.mean),
                anchors=COCO_ANCHORS_320, **YOLO_SLIM),
            row("yolov3_mobilenetv2_8xb24-ms-416-300e_coco", MOBILENET_LEAKY,
                yolo_train(320, 416, fill=TORCHVISION.mean), **YOLO_SLIM)),
]
