"""Open Images: Faster R-CNN, RetinaNet and SSD on it and on its challenge of 2019."""
from detcore.data.sampling import ClassAware
from detcore.data.transforms import Flip, Resize
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.retinanet import retinanet
from detcore.methods.ssd import SSD300_VOC, ssd
from detcore.pocket import profile as pocket
from detcore.pocket.ssd import SSD
from detcore.recipe import SGD, Schedule
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.backbones.vgg import VGG16
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, change, ssd_recipe

OPEN_IMAGES_1X = change(
    train_transforms=(Resize((1024, 800)), Flip()), test_transforms=(Resize((1024, 800)),), optimizer=SGD(lr=0.08),
    schedule=Schedule(warmup_iters=26_000, warmup_factor=1 / 64), batch_size=64, clip_norm=35.0,
    layout="openimages", filter_empty=False, min_size=0)
CHALLENGE_1X = (OPEN_IMAGES_1X, change(layout="openimages-challenge"))
CLASS_AWARE = change(sampling=ClassAware())

MODELS = [
    *family("openimages", faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("faster-rcnn_r50_fpn_32xb2-1x_openimages", R50, OPEN_IMAGES_1X),
            row("faster-rcnn_r50_fpn_32xb2-cas-1x_openimages", R50, OPEN_IMAGES_1X, CLASS_AWARE),
            row("faster-rcnn_r50_fpn_32xb2-1x_openimages-challenge", R50, *CHALLENGE_1X, num_classes=500),
            row("faster-rcnn_r50_fpn_32xb2-cas-1x_openimages-challenge", R50, *CHALLENGE_1X, CLASS_AWARE,
                num_classes=500),
            num_classes=601),
    *family("openimages", retinanet, BOXES, pocket.RETINANET,
            row("retinanet_r50_fpn_32xb2-1x_openimages", R50, OPEN_IMAGES_1X), num_classes=601),
    *family("openimages", ssd,
            ssd_recipe(300, colours_first=True, optimizer=SGD(lr=0.04, weight_decay=5e-4), repeat=3, batch_size=256,
                       batch_per_gpu=8, schedule=Schedule(warmup_iters=20_000), layout="openimages",
                       filter_empty=False, min_size=0),
            SSD, row("ssd300_32xb8-36e_openimages", VGG16, layout=SSD300_VOC), num_classes=601),
]
