"""WIDER FACE: RetinaNet and SSD."""
from detcore.data.transforms import Flip, Resize
from detcore.methods.retinanet import retinanet
from detcore.methods.ssd import ssd
from detcore.pocket import profile as pocket
from detcore.pocket.ssd import SSD
from detcore.recipe import SGD, Recipe, Schedule
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.backbones.vgg import VGG16
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import change, ssd_recipe

MODELS = [
    *family("wider_face", retinanet, Recipe(optimizer=SGD(lr=0.01), layout="wider_face", min_box=17), pocket.RETINANET,
            row("retinanet_r50_fpn_1x_widerface", R50,
                change(train_transforms=(Resize((640, 640)), Flip()), test_transforms=(Resize((640, 640)),))),
            num_classes=1),
    *family("wider_face", ssd,
            ssd_recipe(300, colours_first=True, optimizer=SGD(lr=0.012, weight_decay=5e-4), clip_norm=35.0,
                       schedule=Schedule((16, 20), 24, warmup_iters=1000), epochs=24, batch_size=256,
                       batch_per_gpu=32, layout="wider_face", min_box=17),
            SSD, row("ssd300_8xb32-24e_widerface", VGG16), num_classes=1),
]
