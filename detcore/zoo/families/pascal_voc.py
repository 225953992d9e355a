"""PASCAL VOC: Faster R-CNN, RetinaNet and SSD."""
from detcore.data import voc
from detcore.data.transforms import Flip, Resize, ResizeChoice
from detcore.methods.faster_rcnn import faster_rcnn, faster_rcnn_single_map
from detcore.methods.retinanet import retinanet
from detcore.methods.ssd import SSD300_VOC, SSD512_VOC, ssd
from detcore.pocket import profile as pocket
from detcore.pocket.ssd import SSD
from detcore.recipe import SGD, Recipe, Schedule
from detcore.zoo.backbones.resnet import R50, R50_C4
from detcore.zoo.backbones.vgg import VGG16
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import change, ssd_recipe

VOC_4E = change(train_transforms=(Resize((1000, 600)), Flip()), test_transforms=(Resize((1000, 600)),),
                optimizer=SGD(lr=0.01), epochs=4, repeat=3, schedule=Schedule((3,), 4, warmup_iters=0), min_box=32)
VOC_18K = change(train_transforms=(ResizeChoice(tuple((1333, s) for s in range(480, 801, 32))), Flip()), epochs=None,
                 iterations=18_000, val_interval=3000,
                 schedule=Schedule((12_000, 16_000), 18_000, by_epoch=False, warmup_iters=100))


def ssd_voc(size: int) -> Recipe:
    return ssd_recipe(size, optimizer=SGD(lr=1e-3, weight_decay=5e-4), schedule=Schedule((16, 20), 24), epochs=24,
                      repeat=10, batch_size=64, batch_per_gpu=8, layout="voc")


MODELS = [
    *family("pascal_voc", faster_rcnn, Recipe(layout="voc"), pocket.FASTER_RCNN,
            row("faster-rcnn_r50_fpn_1x_voc0712", R50, VOC_4E),
            row("faster-rcnn_r50_fpn_1x_voc0712-cocofmt", R50, VOC_4E,
                change(layout="voc-coco", min_box=0, classes=voc.CLASSES)),
            num_classes=20),
    *family("pascal_voc", faster_rcnn_single_map, Recipe(layout="voc"), pocket.FASTER_RCNN_SINGLE_MAP,
            row("faster-rcnn_r50-caffe-c4_ms-18k_voc0712", R50_C4, VOC_18K), num_classes=20),
    *family("pascal_voc", retinanet, Recipe(layout="voc"), pocket.RETINANET,
            row("retinanet_r50_fpn_1x_voc0712", R50, VOC_4E), num_classes=20),
    *family("pascal_voc", ssd, ssd_voc(300), SSD, row("ssd300_voc0712", VGG16, layout=SSD300_VOC), num_classes=20),
    *family("pascal_voc", ssd, ssd_voc(512), SSD, row("ssd512_voc0712", VGG16, layout=SSD512_VOC), num_classes=20),
]
