"""SSD and SSDLite."""
from dataclasses import replace

from detcore.backbones.mobilenet import MobileNetV2
from detcore.methods.ssd import SSD512, ssd, ssdlite
from detcore.pocket.profile import Pocket, training
from detcore.pocket.slim import SLIM_MOBILENET
from detcore.pocket.ssd import LAYOUT, SSD
from detcore.recipe import SGD, TORCHVISION, Recipe, Schedule
from detcore.zoo.backbones.vgg import VGG16
from detcore.zoo.entries import Backbone, family, row
from detcore.zoo.recipes import ssd_recipe

MOBILENET_SCRATCH = Backbone("MobileNetV2 (from scratch)", "none", MobileNetV2, None, replace(TORCHVISION, pad_to=1),
                             SLIM_MOBILENET)


def ssd_coco(size: int) -> Recipe:
    return ssd_recipe(size, optimizer=SGD(lr=2e-3, weight_decay=5e-4), schedule=Schedule((16, 22), 24), epochs=24,
                      repeat=5, batch_size=64, batch_per_gpu=8)


MODELS = [
    *family("ssd", ssd, ssd_coco(300), SSD, row("ssd300_coco", VGG16)),
    *family("ssd", ssd, ssd_coco(512), SSD, row("ssd512_coco", VGG16, layout=SSD512)),
    *family("ssd", ssdlite,
            ssd_recipe(320, optimizer=SGD(lr=0.015, weight_decay=4e-5), schedule=Schedule((), 120, cosine=True),
                       epochs=120, repeat=5, batch_size=192, batch_per_gpu=24, val_interval=5),
            Pocket(dict(layout=LAYOUT), training(200)),
            row("ssdlite_mobilenetv2-scratch_8xb24-600e_coco", MOBILENET_SCRATCH)),
]
